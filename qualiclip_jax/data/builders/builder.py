"""The one tfds builder of all sets: records and image files to ArrayRecord, without TensorFlow.

Importing this module imports tfds (not TensorFlow).
"""

import io
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from qualiclip_jax.data.builders.archive import Archive
from qualiclip_jax.data.builders.source import Record, Source
from qualiclip_jax.data.store import VERSION
from qualiclip_jax.errors import UserError
from qualiclip_jax.images import ImageError, decode_image
from qualiclip_jax.progress import Progress

_READ_AHEAD = 64  # images read and decoded at a time
_SHOWN = 3  # of the files that are wrong, how many an error names


class ImageSetBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes one `Source`. Subclasses made by `builder_class` carry the source.

    The records keep the order of the label file. Beside them, `metadata.json` holds all labels as columns, so that
    reading them touches no image.

    Attributes:
      source: what to prepare.
      archive: where to read it.
      allow_missing: go on without images or ratings that are missing, or images that cannot be read.
      missing: after preparing, one line for each of them.
    """

    VERSION = tfds.core.Version(VERSION)
    code_path = None  # nothing is downloaded, so there are no checksums beside the code to look for
    source: Source
    archive: Archive
    allow_missing: bool = False

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"image": tfds.features.Image(), "id": tfds.features.Text()}
        if self.source.rated:
            features |= {
                "mos": np.float64,  # higher is better
                "mos_std": np.float64,  # NaN: not published
                "distortion": tfds.features.Text(),
                "level": np.int32,  # 0: none
                "reference": tfds.features.Text(),
                "split": tfds.features.Text(),
            }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.source.title}. Terms: {self.source.terms}.",
            features=tfds.features.FeaturesDict(features),
            homepage=self.source.url,
            citation=self.source.citation,
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        records, self.missing = check(self.source, self.archive)
        if self.missing and not self.allow_missing:
            raise UserError(_complaint(self.source, self.missing))
        if not records:
            raise UserError(f"{self.archive.root}: none of the images of {self.source.title} is there")
        return {self.source.tfds_split: self._generate_examples(records)}

    def _generate_examples(self, records: list[Record]) -> Iterator[tuple[int, dict[str, Any]]]:
        kept, unreadable = [], []
        for record, image in _read_images(self.archive, records, f"preparing {self.source.name}"):
            if isinstance(image, ImageError):
                unreadable.append(f"cannot read {record.image} ({image.reason})")
                continue
            # The keys are spread over the 128 bits that tfds sorts by: it then sorts in small parts, on disk.
            yield len(kept) * 2**128 // len(records), self._example(record, image)
            kept.append(record)
        self.missing += unreadable
        if unreadable and not self.allow_missing:
            raise UserError(_complaint(self.source, unreadable))
        if not kept:
            raise UserError(f"{self.archive.root}: none of the images of {self.source.title} can be read")
        self.info.metadata.update(_metadata(self.source, kept, len(self.missing), self.archive.label_files))

    def _example(self, record: Record, image: bytes) -> dict[str, Any]:
        if not self.source.rated:
            return {"image": io.BytesIO(image), "id": record.image}
        return {
            "image": io.BytesIO(image),
            "id": record.image,
            "mos": self.source.to_mos(record.mos),
            "mos_std": np.nan if record.mos_std is None else record.mos_std,
            "distortion": record.distortion or "",
            "level": record.level or 0,
            "reference": record.reference or "",
            "split": record.split or "",
        }


def builder_class(source: Source, archive: Archive, allow_missing: bool = False) -> type[ImageSetBuilder]:
    """The tfds builder of `source` in `archive`; call it with `data_dir=...` and `file_format="array_record"`."""
    attributes = {
        "name": source.name,
        "source": source,
        "archive": archive,
        "allow_missing": allow_missing,
    }
    return type(ImageSetBuilder)(source.name.title(), (ImageSetBuilder,), attributes, skip_registration=True)


def check(source: Source, archive: Archive) -> tuple[list[Record], list[str]]:
    """Compares the ratings with the image files and both with the published number, reading no image.

    Returns:
      (records whose image is there, in the order of the label file; a line for everything that is missing).

    Raises:
      UserError: a label file is missing or cannot be understood, or an image is rated twice.
    """
    listed = list(source.read(archive))
    records = [r for r in listed if r.mos is not None or not source.rated]
    what = "ratings" if source.rated else "images"
    if len(records) > source.images:
        raise UserError(f"{archive.root}: {len(records)} {what}, published are {source.images}: not the published set")
    missing, used = [], set()
    for record in listed:
        if record.image in archive:
            path = archive.locate(record.image)
            if path in used:
                raise UserError(f"{archive.root}: {path} is listed twice in the label file")
            used.add(path)
        elif record.mos is not None or not source.rated:
            missing.append(f"no image {record.image}" + (", which is rated" if source.rated else ""))
    present = [r for r in records if r.image in archive]
    unrated = re.compile(source.unrated or r"(?!)", re.IGNORECASE)
    beside = archive.images_beside(used) - used if source.rated else set()
    extra = [path for path in sorted(beside) if not unrated.fullmatch(path.rpartition("/")[2])]
    missing += [f"no rating for {path}" for path in extra]
    unlisted = source.images - len(records) - len(extra)
    missing += ["one more image is published, but neither listed nor there"] * unlisted
    return present, missing


def _complaint(source: Source, missing: list[str]) -> str:
    shown = "; ".join(missing[:_SHOWN]) + ("; ..." if len(missing) > _SHOWN else "")
    return (
        f"{source.title}: {len(missing)} of {source.images} images are incomplete: {shown} "
        "(--allow-missing goes on without them)"
    )


def _read_images(archive: Archive, records: list[Record], title: str) -> Iterator[tuple[Record, bytes | ImageError]]:
    """Reads and test-decodes the images in threads, in order, a few at a time."""

    def read(record: Record) -> bytes | ImageError:
        try:
            data = archive.read(record.image)
            decode_image(data, record.image)
        except ImageError as error:
            return error
        except UserError as error:
            return ImageError(record.image, str(error))
        return data

    with ThreadPoolExecutor() as pool, Progress(len(records), title, "image") as progress:
        for start in range(0, len(records), _READ_AHEAD):
            some = records[start : start + _READ_AHEAD]
            for record, image in zip(some, pool.map(read, some)):
                yield record, image
                progress.advance()


def _metadata(source: Source, records: list[Record], missing: int, label_files: list[str]) -> dict[str, Any]:
    def column(field: str) -> list | None:
        values = [getattr(record, field) for record in records]
        return None if all(value is None for value in values) else values

    labels: dict[str, list | None] = {"id": [record.image for record in records]}
    scale = source.scale
    if source.rated:
        labels["mos"] = [source.to_mos(record.mos) for record in records]
        labels |= {field: column(field) for field in ("mos_std", "distortion", "level", "reference", "split")}
        scale = scale or (min(labels["mos"]), max(labels["mos"]))
    facts = {"title": source.title, "url": source.url, "terms": source.terms, "images": source.images}
    facts |= {"scale": scale, "higher_is_better": source.higher_is_better, "label_files": label_files}
    return {"labels": labels, "missing": missing, "source": facts}
