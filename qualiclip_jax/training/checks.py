"""Checks of a training config that need no data."""

import functools
import math
import re
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from qualiclip_jax import objective, prompts
from qualiclip_jax.degradations.catalog import LEVELS, TYPES, factor_matrix, types_by_group
from qualiclip_jax.errors import UserError
from qualiclip_jax.training import suggest
from qualiclip_jax.training.config import default_config, fields, kind

OPTIMIZERS = ("adamw", "lion", "sgd")
SCHEDULES = ("cosine", "constant", "frozen")
AT_LEAST_1 = (
    "batch_size", "log_every", "checkpoint.every", "checkpoint.keep_last", "optimizer.accumulate", "eval.max_photos",
)  # fmt: skip


def check(config: ConfigDict) -> None:
    """Checks what can be checked before anything is loaded.

    Raises:
      UserError: naming the field, its value and what it may be.
    """

    def value_of(field: str) -> Any:
        return functools.reduce(lambda section, name: section[name], field.split("."), config)

    def require(condition: bool, field: str, wanted: str) -> None:
        if not condition:
            raise UserError(f"config.{field} is {value_of(field)!r}, but must be {wanted}")

    _check_fields(config)
    for field in AT_LEAST_1:
        require(value_of(field) >= 1, field, "1 or more")
    for field, value in fields(config):
        if isinstance(value, (int, float)):
            require(0 <= value < math.inf, field, "0 or more, and finite")
    require(config.seed < 2**63, "seed", "below 2**63")
    require(config.steps >= 1 or config.epochs > 0 or config.probe.images > 0, "steps", "1 or more (or set epochs)")
    require(config.parallel in ("pmap", "fsdp"), "parallel", "'pmap' or 'fsdp'")
    require(config.parallel == "fsdp" or not config.shards, "shards", "0 with parallel 'pmap'")
    require(config.probe.ridge > 0, "probe.ridge", "above 0")
    require(config.probe.tones >= 0, "probe.tones", "0 or more")
    require(config.learning_rate > 0, "learning_rate", "above 0")
    require(config.temperature > 0, "temperature", "above 0")
    require(config.data.crop_size >= 32, "data.crop_size", "32 or more")
    require(config.eval.crop_size >= 32, "eval.crop_size", "32 or more")
    require(0 <= config.data.min_overlap <= 1, "data.min_overlap", "in 0..1")
    scale = tuple(config.data.scale_range)
    require(
        len(scale) == 2 and all(map(_is_number, scale)) and 0 < scale[0] <= scale[1] <= 1,
        "data.scale_range",
        "(low, high) with 0 < low <= high <= 1",
    )
    require(config.data.small_images in ("enlarge", "skip"), "data.small_images", "'enlarge' or 'skip'")
    require(config.model.compute_dtype in ("float32", "bfloat16"), "model.compute_dtype", "'float32' or 'bfloat16'")
    require(config.model.batch_norm in ("frozen", "trained"), "model.batch_norm", "'frozen' or 'trained'")
    for field in ("ratings.source", "model.adapter_rank"):
        if value_of(field):
            require(config.model.batch_norm == "frozen", "model.batch_norm", f"'frozen' with {field}")
    require(
        config.model.position in ("", "none", "native", "interpolate"),
        "model.position",
        "'none', 'native', 'interpolate' or '' (the backbone's own choice)",
    )
    short = tuple(config.data.short_side)
    require(
        len(short) == 2
        and all(map(_is_number, short))
        and 0 <= short[0] <= short[1]
        and bool(short[0]) == bool(short[1]),
        "data.short_side",
        "(low, high) with 0 < low <= high, or (0, 0)",
    )
    if config.ratings.source:
        require(
            config.model.adapter_rank > 0 or not config.ratings.weight_degradations,
            "ratings.weight_degradations",
            "0 without model.adapter_rank",
        )
        require(
            2 <= config.ratings.context <= 64 and config.ratings.context % 2 == 0, "ratings.context", "even, 2 to 64"
        )
        require(config.batch_size >= 3, "batch_size", "3 or more with ratings.source: the loss is a correlation")
        require(config.optimizer.accumulate == 1, "optimizer.accumulate", "1 with ratings.source")
        require(not config.probe.images, "probe.images", "0 with ratings.source")
        require(not config.distillation.teacher, "distillation.teacher", "'' with ratings.source")
        require(not config.eval.photos, "eval.photos", "'' with ratings.source")
    distillation, votes = config.distillation, "with distillation.by 'votes'"
    require(distillation.by in ("scores", "votes"), "distillation.by", "'scores' or 'votes'")
    require(0.5 < distillation.majority <= 1, "distillation.majority", "above 0.5, at most 1")
    if distillation.teacher and distillation.by == "votes":
        require(config.batch_size >= 3, "batch_size", f"3 or more {votes}: scores are standardised over the batch")
        require(config.optimizer.accumulate == 1, "optimizer.accumulate", f"1 {votes}")
    _check_camera(config, require)
    try:
        groups = len(types_by_group(config.degradations.types or TYPES))
    except UserError as error:
        raise UserError(f"config.degradations.types: {error}") from None
    require(
        1 <= config.degradations.composed <= groups, "degradations.composed", f"1 to {groups}, the number of groups"
    )
    require(
        0 <= config.degradations.fewest <= config.degradations.composed,
        "degradations.fewest",
        "0 (always `composed`) to degradations.composed",
    )
    require(config.optimizer.name in OPTIMIZERS, "optimizer.name", f"one of {', '.join(OPTIMIZERS)}")
    require(0 <= config.optimizer.b1 < 1, "optimizer.b1", "0 or more, below 1")
    require(0 <= config.optimizer.b2 < 1, "optimizer.b2", "0 or more, below 1")
    require(0 <= config.optimizer.ema_decay < 1, "optimizer.ema_decay", "0 (none) or below 1")
    require(config.batch_size % config.optimizer.accumulate == 0, "optimizer.accumulate", "a divisor of batch_size")
    require(all(isinstance(name, str) for name in config.eval.rated), "eval.rated", "names of rated sets")
    for row in config.optimizer.parameters:
        require(
            _is_schedule_row(row),
            "optimizer.parameters",
            f"rows of (regex, schedule, multiplier), schedule one of {', '.join(SCHEDULES)}, multiplier 0 or more",
        )
        try:
            re.compile(row[0])
        except re.error as error:
            raise UserError(
                f"config.optimizer.parameters has a regex that does not compile: {row[0]!r}: {error}"
            ) from None
    prompts.check_prompts(config.prompts)


def _check_camera(config: ConfigDict, require: Callable[[bool, str, str], None]) -> None:
    """Checks the levels, what only the camera's chain has, and the ranking by severity."""
    d, loss = config.degradations, config.loss
    for field, share in (("camera", d.camera), ("local", d.local), ("alone", d.alone)):
        require(share <= 1, f"degradations.{field}", "a share of the images, 0 to 1")
    most, more = (20, "") if d.camera == 1 else (LEVELS, " (20 with degradations.camera 1)")
    least = 2
    if loss.weight_across and d.camera < 1:
        least, more = math.floor(objective.LEAST_GAP * LEVELS) + 2, more + " with loss.weight_across"
    elif loss.weight_triplets:
        least, more = 3, more + " with loss.weight_triplets"
    require(least <= d.levels <= most, "degradations.levels", f"{least} to {most}{more}")
    for field, value in (("continuous", d.continuous), ("local", d.local), ("alone", d.alone)):
        require(not value or d.camera > 0, f"degradations.{field}", f"{type(value)()} without degradations.camera")
    require(all(isinstance(name, str) for name in loss.factors), "loss.factors", "names of factors")
    require(
        len(loss.factors) in (0, len(config.prompts) // 2), "loss.factors", "one entry for each pair of prompts, or ()"
    )
    try:
        factor_matrix(loss.factors)
    except UserError as error:
        raise UserError(f"config.loss.factors: {error}") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_schedule_row(row: Any) -> bool:
    if not isinstance(row, (tuple, list)) or len(row) != 3:
        return False
    pattern, kind, multiplier = row
    return isinstance(pattern, str) and kind in SCHEDULES and _is_number(multiplier) and multiplier >= 0


def _check_fields(config: ConfigDict) -> None:
    """Checks that the config has exactly the fields of `default_config`, each with a value of its type."""
    defaults, given = dict(fields(default_config())), dict(fields(config))
    for name, default in defaults.items():
        if name not in given:
            raise UserError(
                f"config.{name} is missing: get_config() has to start from training.config.default_config()"
            )
        if not _is_like(given[name], default):
            raise UserError(f"config.{name} is {given[name]!r}, but must be {kind(default)}")
    for name in given:
        if name not in defaults and not name.startswith("model.image."):
            meant = suggest.field(name, defaults)
            hint = f"; did you mean {meant!r}?" if meant else ""
            raise UserError(f"config.{name}: there is no such field{hint}")


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(default, tuple):
        return isinstance(value, (tuple, list))
    return type(value) is type(default) or (isinstance(default, float) and type(value) is int)
