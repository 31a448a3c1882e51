"""Prompts learned from ratings, by the engine of training: data, devices, checkpoints, and `qualiclip fit`."""

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from qualiclip_jax import QualiCLIP, cli, fit, models, prompts
from qualiclip_jax.data import pristine, rated
from qualiclip_jax.errors import UserError
from qualiclip_jax.fitting import run
from qualiclip_jax.models import CLIP, CLIPConfig, TextConfig, ViTConfig
from qualiclip_jax.training import build, config, parallel, ratings
from qualiclip_jax.training.state import create_state
from qualiclip_jax.training.step import train_step

TINY = CLIPConfig(
    embed_dim=8,
    image=ViTConfig(layers=1, width=16, heads=2, patch_size=16, image_size=32),
    text=TextConfig(layers=1, width=8, heads=1, vocab_size=prompts.END + 1),
)
PARTS = ["train"] * 32 + ["validation"] * 24 + ["test"] * 8


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint with a text encoder, and 64 small images rated by their brightness, in three parts."""
    place = tmp_path_factory.mktemp("ratings")
    clip = CLIP(TINY, rngs=nnx.Rngs(0))
    QualiCLIP(clip, prompts.PAIRS[:2], prompts.random_text_features(2, 8)).save(place / "start")
    rng = np.random.default_rng(0)
    rows = ["image,mos,split"]
    for k, part in enumerate(PARTS):
        level = rng.uniform(20, 230)
        Image.fromarray(rng.normal(level, 5, (40, 48, 3)).clip(0, 255).astype(np.uint8)).save(place / f"{k}.png")
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
    import dataclasses

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
    brightness = batch["crops"].mean((1, 2, 3, 4))
    assert np.corrcoef(brightness, batch["value"])[0, 1] > 0.99


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
    for count in (1, 4):
        devices = jax.devices()[:count]
        step = parallel.parallel_step(train_step, recipe, devices)
        state = parallel.replicate(create_state(params, statistics, recipe), devices)
        state, metrics = step(state, parallel.put_batch(batch, devices))
        found.append(
            (np.asarray(state.params["context"][...]), float(metrics["loss"]), float(metrics["gradient_norm"]))
        )
    np.testing.assert_allclose(found[0][1:], found[1][1:], rtol=1e-4)
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-4)  # Adam's first step is the sign of the gradient
    assert models.CLIP is type(model.clip)


def short(make):
    """A config of two epochs, evaluated at the start and at the end."""

    def get_config(source):
        c = make(source)
        c.epochs = 2.0
        return c

    return get_config


def test_fit_learns_prompts_and_scales_them(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(run.METHODS, "prompts", 20)
    monkeypatch.setattr(config, "ratings_config", short(config.ratings_config))
    out = tmp_path / "out"
    arguments = ["--checkpoint", place / "start", "--ratings", f"csv:{place / 'my.csv'}", "--out", out]
    assert cli.run(fit.main, [*map(str, arguments), "--method", "prompts"]) == cli.DONE
    printed = capsys.readouterr().out
    assert "24 ratings of my" in printed
    assert "test part, 8 images: SRCC" in printed
    fitted, start = QualiCLIP.load(out), QualiCLIP.load(place / "start")
    assert fitted.rating is not None
    assert fitted.temperature == 2.0
    assert not np.allclose(fitted.prompt_features, start.prompt_features)
    for found, before in zip(
        jax.tree.leaves(nnx.state(fitted.clip.image)), jax.tree.leaves(nnx.state(start.clip.image))
    ):
        np.testing.assert_array_equal(found, before)
