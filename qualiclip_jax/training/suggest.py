"""Which field a wrong name is likely to mean."""

import difflib
from collections.abc import Iterable

OTHER_WORDS = {
    "iterations": "steps",
    "iters": "steps",
    "dataset": "source",
    "photos": "source",
    "images": "source",
    "precision": "compute_dtype",
    "dtype": "compute_dtype",
    "pretrained": "weights",
    "resolution": "crop_size",
    "workers": "threads",
    "lora_rank": "adapter_rank",
    "rank": "adapter_rank",
    "method": "adapter_rank",
}  # what other projects, or earlier versions, call it


def field(name: str, fields: Iterable[str]) -> str:
    """Returns the field that `name` is likely to mean, or "" if none is.

    Looked for, in this order: the same name in another section, another project's word for it, its initials, a
    misspelling, and a field that shares most of its words.

    Args:
      name: a name that is not a field, with or without its sections: "lr", "data.crop", "weight_decay".
      fields: the full names that there are, e.g. "optimizer.weight_decay".
    """
    last_parts: dict[str, str] = {}
    for full in fields:
        last_parts.setdefault(full.rpartition(".")[2], full)
    wanted = name.rpartition(".")[2].lower().replace("-", "_")
    wanted = OTHER_WORDS.get(wanted, wanted)
    if wanted in last_parts:
        return last_parts[wanted]
    for last, full in last_parts.items():
        if len(wanted) > 1 and wanted == "".join(word[0] for word in last.split("_")):
            return full
    close = difflib.get_close_matches(wanted, last_parts, n=1, cutoff=0.75)
    if close:
        return last_parts[close[0]]
    words = {OTHER_WORDS.get(word, word) for word in wanted.split("_")}
    shared = {last: len(words & set(last.split("_"))) for last in last_parts}
    best = max(last_parts, key=lambda last: (shared[last], -len(last)), default="")
    return last_parts[best] if best and shared[best] else ""
