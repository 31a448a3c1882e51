"""Other implementations' weights to a checkpoint of this project: python -m qualiclip_jax.convert SOURCE --out DIR"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qualiclip_jax import cli
from qualiclip_jax.errors import UserError

if TYPE_CHECKING:
    from qualiclip_jax.models import CLIP
    from qualiclip_jax.models.convert import from_state_dict, to_openai_state_dict

__all__ = ["from_state_dict", "main", "to_openai_state_dict"]


def __getattr__(name: str) -> Any:
    if name in ("from_state_dict", "to_openai_state_dict"):  # looked up late, so that --help needs no JAX
        from qualiclip_jax.models import convert

        return getattr(convert, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog=cli.program("convert"),
        description="Converts CLIP or QualiCLIP weights to a self-contained checkpoint to score with.",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a name (`qualiclip models` lists them); a Hugging Face repository, owner/name[@revision]; a directory "
        "like one, or a checkpoint; or a file of OpenAI, open_clip, Hugging Face or QualiCLIP: .safetensors, .pt, "
        ".pth, .bin, .msgpack",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="must not exist yet")
    parser.add_argument(
        "--text-encoder",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="keep it; scoring needs the prompts' features only",
    )
    parser.add_argument(
        "--prompts",
        nargs="+",
        metavar="TEXT",
        help="antonym pairs: positive negative ... (default: the model's)",
    )
    parser.add_argument("--tokenizer", metavar="DIR", help="for own prompts (default: beside the weights)")
    parser.add_argument("--temperature", type=float, help="divides the logits (default: the model's own, mostly 1)")
    parser.add_argument(
        "--similarity",
        choices=("softmax", "sigmoid"),
        help="of an image and a pair of prompts: softmax over the pair, or a sigmoid of each with the scale and bias "
        "that a SigLIP learned (default: the model's own, mostly softmax)",
    )
    parser.add_argument(
        "--magnitude",
        type=float,
        metavar="WEIGHT",
        help="let the magnitude of the image features count in scores, beside the cosines with their weight of 1 "
        "(MA-CLIP takes 0.6; default: it does not count)",
    )
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
    parser.add_argument(
        "--store",
        choices=("float32", "float16"),
        default="float32",
        help="what parameters are written as: float16 halves the checkpoint and rounds them (default: %(default)s)",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Converts weights; see `--help`."""
    args = parse(argv)
    if args.out.exists():
        raise UserError(f"{args.out} exists already: choose another name, or remove it first")
    if args.temperature is not None and not 0 < args.temperature < float("inf"):
        raise UserError(f"--temperature must be positive and finite, got {args.temperature}")
    if args.magnitude is not None and not 0 < args.magnitude < float("inf"):
        raise UserError(f"--magnitude must be positive and finite, got {args.magnitude}")

    from qualiclip_jax import checkpoint, zoo

    model = zoo.build(
        args.source, prompts=args.prompts, tokenizer=args.tokenizer, temperature=args.temperature,
        similarity=args.similarity, text_encoder=args.text_encoder, position=args.position, activation=args.activation,
    )  # fmt: skip
    if args.magnitude is not None:
        from qualiclip_jax.inference import magnitude

        model = magnitude.fused(model, args.magnitude)
    checkpoint.save_model(args.out, model, args.store)
    model = checkpoint.load_model(args.out)  # rounded, perhaps
    print(f"{args.out}: {describe(model.clip)}, {len(model.prompts)} prompt pairs, fingerprint {model.fingerprint}")


def describe(clip: "CLIP") -> str:
    """The architecture in a few words, e.g. "ResNet 3-4-6-3 of width 64, 38.3 M parameters"."""
    import jax
    from flax import nnx

    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(clip, nnx.Param)))
    text = "with" if clip.text is not None else "without"
    return f"{clip.config.image.describe()}, {text} text encoder, {count / 1e6:.1f} M parameters"


if __name__ == "__main__":
    sys.exit(cli.run(main))
