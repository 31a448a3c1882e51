"""The one tfds builder of all sets: checks labels against images and writes both as ArrayRecord, without TensorFlow.

The result is an ordinary tfds data set: `tfds.builder("koniq10k").as_data_source("rated")` reads it. It is written with
`tfds.core.SequentialWriter`, because `download_and_prepare` sorts more than a gigabyte with TensorFlow's file system.
"""

import contextlib
import io
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from qualiclip_jax.data.builders.archive import Archive
from qualiclip_jax.data.builders.image_set import ImageSet, Record
from qualiclip_jax.data.store import VERSION
from qualiclip_jax.errors import UserError
from qualiclip_jax.images import ImageError, decode_image
from qualiclip_jax.progress import Progress

_READ_AHEAD, _READ_AHEAD_BYTES = 64, 256 << 20  # images and their bytes, read, decoded and written at a time
_MOST_PIXELS = 64 * 10**6  # of an image; phones whose photographs are in these sets reach 40
_IMAGES_A_SHARD = 2000
_SHOWN = 3  # of the files that are wrong, how many an error names


def build(image_set: ImageSet, archive: Archive, folder: Path, allow_missing: bool = False) -> list[str]:
    """Writes one image set.

    The records keep the order of the label file. Beside them, `metadata.json` holds all labels as columns, so that
    reading them touches no image.

    Args:
      image_set: what to prepare.
      archive: where to read it.
      folder: where to write; an empty folder.
      allow_missing: go on without images or ratings that are missing, and without images that cannot be read.

    Returns:
      A line for everything that is left out.

    Raises:
      UserError: something is missing or unreadable and not allowed to be; or there is nothing at all.
      OSError: `folder` cannot be written to.
    """
    import tensorflow_datasets as tfds

    records, missing = check(image_set, archive)
    if missing and not allow_missing:
        raise UserError(_complaint(image_set, missing, archive))
    info = _dataset_info(image_set, folder)
    writer = tfds.core.SequentialWriter(info, _IMAGES_A_SHARD, file_format="array_record")
    writer.initialize_splits([image_set.tfds_split])
    kept: list[Record] = []
    unreadable: list[str] = []
    for images in _read_images(archive, records, f"preparing {image_set.name}"):
        unreadable += [f"cannot read {r.image} ({i.reason})" for r, i in images if isinstance(i, ImageError)]
        whole = [(record, image) for record, image in images if isinstance(image, bytes)]
        with _write_errors():
            writer.add_examples({image_set.tfds_split: [_example(image_set, *pair) for pair in whole]})
        kept += [record for record, _ in whole]
    if unreadable and not allow_missing:
        raise UserError(_complaint(image_set, unreadable, archive))
    if not kept:
        raise UserError(f"none of the images of {image_set.title} is in {archive.root} and can be read{archive.hint()}")
    missing += unreadable
    info.metadata.update(_metadata(image_set, kept, len(missing), archive.label_files))
    with _write_errors():
        writer.close_all()
    return missing


@contextlib.contextmanager
def _write_errors() -> Iterator[None]:
    """ArrayRecord reports a full disk as a RuntimeError; this makes it the OSError that it is."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error).split(";")[0]) from None


def _dataset_info(image_set: ImageSet, folder: Path) -> Any:
    """The tfds description of a set, to be written to `folder`."""
    import numpy as np
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(), "id": tfds.features.Text()}
    if image_set.rated:
        features |= {
            "mos": np.float64,  # higher is better
            "mos_std": np.float64,  # NaN: not published
            "distortion": tfds.features.Text(),
            "level": np.int32,  # 0: none
            "reference": tfds.features.Text(),
            "split": tfds.features.Text(),
        }
    return tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=image_set.name, version=tfds.core.Version(VERSION), data_dir=str(folder), module_name=__name__
        ),
        description=f"{image_set.title}. Terms: {image_set.terms}. {image_set.note}".strip(),
        features=tfds.features.FeaturesDict(features),
        homepage=image_set.url,
        citation=image_set.citation,
        disable_shuffling=True,
        metadata=tfds.core.MetadataDict(),
    )


def _example(image_set: ImageSet, record: Record, image: bytes) -> dict[str, Any]:
    example = {"image": io.BytesIO(image), "id": record.image}  # an array would have to be encoded, by TensorFlow
    if image_set.rated:
        example |= {
            "mos": image_set.to_mos(record.mos),
            "mos_std": float("nan") if record.mos_std is None else record.mos_std,
            "distortion": record.distortion or "",
            "level": record.level or 0,
            "reference": record.reference or "",
            "split": record.split or "",
        }
    return example


def check(image_set: ImageSet, archive: Archive) -> tuple[list[Record], list[str]]:
    """Compares the ratings with the image files and both with the published number, reading no image.

    Returns:
      (records whose image is there, in the order of the label file; a line for everything that is missing).

    Raises:
      UserError: a label file is missing or cannot be understood, or an image is rated twice.
    """
    listed = list(image_set.read(archive))
    records = [r for r in listed if r.mos is not None or not image_set.rated]
    what = "ratings" if image_set.rated else "images"
    if len(records) > image_set.images:
        raise UserError(
            f"{archive.root}: {len(records)} {what}, published are {image_set.images}: not the published set"
        )
    missing, used = [], set()
    for record in listed:
        if record.image in archive:
            path = archive.locate(record.image)
            if path in used:
                raise UserError(f"{archive.root}: {path} is listed twice in the label file")
            used.add(path)
        elif record.mos is not None or not image_set.rated:
            missing.append(f"no image {record.image}" + (", which is rated" if image_set.rated else ""))
    present = [r for r in records if r.image in archive]
    unrated = re.compile(image_set.unrated or r"(?!)", re.IGNORECASE)
    beside = archive.images_beside(used) - used if image_set.rated else set()
    extra = [path for path in sorted(beside) if not unrated.fullmatch(path.rpartition("/")[2])]
    missing += [f"no rating for {path}" for path in extra]
    unlisted = image_set.images - len(records) - len(extra)
    missing += ["an image is published, but neither listed nor there"] * unlisted
    return present, missing


def _complaint(image_set: ImageSet, missing: list[str], archive: Archive) -> str:
    lines = list(dict.fromkeys(missing))
    shown = "; ".join(lines[:_SHOWN]) + ("; ..." if len(lines) > _SHOWN else "")
    return (
        f"{image_set.title}: {len(missing)} of {image_set.images} images are incomplete: {shown} "
        f"(--allow-missing goes on without them){archive.hint()}"
    )


def _read_images(
    archive: Archive, records: list[Record], title: str
) -> Iterator[list[tuple[Record, bytes | ImageError]]]:
    """Reads and test-decodes the images in threads, in order, some at a time."""

    def read(record: Record) -> bytes | ImageError:
        try:
            data = archive.read(record.image)
            decode_image(data, record.image, _MOST_PIXELS)
        except ImageError as error:
            return error
        except UserError as error:
            return ImageError(record.image, str(error))
        return data

    with ThreadPoolExecutor(os.cpu_count()) as pool, Progress(len(records), title, "image") as progress:
        for some in _batches(archive, records):
            yield list(zip(some, pool.map(read, some)))
            progress.advance(len(some))


def _batches(archive: Archive, records: list[Record]) -> Iterator[list[Record]]:
    """The records in batches, so small that their image files do not fill the memory."""
    batch: list[Record] = []
    left = _READ_AHEAD_BYTES
    for record in records:
        try:
            size = archive.size(record.image)
        except UserError:
            size = 0  # reading it says what is wrong
        if batch and (len(batch) == _READ_AHEAD or size > left):
            yield batch
            batch, left = [], _READ_AHEAD_BYTES
        batch.append(record)
        left -= size
    if batch:
        yield batch


def _metadata(image_set: ImageSet, records: list[Record], missing: int, label_files: list[str]) -> dict[str, Any]:
    def column(field: str) -> list[Any] | None:
        values = [getattr(record, field) for record in records]
        return None if all(value is None for value in values) else values

    labels: dict[str, list[Any] | None] = {"id": [record.image for record in records]}
    scale = image_set.scale
    if image_set.rated:
        mos = [image_set.to_mos(record.mos) for record in records]
        labels["mos"] = mos
        labels |= {field: column(field) for field in ("mos_std", "distortion", "level", "reference", "split")}
        scale = scale or (min(mos), max(mos))
    facts = {"title": image_set.title, "url": image_set.url, "terms": image_set.terms, "images": image_set.images}
    facts |= {"scale": scale, "higher_is_better": image_set.higher_is_better, "label_files": label_files}
    return {"labels": labels, "missing": missing, "source": facts}
