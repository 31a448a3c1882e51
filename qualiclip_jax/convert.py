"""Other implementations' weights to a checkpoint of this project: python -m qualiclip_jax.convert SOURCE --out DIR"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qualiclip_jax import cli
from qualiclip_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from qualiclip_jax.models import CLIP
    from qualiclip_jax.models.convert import from_state_dict, to_openai_state_dict
    from qualiclip_jax.models.weights import Weights

__all__ = ["from_state_dict", "main", "to_openai_state_dict"]

STORED_FEATURES = "prompts_features"  # what a QualiCLIP checkpoint holds beside its CLIP


def __getattr__(name: str):
    if name in ("from_state_dict", "to_openai_state_dict"):  # looked up late, so that --help needs no JAX
        from qualiclip_jax.models import convert

        return getattr(convert, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="qualiclip convert",
        description="Converts CLIP or QualiCLIP weights to a self-contained checkpoint to score with.",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="RN50, ViT-B/16 ...; a Hugging Face repository, owner/name[@revision]; a directory like one; or a file: "
        ".safetensors, .pt, .pth, .bin, .msgpack (OpenAI, open_clip, Hugging Face or QualiCLIP)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="must not exist yet")
    parser.add_argument(
        "--text-encoder",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="keep it; scoring needs the prompts' features only",
    )
    parser.add_argument(
        "--prompts", nargs="+", metavar="TEXT", help="antonym pairs: positive negative ... (default: QualiCLIP's seven)"
    )
    parser.add_argument("--tokenizer", metavar="DIR", help="for own prompts (default: beside the weights)")
    parser.add_argument("--temperature", type=float, default=1.0, help="divides the logits (default: %(default)s)")
    parser.add_argument(
        "--position",
        choices=("none", "native", "interpolate"),
        help="positional embedding of the image encoder (default: none for a ResNet, interpolate for a ViT)",
    )
    parser.add_argument(
        "--activation",
        choices=("quick_gelu", "gelu"),
        help="of the transformers, where no config tells: gelu for open_clip's own weights",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Converts weights; see `--help`."""
    args = parse(argv)
    if args.out.exists():
        raise UserError(f"{args.out} exists already: choose another name, or remove it first")
    if not 0 < args.temperature < float("inf"):
        raise UserError(f"--temperature must be positive and finite, got {args.temperature}")

    from qualiclip_jax import checkpoint, prompts
    from qualiclip_jax.models import Model, weights

    pairs = prompts.check_prompts(args.prompts) if args.prompts else prompts.PAIRS
    found = weights.read(args.source)
    clip = weights.build(found, position=args.position, activation=args.activation)
    if args.prompts is None and any(_is_stored_features(key) for key in found.tensors):
        features = stored_features(found, clip)
    elif clip.text is None:
        raise UserError(f"{args.source} has neither a text encoder nor prompt features: nothing to compare images with")
    else:
        features = prompts.text_features(clip, pairs, args.tokenizer or found.directory)
    if not args.text_encoder:
        clip.drop_text_encoder()
    provenance = {"weights": args.source, "sha256": {file.name: _sha256(file) for file in found.files}}
    model = Model(clip, pairs, features, args.temperature, provenance)
    checkpoint.save_model(args.out, model)
    print(f"{args.out}: {describe(clip)}, {len(pairs)} prompt pairs, fingerprint {model.fingerprint}")


def stored_features(found: "Weights", clip: "CLIP") -> "np.ndarray":
    """The prompt features that a QualiCLIP checkpoint holds, float32 [7, 2, D], the order of `prompts.PAIRS`.

    Raises:
      UserError: they have another shape, or are not of unit length.
    """
    import numpy as np

    from qualiclip_jax import prompts

    features = np.asarray(next(value for key, value in found.tensors.items() if _is_stored_features(key)), np.float32)
    wanted = (2 * len(prompts.PAIRS), clip.config.embed_dim)
    if features.shape != wanted:
        raise UserError(f"{found.name}: {STORED_FEATURES} {features.shape} instead of {wanted}")
    lengths = np.linalg.norm(features, axis=-1, keepdims=True)
    if not np.all(np.abs(lengths - 1) < 1e-2):
        raise UserError(f"{found.name}: {STORED_FEATURES} are not of unit length")
    return (features / lengths).reshape(len(prompts.PAIRS), 2, -1)


def describe(clip: "CLIP") -> str:
    """The architecture in a few words, e.g. "ResNet 3-4-6-3 of width 64, 38.3 M parameters"."""
    import jax
    from flax import nnx

    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(clip, nnx.Param)))
    text = "with" if clip.text is not None else "without"
    return f"{clip.config.image.describe()}, {text} text encoder, {count / 1e6:.1f} M parameters"


def _is_stored_features(key: str) -> bool:
    return key.rpartition(".")[2] == STORED_FEATURES  # a wrapper may have put something before it


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(cli.run(main))
