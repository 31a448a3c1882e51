"""Prompts learned from ratings, by the engine of training: data, devices, checkpoints, and `qualiclip fit`."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from scipy import stats

from qualiclip_jax import QualiCLIP, cli, fit, prompts
from qualiclip_jax.data import pristine, rated
from qualiclip_jax.errors import UserError
from qualiclip_jax.fitting import learn, run
from qualiclip_jax.models import CLIP, CLIPConfig, TextConfig, ViTConfig
from qualiclip_jax.training import build, config, evals, parallel, ratings
from qualiclip_jax.training.state import create_state
from qualiclip_jax.training.step import train_step

TINY = CLIPConfig(
    embed_dim=8,
    image=ViTConfig(layers=1, width=16, heads=2, patch_size=16, image_size=32),
    text=TextConfig(layers=1, width=8, heads=1, vocab_size=prompts.END + 1),
)
PARTS = ["train"] * 32 + ["validation"] * 24 + ["test"] * 8
pytestmark = pytest.mark.usefixtures("plain_runs")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint with a text encoder, and 64 small images of a colour, rated by how red it is, in three parts."""
    place = tmp_path_factory.mktemp("ratings")
    clip = CLIP(TINY, rngs=nnx.Rngs(0))
    QualiCLIP(clip, prompts.PAIRS[:2], prompts.random_text_features(2, 8)[:, ::-1], 10.0).save(place / "start")
    rng = np.random.default_rng(0)
    rows = ["image,mos,split"]
    for k, part in enumerate(PARTS):
        level = rng.uniform(20, 230)
        color = np.array([level, 128, 128])
        Image.fromarray(rng.normal(color, 5, (40, 48, 3)).clip(0, 255).astype(np.uint8)).save(place / f"{k}.png")
        rows.append(f"{k}.png,{1 + level / 60},{part}")
    (place / "my.csv").write_text("\n".join(rows))
    return place


@pytest.fixture(scope="module")
def whole(place):
    return rated.load(f"csv:{place / 'my.csv'}")


def tiny_config(place):
    c = config.ratings_config(f"csv:{place / 'my.csv'}")
    c.model.weights = str(place / "start")
    c.prompts = tuple(text for pair in prompts.PAIRS[:2] for text in pair)
    c.data.crop_size, c.batch_size = 32, 4
    return c


def test_parts(whole):
    train, validation = ratings.divided(whole, 0)
    assert (train.tolist(), validation.tolist()) == (list(range(32)), list(range(32, 56)))
    part = whole.part(validation)
    assert part.ids[3] == whole.ids[35]
    np.testing.assert_array_equal(part.image(3), whole.image(35))
    np.testing.assert_array_equal(part.mos, whole.mos[32:56])


def test_without_a_validation_part_a_tenth_is_put_aside_by_reference(whole):
    names = [f"scene {k // 3}" for k in range(64)]
    other = dataclasses.replace(whole, split=["test" if k < 4 else "" for k in range(64)], reference=names)
    train, validation = ratings.divided(other, 0)
    assert sorted([*train, *validation]) == list(range(4, 64))
    assert 4 <= len(validation) <= 6
    assert not {names[k] for k in train} & {names[k] for k in validation}
    with pytest.raises(UserError, match="0 images to learn from and"):
        ratings.divided(dataclasses.replace(whole, split=["test"] * 64), 0)


def test_crops_come_with_the_rating_of_their_image(whole):
    source = ratings.source(whole, np.arange(32))
    assert (source.values.min() >= 0, source.values.max() <= 1) == (True, True)
    with pristine.crop_pairs(
        source, batch_size=8, crop_size=32, seed=0, min_overlap=1.0, short_side=(34, 38), values=source.values
    ) as batches:
        batch = next(batches)
    np.testing.assert_array_equal(batch["crops"][:, 0], batch["crops"][:, 1])
    redness = batch["crops"][..., 0].mean((1, 2, 3))
    assert np.corrcoef(redness, batch["value"])[0, 1] > 0.99


def test_several_devices_take_the_step_of_one(place):
    c = tiny_config(place)
    model = build.build_model(c)
    recipe, *parameters = build.build_recipe(c, model, 10)
    params, statistics = jax.device_get(parameters)  # states are donated
    rng = np.random.default_rng(0)
    batch = {
        "crops": rng.integers(0, 256, (4, 2, 32, 32, 3), np.uint8),
        "value": rng.random(4, np.float32),
        "example": np.arange(4, dtype=np.uint32),
    }
    found = []
    for spread in (parallel.Pmap(jax.devices()[:1]), parallel.Pmap(), parallel.Fsdp()):
        state = spread.put_state(create_state(params, statistics, recipe))
        state, metrics = spread.compile(train_step, recipe)(state, spread.put_batch(batch))
        found.append(
            (np.asarray(state.params["context"][...]), float(metrics["loss"]), float(metrics["gradient_norm"]))
        )
    for context, *numbers in found[1:]:
        np.testing.assert_allclose(numbers, found[0][1:], rtol=1e-4)
        np.testing.assert_allclose(context, found[0][0], atol=1e-4)  # Adam's first step is the sign of the gradient


def test_losses_are_those_of_their_formulas():
    score, rating = np.random.default_rng(0).random((2, 6), np.float32)
    found = jax.jit(ratings.losses)(score, rating)
    z = [(x - x.mean()) / x.std() for x in (score, rating)]
    p, q = (np.clip(stats.norm.cdf((x[:, None] - x) / np.sqrt(2)), 1e-4, 1 - 1e-4) for x in z)
    wanted = {
        "mse": np.mean((score - rating) ** 2),
        "plcc": 1 - np.corrcoef(score, rating)[0, 1],
        "fidelity": np.mean(1 - np.sqrt(p * q) - np.sqrt((1 - p) * (1 - q))),
    }
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4)
    slope = jax.jit(jax.grad(lambda x: sum(ratings.losses(x, rating).values())))
    constant = slope(np.full(6, 0.5, np.float32))
    assert np.isfinite(constant).all()


def short(make):
    """A config of one epoch, and of one type: all 24 take long to compile."""

    def get_config(source):
        c = make(source)
        c.epochs = 1.0
        c.degradations.types = ("white_noise",)
        return c

    return get_config


@pytest.mark.parametrize("method", run.LEARNED)
def test_fit_learns_and_scales(place, tmp_path, monkeypatch, capsys, method):
    monkeypatch.setitem(run.LADDER, method, 20)
    for name in ("ratings_config", "adapter_config"):
        monkeypatch.setattr(config, name, short(getattr(config, name)))
    out = tmp_path / "out"
    arguments = ["--checkpoint", place / "start", "--ratings", f"csv:{place / 'my.csv'}", "--out", out]
    assert cli.run(fit.main, [*map(str, arguments), "--method", method]) == cli.DONE
    printed = capsys.readouterr().out
    assert "24 ratings of my" in printed
    assert "test part, 8 images: SRCC" in printed
    fitted, start = QualiCLIP.load(out), QualiCLIP.load(place / "start")
    assert fitted.fingerprint != start.fingerprint
    learned = fitted.rating.rater
    prompts_stay = np.allclose(learned.prompt_features, start.prompt_features)
    shared = learned.clip is fitted.clip
    assert (shared, prompts_stay, learned.temperature) == {"prompts": (True, False, 2), "adapter": (False, True, 10)}[
        method
    ]
    images = [np.asarray(Image.open(place / f"{k}.png")) for k in range(4)] + [np.full((64, 80, 3), 90, np.uint8)]
    np.testing.assert_allclose(fitted.score(images), start.score(images), atol=1e-6)  # the old score is kept
    by_learned = QualiCLIP.load(out / run.TRAINING / method).score(images)
    np.testing.assert_allclose(fitted.rate(images)[:, 0], fitted.rating.mos(by_learned), rtol=1e-5)
    outputs = dict(fitted.run([[image.shape[:2] for image in images]], images.__getitem__))  # both, as `score` has them
    found = np.stack([[*fitted.rating_of(outputs[k]), fitted.score_of(outputs[k])] for k in range(len(images))])
    np.testing.assert_allclose(found[:, :3], fitted.rate(images), rtol=1e-5)
    np.testing.assert_allclose(found[:, 3], fitted.score(images), atol=1e-6)


def test_trained_rungs_are_compared_by_images_that_none_has_seen(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "FEWEST_COMPARED", 40)
    monkeypatch.setitem(run.LADDER, "scale", 5)
    monkeypatch.setattr(config, "ratings_config", short(config.ratings_config))
    seen = []
    divided = ratings.divided
    monkeypatch.setattr(ratings, "divided", lambda *whole: seen.append(divided(*whole)) or seen[-1])
    arguments = ["--checkpoint", place / "start", "--ratings", f"csv:{place / 'my.csv'}", "--out", tmp_path / "out"]
    assert cli.run(fit.main, [*map(str, arguments), "--method", "prompts, head"]) == cli.DONE
    printed = capsys.readouterr().out
    assert "(of 12 ratings put aside)" in printed
    assert [line.split()[0] for line in printed.splitlines() if "+-" in line] == ["head", "prompts"]
    assert {len(train) + len(validation) for train, validation in seen} == {44}  # of 56 that are not the test part
    assert set(QualiCLIP.load(tmp_path / "out").provenance["fit"]["tried"]) == {"head", "prompts"}


def test_a_method_that_cannot_be_is_told_at_once(place, tmp_path, capsys):
    arguments = ["--ratings", f"csv:{place / 'my.csv'}", "--out", str(tmp_path / "out"), "--method"]
    assert cli.run(fit.main, [*arguments, "scale,tail"]) == cli.FAILED
    assert "no method 'tail': there are auto, scale, head, prompts, adapter" in capsys.readouterr().err
    with pytest.raises(UserError, match="tiny has no text encoder"):
        learn.require_text_encoder("tiny")


def test_evaluations_compile_once(place, whole):
    c = tiny_config(place)
    model = build.build_model(c)
    recipe, params, statistics = build.build_recipe(c, model, 10)
    evaluator = evals.Evaluator(c, recipe, model, whole.part(np.arange(56, 64)))
    state = create_state(params, statistics, recipe)
    other = dataclasses.replace(state, params=jax.tree.map(lambda x: 5 * x, params))
    first = evaluator(state)["srcc/validation"]
    program = evaluator._scorer(other)._encoder._compiled_attributes
    compiled = program._cache_size()
    found = [first, *(evaluator(one)["srcc/validation"] for one in (other, state))]
    assert program._cache_size() == compiled
    scorer = evaluator._scorer(other)
    images = [whole.image(k) for k in range(56, 64)]
    fresh = [QualiCLIP.of(build.scoring_model(recipe, one, model, {})).score(images) for one in (state, other)]
    np.testing.assert_allclose(scorer.score(images), fresh[1], atol=1e-6)
    assert found == pytest.approx([stats.spearmanr(fresh[k], whole.mos[56:]).statistic for k in (0, 1, 0)])


def test_too_few_images_to_validate_by_are_told_before_the_training(place, whole, tmp_path, monkeypatch):
    monkeypatch.setitem(run.LADDER, "prompts", 20)
    with pytest.raises(UserError, match="6 rated images are too few, 20 or more"):
        run.fit(place / "start", dataclasses.replace(whole, split=None), tmp_path / "out", method="prompts")
    assert not (tmp_path / "out").exists()
