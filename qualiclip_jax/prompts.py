"""Antonym prompts: pairs of texts -> tokens -> text features.

The pairs that QualiCLIP was published with need no tokenizer in a CLIP: their token ids are kept here. SigLIP and some
models of open_clip have another vocabulary and need their tokenizer always.
"""

import functools
import json
import pathlib
import string
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from qualiclip_jax.errors import UserError

if TYPE_CHECKING:
    import jax

    from qualiclip_jax.models import CLIP

Array = Union[np.ndarray, "jax.Array"]

CONTEXT_LENGTH, SIGLIP_LENGTH = 77, 64
START, END = 49406, 49407

# Source: the QualiCLIP paper, arXiv 2403.11176; the positive prompt first.
PAIRS: tuple[tuple[str, str], ...] = (
    ("Good photo.", "Bad photo."),
    ("Sharp image.", "Blurry image."),
    ("Sharp edges.", "Blurry edges."),
    ("High-resolution image.", "Low-resolution image."),
    ("Noise-free image.", "Noisy image."),
    ("High-quality image.", "Low-quality image."),
    ("Good picture.", "Bad picture."),
)
# CLIP's token ids of PAIRS, between the start and the end token.
TOKEN_IDS: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((886, 1125, 269), (2103, 1125, 269)),
    ((8157, 2867, 269), (21977, 2867, 269)),
    ((8157, 20938, 269), (21977, 20938, 269)),
    ((1400, 268, 9977, 2867, 269), (1042, 268, 9977, 2867, 269)),
    ((9307, 268, 1139, 2867, 269), (33495, 2867, 269)),
    ((1400, 268, 3027, 2867, 269), (1042, 268, 3027, 2867, 269)),
    ((886, 1674, 269), (2103, 1674, 269)),
)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_KNOWN = {text: ids for texts, pair in zip(PAIRS, TOKEN_IDS) for text, ids in zip(texts, pair)}


def check_prompts(prompts: Iterable[str] | Iterable[Sequence[str]] | str) -> tuple[tuple[str, str], ...]:
    """Antonym pairs as a user gave them, as a tuple of (positive, negative).

    Args:
      prompts: pairs, or a flat sequence positive, negative, positive, negative ...

    Raises:
      UserError: no prompts, an odd number of them, one that is empty or certainly over 77 tokens; it names the prompt.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    flat: list[str] = []
    for item in prompts:
        if isinstance(item, str):
            flat.append(item)
        elif isinstance(item, Sequence) and len(item) == 2:
            flat.extend(item)
        else:
            raise UserError(f"prompts: a pair is two texts, positive then negative, got {item!r}")
    if not flat:
        raise UserError("prompts: none given; they are antonym pairs, e.g. ('Good photo.', 'Bad photo.')")
    if len(flat) % 2:
        raise UserError(
            f"prompts: {len(flat)} texts do not make pairs (positive, negative): the last, {flat[-1]!r}, has no antonym"
        )
    for index, text in enumerate(flat):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"prompts: number {index + 1} is empty or no text: {text!r}")
        if len(text.split()) > CONTEXT_LENGTH - 2:  # a word is at least one token
            raise _too_long(text, len(text.split()) + 2)
    return tuple(zip(flat[::2], flat[1::2]))


def tokenize(pairs: Sequence[Sequence[str]], tokenizer: str | pathlib.Path | None = None) -> np.ndarray:
    """CLIP tokens of antonym pairs.

    Args:
      pairs: P pairs (positive, negative).
      tokenizer: where a CLIP tokenizer is: any source of `models.weights.load_clip` that has `tokenizer.json`, or
        `vocab.json` and `merges.txt` beside the weights. Not needed for the texts of `PAIRS`.

    Returns:
      int32 [P, 2, 77]: start token, text, end token, zeros.

    Raises:
      UserError: the pairs are faulty (see `check_prompts`), a text is over 77 tokens, or a tokenizer is needed and not
        there.
    """
    pairs = check_prompts(pairs)
    texts = [text for pair in pairs for text in pair]
    unknown = [text for text in texts if text not in _KNOWN]
    if unknown:
        rows = _tokenize(texts, tokenizer, unknown[0])
    else:
        rows = [[START, *_KNOWN[text], END] for text in texts]
    tokens = np.zeros((len(texts), CONTEXT_LENGTH), np.int32)
    for text, row, ids in zip(texts, tokens, rows):
        if len(ids) > CONTEXT_LENGTH:
            raise _too_long(text, len(ids))
        row[: len(ids)] = ids
    return tokens.reshape(len(pairs), 2, CONTEXT_LENGTH)


def _tokenize(texts: list[str], tokenizer: str | pathlib.Path | None, example: str) -> list[list[int]]:
    if tokenizer is None:
        raise UserError(
            f"prompts: {example!r} is none of QualiCLIP's own prompts, so its tokens must be computed: name a CLIP "
            "tokenizer, i.e. a directory with tokenizer.json (or vocab.json and merges.txt) or a repository with one, "
            "such as openai/clip-vit-base-patch16"
        )
    path = _tokenizer_folder(tokenizer)
    present = [(path / name).is_file() for name in ("tokenizer.json", "vocab.json", "merges.txt")]
    if not (present[0] or all(present[1:])):  # transformers would make an empty tokenizer of it
        raise UserError(f"prompts: no tokenizer in {path} (tokenizer.json, or vocab.json and merges.txt)")

    from transformers import CLIPTokenizer

    try:
        encode = CLIPTokenizer.from_pretrained(str(path))
        rows: list[list[int]] = encode(texts, truncation=False)["input_ids"]
    except Exception as error:  # whatever the readers of transformers raise
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"prompts: the tokenizer in {path} cannot be read: {reason}") from error
    start, end = encode.bos_token_id, encode.eos_token_id
    for text, row in zip(texts, rows):
        if row[0] != start or row[-1] != end or end in row[:-1]:  # the end token also stands for what is not known
            raise UserError(f"prompts: the tokenizer at {tokenizer} cannot write {text!r} as CLIP tokens")
    return rows


def _tokenizer_folder(tokenizer: str | pathlib.Path) -> pathlib.Path:
    from qualiclip_jax.models import weights

    path = weights.locate(tokenizer, tokenizer_only=True)
    return path.parent if path.is_file() else path


def padded_tokens(
    pairs: Sequence[Sequence[str]],
    tokenizer: str | pathlib.Path | None,
    length: int = SIGLIP_LENGTH,
    kind: str = "siglip",
) -> np.ndarray:
    """Tokens of antonym pairs for a model with a vocabulary of its own, filled up.

    SigLIP 2 was trained on texts in small letters; SigLIP before it also without punctuation.

    Args:
      pairs: P pairs (positive, negative).
      tokenizer: as in `tokenize`; `tokenizer.json` and `tokenizer_config.json` must be there.
      length: tokens of a text.
      kind: "siglip", "own" or "clipa", see `models.TextConfig`.

    Returns:
      int32 [P, 2, length]. Of a SigLIP: text, end token, padding. Of others: what the tokenizer gives, padding; of
      CLIPA with zeros for separators.

    Raises:
      UserError: the pairs are faulty (see `check_prompts`), a text is too long, or the tokenizer is not there.

    Source: Siglip2Tokenizer and SiglipTokenizer of transformers. For the published files of SigLIP 2, its AutoTokenizer
    takes GemmaTokenizer, which keeps capitals; SiglipTokenizer needs `sentencepiece`. HFTokenizer of open_clip.
    """
    pairs = check_prompts(pairs)
    if tokenizer is None:
        raise UserError(
            "prompts: this model has a vocabulary of its own: name its tokenizer, i.e. a directory with tokenizer.json "
            "and tokenizer_config.json or a repository with them, such as google/siglip2-base-patch16-224"
        )
    path = _tokenizer_folder(tokenizer)
    missing = [name for name in ("tokenizer.json", "tokenizer_config.json") if not (path / name).is_file()]
    if missing:
        other = "" if kind == "siglip" else " (open_clip_config.json tells which one under hf_tokenizer_name)"
        raise UserError(f"prompts: no tokenizer of this model{other} in {path}: {' and '.join(missing)} missing")

    from tokenizers import Tokenizer

    try:
        encoder = Tokenizer.from_file(str(path / "tokenizer.json"))
        encoder.no_padding()
        encoder.no_truncation()
        config = json.loads((path / "tokenizer_config.json").read_bytes())
        needed = {"siglip": "eos", "clipa": "sep"}.get(kind, "pad")
        special, padding = (encoder.token_to_id(_content(config[f"{name}_token"])) for name in (needed, "pad"))
        plain = "Siglip2" not in (name := str(config.get("tokenizer_class"))) and "Siglip" in name
    except Exception as error:  # `tokenizers` raises plain exceptions
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error).strip().split("\n")[0]
        raise UserError(f"prompts: the tokenizer in {path} cannot be read: {reason}") from error
    if special is None or padding is None:
        raise UserError(f"prompts: the tokenizer in {path} has no {needed} token, or nothing to fill up with")
    rows = []
    for text in (text for pair in pairs for text in pair):
        if kind == "siglip":
            text_in = " ".join(text.lower().translate(_NO_PUNCTUATION).split()) if plain else text.lower()
            ids = [*encoder.encode(text_in, add_special_tokens=False).ids, special]
        else:
            ids = encoder.encode(" ".join(text.split())).ids
            ids = [0 if kind == "clipa" and token == special else token for token in ids]
        if len(ids) > length:
            raise _too_long(text, len(ids), length)
        rows.append(ids + [padding] * (length - len(ids)))
    return np.array(rows, np.int32).reshape(len(pairs), 2, length)


def _content(token: Any) -> str:
    """A special token, which may be written as text or with how it is looked for."""
    return str(token["content"] if isinstance(token, dict) else token)


def text_features(
    clip: "CLIP", pairs: Sequence[Sequence[str]] = PAIRS, tokenizer: str | pathlib.Path | None = None
) -> np.ndarray:
    """Features of antonym pairs, the constants that images are compared with.

    Args:
      clip: a `models.CLIP` with a text encoder.
      pairs: P pairs (positive, negative).
      tokenizer: as in `tokenize`.

    Returns:
      float32 [P, 2, D], of unit length, the positive prompt first.

    Raises:
      UserError: as `tokenize`; or the model has no text encoder, or one for another vocabulary.
    """
    import jax.numpy as jnp

    config = clip.config.text
    if config is not None and config.tokenizer != "clip":
        tokens = padded_tokens(pairs, tokenizer, config.context_length, config.tokenizer)
    else:
        tokens = tokenize(pairs, tokenizer)
    if config is not None:
        lengths = (tokens != 0).sum(-1)
        ends = config.pool == "end" and config.end_token is not None
        if ends and not (tokens == config.end_token).any(-1).all():
            raise UserError(
                f"prompts: the text encoder reads at token {config.end_token}, which the prompts do not have: this "
                "tokenizer is not the model's"
            )
        if tokens.max() >= config.vocab_size or lengths.max() > config.context_length:
            raise UserError(
                f"prompts: the text encoder knows {config.vocab_size} tokens and texts of {config.context_length}, the "
                f"prompts have token {tokens.max()} and {lengths.max()} tokens: this tokenizer is not the model's"
            )
        tokens = tokens[..., : config.context_length]
        tokens = np.pad(tokens, ((0, 0), (0, 0), (0, config.context_length - tokens.shape[-1])))
    features = _encoders()[0](clip, jnp.asarray(tokens.reshape(-1, tokens.shape[-1])))
    return np.asarray(features).reshape(len(tokens), 2, -1)


def context_features(clip: "CLIP", embedded: Array, lengths: Sequence[int], context: Array) -> "jax.Array":
    """Text features of prompts with learned context around them, as QualiCLIP+ has them; differentiable.

    Half of the context goes between the start token and the text, the other half between the text and the end token.

    Args:
      clip: a `models.CLIP` with a text encoder.
      embedded: float [N, T, W], embedded tokens of N prompts: start token, text, end token, padding.
      lengths: how many tokens the text of each prompt has, without start and end.
      context: float [N, C, W], C of them for each prompt.

    Returns:
      float32 [N, D], of unit length.

    Raises:
      UserError: the model has no text encoder, or the prompts with their context are too long for it.

    Source: Agnolucci et al., arXiv 2403.11176; CoOp's "class token in the middle", Zhou et al., arXiv 2109.01134.
    """
    import jax.numpy as jnp

    count, half, tokens = context.shape[1], context.shape[1] // 2, embedded.shape[1]
    config = clip.config.text
    if config is None or tokens + count > config.context_length:
        raise UserError(f"prompts of {tokens} tokens with {count} learned ones between are too long for this model")
    # Which of the tokens, and behind them the context, comes where: [N, T + C].
    order = [
        [
            0,
            *range(tokens, tokens + half),
            *range(1, n + 1),
            *range(tokens + half, tokens + count),
            *range(n + 1, tokens),
        ]
        for n in lengths
    ]
    parts = jnp.concatenate([jnp.asarray(embedded), jnp.asarray(context)], axis=1)
    whole = jnp.take_along_axis(parts, jnp.array(order)[:, :, None], axis=1)
    end = jnp.array([n + count + 1 for n in lengths])
    return _encoders()[1](clip.text, whole, end)


@functools.cache
def _encoders() -> "tuple[Callable[..., jax.Array], Callable[..., jax.Array]]":
    """Unit features of texts, from tokens and from embedded tokens; compiled once for each architecture."""
    from flax import nnx

    from qualiclip_jax.quality import unit

    return (
        nnx.jit(lambda clip, tokens: unit(clip.encode_text(tokens))),
        nnx.jit(lambda text, embedded, end: unit(text.encode(embedded, end))),
    )


def random_text_features(num_pairs: int, dim: int, seed: int = 0) -> np.ndarray:
    """Fixed random directions in place of text features, for training without CLIP weights.

    Args:
      num_pairs: P.
      dim: D.
      seed: of the directions.

    Returns:
      float32 [P, 2, D], of unit length; all orthogonal if 2 P <= D.
    """
    directions = np.random.default_rng(seed).standard_normal((2 * num_pairs, dim))
    if 2 * num_pairs <= dim:
        directions = np.linalg.qr(directions.T)[0].T
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return directions.reshape(num_pairs, 2, dim).astype(np.float32)


def _too_long(text: str, tokens: int, length: int = CONTEXT_LENGTH) -> UserError:
    shown = text if len(text) <= 60 else text[:57] + "..."
    return UserError(
        f"prompts: {shown!r} is {tokens} tokens with start and end, the model takes {length} at most: shorten it"
    )
