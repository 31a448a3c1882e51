"""Huge images: the tiles cover every token, and the score is that of the whole image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import make_model

from qualiclip_jax.inference import machine, tiles
from qualiclip_jax.models import CLIPConfig, ResNetConfig


@settings(deadline=None, max_examples=300)
@given(st.integers(32, 20_000), st.integers(32, 20_000), st.booleans(), st.integers(1, 32), st.floats(1e5, 1e8))
def test_tiles_keep_each_token_once_and_far_from_cut_edges(height, width, partial, halo, tile_pixels):
    tokens = tuple(-(-side // 32) if partial else side // 32 for side in (height, width))
    cut = tiles.layout((height, width), tokens, halo, tile_pixels)
    by_side = ((height, tokens[0], cut.height, cut.rows), (width, tokens[1], cut.width, cut.columns))
    for length, count, side, pieces in by_side:
        assert [t for piece in pieces for t in range(piece.first, piece.last)] == list(range(count))
        for piece in pieces:
            end = piece.start + piece.length
            assert piece.start % 32 == 0
            assert 0 <= piece.start < end <= length
            assert piece.length == min(side, length - piece.start)
            assert piece.start // 32 + piece.skip == piece.first
            assert piece.start == 0 or piece.skip >= halo
            assert end == length or end // 32 - piece.last >= halo


def test_small_enough_images_are_one_tile():
    cut = tiles.layout((1000, 2000), (31, 62), 7, 1024 * 2016)
    assert (cut.height, cut.width, len(cut.rows), len(cut.columns)) == (1024, 2016, 1, 1)


@pytest.mark.parametrize(("layers", "tokens"), [((3, 4, 6, 3), 7), ((3, 4, 23, 3), 16)])
def test_halo(layers, tokens):
    assert ResNetConfig(layers, 64, 32).halo == tokens


@pytest.mark.parametrize("size", [(700, 505), (353, 1023)])
def test_tiles_score_as_the_whole_image(convolutional, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image[size[0] // 2 :, : size[1] // 3] //= 4  # no two regions alike
    encoder = convolutional._encoder
    config = encoder.config.image
    cut = tiles.layout(size, tuple(map(config.tokens, size)), config.halo, 60_000)
    assert len(cut.rows) * len(cut.columns) > 4
    np.testing.assert_allclose(encoder.score_in_tiles(image, 60_000)[0], convolutional.attributes(image)[0], atol=1e-5)


def test_6_megapixels_in_tiles_score_as_the_whole_image():
    """With the depth of RN50, so with its halo; narrow, so that the whole image fits as well."""
    model = make_model(CLIPConfig(embed_dim=32, image=ResNetConfig(layers=(3, 4, 6, 3), width=4, heads=4)))
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2000, 3000, 3), dtype=np.uint8)
    image[:1000, 700:] //= 3
    image[1300:, :2200] |= 128
    assert not model._encoder.is_huge(*image.shape[:2])
    tiled = model._encoder.score_in_tiles(image, 2e6)[0]
    np.testing.assert_allclose(tiled, model.attributes(image)[0], atol=1e-5)


def test_huge_images_go_in_tiles_by_themselves(resnet, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8)
    whole = resnet.score([image[:100], image])
    monkeypatch.setattr(machine, "whole_image_pixels", lambda config, pixels: 50_000)
    calls = []
    tiled = resnet._encoder.score_in_tiles
    monkeypatch.setattr(resnet._encoder, "score_in_tiles", lambda image: calls.append(image.shape) or tiled(image))
    np.testing.assert_allclose(resnet.score([image[:100], image]), whole, atol=1e-5)
    assert calls == [image.shape]


def test_the_halo_is_no_larger_than_it_must_be(convolutional):
    """With one token less, tokens at one of the cuts differ: the test above can fail."""
    image = np.random.default_rng(0).integers(0, 256, (320, 320, 3), dtype=np.uint8)
    encoder = convolutional._encoder
    halo = encoder.config.image.halo

    def tokens(part):
        padded, size = np.zeros((1, 320, 320, 3), np.uint8), np.array([[320, part.shape[1]]], np.int32)
        padded[0, :, : part.shape[1]] = part
        return np.asarray(encoder._compiled_tokens(encoder._state, padded, size))[0, :10, : part.shape[1] // 32]

    whole = tokens(image)
    left, right = tokens(image[:, :160])[:, ::-1], tokens(image[:, 160:])  # from the cut outwards
    errors = [np.abs(left - whole[:, 4::-1]), np.abs(right - whole[:, 5:])]
    by_distance = np.max([error.max((0, 2)) for error in errors], 0) / np.abs(whole).max()
    assert by_distance[halo:].max() < 1e-6
    assert by_distance[halo - 1] > 1e-6
