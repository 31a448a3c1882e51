"""Every model by its name: what `QualiCLIP.load`, `--checkpoint`, `--baseline`, `model.weights` and `convert` take.

A name is, in this order: a path, a key of `TABLE`, or a repository of the Hugging Face hub (`owner/name[@revision]`)
with weights or with a checkpoint of this project. What is published elsewhere is downloaded once and converted once, to
checkpoints in the user's cache directory. Nothing falls back to random weights.
"""

import contextlib
import dataclasses
import difflib
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qualiclip_jax import checkpoint, download, models, prompts, quality, storage
from qualiclip_jax.errors import UserError
from qualiclip_jax.models import backbones, weights
from qualiclip_jax.models.torch_file import read_torch
from qualiclip_jax.zoo_table import KNOWN, NON_COMMERCIAL, STORED_FEATURES, TINY_FOLDER, Entry, cache_folder
from qualiclip_jax.zoo_table import TABLE as TABLE
from qualiclip_jax.zoo_table import TINY as TINY


def load(name: str | Path) -> models.Model:
    """The model of a name, to score with.

    Args:
      name: a path, a key of `TABLE`, or a repository of the hub. A path may lead to a checkpoint, the working directory
        of a training run, or weights in any format that `convert` reads.

    Raises:
      UserError: there is no such model (it says what was meant, perhaps), it cannot be had, or is damaged.
    """
    found = _find(name)
    return _lean(found) if found.cache is None else _converted(found, found.cache)


def build(
    name: str | Path,
    *,
    prompts: Sequence[str] | Sequence[Sequence[str]] | None = None,
    tokenizer: str | Path | None = None,
    temperature: float | None = None,
    similarity: str | None = None,
    text_encoder: bool = False,
    **clip_options: Any,
) -> models.Model:
    """The model of a name with changes, made from what was published; nothing is kept.

    Args:
      name: as in `load`.
      prompts: antonym pairs, or a flat sequence positive, negative ...; by default the model's own.
      tokenizer: for prompts that are not QualiCLIP's own; by default the one beside the weights.
      temperature: by default the model's own.
      similarity: "softmax" over a pair, or "sigmoid" of each prompt with the scale and bias that a SigLIP learned, see
        `quality.attribute_scores`; by default the model's own.
      text_encoder: keep it, where there is one.
      clip_options: as in `weights.load_clip`; None leaves them as they are.

    Raises:
      UserError: as `load`; or the prompts need a text encoder or a tokenizer that is not there.
    """
    changes = {key: value for key, value in clip_options.items() if value is not None}
    make = _build if text_encoder else _lean
    model = make(_find(name), prompts, tokenizer, changes)
    if similarity is not None:
        model = dataclasses.replace(model, **_judged_by(similarity, model, str(name)), rating=None)
    return model if temperature is None else dataclasses.replace(model, temperature=temperature, rating=None)


def _judged_by(similarity: str, model: models.Model, name: str) -> dict[str, Any]:
    """The fields of a model that make its scores of a softmax or of sigmoids."""
    if similarity == "softmax":
        return {"bias": None}
    if model.clip.logit_bias is None:
        raise UserError(f"{name}: similarity by sigmoid needs a SigLIP: this model has learned no bias for it")
    scale, bias = float(np.exp(model.clip.logit_scale[...])), float(model.clip.logit_bias[...])
    return {"temperature": quality.LOGIT_SCALE / scale, "bias": bias}


@dataclasses.dataclass(frozen=True)
class _Found:
    """Where a name leads.

    Attributes:
      name: what the user called it.
      path: a checkpoint; or a file of weights, or a directory with some; None for an entry, fetched when needed.
      is_checkpoint: whether it is a checkpoint of this project.
      entry: of the table, if it is one.
      cache: where to keep what is converted; None for paths of the user's.
    """

    name: str
    path: Path | None
    is_checkpoint: bool = False
    entry: Entry | None = None
    cache: Path | None = None


def _find(name: str | Path) -> _Found:
    """Where a name leads; a repository is downloaded if need be."""
    path, text = Path(name).expanduser(), str(name)
    if path.exists():
        return _Found(text, path, checkpoint.is_one(path))
    if text == TINY:
        return _Found(text, TINY_FOLDER, True)
    if (entry := TABLE.get(text)) is not None:
        return _Found(text, None, False, entry, entry.folder)
    if text in backbones.CLASSIFIERS:
        return _Found(text, weights.locate(text))
    repository, _, revision = text.removeprefix("hf-hub:").partition("@")
    if path.is_absolute() or text.startswith((".", "~")) or path.suffix in weights.SUFFIXES:
        raise UserError(f"no model at {path}: no such file or directory")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UserError(
            f"no model {text!r}: {_meant(text)}`qualiclip models` lists the names; a path or a repository of the "
            "Hugging Face hub (owner/name) is fine, too"
        )
    try:
        folder = download.from_hub(repository, revision or None, _choose, text, weights.hub_hint(repository))
    except UserError as error:
        raise UserError(f"{_meant(text)}{error}") from None
    if checkpoint.is_one(folder):
        return _Found(text, folder, True)
    return _Found(text, folder, False, None, cache_folder(f"{repository}-{folder.name[:12]}"))


def _meant(name: str) -> str:
    """What a misspelt name may have meant: "did you mean ...? ", or nothing."""

    def plain(name: str) -> str:
        return re.sub(r"[^a-z0-9+]", "", name.lower()).replace("plus", "+")

    plains = {plain(known): known for known in TABLE}
    close = difflib.get_close_matches(plain(name), plains, n=2, cutoff=0.7)
    close = close[:1] if plain(name) in plains else close
    return f"did you mean {' or '.join(plains[match] for match in close)}? " if close else ""


def _choose(files: Sequence[str]) -> list[str]:
    """Of the files of a repository: a checkpoint of this project, else weights with their tokenizer."""
    if (first := "meta/metadata") in files:
        rest = [file for file in files if file.startswith(("model/", "meta/")) or file == "_CHECKPOINT_METADATA"]
        return [first, *(file for file in rest if file != first)]
    return weights.with_tokenizer(files)


def _fetch(entry: Entry) -> Path:
    """What an entry is made from: a file or a directory, downloaded if need be."""
    if entry.licence in NON_COMMERCIAL:
        print(
            f"{entry.name}: {entry.licence}, not for commercial use: {NON_COMMERCIAL[entry.licence]}", file=sys.stderr
        )
    if entry.source in backbones.TABLE:
        return weights.locate(entry.source)
    if entry.source.startswith("https:"):
        return download.from_release(entry.source, read_torch)

    def choose(files: Sequence[str]) -> Sequence[str]:
        return entry.files if set(entry.files) <= set(files) else ()

    return download.from_hub(entry.source, None, choose, entry.name, " ".join(entry.files)) / entry.files[0]


def _converted(found: _Found, folder: Path) -> models.Model:
    """The model in a folder of the cache, made if it is not there yet, or damaged."""
    with contextlib.suppress(UserError):
        if folder.is_dir():
            return checkpoint.load_model(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"{folder}: {error.strerror or error}: the model is not kept", file=sys.stderr)
        return _lean(found)
    with storage.lock(folder, wait=download.WAIT):
        with contextlib.suppress(UserError):
            if folder.is_dir():  # another process was faster
                return checkpoint.load_model(folder)
        shutil.rmtree(folder, ignore_errors=True)
        model = _lean(found)
        try:
            checkpoint.save_model(folder, model)
        except UserError as error:  # a full disk
            print(f"{error}: the model is not kept", file=sys.stderr)
    return model


def _lean(found: _Found, *changes: Any) -> models.Model:
    """What `_build` gives, without a text encoder."""
    model = _build(found, *changes)
    model.clip.drop_text_encoder()
    return model


def _build(
    found: _Found,
    pairs: Sequence[Any] | None = None,
    tokenizer: str | Path | None = None,
    clip_options: dict[str, Any] | None = None,
) -> models.Model:
    """Reads what a name leads to, with changes."""
    path = found.path or _fetch(TABLE[found.name])
    if found.is_checkpoint:
        return _of_checkpoint(path, pairs, tokenizer, clip_options or {})
    return _of_weights(found, path, pairs, tokenizer, clip_options or {})


def _of_checkpoint(
    path: Path, pairs: Sequence[Any] | None, tokenizer: str | Path | None, clip_options: dict[str, Any]
) -> models.Model:
    """A checkpoint with other prompts or options of its CLIP."""
    model = checkpoint.load_model(path)
    if pairs is not None:
        wanted = prompts.check_prompts(pairs)
        if set(wanted) <= set(model.prompts):
            features = model.prompt_features[[model.prompts.index(pair) for pair in wanted]]
        elif model.clip.text is not None:
            features = prompts.text_features(model.clip, wanted, tokenizer)
        else:
            raise UserError(
                f"prompts: the checkpoint {path} has no text encoder, and knows only "
                f"{', '.join(' / '.join(pair) for pair in model.prompts)}: take those, or convert with --text-encoder"
            )
        model = dataclasses.replace(model, prompts=wanted, prompt_features=features, rating=None)
    if "activation" in clip_options:
        raise UserError(f"the checkpoint {path} tells its own activation: leave --activation out")
    if clip_options:
        config, arrays = models.to_pure(model.clip)
        position = config["position"]
        model = dataclasses.replace(model, clip=models.from_pure(config | clip_options, arrays))
        if model.clip.config.position != position:
            model = _of_other_features(model)
    return model


def _of_other_features(model: models.Model) -> models.Model:
    """The same without a rating, which was fitted to other features; the magnitude's constants are measured anew."""
    model = dataclasses.replace(model, rating=None)
    if model.magnitude is None:
        return model
    from qualiclip_jax.inference import magnitude

    return magnitude.fused(model, model.magnitude.weight)


def _of_weights(
    found: _Found,
    path: Path,
    pairs: Sequence[Any] | None,
    tokenizer: str | Path | None,
    clip_options: dict[str, Any],
) -> models.Model:
    """Weights as they were published, as a model."""
    entry, read = found.entry, weights.read(path)
    files = [*read.files, *(path.with_name(name) for name in (entry.files[1:] if entry else ()))]
    digests = {file.name: download.sha256(file) for file in files}
    provenance: dict[str, Any] = {"weights": found.name, "sha256": digests}
    if entry is not None:
        provenance |= {"source": entry.repository, "licence": entry.licence}
        for file in files:
            _check(entry, file, digests[file.name])
    clip = weights.build(read, **clip_options)
    wanted = prompts.check_prompts(pairs) if pairs is not None else entry.pairs if entry else prompts.PAIRS
    stored = _stored_features(read, clip)
    if entry is not None and len(files) > len(read.files):
        provenance["prompts"] = "learned"
        stored = _learned_features(files[-1], clip)
    if stored is not None and set(wanted) <= set(prompts.PAIRS):
        features = stored[[prompts.PAIRS.index(pair) for pair in wanted]]
    elif clip.text is None:
        raise UserError(f"{found.name} has neither a text encoder nor prompt features: nothing to compare images with")
    else:
        features = prompts.text_features(clip, wanted, tokenizer or read.directory)
    return models.Model(clip, wanted, np.asarray(features), entry.temperature if entry else 1.0, provenance)


def _check(entry: Entry, file: Path, digest: str) -> None:
    """Refuses a file that is not the one that is known."""
    known = KNOWN.get((entry.repository, file.name))
    if known is not None and digest != known[1]:
        download.forget(file)
        raise UserError(
            f"{entry.name}: {file.name} of {entry.repository} is not the file that is known (SHA-256 {digest} instead "
            f"of {known[1]}) and was removed: try again; if it was published anew, name the repository instead"
        )


def _stored_features(found: weights.Weights, clip: models.CLIP) -> np.ndarray | None:
    """The prompt features that a QualiCLIP checkpoint holds, float32 [7, 2, D], the order of `prompts.PAIRS`."""
    keys = [key for key in found.tensors if key.rpartition(".")[2] == STORED_FEATURES]  # it may be wrapped
    if not keys:
        return None
    features = np.asarray(found.tensors[keys[0]]).astype(np.float32)
    wanted = (2 * len(prompts.PAIRS), clip.config.embed_dim)
    if features.shape != wanted:
        raise UserError(f"{found.name}: {STORED_FEATURES} {features.shape} instead of {wanted}")
    lengths = np.linalg.norm(features, axis=-1, keepdims=True)
    if not np.all(np.abs(lengths - 1) < 1e-2):
        raise UserError(f"{found.name}: {STORED_FEATURES} are not of unit length")
    return np.reshape(features / lengths, (len(prompts.PAIRS), 2, -1))


def _learned_features(path: Path, clip: models.CLIP) -> np.ndarray:
    """Features of `prompts.PAIRS` with the context that QualiCLIP+ learned around them, float32 [7, 2, D].

    The file holds three tensors of IQA-PyTorch's prompt learner: `ctx` [14, C, W], the learned context; `token_prefix`
    [14, 1, W] and `token_suffix` [14, 76 - C, W], the embedded start token, and text, end token and padding.
    """
    tensors = {name.rpartition(".")[2]: np.asarray(array, np.float32) for name, array in read_torch(path).items()}
    count, text = 2 * len(prompts.PAIRS), clip.config.text
    if missing := [name for name in ("ctx", "token_prefix", "token_suffix") if name not in tensors]:
        raise UserError(f"{path}: no prompt learner of QualiCLIP+: {', '.join(missing)} missing")
    if text is None:
        raise UserError(f"{path}: learned prompts need a text encoder, and the weights beside them have none")
    context = tensors["ctx"]
    context = context if context.ndim == 3 else np.broadcast_to(context, (count, *context.shape))
    embedded = np.concatenate([tensors["token_prefix"], tensors["token_suffix"]], axis=1)
    shapes = context.shape, embedded.shape
    if shapes != ((count, context.shape[1], text.width), (count, text.context_length - context.shape[1], text.width)):
        raise UserError(f"{path}: the prompt learner has the shapes {shapes}, which do not fit the text encoder")
    lengths = [len(ids) for pair in prompts.TOKEN_IDS for ids in pair]
    features = prompts.context_features(clip, embedded, lengths, context)
    return np.asarray(features).reshape(len(prompts.PAIRS), 2, -1)
