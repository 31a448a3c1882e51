"""QualiCLIP in JAX: no-reference image quality assessment, trained without human ratings.

    from qualiclip_jax import QualiCLIP

    model = QualiCLIP.load("tiny")
    model.score_files(["photo.jpg"])        # float32 [1], in [0, 1], higher is better

Importing the package is cheap: `QualiCLIP` is looked up on first use.
"""

from typing import Any

from qualiclip_jax.version import __version__

__all__ = ["QualiCLIP", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "QualiCLIP":
        from qualiclip_jax.inference.predictor import QualiCLIP

        return QualiCLIP
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
