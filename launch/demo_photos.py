"""Writes scikit-image's held-out photos and degraded versions of them as PNG files: python launch/demo_photos.py DIR"""

import sys
from pathlib import Path

import jax
import numpy as np

from qualiclip_jax import degradations, images
from qualiclip_jax.data import pristine

SHOWN = {"gaussian_blur": (3, 5), "jpeg": (3, 5), "white_noise": (3, 5), "darken": (5,)}  # type -> levels


def main(folder: str) -> None:
    """Writes `<photo>.png` and `<photo>_<type>_<level>.png` into `folder`."""
    directory = Path(folder)
    directory.mkdir(parents=True, exist_ok=True)
    for name, photo in pristine.photos("sample:test"):
        stem = Path(name).stem
        images.write_image(directory / f"{stem}.png", photo)
        for kind, levels in SHOWN.items():
            for level in levels:
                degraded = degradations.degrade(kind, photo.astype(np.float32) / 255, level, jax.random.key(0))
                images.write_image(
                    directory / f"{stem}_{kind}_{level}.png", np.asarray(degraded * 255).round().astype(np.uint8)
                )
    print(f"photos and degraded versions are in {directory}")


if __name__ == "__main__":
    main(*sys.argv[1:])
