"""Rated images made by generative models: AGIQA-1K, AGIQA-3K."""

from collections.abc import Iterator

from qualiclip_jax.data.builders.archive import Archive
from qualiclip_jax.data.builders.image_set import ImageSet, Record, number


def _read_agiqa1k(archive: Archive) -> Iterator[Record]:
    """AIGC_MOS_Zscore.xlsx: Image, Prompt, MOS. The authors' repository has AIGC_all.csv instead: Image, Score."""
    labels = archive.one_of("AIGC_MOS_Zscore.xlsx", "AIGC_all.csv")
    if labels.endswith(".xlsx"):
        rows, rating = archive.sheet(labels, ("Image", "MOS")), "MOS"
    else:
        rows, rating = archive.rows(labels, ("Image", "Score")), "Score"
    for where, row in rows:
        yield Record(image=str(row["Image"]), mos=number(row[rating], where))


AGIQA1K = ImageSet(
    name="agiqa1k",
    title="AGIQA-1K",
    images=1080,
    scale=(0.0, 5.0),
    url="https://github.com/lcysyzxdxc/AGIQA-1k-Database",
    terms="MIT",
    archives="file.zip, and AIGC_MOS_Zscore.xlsx (or AIGC_all.csv)",
    citation="Zhang et al., A Perceptual Quality Assessment Exploration for AIGC Images, arXiv:2303.12618, 2023",
    read=_read_agiqa1k,
    note=(
        "Ratings come from AIGC_MOS_Zscore.xlsx where it is there, else from AIGC_all.csv: normalised and raw ones, "
        "which differ. The names of the columns of the workbook are those that others read: a reconstruction."
    ),
)


def _read_agiqa3k(archive: Archive) -> Iterator[Record]:
    for where, row in archive.rows("data.csv", ("name", "mos_quality", "std_quality")):
        yield Record(
            image=row["name"],
            mos=number(row["mos_quality"], where),
            mos_std=number(row["std_quality"], where),
        )


AGIQA3K = ImageSet(
    name="agiqa3k",
    title="AGIQA-3K",
    images=2982,
    scale=(0.0, 5.0),
    url="https://github.com/lcysyzxdxc/AGIQA-3k-Database",
    terms="MIT",
    archives="file.zip, and data.csv",
    citation="Li et al., AGIQA-3K: An Open Database for AI-Generated Image Quality Assessment, IEEE TCSVT 2023",
    read=_read_agiqa3k,
    note="The perceptual quality (mos_quality), not the alignment with the prompt.",
    tried_on_real_files=True,
)
