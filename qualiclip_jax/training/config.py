"""Every field of a training run with its default, and ready-made configs.

A config file's `get_config()` starts from `default_config()` and changes what it wants; the command line changes single
fields (`--config.batch_size=32`). The config is locked: a misspelt field is an error. `training.checks` checks values.
"""

import json
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from qualiclip_jax import prompts


def default_config() -> ConfigDict:
    """The fields of a run. Values the paper reports are in `configs/rn50_paper.py`; these are ours."""
    c = ConfigDict()
    c.seed = 0
    c.steps = 10_000  # optimizer steps
    c.epochs = 0.0  # if above 0: passes over the source, in place of `steps`
    c.batch_size = 16  # images a step, over all devices of all processes
    c.log_every = 50  # steps
    c.tensorboard = True  # event files too, if tensorboardX is installed
    c.parallel = "pmap"  # a copy of the state on every device; "fsdp": parameters and optimizer spread over them
    c.shards = 0  # fsdp: so many devices hold one state together; 0 is all
    c.learning_rate = 1e-5  # the peak of the schedule
    c.temperature = 1.0  # of the score, not of the loss: 1 (hub release) or 2 (IQA-PyTorch)
    c.scored = 0  # the score is the mean over so many pairs of prompts, the first ones; 0 is all
    c.prompts = tuple(text for pair in prompts.PAIRS for text in pair)  # antonym pairs, positive first

    c.data = ConfigDict()
    c.data.source = "sample:train"  # folder:PATH, tfds:NAME[:SPLIT][@DATA_DIR], sample[:train]; several with commas
    c.data.crop_size = 224  # pixels
    c.data.min_overlap = 0.5  # of the crop's side, in each axis
    c.data.scale_range = (1.0, 1.0)  # each photo is first shrunk by a factor drawn from this range
    c.data.short_side = (0, 0)  # px: if above 0, photos are resized to a shorter side drawn from this range instead
    c.data.detail = 0.0  # above 0: crops are drawn by this power of the detail in them, 1 or 2; 0 is anywhere
    c.data.flip = True  # both crops together, with probability 1/2
    c.data.small_images = "enlarge"  # or "skip": photos smaller than the crop
    c.data.cache_mb = 256.0  # of decoded photos kept in memory, each process
    c.data.threads = 0  # that decode; 0 is one a core

    c.model = ConfigDict()
    c.model.weights = ""  # Hugging Face repository, directory, file, "efficientnet-lite0"; "random": from scratch
    c.model.backbone = ""  # a name of models.backbones, needed with random weights only (or give `image`)
    c.model.image = ConfigDict()  # an image encoder of your own: fields of a config in models.clip_config, and its kind
    c.model.embed_dim = 0  # of your own encoder
    c.model.position = ""  # "none", "native" or "interpolate"; "" is the backbone's own choice
    c.model.compute_dtype = "float32"  # or "bfloat16"; parameters are float32 always
    c.model.remat = False  # compute activations again in the backward pass: less memory, more time
    c.model.batch_norm = "frozen"  # or "trained": batch statistics, averaged over devices
    c.model.adapter_rank = 0  # above 0: low-rank adapters are trained, the encoder itself is not; see training.adapters

    c.degradations = ConfigDict()
    c.degradations.levels = 5
    c.degradations.types = ()  # names of those that are drawn; all 24 if empty
    c.degradations.composed = 1  # D, how many degradations of distinct groups an image gets
    c.degradations.fewest = 0  # if above 0: between this many and D, drawn for each image
    c.degradations.camera = 0.0  # share of the images that the chain of a camera degrades instead, 0 to 1
    c.degradations.continuous = False  # camera: levels drawn for each image, evenly apart; else from 0 to 1
    c.degradations.local = 0.0  # camera: share of its images whose faults are local
    c.degradations.alone = 0.0  # camera: share of its images of which one fault follows the level and the others stay

    c.loss = ConfigDict()
    c.loss.margin_consistency = 2.5e-3
    c.loss.margin_rank = 6.75e-2
    c.loss.weight_consistency = 1.0
    c.loss.weight_positive = 1.0
    c.loss.weight_negative = 1.0
    c.loss.weight_across = 0.0  # ours: ranks images against each other by severity, for models from scratch
    c.loss.weight_triplets = 0.0  # features in the order of the levels, after TRIQA (arXiv 2507.12687)
    c.loss.margin_triplets = 0.01  # ours
    c.loss.factors = ()  # what each pair of prompts is ranked by: "all", or factors joined by "+"; () is "all"

    c.ratings = ConfigDict()  # learning from ratings, in place of degradations
    c.ratings.source = ""  # a rated set: its name, or "csv:FILE[@FOLDER]"; "" for none
    c.ratings.context = 16  # learned tokens in each prompt (QualiCLIP+); with model.adapter_rank, prompts stay
    c.ratings.weight_mse = 1.0  # of scores and ratings normalised to 0..1
    c.ratings.weight_plcc = 1.0  # of 1 - Pearson's correlation within a batch
    c.ratings.weight_fidelity = 0.0  # of the fidelity loss of all pairs within a batch
    c.ratings.weight_degradations = 0.0  # with model.adapter_rank: of the objective on degradations, as a regulariser

    c.distillation = ConfigDict()  # learning what another model says of the degraded crops
    c.distillation.teacher = ""  # its name, as in model.weights; "" for none
    c.distillation.by = "scores"  # or "votes": only which of two photos is better, see training.votes
    c.distillation.majority = 0.75  # votes: the share of them that decides a pair; others are left out
    c.distillation.weight = 1.0  # of that loss, beside those of `loss`

    c.probe = ConfigDict()  # ours: the projection in closed form before the first step, see training.probe
    c.probe.images = 0  # photos to fit it on; 0 is none
    c.probe.ridge = 3.0  # penalty on the weights
    c.probe.tones = 0.0  # weight of faults of exposure and colour, beside what is seen of all faults in edges

    c.optimizer = ConfigDict()
    c.optimizer.name = "adamw"  # or "lion", "sgd"
    c.optimizer.weight_decay = 1e-2  # on kernels, not on norms and biases
    c.optimizer.b1 = 0.9  # also the momentum of sgd
    c.optimizer.b2 = 0.999
    c.optimizer.eps = 1e-8
    c.optimizer.clip_norm = 0.0  # global norm of the gradient; 0 is no clipping
    c.optimizer.warmup_steps = 0
    c.optimizer.parameters = ((".*", "cosine", 1.0),)  # (regex, schedule, multiplier): first match, all covered
    c.optimizer.ema_decay = 0.0  # of the parameters used for scoring; 0 is no averaging
    c.optimizer.accumulate = 1  # micro-batches a step

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 1000  # steps
    c.checkpoint.keep_last = 2  # beside the best one

    c.eval = ConfigDict()
    c.eval.every = 1000  # steps; 0 is at the start and the end only
    c.eval.photos = "sample:test"  # held-out photos of the synthetic benchmark; "" for none
    c.eval.max_photos = 16
    c.eval.crop_size = 224  # pixels, of the two crops cut from each
    c.eval.rated = ()  # rated sets, e.g. ("koniq10k", "csv:my.csv")
    c.eval.best = "synthetic"  # picks the best checkpoint: "synthetic", "srcc/NAME", or a part of such a name

    c.lock()  # a misspelt field in a config file is an error too
    c.model.image.unlock()
    return c


def recommended_config() -> ConfigDict:
    """Our recipe for fine-tuning a pretrained CLIP, shared by the files in `configs/`.

    It differs from the paper's in bfloat16, larger batches, warm-up with cosine and clipping, and photos at several
    scales. Its learning rate has not been swept on pretrained weights.
    """
    c = default_config()
    c.steps = 20_000
    c.batch_size = 64
    c.learning_rate = 3e-6
    c.data.source = "tfds:kadis700k"
    c.data.scale_range = (0.45, 1.0)
    c.model.compute_dtype = "bfloat16"
    c.optimizer.warmup_steps = 1000
    c.optimizer.clip_norm = 1.0
    return c


def ratings_config(source: str) -> ConfigDict:
    """QualiCLIP+, with the options published for it; shared by the files in `configs/` and `qualiclip fit`.

    Args:
      source: the rated set.
    """
    c = default_config()
    c.seed = 123
    c.epochs = 50.0
    c.batch_size = 8
    c.learning_rate = 2e-3  # a cosine to 0 over all steps
    c.temperature = 2.0
    c.ratings.source = source
    c.model.weights = "qualiclip"  # a ResNet: no positional embedding is its default
    c.data.crop_size = 384
    c.data.min_overlap = 1.0  # one crop an image
    c.optimizer.weight_decay = 0.0
    c.eval.photos = ""
    c.eval.best = "validation"
    return c


def adapter_config(source: str) -> ConfigDict:
    """Low-rank adapters learned from ratings, with the objective on degradations as a regulariser. Ours; not swept.

    Args:
      source: the rated set.
    """
    c = ratings_config(source)
    c.epochs = 20.0
    c.learning_rate = 1e-3
    c.temperature = 1.0
    c.model.adapter_rank = 4
    c.ratings.weight_mse = 0.0  # the scale is fitted afterwards
    c.ratings.weight_fidelity = 1.0
    c.ratings.weight_degradations = 0.1
    c.data.crop_size = 224
    c.data.min_overlap = 0.5
    return c


def to_json(config: ConfigDict) -> str:
    """The config as text; `json.loads` gives the same nested fields (tuples become lists)."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def with_defaults(old: dict[str, Any], defaults: dict[str, Any] | None = None) -> dict[str, Any]:
    """A config read from JSON, written by an earlier version, with the fields that it lacks at their defaults."""
    if defaults is None:
        old, defaults = _moved(old), json.loads(to_json(default_config()))
    sections = [name for name, value in defaults.items() if isinstance(value, dict) and isinstance(old.get(name), dict)]
    return defaults | old | {name: with_defaults(old[name], defaults[name]) for name in sections}


def _moved(old: dict[str, Any]) -> dict[str, Any]:
    """The same config where `ratings.method` and `ratings.rank` said what `model.adapter_rank` says now."""
    ratings = old.get("ratings")
    if not isinstance(ratings, dict) or "method" not in ratings:
        return old
    moved = old | {"ratings": {name: value for name, value in ratings.items() if name not in ("method", "rank")}}
    if not ratings["source"]:
        return moved
    (_, *schedule), *_ = old["optimizer"]["parameters"]  # further rows froze what is frozen in any case now
    rank = ratings["rank"] if ratings["method"] == "adapter" else 0
    return moved | {
        "model": old["model"] | {"adapter_rank": rank},
        "optimizer": old["optimizer"] | {"parameters": [[".*", *schedule]]},
    }


def depends_on_length(config: ConfigDict) -> bool:
    """Whether what a step does depends on the number of steps of the run: a cosine goes down to its end."""
    return any(schedule == "cosine" for _, schedule, _ in config.optimizer.parameters)


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """What differs between two configs read from JSON, one `field: old -> new` each."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name, "(absent)"), new.get(name, "(absent)")
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            lines.append(f"{prefix}{name}: {a!r} -> {b!r}")
    return lines


def kind(default: Any) -> str:
    """Says what a field's values are, by its default: "a float, like the default 1.0"."""
    if isinstance(default, bool):
        return f"True or False, like the default {default}"
    name = {int: "an integer", float: "a float", str: "a string", tuple: "a tuple"}[type(default)]
    return f"{name}, like the default {default!r}"


def fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the full name and the value of every field: ("data.flip", True)."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
