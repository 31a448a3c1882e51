"""Photographs to try things with: scikit-image's held-out ones, and degraded versions of them."""

from pathlib import Path

import jax
import numpy as np

from qualiclip_jax import degradations, images
from qualiclip_jax.data import pristine

DEGRADED = {"gaussian_blur": (3, 5), "white_noise": (3, 5), "nonlinear_contrast": (3, 5)}  # type -> levels


def write_photos(folder: Path) -> list[Path]:
    """Writes `PHOTO.png` and `PHOTO_TYPE_LEVEL.png` for each photo of `sample:test`; files that exist are kept.

    Args:
      folder: made if it is not there.

    Returns:
      All these files, the written and the kept.

    Raises:
      OSError: if the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, photo in pristine.photos("sample:test"):
        stem = Path(name).stem
        files.append(_keep_or_write(folder / f"{stem}.png", photo))
        for kind, levels in DEGRADED.items():
            for level in levels:
                degraded = degradations.degrade(kind, photo.astype(np.float32) / 255, level, jax.random.key(0))
                files.append(_keep_or_write(folder / f"{stem}_{kind}_{level}.png", np.asarray(degraded)))
    return files


def _keep_or_write(path: Path, image: np.ndarray) -> Path:
    if not path.exists():
        images.write_image(path, image)
    return path
