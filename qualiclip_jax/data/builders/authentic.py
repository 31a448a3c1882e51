"""Rated photographs as cameras took them: KonIQ-10k, CLIVE, FLIVE, SPAQ, UHD-IQA."""

from collections.abc import Iterator

from qualiclip_jax.data.builders.archive import Archive
from qualiclip_jax.data.builders.image_set import ImageSet, Record, number
from qualiclip_jax.errors import UserError

_SPLITS = {"training": "train", "validation": "validation", "test": "test"}


def _read_koniq10k(archive: Archive) -> Iterator[Record]:
    """Columns image_name, c1..c5, c_total, MOS, SD and set; the other file has MOS_zscore and no set."""
    folder = "1024x768" if archive.names(r"1024x768/\d+\.jpg") else "512x384"
    labels = archive.one_of("koniq10k_distributions_sets.csv", "koniq10k_scores_and_distributions.csv")
    with_splits = labels == "koniq10k_distributions_sets.csv"
    rating = "MOS" if with_splits else "MOS_zscore"
    for where, row in archive.rows(labels, ("image_name", rating, *(("set",) if with_splits else ()))):
        yield Record(
            image=f"{folder}/{row['image_name']}",
            mos=number(row[rating], where),
            split=_split(row["set"], where) if with_splits else None,
        )


KONIQ10K = ImageSet(
    name="koniq10k",
    title="KonIQ-10k",
    images=10073,
    scale=(0.0, 100.0),
    url="https://database.mmsp-kn.de/koniq-10k-database.html",
    terms="freely available to the research community",
    archives=(
        "koniq10k_1024x768.zip (or koniq10k_512x384.zip), and koniq10k_distributions_sets.csv from "
        "https://github.com/subpic/koniq/tree/master/metadata (or koniq10k_scores_and_distributions.zip)"
    ),
    citation="Hosu et al., KonIQ-10k: An Ecologically Valid Database for Deep Learning of BIQA, IEEE TIP 2020",
    read=_read_koniq10k,
    note=(
        "The ratings are the authors' MOS_zscore on 0..100, the column MOS of koniq10k_distributions_sets.csv. "
        "The standard deviations are published on the 1..5 scale of the raw MOS and left out. "
        "Only koniq10k_distributions_sets.csv has the official split. 1024x768 images go before 512x384 ones."
    ),
)


def _read_clive(archive: Archive) -> Iterator[Record]:
    """Three MATLAB files of 1,169 entries; seven of them, t1.bmp to t7.bmp, trained the observers."""
    (names,) = archive.mat("AllImages_release.mat", ("AllImages_release",))
    (mos,) = archive.mat("AllMOS_release.mat", ("AllMOS_release",))
    (std,) = archive.mat("AllStdDev_release.mat", ("AllStdDev_release",))
    for name, rating, deviation in zip(names, mos, std, strict=True):
        if not name.startswith("t"):
            yield Record(
                image=f"Images/{name}",
                mos=number(rating, f"AllMOS_release.mat, {name}"),
                mos_std=number(deviation, f"AllStdDev_release.mat, {name}"),
            )


CLIVE = ImageSet(
    name="clive",
    title="LIVE In the Wild Image Quality Challenge (CLIVE)",
    images=1162,
    scale=(0.0, 100.0),
    url="https://live.ece.utexas.edu/research/ChallengeDB/index.html",
    terms="any use, with the University of Texas copyright notice and citation",
    archives="ChallengeDB_release.zip",
    citation="Ghadiyaram and Bovik, Massive Online Crowdsourced Study of ... Picture Quality, IEEE TIP 2016",
    read=_read_clive,
    unrated=r"t\d+\.bmp",
    note="The seven images that trained the observers are left out, as the authors do.",
)


def _read_flive(archive: Archive) -> Iterator[Record]:
    """labels_image.csv: name, mos. Two more tables say which images are the test and the validation part."""
    test = _flive_names(archive, "labels640.csv", "labels>640.csv")
    validation = _flive_names(archive, "labels=640_padded.csv", "labels<=640_padded.csv", only_valid=True)
    for where, row in archive.rows("labels_image.csv", ("name", "mos")):
        split = "test" if row["name"] in test else "validation" if row["name"] in validation else "train"
        yield Record(
            image=row["name"],
            mos=number(row["mos"], where),
            split=split if test and validation else None,
        )


def _flive_names(archive: Archive, *tables: str, only_valid: bool = False) -> set[str]:
    """Names in the first of `tables` that is there; the authors' code has < and > in them, which Windows forbids."""
    columns = ("name_image", "is_valid") if only_valid else ("name_image",)
    table = next((table for table in tables if table in archive), None)
    if table is None:
        return set()
    return {row["name_image"] for _, row in archive.rows(table, columns) if not only_valid or row["is_valid"] == "True"}


FLIVE = ImageSet(
    name="flive",
    title="FLIVE (LIVE-FB, PaQ-2-PiQ)",
    images=39810,
    scale=(0.0, 100.0),
    url="https://github.com/niu-haoran/FLIVE_Database",
    terms="none stated; the photographs are those of AVA, VOC, EMOTIC and a blur data set, with their terms",
    archives=(
        "what database_prep.ipynb there collects in the folder database, and labels_image.csv, for the official split "
        "also labels640.csv and labels=640_padded.csv, of https://github.com/baidut/PaQ-2-PiQ/tree/master/database,"
    ),
    citation="Ying et al., From Patches to Pictures (PaQ-2-PiQ), CVPR 2020",
    read=_read_flive,
    note=(
        "Whole images only, not the patches. That labels640.csv is the test part, and the rows marked is_valid of "
        "labels=640_padded.csv the validation part, is how others read the files: a reconstruction."
    ),
)


def _read_spaq(archive: Archive) -> Iterator[Record]:
    """First sheet of the workbook: Image name, MOS, and five attributes."""
    labels = archive.one_of("MOS and Image attribute scores.xlsx", "MOS_and_Image_attribute_scores.xlsx")
    for where, row in archive.sheet(labels, ("Image name", "MOS")):
        yield Record(image=str(row["Image name"]), mos=number(row["MOS"], where))


SPAQ = ImageSet(
    name="spaq",
    title="SPAQ",
    images=11125,
    scale=(0.0, 100.0),
    url="https://github.com/h4nwei/SPAQ",
    terms="education and research; commercial use needs the authors' permission",
    archives="SPAQ.zip (its parts TestImage and Annotations; if it is in several parts, extract it as the page tells)",
    citation="Fang et al., Perceptual Quality Assessment of Smartphone Photography, CVPR 2020",
    read=_read_spaq,
    note="Images are kept at full size; published results often shrink them to 512 pixels on the short side.",
)


def _read_uhd_iqa(archive: Archive) -> Iterator[Record]:
    for where, row in archive.rows("uhd-iqa-metadata.csv", ("image_name", "quality_mos", "set")):
        yield Record(image=row["image_name"], mos=number(row["quality_mos"], where), split=_split(row["set"], where))


UHD_IQA = ImageSet(
    name="uhd_iqa",
    title="UHD-IQA",
    images=6073,
    scale=(0.0, 1.0),
    url="https://database.mmsp-kn.de/uhd-iqa-benchmark-database.html",
    terms="freely available to the research community; the photographs are from Pixabay, CC0",
    archives="UHD-IQA-database.zip and uhd-iqa-metadata.zip",
    citation="Hosu et al., UHD-IQA Benchmark Database, ECCV Workshops 2024",
    read=_read_uhd_iqa,
)


def _split(name: str, where: str) -> str:
    if name not in _SPLITS:
        raise UserError(f"{where}: set is {name!r}, expected {', '.join(_SPLITS)}")
    return _SPLITS[name]
