"""qualiclip models: the models that have a name."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from qualiclip_jax import cli

SETS = {"koniq10k": "KonIQ", "clive": "CLIVE", "spaq": "SPAQ", "flive": "FLIVE", "agiqa3k": "AGIQA-3K"}


def main(argv: Sequence[str]) -> int | None:
    """Lists the models, as a table or as JSON, or fetches some."""
    parser = argparse.ArgumentParser(
        prog=cli.program("models"),
        description="Lists the models that have a name. Each is what --checkpoint, --baseline, --config.model.weights, "
        "convert and QualiCLIP.load take, beside paths and repositories of the Hugging Face hub (owner/name).",
        epilog="A model is downloaded and converted on first use, and kept in the user's cache directory.",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a model and line")
    parser.add_argument("--fetch", nargs="+", metavar="NAME", help="downloads and converts these, for later")
    arguments = parser.parse_args(argv)
    if arguments.fetch:
        from qualiclip_jax import zoo

        for name in arguments.fetch:
            zoo.load(name)
        return cli.DONE
    found = _facts()
    if arguments.json:
        for facts in found:
            print(json.dumps(facts))
    else:
        print(_table(found))
    return cli.DONE


def _facts() -> list[dict[str, Any]]:
    from qualiclip_jax import zoo
    from qualiclip_jax.evaluation import literature

    published = [*literature.TABLE, *literature.UNCHECKED]
    return [
        {
            "name": entry.name,
            "megabytes": entry.megabytes,
            "licence": entry.licence,
            "here": entry.is_cached,
            "purpose": entry.purpose,
            "source": entry.repository,
            "published": [
                {"dataset": row.dataset, "srcc": row.srcc, "source": row.source}
                for row in published
                if entry.metric and row.metric == entry.metric
            ],
        }
        for entry in zoo.TABLE.values()
    ]


def _table(found: Sequence[dict[str, Any]]) -> str:
    lines = [("name", "download", "here", "licence", "what it is")]
    published: dict[str, list[str]] = {}
    for facts in found:
        size = f"{facts['megabytes']:,} MB" if facts["megabytes"] else "none"
        lines.append((facts["name"], size, "yes" if facts["here"] else "no", facts["licence"], facts["purpose"]))
        for row in facts["published"]:
            if row["dataset"] in SETS:
                figure = f"{SETS[row['dataset']]} {row['srcc']:.3f}"
                published.setdefault(f"{facts['name']} ({row['source']})", []).append(figure)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    notes = [f"  {name}: {', '.join(figures)}" for name, figures in published.items()]
    return "\n".join([*table, "", "Published SRCC:", *notes])


if __name__ == "__main__":
    sys.exit(cli.run(main))
