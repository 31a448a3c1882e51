"""The analyses of the paper, as commands of `evaluate`: intensity, embedding, gradcam, gmad.

Each writes a page, `NAME.html`, that carries everything, and its figures or numbers as files beside it.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qualiclip_jax import cli, html, storage, tabular
from qualiclip_jax.errors import UserError
from qualiclip_jax.progress import Progress, track

COMMANDS = {
    "intensity": "scores against the level of degradations, several models, with intervals",
    "embedding": "the image features in two dimensions, by t-SNE",
    "gradcam": "where an image is like the prompts, before and after training",
    "gmad": "the pairs of images that two models disagree about most",
}
_TYPES = "gaussian_blur,jpeg,white_noise,darken,hsv_saturation,lens_blur,jpeg2000,mean_shift"
_SIDE = 448  # px, the longer side of photos that Grad-CAM looks at


def main(argv: Sequence[str]) -> int:
    """Makes one analysis; see `--help`. Returns an exit status."""
    args = _parse(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    with storage.lock(args.out / f"{args.what}.html"):
        _check(args)
        files = {"intensity": _intensity, "embedding": _embedding, "gradcam": _gradcam, "gmad": _gmad}[args.what](args)
        for name, content in files.items():
            storage.write_bytes(args.out / name, content)
    *others, page = files
    print(f"wrote {', '.join(others)}\nopen  {args.out / page}" if others else f"open  {args.out / page}")
    return cli.DONE


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=cli.program("evaluate"), description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="what", required=True)
    for name, what in COMMANDS.items():
        command = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        several = name in ("intensity", "gmad")
        command.add_argument(
            "--checkpoint", default="tiny", metavar="MODEL,..." if several else "MODEL",
            help="names, paths or hub repositories" if several else "a name, path or hub repository (default: tiny)",
        )  # fmt: skip
        command.add_argument(
            "--out", type=Path, default=Path("evaluation"), metavar="DIR", help="default: ./evaluation"
        )
        if name in ("intensity", "embedding"):
            command.add_argument("--photos", default="sample:test", metavar="SOURCE", help="default: sample:test")
            command.add_argument(
                "--most",
                type=cli.positive,
                default=1000 if name == "intensity" else 24,
                metavar="N",
                help="photos, at most",
            )
            command.add_argument("--types", default=_TYPES, metavar="NAME,...", help="degradations, or all")
            command.add_argument("--seed", type=int, default=0)
        elif name == "gradcam":
            command.add_argument("images", nargs="+", metavar="PHOTO", help="image files, folders, patterns")
            command.add_argument("--baseline", metavar="MODEL", help="default: the model before its training, if known")
            command.add_argument("--most", type=cli.positive, default=8, metavar="N", help="photos, at most (8)")
        else:
            command.add_argument(
                "--dataset", required=True, metavar="NAME", help="a prepared set, or csv:FILE[@FOLDER]"
            )
            command.add_argument("--data-dir", type=Path, metavar="DIR", help="folder of the prepared sets")
            command.add_argument("--levels", type=cli.positive, default=4, metavar="N", help="levels of quality (4)")
    args = parser.parse_args(argv)
    args.models = [name.strip() for name in args.checkpoint.split(",") if name.strip()]
    if args.what == "gmad" and len(args.models) != 2:
        parser.error("gmad compares two models: --checkpoint A,B (a table of scores may stand in place of one)")
    return args


def _check(args: argparse.Namespace) -> None:
    """Refuses to replace what is not of the same analysis."""
    page = args.out / f"{args.what}.html"
    ours = page.is_file() and html.is_page(page, _generator(args.what))
    for suffix in ("html", "png", "csv"):
        if not ours and (path := args.out / f"{args.what}.{suffix}").exists():
            raise UserError(f"--out {args.out}: {path.name} is not of this analysis: choose another folder")


def _generator(what: str) -> str:
    return f"qualiclip evaluate {what}"


def _page(what: str, title: str, about: str, **values: Any) -> bytes:
    defaults: dict[str, Any] = {"picture": None, "sections": [], "head": [], "rows": []}
    return html.render("analysis.html.j2", title=title, generator=_generator(what), about=about, **(defaults | values))


def _both(make: Any) -> tuple[bytes, dict[str, str]]:
    """A figure as PNG, and its data URIs for light and dark pages; `make` draws it in the style that is set."""
    from qualiclip_jax.evaluation import figures

    drawn = {}
    for name, dark in (("light", False), ("dark", True)):
        with figures.style(dark):
            drawn[name] = html.figure_png(make())
    return drawn["light"], {name: html.png_uri(png) for name, png in drawn.items()}


def _photos(args: argparse.Namespace) -> tuple[list[tuple[str, np.ndarray]], tuple[str, ...]]:
    from qualiclip_jax.data import pristine  # imports grain
    from qualiclip_jax.degradations.catalog import TYPES

    return pristine.photos(args.photos, limit=args.most), TYPES if args.types == "all" else tuple(args.types.split(","))


def _intensity(args: argparse.Namespace) -> dict[str, bytes]:
    from qualiclip_jax.evaluation import synthetic
    from qualiclip_jax.evaluation.contestants import ScoringModel
    from qualiclip_jax.explain import figures

    photos, types = _photos(args)
    crop = synthetic.check(photos, types, None)
    cache = args.out / "cache"
    found = {name: ScoringModel(name, cache).benchmark(photos, crop, args.seed, name, types) for name in args.models}
    rows = []
    for name, result in found.items():
        mean, half = figures.intervals(result)
        for place, kind in enumerate(types):
            rows += [
                [name, kind, level, mean[place, level], mean[place, level] - half[place, level],
                 mean[place, level] + half[place, level]]
                for level in synthetic.LEVELS
            ]  # fmt: skip
    head = ("model", "type", "level", "mean", "low", "high")
    png, picture = _both(lambda: figures.intensity_figure(found))
    about = (
        f"{len(photos)} photos of {args.photos}, two crops of {crop} px each. Bands are 95 % intervals of the mean "
        "over photos. The lines of a model that sees a degradation fall. The paper's Figure 1 is of this kind."
    )
    return {
        "intensity.png": png,
        "intensity.csv": tabular.to_csv(head, rows),
        "intensity.html": _page("intensity", "Score against intensity", about, picture=picture),
    }


def _embedding(args: argparse.Namespace) -> dict[str, bytes]:
    from qualiclip_jax.degradations.catalog import GROUPS
    from qualiclip_jax.evaluation import synthetic
    from qualiclip_jax.explain import embedding, figures
    from qualiclip_jax.inference.predictor import QualiCLIP

    tsne = _tsne()
    photos, types = _photos(args)
    crop = synthetic.check(photos, types, None)
    encode = embedding.encoder(QualiCLIP.load(args.models[0]))
    features: list[np.ndarray] = []

    def keep(images: Any) -> np.ndarray:
        features.append(encode(images))
        return np.zeros(len(images))

    per_photo = 2 * (1 + 5 * len(types))
    with Progress(len(photos), "features", "photo") as progress:
        synthetic.run(
            keep, photos, types=types, crop=crop, seed=args.seed, batch_size=per_photo, advance=progress.advance
        )
    group_of = {kind: group for group, kinds in GROUPS.items() for kind in kinds}
    kinds = ["pristine"] * 2 + [kind for kind in types for _ in range(10)]  # of one photo, in the order of `run`
    levels = [0, 0] + [level for _ in types for level in range(1, 6) for _ in range(2)]
    kinds, levels = kinds * len(photos), levels * len(photos)
    groups = ["pristine" if kind == "pristine" else group_of[kind] for kind in kinds]
    points = tsne(np.concatenate(features), args.seed)
    png, picture = _both(lambda: figures.embedding_figure(points, groups, np.array(levels), "t-SNE"))
    names = [name for name, _ in photos for _ in range(per_photo)]
    rows = [[*row, *point] for row, point in zip(zip(names, kinds, levels), points.tolist())]
    about = (
        f"{args.models[0]}: features of {len(photos)} photos of {args.photos}, two crops of {crop} px each, pristine "
        f"and under {len(types)} degradations at 5 levels. Neighbours are alike to the encoder."
    )
    return {
        "embedding.png": png,
        "embedding.csv": tabular.to_csv(("photo", "type", "level", "x", "y"), rows),
        "embedding.html": _page("embedding", "Features in two dimensions", about, picture=picture),
    }


def _tsne() -> Any:
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise UserError("the embedding needs scikit-learn: pip install scikit-learn (or the extra embedding)") from None

    def embed(features: np.ndarray, seed: int) -> np.ndarray:
        perplexity = min(30.0, max(2.0, (len(features) - 1) / 4))
        return np.asarray(TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features))

    return embed


def _gradcam(args: argparse.Namespace) -> dict[str, bytes]:
    from qualiclip_jax.evaluation.run import before_training
    from qualiclip_jax.explain.gradcam import gradcam, over
    from qualiclip_jax.images import read_image
    from qualiclip_jax.inference.arguments import collect
    from qualiclip_jax.inference.files import shrunk
    from qualiclip_jax.inference.predictor import QualiCLIP

    after = args.models[0]
    before = args.baseline or before_training(after)
    if not before:
        print("the model before training is not known here; name one with --baseline", file=sys.stderr)
    models = {"before": before, "after": after} if before else {"": after}
    loaded: dict[str, QualiCLIP] = {label: QualiCLIP.load(name) for label, name in models.items()}
    explain = {label: gradcam(model) for label, model in loaded.items()}
    paths = collect(args.images)[0][: args.most]
    sections = []
    for path in track(paths, len(paths), "Grad-CAM", "photo"):
        image = shrunk(read_image(path), _SIDE)
        shots = [{"uri": html.thumbnail_uri(image, _SIDE), "text": "the photo"}]
        for label in loaded:
            for name, found in zip(("positive", "negative"), explain[label](image)):
                text = f"{label}, {name} prompts" if label else f"{name} prompts"
                shots.append({"uri": html.thumbnail_uri(over(image, found), _SIDE), "text": text})
        scores = ", ".join(f"{label or 'score'} {model.score(image)[0]:.3f}" for label, model in loaded.items())
        sections.append({"title": f"{Path(path).name}: {scores}", "pairs": [], "shots": shots})
    prompts = " / ".join(loaded[next(reversed(loaded))].prompts[0])
    about = (
        f"Grad-CAM of {' and '.join(map(str, models.values()))} against the prompts that make the score "
        f"({prompts} ...). Yellow is where the image is most like them."
    )
    columns = 1 + 2 * len(models)
    return {
        "gradcam.html": _page(
            "gradcam", "Where an image is like the prompts", about, sections=sections, columns=columns
        )
    }


def _gmad(args: argparse.Namespace) -> dict[str, bytes]:
    from qualiclip_jax.data import rated
    from qualiclip_jax.evaluation.run import as_contestant
    from qualiclip_jax.explain import gmad

    images = rated.load(args.dataset, args.data_dir)
    if len(images.ids) < gmad.FEWEST:
        raise UserError(f"--dataset {args.dataset}: {len(images.ids)} images; gmad needs {gmad.FEWEST} or more")
    contestants = [as_contestant(name, args.out / "cache") for name in args.models]
    scores = [contestant.scores(images, name) for contestant, name in zip(contestants, args.models)]
    models = [str(contestant.facts["name"]) for contestant in contestants]
    sections, rows = [], []
    for defender, attacker in ((0, 1), (1, 0)):
        names = (models[defender], models[attacker])
        pairs = []
        for pair in gmad.pairs(scores[defender], scores[attacker], args.levels):
            cards = []
            for index, word in ((pair.better, "better"), (pair.worse, "worse")):
                beside = ", ".join(f"{name} {values[index]:.3f}" for name, values in zip(models, scores))
                text = f"{word} to {names[1]}: {beside}; opinion {images.mos[index]:.2f}"
                with contextlib.suppress(UserError):  # a table may be judged without the images
                    cards.append(
                        {"uri": html.thumbnail_uri(images.image(index), 640), "text": text, "name": images.ids[index]}
                    )
            right = images.mos[pair.better] - images.mos[pair.worse]
            verdict = names[1] if right > 0 else names[0]
            text = (
                f"At {pair.level:.0%} of {names[0]}'s ranks: {pair.defender_gap:.1%} of the ranks apart to {names[0]}, "
                f"{pair.attacker_gap:.0%} to {names[1]}. Opinions differ by {abs(right):.2f}, for {verdict}."
            )
            pairs.append({"text": text, "cards": cards})
            ids = (images.ids[pair.better], images.ids[pair.worse])
            rows.append([*names, pair.level, *ids, pair.defender_gap, pair.attacker_gap, right])
        sections.append({"title": f"Equal to {names[0]}, different to {names[1]}", "pairs": pairs, "shots": []})
    head = ("defender", "attacker", "level", "better", "worse", "defender_gap", "attacker_gap", "opinion_difference")
    about = (
        f"{len(images.ids)} images of {rated.short_name(images.name)}. Each pair is nearly "
        "equal to one model, and as different as can be to the other: one of them is wrong, and a look tells which."
    )
    return {
        "gmad.csv": tabular.to_csv(head, rows),
        "gmad.html": _page("gmad", f"{models[0]} against {models[1]}", about, sections=sections),
    }
