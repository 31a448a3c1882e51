"""Undistorted photographs to train on: the pristine part of KADIS-700k."""

from collections.abc import Iterator

from qualiclip_jax.data.builders.archive import Archive
from qualiclip_jax.data.builders.image_set import ImageSet, Record


def _read_kadis700k(archive: Archive) -> Iterator[Record]:
    """kadis700k_ref_imgs.csv lists the pristine images in its column ref_im; without it, what ref_imgs holds."""
    if "kadis700k_ref_imgs.csv" in archive:
        for _, row in archive.rows("kadis700k_ref_imgs.csv", ("ref_im",)):
            yield Record(image=f"ref_imgs/{row['ref_im']}")
    else:
        for path in archive.names(r"ref_imgs/[^/]+\.(?:png|jpe?g|bmp)"):
            yield Record(image=path)


KADIS700K = ImageSet(
    name="kadis700k",
    title="KADIS-700k, pristine images",
    images=140000,
    url="https://database.mmsp-kn.de/kadid-10k-database.html",
    terms="freely available to the research community; the photographs are from Pixabay",
    archives="kadis700k.zip (45 GB)",
    citation="Lin, Hosu and Saupe, DeepFL-IQA: Weak Supervision for Deep IQA Feature Learning, arXiv:2001.08113, 2020",
    read=_read_kadis700k,
    rated=False,
    note="For training: --config.data.source=tfds:kadis700k.",
)
