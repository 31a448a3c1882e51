"""How many ratings pay: learning curves of `qualiclip fit`, as the table and the picture of docs/ratings.md.

    python benchmarks/ratings.py --rated CLIVE=csv:clive_dev.csv@images --rated AGIQA-3K=csv:agiqa3k.csv@images

For each set, number of ratings and draw: 30 % of the images are put aside (with all that share their reference, where
there is such a column). Every rung and `auto` are fitted to ratings drawn from the others, and judged on those.
Features are computed once and kept in --out.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from qualiclip_jax import QualiCLIP, cli
from qualiclip_jax.data import rated
from qualiclip_jax.errors import UserError
from qualiclip_jax.evaluation import correlation
from qualiclip_jax.fitting import choice, features, run, rungs
from qualiclip_jax.progress import Progress

SIZES = (20, 50, 100, 200, 1000)
TESTED = 0.3  # share of the groups
START = "score"
Row = dict[str, float]


def drawn(groups: np.ndarray, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`size` rows to fit to, or all if there are fewer, and the rows of `TESTED` of the groups to judge on."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(np.unique(groups))
    tested = np.isin(groups, order[: round(TESTED * len(order))])
    return generator.permutation(np.flatnonzero(~tested))[:size], np.flatnonzero(tested)


def judged(found: features.Features, mos: np.ndarray, groups: np.ndarray, size: int, seed: int) -> dict[str, Row]:
    """What the starting model, every rung and `auto` reach on the images left out of one draw."""
    fitted, left = drawn(groups, size, seed)
    train, test, truth = found.of(fitted), found.of(left), mos[left]
    results: dict[str, Row] = {START: {"srcc": correlation.srcc(test.scores, truth)}}
    low, high = correlation.bootstrap_interval("srcc", test.scores, truth, resamples=200)
    results[START]["interval"] = (high - low) / 2
    folds = rungs.make_folds(groups[fitted], rungs.INNER_FOLDS, seed)
    ratings = {name: rung.fit(train, mos[fitted], folds) for name, rung in rungs.RUNGS.items()}
    chosen = choice.choose(train, mos[fitted], groups[fitted], seed=seed)
    for method, rating in (ratings | {choice.AUTO: chosen.rating}).items():
        predicted = rungs.predict(rating, test)
        results[method] = {
            "srcc": correlation.srcc(predicted, truth),
            "rmse": correlation.rmse(predicted, truth),
            "covered": float(np.mean(np.abs(predicted - truth) <= rating.half_width)),
            "head": float(chosen.name == "head"),
        }
    return results


def curves(
    found: features.Features, mos: np.ndarray, groups: np.ndarray, draws: int, advance: Callable[[int], object]
) -> Iterator[tuple[int, list[dict[str, Row]]]]:
    """Yields each number of ratings that the set has, with the results of all draws."""
    for size in SIZES:
        if size > (1 - TESTED) * len(mos):
            break
        results = []
        for seed in range(draws):
            results.append(judged(found, mos, groups, size, seed))
            advance(1)
        yield size, results


def spread(results: Sequence[dict[str, Row]], method: str, figure: str) -> tuple[float, float]:
    """Mean and standard deviation over the draws."""
    values = np.array([result[method][figure] for result in results])
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def table(name: str, found: Sequence[tuple[int, list[dict[str, Row]]]]) -> list[str]:
    """Markdown rows of a set."""
    lines = []
    for size, results in found:
        cells = [name, f"{size:,}", f"{spread(results, START, 'srcc')[0]:.3f}"]
        for method in rungs.RUNGS:
            cells += ["{:.3f} ± {:.3f}".format(*spread(results, method, "srcc"))] if method != "scale" else []
            cells += ["{:.3g} ± {:.2g}".format(*spread(results, method, "rmse"))]
        cells += ["{:.3f} ± {:.3f}".format(*spread(results, choice.AUTO, "srcc"))]
        cells += [f"{sum(result[choice.AUTO]['head'] for result in results):.0f} of {len(results)}"]
        cells += [f"{100 * spread(results, choice.AUTO, 'covered')[0]:.0f} %"]
        worst = min(result[choice.AUTO]["srcc"] - result[START]["srcc"] for result in results)
        cells += [f"{worst:+.3f} (± {spread(results, START, 'interval')[0]:.3f})"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def draw(curves: dict[str, list[tuple[int, list[dict[str, Row]]]]], path: Path) -> None:
    """The picture: SRCC, and RMSE as a share of the ratings' deviation, against the number of ratings."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(4.2 * len(curves), 3.4), layout="constrained")
    for axis, (name, found) in zip(np.atleast_1d(axes), curves.items()):
        sizes = [size for size, _ in found]
        for method, color in (("score", "0.5"), ("head", "tab:blue"), (choice.AUTO, "tab:red")):
            means, deviations = np.array([spread(results, method, "srcc") for _, results in found]).T
            label = "the model's own score (scale: the same)" if method == START else method
            axis.plot(sizes, means, "o-", color=color, label=label, markersize=4)
            axis.fill_between(sizes, means - deviations, means + deviations, color=color, alpha=0.15, linewidth=0)
        axis.set(xscale="log", title=name, xlabel="ratings", ylabel="SRCC on other images")
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=80)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rated", action="append", required=True, metavar="NAME=SET", help="as `evaluate` takes it")
    parser.add_argument("--checkpoint", default="tiny", metavar="MODEL")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("ratings"), help="folder for features and the picture")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    model, all_curves = QualiCLIP.load(args.checkpoint), {}
    print(f"{args.checkpoint}, fingerprint {model.fingerprint}\n")
    print(
        "| set | ratings | own SRCC | scale RMSE | head SRCC | head RMSE | auto SRCC | head taken | covered | worst |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for given in args.rated:
        name, _, spec = given.partition("=")
        if not spec:
            raise UserError(f"--rated {given}: NAME=SET is expected")
        ratings = rated.load(spec, allow_missing=True)
        found = features.extract(model, ratings, args.out / run.FEATURES, name)
        total = args.draws * sum(size <= (1 - TESTED) * len(ratings) for size in SIZES)
        with Progress(total, name, "draw") as progress:
            all_curves[name] = list(curves(found, ratings.mos, ratings.groups, args.draws, progress.advance))
        print("\n".join(table(name, all_curves[name])), flush=True)
    draw(all_curves, args.out / "ratings.png")
    return cli.DONE


if __name__ == "__main__":
    sys.exit(cli.run(main))
