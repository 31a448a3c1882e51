"""The folder that `qualiclip export` writes: the model, a card, a web page, checksums; and the check of one."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qualiclip_jax import html, models, storage, zoo
from qualiclip_jax.data.sources import open_source
from qualiclip_jax.download import sha256
from qualiclip_jax.errors import UserError
from qualiclip_jax.export import onnx_file, stablehlo
from qualiclip_jax.images import ImageError
from qualiclip_jax.progress import Progress
from qualiclip_jax.storage import StrPath
from qualiclip_jax.version import __version__

FORMATS = ("onnx", "stablehlo")
FACTS, SUMS = "export.json", "SHA256SUMS"
CALIBRATION = 32  # photos
_GENERATOR = "qualiclip export"


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be written.

    Attributes:
      name: of the model, as `zoo.load` takes it.
      format: one of `FORMATS`.
      pixels: "uint8" (0 to 255), or "float32" (0 to 1).
      calibration: a source of photos (`data.sources.open_source`) for a second file of 8 bits; None for none.
      platforms: where a program of StableHLO is to run.
    """

    name: str
    format: str
    pixels: str = onnx_file.INPUTS[0]
    calibration: str | None = None
    platforms: tuple[str, ...] = stablehlo.PLATFORMS


def write(request: Request, out: StrPath) -> models.Model:
    """Writes a folder, whole or not at all.

    Args:
      request: what to write.
      out: a folder that does not exist yet.

    Returns:
      The model.

    Raises:
      UserError: the folder exists or cannot be written; the model cannot be had; a package is missing.
    """
    out = Path(out).absolute()
    if out.exists():
        raise UserError(f"{out} exists already: choose another name, or remove it first")
    if request.format == "onnx":
        onnx_file.require("onnx", *(["onnxruntime"] if request.calibration else []))
    model = zoo.load(request.name)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from None
    try:
        _fill(folder, request, model)
        folder.chmod(0o777 & ~_umask())
        os.rename(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return model


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _fill(folder: Path, request: Request, model: models.Model) -> None:
    if request.format == "onnx":
        data = onnx_file.build(model, request.name, request.pixels).SerializeToString()
        storage.write_bytes(folder / "model.onnx", data)
        if request.calibration:
            onnx_file.quantised(folder / "model.onnx", _photos(request.calibration, model), folder / "model_int8.onnx")
    else:
        program = stablehlo.build(model, request.pixels, request.platforms)
        storage.write_bytes(folder / "model.stablehlo", program)
    files = [
        {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)} for path in sorted(folder.iterdir())
    ]
    facts = _facts(request, model)
    storage.write_bytes(folder / FACTS, json.dumps(facts | {"files": files}, indent=1).encode())
    title = f"{request.name}: image quality"
    card = html.render("export.md.j2", title=title, generator=_GENERATOR, files=files, **facts)
    storage.write_bytes(folder / "README.md", card)
    if request.format == "onnx":
        prompts, pixels = model.prompts, request.pixels
        page = html.render(
            "export.html.j2", title=title, generator=_GENERATOR, file="model.onnx", prompts=prompts, pixels=pixels
        )
        storage.write_bytes(folder / "index.html", page)
    sums = "".join(f"{sha256(path)}  {path.name}\n" for path in sorted(folder.iterdir()))
    storage.write_bytes(folder / SUMS, sums.encode())


def _facts(request: Request, model: models.Model) -> dict[str, Any]:
    """What the card tells, JSON-able."""
    config, today = model.clip.config, datetime.date.today()
    entry, program = zoo.TABLE.get(request.name), request.format == "stablehlo"
    licence = model.provenance.get("licence") or (entry.licence if entry else "see where they come from")
    return {
        "name": request.name,
        "fingerprint": model.fingerprint,
        "format": request.format,
        "pixels": request.pixels,
        "int8": request.calibration is not None,
        "architecture": config.image.describe(),
        "prompts": [list(pair) for pair in model.prompts],
        "scored": model.scored or len(model.prompts),
        "temperature": float(model.temperature),
        "magnitude": None if model.magnitude is None else model.magnitude._asdict(),
        "least": max(32, config.image.stride),
        "side": config.image.image_size if config.position == "native" else None,
        "licence": licence,
        "date": today.isoformat(),
        "version": __version__,
        "jax": importlib.metadata.version("jax"),
        "platforms": list(request.platforms) if program else [],
        "expiry": stablehlo.expiry(today).isoformat() if program else None,
        "months": stablehlo.MONTHS,
    }


def _photos(spec: str, model: models.Model) -> Sequence[np.ndarray]:
    """Photos to calibrate on, spread over the source; cut to the size that a model with a native position takes."""
    source = open_source(spec, "--int8")
    count, config = min(len(source), CALIBRATION), model.clip.config
    side = config.image.image_size if config.position == "native" else 640
    found = []
    with Progress(count, "reading photos", "photo") as progress:
        for k in range(count):
            try:
                photo = source[k * len(source) // count][:side, :side]
            except ImageError as error:
                progress.write(f"left out: {error}")
                continue
            fits = photo.shape[:2] == (side, side) if config.position == "native" else min(photo.shape[:2]) >= 32
            found += [photo] if fits else []
            progress.advance()
    if not found:
        raise UserError(f"--int8: {source.describe()} has no photo that is large enough")
    return found


def check(path: StrPath, name: str) -> str:
    """Checks that a file of ONNX, or a folder of `write`, is of a model, and a folder's files by their checksums.

    Args:
      path: the file, or the folder.
      name: of the model, as `zoo.load` takes it.

    Returns:
      The fingerprint of both.

    Raises:
      UserError: it is of another model, damaged, or nothing that was written here.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"no file or folder {path}")
    found = _checked(path) if path.is_dir() else onnx_file.fingerprint(path)
    wanted = zoo.load(name).fingerprint
    if found != wanted:
        raise UserError(
            f"{path} is of another model: its fingerprint is {found}, that of {name} is {wanted}: export again"
        )
    return found


def _checked(folder: Path) -> str:
    """The fingerprint that a folder names; its files are whole."""
    try:
        facts = json.loads((folder / FACTS).read_bytes())
        lines = (folder / SUMS).read_text().splitlines()
        fingerprint = str(facts["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{folder} was not written by `qualiclip export`: {FACTS} or {SUMS} is missing or damaged"
        ) from None
    for line in lines:
        digest, _, name = line.partition("  ")
        file = folder / name
        if not file.is_file():
            raise UserError(f"{file} is missing: export again")
        if sha256(file) != digest:
            raise UserError(f"{file} was changed or is damaged: its SHA-256 is not that of {SUMS}: export again")
    if facts.get("expiry") and str(facts["expiry"]) < datetime.date.today().isoformat():
        raise UserError(f"{folder}: newer versions of JAX may not read it since {facts['expiry']}: export again")
    return fingerprint
