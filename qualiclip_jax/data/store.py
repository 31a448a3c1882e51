"""Where prepared image sets lie: `DATA_DIR/NAME/VERSION`, as TensorFlow Datasets lays them out."""

import json
import os
from pathlib import Path
from typing import Any

from qualiclip_jax.errors import UserError

VERSION = "1.0.0"  # of the layout and contents that the builders write; a change of either raises it
LABELS_FILE = "metadata.json"  # the name is tfds's


def data_dir(given: str | os.PathLike[str] | None = None) -> Path:
    """The folder of prepared sets: the one given, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return Path(given or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def set_dir(name: str, given: str | os.PathLike[str] | None = None) -> Path:
    """The folder of one set. It exists only if the set is prepared: it gets its name when it is complete."""
    return data_dir(given) / name / VERSION


def read_labels(folder: Path) -> dict[str, Any]:
    """Reads what the builder stored beside the records: `labels` (columns), `missing`, `source`.

    Raises:
      UserError: the file is missing, damaged, or not one that the builder wrote.
    """
    try:
        stored: dict[str, Any] = json.loads((folder / LABELS_FILE).read_text())
        if not {"labels", "missing", "source"} <= set(stored):
            raise ValueError("not written by python -m qualiclip_jax.data prepare")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder / LABELS_FILE}: {error}; remove {folder} and prepare the set again") from None
    return stored
