"""Programs of StableHLO give our scores at any size."""

import datetime

import numpy as np
import pytest
from jax import export

from qualiclip_jax.errors import UserError
from qualiclip_jax.export import stablehlo


@pytest.mark.parametrize("name", ["vit", "efficientnet"])
def test_scores_are_ours_at_any_size(models, images, expected, name):
    program = export.deserialize(bytearray(stablehlo.build(models[name], "uint8")))
    assert program.platforms == ("cpu", "cuda", "tpu")
    for batch, attributes in zip(images, expected[name]):
        score, found = program.call(batch)
        np.testing.assert_allclose(found, attributes, atol=2e-6)
        np.testing.assert_allclose(score, models[name].score_of(attributes), atol=2e-6)


def test_unknown_platforms_are_refused(models):
    with pytest.raises(UserError, match="abacus"):
        stablehlo.build(models["vit"], "float32", ("abacus",))


@pytest.mark.parametrize(
    ("day", "expected"), [("2026-01-15", "2026-07-15"), ("2026-08-31", "2027-02-28"), ("2026-12-01", "2027-06-01")]
)
def test_expiry_is_six_months_away(day, expected):
    assert stablehlo.expiry(datetime.date.fromisoformat(day)).isoformat() == expected
