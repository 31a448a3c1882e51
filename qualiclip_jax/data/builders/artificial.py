"""Rated images that were distorted on purpose: KADID-10k, TID2013, LIVE R2, CSIQ, PIPAL, CIDIQ."""

import functools
import math
import re
from collections.abc import Iterator

from qualiclip_jax.data.builders.archive import Archive
from qualiclip_jax.data.builders.image_set import ImageSet, Record, number
from qualiclip_jax.errors import UserError

KADID10K_DISTORTIONS = (
    "gaussian_blur", "lens_blur", "motion_blur",
    "color_diffusion", "color_shift", "color_quantization", "color_saturation_1", "color_saturation_2",
    "jpeg2000", "jpeg",
    "white_noise", "white_noise_in_color_component", "impulse_noise", "multiplicative_noise", "denoise",
    "brighten", "darken", "mean_shift",
    "jitter", "non_eccentricity_patch", "pixelate", "quantization", "color_block",
    "high_sharpen", "contrast_change",
)  # fmt: skip
TID2013_DISTORTIONS = (
    "additive_gaussian_noise", "additive_noise_in_color_components", "spatially_correlated_noise", "masked_noise",
    "high_frequency_noise", "impulse_noise", "quantization_noise", "gaussian_blur", "image_denoising", "jpeg",
    "jpeg2000", "jpeg_transmission_errors", "jpeg2000_transmission_errors", "non_eccentricity_pattern_noise",
    "local_blockwise_distortions", "mean_shift", "contrast_change", "color_saturation_change",
    "multiplicative_gaussian_noise", "comfort_noise", "lossy_compression_of_noisy_images",
    "color_quantization_with_dither", "chromatic_aberrations", "sparse_sampling_and_reconstruction",
)  # fmt: skip
LIVE_FOLDERS = {  # folder: (distortion, number of images), in the order of the ratings
    "jp2k": ("jpeg2000", 227),
    "jpeg": ("jpeg", 233),
    "wn": ("white_noise", 174),
    "gblur": ("gaussian_blur", 174),
    "fastfading": ("fast_fading", 174),
}
CSIQ_DISTORTIONS = {  # as the workbook calls it: (as file names call it, our name)
    "noise": ("AWGN", "white_noise"),
    "blur": ("BLUR", "gaussian_blur"),
    "contrast": ("contrast", "contrast_change"),
    "fnoise": ("fnoise", "pink_noise"),
    "jpeg": ("JPEG", "jpeg"),
    "jpeg 2000": ("jpeg2000", "jpeg2000"),
}
CIDIQ_DISTORTIONS = (
    "jpeg2000", "jpeg", "poisson_noise", "gaussian_blur", "sgck_gamut_mapping", "delta_e_gamut_mapping",
)  # fmt: skip
_CIDIQ_REFERENCES, _CIDIQ_LEVELS = 23, 5


def _read_kadid10k(archive: Archive) -> Iterator[Record]:
    for where, row in archive.rows("dmos.csv", ("dist_img", "ref_img", "dmos", "var")):
        distortion, level = _from_name(row["dist_img"], KADID10K_DISTORTIONS, where)
        yield Record(
            image=row["dist_img"],
            mos=number(row["dmos"], where),
            mos_std=math.sqrt(max(number(row["var"], where), 0)),
            distortion=distortion,
            level=level,
            reference=row["ref_img"],
        )


KADID10K = ImageSet(
    name="kadid10k",
    title="KADID-10k",
    images=10125,
    scale=(1.0, 5.0),
    url="https://database.mmsp-kn.de/kadid-10k-database.html",
    terms="freely available to the research community",
    archives="kadid10k.zip",
    citation="Lin, Hosu and Saupe, KADID-10k: A Large-scale Artificially Distorted IQA Database, QoMEX 2019",
    read=_read_kadid10k,
    unrated=r"I\d+\.png",
    note=(
        "The column is called dmos, but 5 is imperceptible and 1 very annoying: higher is better, not converted. "
        "The standard deviation is the root of the published variance. Undistorted originals have no rating."
    ),
)


def _read_tid2013(archive: Archive) -> Iterator[Record]:
    """mos_with_names.txt: rating and file name; mos_std.txt: the standard deviations in the same order."""
    ratings = list(archive.lines("mos_with_names.txt"))
    deviations = list(archive.lines("mos_std.txt"))
    if len(ratings) != len(deviations):
        raise UserError(f"mos_with_names.txt has {len(ratings)} lines, mos_std.txt {len(deviations)}")
    for (where, line), (where_std, deviation) in zip(ratings, deviations):
        if len(line.split()) != 2:
            raise UserError(f"{where}: {line!r} is not a rating and a file name")
        rating, name = line.split()
        distortion, level = _from_name(name, TID2013_DISTORTIONS, where)
        yield Record(
            image=name,
            mos=number(rating, where),
            mos_std=number(deviation, where_std),
            distortion=distortion,
            level=level,
            reference=f"{name[:3].upper()}.BMP",
        )


TID2013 = ImageSet(
    name="tid2013",
    title="TID2013",
    images=3000,
    scale=(0.0, 9.0),
    url="https://www.ponomarenko.info/tid2013.htm",
    terms="none stated",
    archives="tid2013.rar, to be extracted",
    citation="Ponomarenko et al., Image database TID2013: Peculiarities, results and perspectives, SPIC 2015",
    read=_read_tid2013,
)


def _read_live(archive: Archive) -> Iterator[Record]:
    """Ratings in one row, distortion after distortion; `orgs` marks the copies of originals among the images."""
    labels = archive.one_of("dmos_realigned.mat", "dmos.mat")
    (references,) = archive.mat("refnames_all.mat", ("refnames_all",))
    if labels == "dmos_realigned.mat":
        dmos, std, originals = archive.mat(labels, ("dmos_new", "dmos_std", "orgs"))
    else:
        dmos, originals = archive.mat(labels, ("dmos", "orgs"))
        std = [None] * len(dmos)
    places = [
        (f"{folder}/img{number_}.bmp", distortion)
        for folder, (distortion, count) in LIVE_FOLDERS.items()
        for number_ in range(1, count + 1)
    ]
    if not len(places) == len(dmos) == len(originals) == len(references):
        raise UserError(
            f"{labels} has {len(dmos)} ratings, refnames_all.mat {len(references)} names, published are {len(places)}"
        )
    for (image, distortion), rating, deviation, original, reference in zip(places, dmos, std, originals, references):
        yield Record(
            image=image,
            mos=None if original else number(rating, f"{labels}, {image}"),
            mos_std=None if deviation is None else float(deviation),
            distortion=distortion,
            reference=str(reference),
        )


LIVE = ImageSet(
    name="live",
    title="LIVE Image Quality Assessment Database Release 2",
    images=779,
    scale=(0.0, 100.0),
    higher_is_better=False,
    url="https://live.ece.utexas.edu/research/quality/subjective.htm",
    terms="any use, with the University of Texas copyright notice and citation; some photographs only in the database",
    archives="databaserelease2.zip and the realigned ratings, dmos_realigned.mat",
    citation="Sheikh, Sabir and Bovik, A Statistical Evaluation of Recent Full Reference IQA Algorithms, IEEE TIP 2006",
    read=_read_live,
    note=(
        "DMOS, converted: 100 - DMOS. Ratings come from dmos_realigned.mat where it is there, else from dmos.mat; "
        "a few realigned ones lie outside 0..100. The 203 copies of originals are left out. No levels are published."
    ),
)


def _read_csiq(archive: Archive) -> Iterator[Record]:
    """Sheet all_by_image: image, dst_idx, dst_type, dst_lev, dmos_std, dmos."""
    columns = ("image", "dst_type", "dst_lev", "dmos_std", "dmos")
    for where, row in archive.sheet("csiq.DMOS.xlsx", columns, sheet="all_by_image"):
        if row["dst_type"] not in CSIQ_DISTORTIONS:
            raise UserError(f"{where}: unknown dst_type {row['dst_type']!r}")
        in_name, distortion = CSIQ_DISTORTIONS[row["dst_type"]]
        reference, level = _whole(row["image"]), int(number(row["dst_lev"], where))
        yield Record(
            image=f"{reference}.{in_name}.{level}.png",
            mos=number(row["dmos"], where),
            mos_std=number(row["dmos_std"], where),
            distortion=distortion,
            level=level,
            reference=f"{reference}.png",
        )


CSIQ = ImageSet(
    name="csiq",
    title="CSIQ",
    images=866,
    scale=(0.0, 1.0),
    higher_is_better=False,
    url="https://s2.smu.edu/~eclarson/csiq.html",
    terms="none stated",
    archives="dst_imgs.zip and csiq.DMOS.xlsx",
    citation="Larson and Chandler, Most apparent distortion: full-reference IQA and the role of strategy, JEI 2010",
    read=_read_csiq,
    note="DMOS, converted: 1 - DMOS.",
)


def _read_pipal(archive: Archive) -> Iterator[Record]:
    """A text file for each original, A0001.txt; its lines: A0001_00_00.bmp,1394.64."""
    tables = archive.names(r"A\d+\.txt")
    if not tables:
        raise UserError(f"no rating files A0001.txt, A0002.txt, ... in {archive.root}")
    for table in tables:
        for where, line in archive.lines(table):
            match = re.fullmatch(r"((A\d+)_(\d\d)_\d+\.bmp),\s*(\S+)", line)
            if not match:
                raise UserError(f"{where}: {line!r} is not a file name and a rating")
            image, reference, kind, rating = match.groups()
            yield Record(
                image=image,
                mos=number(rating, where),
                distortion=f"class_{kind}",
                reference=f"{reference}.bmp",
                split="train",
            )


PIPAL = ImageSet(
    name="pipal",
    title="PIPAL, training part",
    images=23200,
    scale=None,
    url="https://github.com/HaomingCai/PIPAL-dataset",
    terms="none stated",
    archives="the training part: the four parts of the distorted images and the rating files (A0001.txt, ...)",
    citation="Gu et al., PIPAL: a Large-Scale IQA Dataset for Perceptual Image Restoration, ECCV 2020",
    read=_read_pipal,
    note=(
        "Elo ratings without fixed ends, comparable between images of one original. The part with public ratings: 200 "
        "originals with 116 distorted images each. The distortion is the class number of the file name; the release "
        "names none."
    ),
)


def _read_cidiq(archive: Archive, distance: int) -> Iterator[Record]:
    """MOS50.mat or MOS100.mat: 690 ratings, by distortion, within one by original, within one by level."""
    (mos,) = archive.mat(f"MOS{distance}.mat", (f"MOS{distance}",))
    expected = len(CIDIQ_DISTORTIONS) * _CIDIQ_REFERENCES * _CIDIQ_LEVELS
    if len(mos) != expected:
        raise UserError(f"MOS{distance}.mat has {len(mos)} ratings, published are {expected}")
    ratings = iter(mos)
    for index, distortion in enumerate(CIDIQ_DISTORTIONS, 1):
        for reference in range(1, _CIDIQ_REFERENCES + 1):
            for level in range(1, _CIDIQ_LEVELS + 1):
                image = f"final{reference:02d}_d{index}_l{level}.bmp"
                yield Record(
                    image=image,
                    mos=number(next(ratings), f"MOS{distance}.mat, {image}"),
                    distortion=distortion,
                    level=level,
                    reference=f"final{reference:02d}.bmp",
                )


def _cidiq(distance: int) -> ImageSet:
    return ImageSet(
        name=f"cidiq{distance}",
        title=f"CID:IQ, seen from {distance} cm",
        images=690,
        scale=(1.0, 9.0),
        url="https://www.ntnu.edu/web/colourlab/software",
        terms="free for research and academic purposes",
        archives="the archive of the Colourlab Image Database: Image Quality",
        citation="Liu, Pedersen and Hardeberg, CID:IQ - A New Image Quality Database, ICISP 2014",
        read=functools.partial(_read_cidiq, distance=distance),
        note="The same images were rated from 50 and from 100 cm: two sets here, cidiq50 and cidiq100.",
    )


CIDIQ50, CIDIQ100 = _cidiq(50), _cidiq(100)


def _from_name(name: str, distortions: tuple[str, ...], where: str) -> tuple[str, int]:
    """Distortion and level from a file name such as I01_24_05.png: distortion 24, level 5."""
    match = re.fullmatch(r"I\d+_(\d+)_(\d+)\.\w+", name, re.IGNORECASE)
    if not match or not 1 <= int(match[1]) <= len(distortions):
        raise UserError(f"{where}: {name!r} does not name a distortion and a level")
    return distortions[int(match[1]) - 1], int(match[2])


def _whole(cell: object) -> str:
    """The text of a cell of a workbook; image 1600 may be stored as the number 1600.0."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
