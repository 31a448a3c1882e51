"""Rated images made by generative models: AGIQA-3K."""

from collections.abc import Iterator

from qualiclip_jax.data.builders.archive import Archive
from qualiclip_jax.data.builders.source import Record, Source, number


def _read_agiqa3k(archive: Archive) -> Iterator[Record]:
    for where, row in archive.rows("data.csv", ("name", "mos_quality", "std_quality")):
        yield Record(
            image=row["name"],
            mos=number(row["mos_quality"], where),
            mos_std=number(row["std_quality"], where),
        )


AGIQA3K = Source(
    name="agiqa3k",
    title="AGIQA-3K",
    images=2982,
    scale=(0.0, 5.0),
    url="https://github.com/lcysyzxdxc/AGIQA-3k-Database",
    terms="MIT",
    archives="the image archive linked there, and data.csv",
    pattern=r"(AttnGAN|DALLE2|glide|midjourney|sd1\.5|xl2\.2)_[^/]+\.jpg",
    read=_read_agiqa3k,
    citation="Li et al., AGIQA-3K: An Open Database for AI-Generated Image Quality Assessment, IEEE TCSVT 2023",
)
