"""Miniatures of the published sets: the real file names, folders and label formats, with made-up tiny pictures.

Each function writes one set into a folder and returns the records a reader should find there, in order, with ratings as
published. `LAYOUTS` lists them by name of the set.
"""

import io
from pathlib import Path

import numpy as np
import openpyxl
import scipy.io
from PIL import Image

from qualiclip_jax.data.builders import artificial
from qualiclip_jax.data.builders.image_set import Record

_SHADES = iter(range(10**9))


def picture(path: Path) -> None:
    """A tiny picture unlike all the others, in the format its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shade = next(_SHADES)
    colour = (shade * 37 % 251, shade * 11 % 241, shade * 7 % 239)
    Image.new("RGB", (9, 7), colour).save(path)


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def workbook(path: Path, *rows: tuple, sheet: str | None = None) -> None:
    book = openpyxl.Workbook()
    if sheet:  # the sheet that counts is not the first
        book.active.append(("something", "else"))
        book.create_sheet(sheet)
    for row in rows:
        book.worksheets[-1].append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)


def cells(names: list[str]) -> np.ndarray:
    """A MATLAB cell array of strings."""
    array = np.empty((len(names), 1), object)
    array[:, 0] = names
    return array


def matlab(path: Path, **variables: np.ndarray) -> None:
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, variables)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


def kadis700k(root: Path) -> list[Record]:
    records = [Record(f"ref_imgs/photo-{n}_640.png") for n in (30, 10, 20)]
    for record in records:
        picture(root / "kadis700k" / record.image)
    text(root / "kadis700k/kadis700k_ref_imgs.csv", "ref_im,dist_type_1", *(f"{r.image[9:]},7" for r in records))
    return records


def koniq10k(root: Path) -> list[Record]:
    rows = [("10004473376", 77.38, "training"), ("992920521", 21.25, "validation"), ("826373", 63.5, "test")]
    head = "image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,set"
    lines = [f"{name}.jpg,0.0,0.0,0.25,0.7,0.05,105,{mos},0.53,{part}" for name, mos, part in rows]
    text(root / "koniq10k_distributions_sets.csv", head, *lines)
    head = "image_name,c1,c2,c3,c4,c5,c_total,MOS,SD,MOS_zscore"
    text(root / "scores/koniq10k_scores_and_distributions.csv", head, *(f"{r[0]}.jpg,0,0,0,0,9,9,3,1,1" for r in rows))
    for name, _, _ in rows:
        picture(root / "1024x768" / f"{name}.jpg")
        picture(root / "512x384" / f"{name}.jpg")
    splits = {"training": "train"}
    return [Record(f"1024x768/{name}.jpg", mos, split=splits.get(part, part)) for name, mos, part in rows]


def clive(root: Path) -> list[Record]:
    names = [f"t{n}.bmp" for n in range(1, 8)] + ["3.bmp", "1024.JPG", "500.bmp"]
    mos, std = np.linspace(20, 80, 10)[None], np.linspace(15, 24, 10)[None]
    top = root / "ChallengeDB_release"
    matlab(top / "Data/AllImages_release.mat", AllImages_release=cells(names))
    matlab(top / "Data/AllMOS_release.mat", AllMOS_release=mos)
    matlab(top / "Data/AllStdDev_release.mat", AllStdDev_release=std)
    for name in names:
        picture(top / "Images" / ("trainingImages" if name.startswith("t") else "") / name)
    return [Record(f"Images/{names[n]}", mos[0, n], std[0, n]) for n in range(7, 10)]


def flive(root: Path) -> list[Record]:
    records = [
        Record("blur_dataset/motion0044.jpg", 75.443, split="train"),
        Record("voc_emotic_ava/AVA__129332.jpg", 58.65, split="test"),
        Record("voc_emotic_ava/VOC2012__2008_000497.jpg", 70.5, split="validation"),
        Record("EE371R/cj23478+019.jpg", 0.0, split="train"),
    ]
    text(root / "labels_image.csv", "name,mos", *(f"{r.image},{r.mos}" for r in records))
    text(root / "labels640.csv", "name_image,mos_image", f"{records[1].image},58.65")
    valid = [f"{r.image},{r is records[2]}" for r in records if r is not records[1]]
    text(root / "labels=640_padded.csv", "name_image,is_valid", *valid)
    for record in records:
        picture(root / "database" / record.image)
    return records


def spaq(root: Path) -> list[Record]:
    records = [Record("00001.jpg", 38), Record("00002.jpg", 60.5), Record("11125.jpg", 71.25)]
    rows = [(r.image, r.mos, 50, 50, 50, 50, 50) for r in records]
    head = ("Image name", "MOS", "Brightness", "Colorfulness", "Contrast", "Noisiness", "Sharpness")
    workbook(root / "Annotations/MOS and Image attribute scores.xlsx", head, *rows)
    for record in records:
        picture(root / "TestImage" / record.image)
    return records


def uhd_iqa(root: Path) -> list[Record]:
    rows = [("12.jpg", 0.51, "training"), ("7.jpg", 0.25, "validation"), ("1.jpg", 0.75, "test")]
    head = "image_name,quality_mos,set,subset,orig_width"
    text(root / "uhd-iqa-metadata.csv", head, *(f"{n},{m},{s},,6000" for n, m, s in rows))
    for name, _, part in rows:
        picture(root / "UHD-IQA-database" / part / name)
    splits = {"training": "train"}
    return [Record(name, mos, split=splits.get(part, part)) for name, mos, part in rows]


def kadid10k(root: Path) -> list[Record]:
    lines, records = [], []
    for reference, kind, level, mos, variance in ((1, 1, 1, 4.57, 0.49), (1, 25, 5, 2.3, 0.25), (81, 9, 3, 3.1, 1.0)):
        name, original = f"I{reference:02d}_{kind:02d}_{level:02d}.png", f"I{reference:02d}.png"
        lines.append(f"{name},{original},{mos},{variance}")
        kinds = {1: "gaussian_blur", 25: "contrast_change", 9: "jpeg2000"}
        records.append(Record(name, mos, variance**0.5, kinds[kind], level, original))
        picture(root / "kadid10k/images" / name)
        picture(root / "kadid10k/images" / original)
    text(root / "kadid10k/dmos.csv", "dist_img,ref_img,dmos,var", *lines)
    return records


def tid2013(root: Path) -> list[Record]:
    rows = [("I01_01_1.bmp", 5.51429, 0.13013), ("I01_24_5.bmp", 2.5, 0.2), ("i25_08_3.bmp", 4.25, 0.125)]
    top = root / "tid2013"
    text(top / "mos_with_names.txt", *(f"{mos} {name}" for name, mos, _ in rows))
    text(top / "mos_std.txt", *(f"{std}" for _, _, std in rows))
    picture(top / "distorted_images/i01_01_1.bmp")  # names in the label file and on the disk differ in case
    picture(top / "distorted_images/I01_24_5.bmp")
    picture(top / "distorted_images/I25_08_3.BMP")
    picture(top / "reference_images/I01.BMP")
    kinds = ("additive_gaussian_noise", "sparse_sampling_and_reconstruction", "gaussian_blur")
    levels, originals = (1, 5, 3), ("I01.BMP", "I01.BMP", "I25.BMP")
    return [Record(n, m, s, k, lv, o) for (n, m, s), k, lv, o in zip(rows, kinds, levels, originals)]


LIVE_FOLDERS = {  # two or three images where the real set has 174 to 233
    folder: (distortion, 3 if folder == "wn" else 2) for folder, (distortion, _) in artificial.LIVE_FOLDERS.items()
}


def live(root: Path, realigned: bool = True) -> list[Record]:
    top = root / "databaserelease2"
    places = [(f, d, n) for f, (d, count) in LIVE_FOLDERS.items() for n in range(1, count + 1)]
    total = len(places)
    dmos, std = np.linspace(-1, 101, total), np.linspace(3, 9, total)
    originals = np.zeros(total)
    originals[[1, 4]] = 1
    references = [f"photo{n % 3}.bmp" for n in range(total)]
    matlab(top / "dmos.mat", dmos=50 + dmos[None] / 4, orgs=originals[None])
    if realigned:
        matlab(top / "dmos_realigned.mat", dmos_new=dmos[None], dmos_std=std[None], orgs=originals[None])
    matlab(top / "refnames_all.mat", refnames_all=cells(references).T)
    records = []
    for n, (folder, distortion, number) in enumerate(places):
        picture(top / folder / f"img{number}.bmp")
        rating, deviation = (dmos[n], std[n]) if realigned else (50 + dmos[n] / 4, None)
        if not originals[n]:
            image = f"{folder}/img{number}.bmp"
            records.append(Record(image, rating, deviation, distortion, reference=references[n]))
    picture(top / "refimgs/photo0.bmp")
    return records


def csiq(root: Path) -> list[Record]:
    rows = [  # image, dst_idx, dst_type, dst_lev, dmos_std, dmos; the sheet begins in column D, row 4
        (1600, 1, "noise", 1, 0.061, 0.062),
        ("boston", 4, "jpeg 2000", 5, 0.1, 0.875),
        ("trolley", 6, "contrast", 2, 0.05, 0.25),
    ]
    head = (None, None, None, "image", "dst_idx", "dst_type", "dst_lev", "dmos_std", "dmos")
    table = [(None, "CSIQ"), (), (), head, *((None, None, None, *row) for row in rows)]
    workbook(root / "csiq.DMOS.xlsx", *table, sheet="all_by_image")
    names = ("awgn/1600.AWGN.1.png", "jpeg2000/boston.jpeg2000.5.png", "contrast/trolley.contrast.2.png")
    for name in names:
        picture(root / "dst_imgs" / name)
    kinds = ("white_noise", "jpeg2000", "contrast_change")
    return [
        Record(name.partition("/")[2], row[5], row[4], kind, row[3], f"{row[0]}.png")
        for name, kind, row in zip(names, kinds, rows)
    ]


def pipal(root: Path) -> list[Record]:
    records = []
    for part, reference in (("Distortion_1", "A0001"), ("Distortion_4", "A0185")):
        rows = [(f"{reference}_{kind}_{n}.bmp", 1400.5 + 7 * n, kind) for n, kind in ((10, "00"), (11, "06"))]
        text(root / "MOS_Scores_train" / f"{reference}.txt", *(f"{name},{elo}" for name, elo, _ in rows))
        for name, elo, kind in rows:
            picture(root / part / name)
            records.append(Record(name, elo, None, f"class_{kind}", None, f"{reference}.bmp", "train"))
    return records


CIDIQ_REFERENCES = 2  # where the real set has 23


def cidiq(root: Path, distance: int = 50) -> list[Record]:
    folders = ("1_JPEG2000_Compression", "2_JPEG_Compression", "3_Poisson_Noise", "4_Gaussian_Blur",
               "5_SGCK_Gamut_Mapping", "6_DeltaE_Gamut_Mapping")  # fmt: skip
    kinds = ("jpeg2000", "jpeg", "poisson_noise", "gaussian_blur", "sgck_gamut_mapping", "delta_e_gamut_mapping")
    records = []
    for d, (folder, kind) in enumerate(zip(folders, kinds), 1):
        for reference in range(1, CIDIQ_REFERENCES + 1):
            for level in range(1, 6):
                name = f"final{reference:02d}_d{d}_l{level}.bmp"
                picture(root / "Images/Reproduction" / folder / name)
                mos = 9 - level - d / 10 - reference / 100
                records.append(Record(name, mos, None, kind, level, f"final{reference:02d}.bmp"))
    picture(root / "Images/Original/final01.bmp")
    ratings = np.array([[record.mos] for record in records])
    matlab(root / "MOS50.mat", MOS50=ratings if distance == 50 else ratings / 2)
    matlab(root / "MOS100.mat", MOS100=ratings if distance == 100 else ratings / 2)
    return records


def cidiq100(root: Path) -> list[Record]:
    return cidiq(root, distance=100)


def agiqa1k(root: Path) -> list[Record]:
    records = [
        Record("deepai_9_6_0_1.jpg", 2.75),
        Record("dreamStudio_8_9_1_.jpg", 2.0),
        Record("deepai_0_0_0_0.jpg", 3),
    ]
    rows = [(r.image, "a cat, city", r.mos) for r in records]
    workbook(root / "AIGC_MOS_Zscore.xlsx", ("Image", "Prompt", "MOS"), *rows)
    text(root / "AIGC_all.csv", "Image,Score", *(f"{r.image},{r.mos / 2}" for r in records))
    for record in records:
        picture(root / "file" / record.image)
    return records


def agiqa3k(root: Path) -> list[Record]:
    records = [
        Record("AttnGAN_normal_000.jpg", 0.965602553, 0.223270101),
        Record("sd1.5_lowcorr_299.jpg", 3.125, 0.5),
        Record("xl2.2_normal_007.jpg", 4.37231412, 0.25),
    ]
    head = "name,prompt,adj1,adj2,style,mos_quality,std_quality,mos_align,std_align"
    text(root / "data.csv", head, *(f'{r.image},"a, b",,,,{r.mos},{r.mos_std},0.4,0.6' for r in records))
    for record in records:
        picture(root / "file" / record.image)
    return records


LAYOUTS = {
    "kadis700k": kadis700k,
    "koniq10k": koniq10k,
    "clive": clive,
    "flive": flive,
    "spaq": spaq,
    "uhd_iqa": uhd_iqa,
    "kadid10k": kadid10k,
    "tid2013": tid2013,
    "live": live,
    "csiq": csiq,
    "pipal": pipal,
    "cidiq50": cidiq,
    "cidiq100": cidiq100,
    "agiqa1k": agiqa1k,
    "agiqa3k": agiqa3k,
}
