"""Several devices in one process: the scores of one device, one program a shape, all devices at work."""

import numpy as np
import pytest
from small_models import RESNET, make_model

from qualiclip_jax.errors import UserError


def test_two_devices_share_the_batches(resnet, photos, monkeypatch):
    images = [photos[0], photos[2], photos[3][9:73, 5:69]]
    monkeypatch.setenv("QUALICLIP_DEVICES", "2")
    encoder = (model := make_model(RESNET))._encoder
    start, used = encoder.start, []
    monkeypatch.setattr(encoder, "start", lambda batch, given: used.append(start(batch, given)) or used[-1])
    expected = np.array([resnet.score(image)[0] for image in images])  # one by one: a single shape
    np.testing.assert_allclose(model.score(images), expected, atol=1e-6)
    assert encoder.compiled == {(4, 64, 64)}
    assert encoder._shared_attributes._cache_size() == 1
    assert [shard.data.shape[0] for shard in used[0].addressable_shards] == [2, 2]
    assert len(used[0].sharding.device_set) == 2


def test_devices_that_are_not_there(monkeypatch):
    monkeypatch.setenv("QUALICLIP_DEVICES", "5")
    with pytest.raises(UserError, match="QUALICLIP_DEVICES=5: there are 1 to 4 devices"):
        make_model(RESNET)
