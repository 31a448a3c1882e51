"""The table of published backbones."""

import json
import math
import pathlib
import re

import jax
import pytest

from qualiclip_jax import models
from qualiclip_jax.errors import UserError
from qualiclip_jax.models import backbones, infer
from qualiclip_jax.models.tree import Skeleton

# Parameters of the whole model (OpenAI's and open_clip's releases), and millions in image and text encoder, as in
# open_clip's docs/model_profile.csv.
PUBLISHED = {
    "RN50": (102_007_137, 38.32, 63.69),
    "RN101": (119_688_033, 56.26, 63.43),
    "RN50x4": (178_300_601, 87.14, 91.16),
    "RN50x16": (290_979_217, 167.33, 123.65),
    "RN50x64": (623_258_305, 420.38, 202.88),
    "ViT-B/32": (151_277_313, 87.85, 63.43),
    "ViT-B/16": (149_620_737, 86.19, 63.43),
    "ViT-L/14": (427_616_513, 303.97, 123.65),
    "ViT-L/14@336px": (427_944_193, 304.29, 123.65),
    "ViT-H-14": (986_109_441, 632.08, 354.03),
    "ViT-bigG-14": (2_539_567_105, 1844.91, 694.66),
}


# SigLIP 2: one of each architecture; the hub tells 375,187,970 numbers for base-patch16-224. TinyCLIP: the millions in
# the image encoder, and in the text encoder without its table of words, are part of the repository's name.
SIGLIP2 = {
    "siglip2-base-patch32-256": (376_856_066, 94.554, 282.30),
    "siglip2-base-patch16-224": (375_187_970, 92.88, 282.30),
    "siglip2-large-patch16-512": (882_313_218, 316.74, 565.57),
    "siglip2-so400m-patch14-224": (1_135_463_602, 427.68, 707.78),
    "siglip2-so400m-patch16-384": (1_136_039_602, 428.26, 707.78),
    "siglip2-giant-opt-patch16-256": (1_871_393_906, 1163.17, 708.23),
}
TINY = {
    "TinyCLIP-8M-16": (23_446_017, 8.28, 15.17),
    "TinyCLIP-39M-16": (83_101_185, 38.59, 44.51),
    "TinyCLIP-40M-32": (84_205_569, 39.69, 44.51),
    "TinyCLIP-61M-32": (122_951_681, 61.41, 61.54),
}
COUNTS = PUBLISHED | SIGLIP2 | TINY


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_published_ones(name):
    statistics = ("/mean", "/var")  # of BatchNorm, no parameters
    shapes = {k: v for k, v in Skeleton(backbones.get(name)).shapes.items() if not k.endswith(statistics)}

    def count(part: str) -> int:
        return sum(math.prod(shape) for path, shape in shapes.items() if path.startswith(part))

    total, image, text = COUNTS[name]
    assert count("") == total
    assert backbones.TABLE[name].millions == pytest.approx(total / 1e6, abs=0.0501)
    assert count("image/") / 1e6 == pytest.approx(image, abs=0.0051)
    assert count("text/") / 1e6 == pytest.approx(text, abs=0.0051)
    if name in TINY:
        image, text = re.search(r"ViT-(\d+)M-\d+-Text-(\d+)M", backbones.TABLE[name].repository).groups()
        words = 49408 * backbones.get(name).text.width
        assert count("image/") / 1e6 == pytest.approx(int(image), abs=0.5)
        assert (count("text/") - words) / 1e6 == pytest.approx(int(text), abs=1)


@pytest.mark.parametrize("name", backbones.TABLE)
def test_configs_survive_json(name):
    config = backbones.get(name)
    assert models.CLIPConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    hash(config)  # it is part of a compiled function's key


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match="no backbone 'RN500'; known are RN50, RN101"):
        backbones.get("RN500")


def test_positions_default_by_family():
    assert backbones.get("RN50").position == "none"
    assert backbones.get("ViT-B/16").position == "interpolate"


VIT, TEXT = {"layers": 1, "width": 64, "heads": 1, "patch_size": 16}, {"layers": 1, "width": 64, "heads": 1}
RESNET = {"layers": (1, 1, 1, 1), "width": 4, "heads": 2}
ANY = {"embed_dim": 8, "image": models.ViTConfig(**VIT)}


@pytest.mark.parametrize(
    ("kind", "fields", "named"),
    [
        (models.CLIPConfig, ANY | {"position": "learned"}, "position must be one of none, native, interpolate"),
        (models.CLIPConfig, ANY | {"compute_dtype": "float16"}, "compute_dtype must be one of float32, bfloat16"),
        (models.CLIPConfig, ANY | {"embed_dim": 0}, "embed_dim must be an integer from 1 to 65536, got 0"),
        (models.CLIPConfig, ANY | {"remat": "no"}, "remat must be true or false, got 'no'"),
        (models.ResNetConfig, RESNET | {"heads": 3}, "3 heads do not divide 128 channels"),
        (models.ResNetConfig, RESNET | {"layers": (1, 1, 1)}, "layers are the blocks of four stages"),
        (models.ResNetConfig, RESNET | {"layers": (1, 1, 0, 1)}, "layers must be an integer from 1 to 256"),
        (models.ResNetConfig, RESNET | {"width": 5, "heads": 1}, "width must be even, got 5"),
        (models.ViTConfig, VIT | {"heads": 5}, "5 heads do not divide 64 channels"),
        (models.ViTConfig, VIT | {"pool": "max"}, "pool must be one of token, map"),
        (models.ViTConfig, VIT | {"pixels": "bgr"}, "pixels must be one of clip, imagenet, inception"),
        (models.CLIPConfig, {"embed_dim": 8, "image": models.ViTConfig(**VIT, pool="map")}, "64 features, not 8"),
        (models.ViTConfig, VIT | {"activation": "relu"}, "activation must be one of quick_gelu, gelu"),
        (models.ViTConfig, VIT | {"layers": 10**9}, "layers must be an integer from 1 to 256, got 1000000000"),
        (models.ViTConfig, VIT | {"width": 64.0}, "width must be an integer .* got 64.0"),
        (models.ViTConfig, VIT | {"patch_size": True}, "patch_size must be an integer .* got True"),
        (models.ViTConfig, VIT | {"layer_norm_eps": math.nan}, "layer_norm_eps must be a number from 0 to 1, got nan"),
        (models.EfficientNetConfig, {"pooled": (0, 9)}, r"pooled must be ascending levels up to 8, got \(0, 9\)"),
        (models.EfficientNetConfig, {"pooled": (3, 3)}, "pooled must be ascending levels"),
        (models.EfficientNetConfig, {"pooled": 3}, "pooled must be a list of integers, got 3"),
        (models.EfficientNetConfig, {"strides": (2,) * 7}, "2 at most four times"),
        (models.EfficientNetConfig, {"strides": (3,) * 7}, "strides must be an integer from 1 to 2, got"),
        (models.EfficientNetConfig, {"kernels": (4,) * 7}, "kernels must be odd"),
        (models.EfficientNetConfig, {"channels": (8,)}, "must have one value for each stage"),
        (models.EfficientNetConfig, {"layers": (20,) * 7}, "140 blocks, more than 100"),
        (models.EfficientNetConfig, {"pixel_deviation": math.inf}, "pixel_deviation must be a number from 0 to 1"),
        (models.TextConfig, TEXT | {"vocab_size": -1}, "vocab_size must be an integer from 1 to 16777216, got -1"),
        (models.TextConfig, TEXT | {"mlp_width": [10**7] * 10**4}, "mlp_width must be an integer"),
    ],
)
def test_faulty_configs_are_refused(kind, fields, named):
    with pytest.raises(UserError, match=named) as refusal:
        kind(**fields)
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize(("layers", "width"), [((1, 1, 1), 8), ((1, 0, 1, 1), 8), ((1, 1, 1, 1), 7)])
def test_faulty_resnets_are_refused(layers, width):
    with pytest.raises(UserError, match="ResNetConfig: "):
        models.ResNetConfig(layers, width, 1)


def test_the_documented_table_is_the_table():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "backbones.md").read_text()
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    documented = {row[0]: row[1:] for row in rows if row and row[0] in backbones.TABLE}
    assert list(documented) == list(backbones.TABLE)
    for name, (pixels, features, parameters, of_image, repository) in documented.items():
        config = backbones.get(name)
        total, image, _ = COUNTS.get(name, (1e6 * backbones.TABLE[name].millions, None, None))
        assert (int(pixels), int(features)) == (config.image.image_size, config.embed_dim)
        assert parameters == f"{total / 1e6:,.1f} M"
        assert image is None or of_image == f"{image:,.1f} M"
        assert repository == backbones.TABLE[name].repository


@pytest.mark.parametrize("name", ["ViT-B/16", "ViT-H-14", "ViT-bigG-14"])
def test_what_shapes_do_not_tell_comes_from_the_table(name):
    published = backbones.get(name)
    image, text = published.image, published.text
    mlp = image.mlp_width or 4 * image.width
    shapes = {
        "visual.conv1.weight": (image.width, 3, image.patch_size, image.patch_size),
        "visual.positional_embedding": (1 + image.grid**2, image.width),
        "visual.proj": (image.width, published.embed_dim),
        "token_embedding.weight": (text.vocab_size, text.width),
        "positional_embedding": (77, text.width),
        **{f"visual.transformer.resblocks.{i}.mlp.c_fc.weight": (mlp, image.width) for i in range(image.layers)},
        **{f"transformer.resblocks.{i}.mlp.c_fc.weight": (4 * text.width, text.width) for i in range(text.layers)},
    }
    tensors = {key: jax.ShapeDtypeStruct(shape, "float32") for key, shape in shapes.items()}
    assert infer.infer_config(tensors) == published
    assert infer.infer_config(tensors, activation="gelu").image.activation == "gelu"
