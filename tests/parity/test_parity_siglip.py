"""SigLIP, SigLIP 2 NaFlex, TinyCLIP and open_clip's plain ViTs with small random weights against transformers:
features, and from the files of a hub to the score.
"""

import copy
import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from parity.conftest import TOLERANCE

from qualiclip_jax import QualiCLIP, checkpoint, models, prompts, zoo
from qualiclip_jax.errors import UserError
from qualiclip_jax.models import backbones, convert, published, weights

SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 80}
VISION = {**SMALL, "patch_size": 8, "image_size": 32}
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokenizer(transformers):
    """A tokenizer of SigLIP 2 with few merges; as in the published file, capitals are only lowered by the class."""
    letters = [*"abcdefghijklmnopqrstuvwxyzGB.,-", "▁"]
    merges = [("p", "h"), ("ph", "o"), ("o", "d"), ("▁", "pho"), ("i", "m"), ("▁", "im"), ("od", "▁pho")]
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *letters, *("".join(pair) for pair in merges)))}
    return transformers.Siglip2Tokenizer(vocab=vocabulary, merges=merges)


TEXT = {**SMALL, "vocab_size": 60, "max_position_embeddings": 64, "bos_token_id": 2, "eos_token_id": 1}


def scaled(torch, model):
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-3.0)
    return model


@pytest.fixture(scope="module")
def siglip(transformers, torch, disturb):
    config = transformers.SiglipConfig(vision_config=VISION, text_config=TEXT)
    return scaled(torch, disturb(transformers.SiglipModel(config)))


@pytest.fixture(scope="module")
def naflex(transformers, torch, disturb):
    vision = {**SMALL, "patch_size": 8, "num_patches": 16}
    config = transformers.Siglip2Config(vision_config=vision, text_config=TEXT)
    model = scaled(torch, disturb(transformers.Siglip2Model(config)))
    with torch.no_grad():
        model.vision_model.embeddings.position_embedding.weight.mul_(4)
    return model


@pytest.fixture(scope="module")
def folder(siglip, tokenizer, tmp_path_factory):
    """What a repository of SigLIP 2 holds."""
    return written(siglip, tokenizer, tmp_path_factory.mktemp("siglip2"))


def written(model, tokenizer, path):
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    config = json.loads((path / "tokenizer_config.json").read_text()) | {"tokenizer_class": "GemmaTokenizer"}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    rust = json.loads((path / "tokenizer.json").read_text())
    padding = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    rust["padding"] = padding | {"pad_type_id": 0, "pad_token": "<pad>"}
    rust["truncation"] = {"direction": "Right", "max_length": 64, "strategy": "LongestFirst", "stride": 0}
    rust["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    (path / "tokenizer.json").write_text(json.dumps(rust))
    return path


@pytest.fixture(scope="module")
def ours(folder):
    return weights.load_clip(folder)


def pixels(torch, images, pixels="inception"):
    """Images [N, H, W, 3] that `normalise` gave, as the weights expect them, channels first."""
    mean, deviation = (np.array(values) for values in models.pixels.PIXELS[pixels])
    plain = images * np.array(models.STD) + np.array(models.MEAN)
    return torch.tensor(((plain - mean) / deviation).transpose(0, 3, 1, 2).astype(np.float32))


@pytest.mark.parametrize("size", [(32, 32), (40, 57)])
def test_image_features(torch, siglip, ours, images, assert_parity, size):
    def features(x):
        x = pixels(torch, x.numpy().transpose(0, 2, 3, 1))
        return siglip.get_image_features(pixel_values=x, interpolate_pos_encoding=size != (32, 32)).pooler_output

    assert_parity(ours, images(*size), features)


def in_patches(torch, batch):
    """Images [1, 3, H, W] of several sizes as `Siglip2Model` takes them; a last, partial patch is left out."""
    side, shapes, rows = 8, [], []
    for image in batch:
        high, wide = image.shape[2] // side, image.shape[3] // side
        image = image[0, :, : high * side, : wide * side].reshape(3, high, side, wide, side)
        rows.append(image.permute(1, 3, 2, 4, 0).reshape(high * wide, -1))
        shapes.append((high, wide))
    return {
        "pixel_values": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=7.0),
        "pixel_attention_mask": torch.nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in rows], True).int(),
        "spatial_shapes": torch.tensor(shapes),
    }


def test_naflex_at_several_aspects(torch, naflex, images):
    tensors = {name: value.numpy() for name, value in naflex.state_dict().items()}
    clip = convert.from_state_dict(tensors, config=published.from_hugging_face(naflex.config.to_dict()))
    sizes = [(32, 32), (16, 72), (72, 8), (40, 56), (45, 63)]
    batch = [images(*size) for size in sizes]
    with torch.no_grad():
        inputs = in_patches(torch, [pixels(torch, image) for image in batch])
        expected = naflex.get_image_features(**inputs).pooler_output.numpy()
    padded = np.concatenate([np.pad(i, ((0, 0), (0, 72 - i.shape[1]), (0, 72 - i.shape[2]), (0, 0))) for i in batch])
    together = nnx.jit(type(clip).encode_image)(clip, jnp.asarray(padded), jnp.array(sizes))
    alone = nnx.jit(type(clip).encode_image)(clip, jnp.asarray(batch[3]))
    for ours, theirs in ((together, expected), (alone, expected[3:4])):
        assert np.abs(np.asarray(ours) - theirs).max() <= TOLERANCE * np.abs(theirs).max()


def test_text_features_and_logits(torch, siglip, ours, images, assert_parity):
    texts = np.random.default_rng(0).integers(0, 60, (4, 64)).astype(np.int32)
    assert_parity(ours, texts, lambda ids: siglip.get_text_features(input_ids=ids).pooler_output)
    image, exact = images(32, 32), copy.deepcopy(siglip).double()
    with torch.no_grad():
        theirs = exact(input_ids=torch.tensor(texts.astype(np.int64)), pixel_values=pixels(torch, image).double())
    image, text = ours.encode_image(jnp.asarray(image)), ours.encode_text(jnp.asarray(texts))
    cosines = (image / jnp.linalg.norm(image)) @ (text / jnp.linalg.norm(text, axis=-1, keepdims=True)).T
    logits = cosines * jnp.exp(ours.logit_scale[...]) + ours.logit_bias[...]
    np.testing.assert_allclose(logits, theirs.logits_per_image.numpy(), rtol=0, atol=TOLERANCE)
    # The published scale is about 110. It makes 5e-5 of this rounding in float32; PyTorch's is as large.
    np.testing.assert_allclose(cosines, (theirs.image_embeds @ theirs.text_embeds.T).numpy(), rtol=0, atol=5e-7)
    with pytest.raises(UserError, match=r"expected integers \[P, 64\]"):
        ours.encode_text(jnp.asarray(texts[:, :63]))


def test_similarity_by_sigmoid(torch, siglip, folder, tmp_path):
    with pytest.raises(UserError, match="needs a SigLIP"):
        zoo.build("tiny", similarity="sigmoid")
    checkpoint.save_model(tmp_path / "model", zoo.build(folder, similarity="sigmoid"))
    photos = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    tokens = prompts.padded_tokens(prompts.PAIRS, folder).reshape(-1, 64)
    with torch.no_grad():
        x = pixels(torch, np.asarray(models.normalise(jnp.asarray(photos))))
        logits = siglip(input_ids=torch.tensor(tokens.astype(np.int64)), pixel_values=x).logits_per_image
        positive, negative = logits.sigmoid().reshape(2, -1, 2).unbind(-1)
        expected = (positive / (positive + negative)).numpy()
    model = QualiCLIP.load(tmp_path / "model")
    np.testing.assert_allclose(model.attributes(photos), expected, atol=1e-5)
    softmax = zoo.build(tmp_path / "model", similarity="softmax")
    assert softmax.bias is None
    assert softmax.fingerprint != model.fingerprint


def test_names_there_and_back(siglip, ours):
    config = published.from_hugging_face(siglip.config.to_dict())
    again = convert.from_state_dict(convert.to_openai_state_dict(ours), config=config)
    for a, b in zip(*(models.convert.to_openai_state_dict(clip).values() for clip in (ours, again)), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(UserError, match=r"a SigLIP, .* put its config.json beside the weights"):
        convert.from_state_dict(convert.to_openai_state_dict(ours))


def test_tokens(folder, tokenizer, tmp_path):
    pairs = (("Good Photo,  image", "bad photo."), *prompts.PAIRS)
    rows = [tokenizer(text)["input_ids"] for pair in pairs for text in pair]
    expected = [row + [1] + [0] * (63 - len(row)) for row in rows]
    np.testing.assert_array_equal(prompts.padded_tokens(pairs, folder).reshape(-1, 64), expected)

    config = json.loads((folder / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match="tokenizer_config.json missing"):
        prompts.padded_tokens(pairs, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "SiglipTokenizer"}))
    plain = tokenizer("good photo image")["input_ids"]  # the first SigLIP knows no punctuation
    assert prompts.padded_tokens(pairs, tmp_path)[0, 0].tolist() == plain + [1] + [0] * (63 - len(plain))
    with pytest.raises(UserError, match="is 65 tokens"):
        prompts.padded_tokens((("x" * 64, "y"),), folder)
    with pytest.raises(UserError, match="name its tokenizer"):
        prompts.padded_tokens(pairs, None)


def test_tokens_of_models_of_open_clip(transformers, tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "photo", ".", "sh", "##arp", "image"]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁Good", "▁bad", "▁photo", "."]
    bert = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    xlm = transformers.XLMRobertaTokenizer(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)])
    texts = ["Good  photo.", "bad photo."]
    for kind, theirs in (("clipa", bert), ("own", bert), ("own", xlm)):
        theirs.save_pretrained(tmp_path)
        expected = np.array(theirs(texts, padding="max_length", max_length=12)["input_ids"])
        if kind == "clipa":
            expected[expected == 3] = 0  # HFTokenizer of open_clip with strip_sep_token
        np.testing.assert_array_equal(prompts.padded_tokens([texts], tmp_path, 12, kind)[0], expected)

    text = {"layers": 1, "width": 8, "heads": 1, "vocab_size": 20, "context_length": 12, "tokenizer": "own"}
    image = models.ViTConfig(1, 8, 1, 8, 32)
    clip = models.CLIP(models.CLIPConfig(8, image, models.TextConfig(**text, end_token=2)), rngs=nnx.Rngs(0))
    features = nnx.jit(type(clip).encode_text)(clip, jnp.asarray(expected, jnp.int32))
    features /= jnp.linalg.norm(features, axis=-1, keepdims=True)
    np.testing.assert_allclose(prompts.text_features(clip, [texts], tmp_path)[0], features, atol=1e-6)
    bert.save_pretrained(tmp_path)
    clip = models.CLIP(models.CLIPConfig(8, image, models.TextConfig(**text, end_token=13)), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="reads at token 13, .* tokenizer is not the model's"):
        prompts.text_features(clip, [texts], tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="hf_tokenizer_name"):
        prompts.padded_tokens([texts], tmp_path, 12, "own")


def clip_files(torch, disturb, transformers):
    """A CLIP of transformers, and its files, as in a repository of TinyCLIP and as in one of open_clip."""
    text = {**SMALL, "hidden_act": "gelu", "layer_norm_eps": 1e-6}
    vision = {**VISION, "hidden_act": "gelu", "layer_norm_eps": 1e-6}
    config = transformers.CLIPConfig(projection_dim=24, vision_config=vision, text_config=text)
    theirs = disturb(transformers.CLIPModel(config))
    tensors = {name: value.numpy() for name, value in theirs.state_dict().items()}
    ours = convert.from_state_dict(tensors, config=published.from_hugging_face(config.to_dict()))
    tower = {"layers": 2, "width": 48, "mlp_ratio": 80 / 48, "norm_kwargs": {"eps": 1e-6}}
    open_clip = {
        "model_cfg": {
            "embed_dim": 24,
            "vision_cfg": {**tower, "image_size": 32, "patch_size": 8, "head_width": 16, "pool_type": "tok"},
            "text_cfg": {**tower, "heads": 3, "vocab_size": 49408, "context_length": 77},
        },
        "preprocess_cfg": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    }
    files = {
        f"{backbones.TABLE['TinyCLIP-8M-16'].repository}/config.json": config.to_json_string().encode(),
        f"{backbones.TABLE['TinyCLIP-8M-16'].repository}/model.safetensors": safetensors.numpy.save(tensors),
        "owner/vit/open_clip_config.json": json.dumps(open_clip).encode(),
        "owner/vit/open_clip_model.safetensors": safetensors.numpy.save(convert.to_openai_state_dict(ours)),
    }
    return theirs, files


@pytest.mark.parametrize(("image_pool", "text_pool"), [("mean", "first"), ("norm_mean", "last")])
def test_features_read_elsewhere(torch, transformers, disturb, images, tokens, assert_parity, image_pool, text_pool):
    """By the mean of the patches, and at another token: from the last states of transformers' CLIP."""
    theirs, files = clip_files(torch, disturb, transformers)
    state = safetensors.numpy.load(files["owner/vit/open_clip_model.safetensors"])
    scales, block = {}, theirs.vision_model.encoder.layers[1]
    for name, layer in (("ls_1", block.self_attn.out_proj), ("ls_2", block.mlp.fc2)):  # LayerScale of open_clip
        scale = torch.rand(48)
        scales[f"visual.transformer.resblocks.1.{name}.gamma"] = scale.numpy()
        layer.register_forward_hook(lambda *call, scale=scale: call[-1] * scale)
    config = published.from_hugging_face(theirs.config.to_dict())
    image, text = (
        dataclasses.replace(part, pool=pool) for part, pool in ((config.image, image_pool), (config.text, text_pool))
    )
    ours = convert.from_state_dict(state | scales, config=dataclasses.replace(config, image=image, text=text))

    def of_images(x):
        x, norm = theirs.vision_model(pixel_values=x).last_hidden_state, theirs.vision_model.post_layernorm
        x = norm(x[:, 1:].mean(1)) if image_pool == "mean" else norm(x[:, 1:]).mean(1)
        return theirs.visual_projection(x)

    def of_texts(ids):
        states = theirs.text_model(input_ids=ids).last_hidden_state
        return theirs.text_projection(states[:, 0 if text_pool == "first" else -1])

    assert_parity(ours, tokens, of_texts)
    if image_pool == "mean":
        assert_parity(ours, images(32, 32), of_images)
        return
    padded = np.pad(images(32, 32), ((0, 0), (0, 16), (0, 8), (0, 0)), constant_values=9)
    with torch.no_grad():
        expected = of_images(torch.tensor(images(32, 32).transpose(0, 3, 1, 2))).numpy()
    features = nnx.jit(type(ours).encode_image)(ours, jnp.asarray(padded), jnp.array([[32, 32]]))
    assert np.abs(features - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_texts_of_metaclip_2(torch, transformers, disturb, tokens, assert_parity):
    text = {**SMALL, "vocab_size": 49408, "eos_token_id": 2}
    config = transformers.MetaClip2Config(projection_dim=24, vision_config=VISION, text_config=text)
    theirs = disturb(transformers.MetaClip2Model(config))
    ours = convert.from_state_dict(
        {name: value.numpy() for name, value in theirs.state_dict().items()},
        config=published.from_hugging_face(config.to_dict()),
    )
    assert ours.config.text.tokenizer == "own"
    tokens = np.where(tokens == 49407, 2, tokens)
    assert_parity(ours, tokens, lambda ids: theirs.get_text_features(input_ids=ids).pooler_output)


@pytest.mark.parametrize(
    ("name", "normalised"),
    [
        ("siglip2-base-patch16-224", "inception"),
        ("siglip2-base-patch16-naflex", "inception"),
        ("TinyCLIP-8M-16", "clip"),
        ("owner/vit", "imagenet"),
    ],
)
def test_from_the_files_of_a_hub_to_the_score(
    hub, torch, disturb, transformers, tokenizer, siglip, naflex, folder, tmp_path, name, normalised
):
    if name.startswith("siglip2"):
        theirs = siglip
        if name.endswith("naflex"):
            theirs, folder = naflex, written(naflex, tokenizer, tmp_path)
        tokens = prompts.padded_tokens(prompts.PAIRS, folder).reshape(-1, 64)
        hub.files |= {f"google/{name}/{file.name}": file.read_bytes() for file in folder.iterdir()}
    else:
        theirs, hub.files = clip_files(torch, disturb, transformers)
        tokens = prompts.tokenize(prompts.PAIRS).reshape(-1, 77)
    photos = np.random.default_rng(0).random((2, 40, 57, 3), np.float32)
    with torch.no_grad():
        x = pixels(torch, np.asarray(models.normalise(jnp.asarray(photos))), normalised)
        inputs = {"pixel_values": x, "interpolate_pos_encoding": True}
        if theirs is naflex:
            inputs = in_patches(torch, [image[None] for image in x])
        image = theirs.get_image_features(**inputs).pooler_output
        text = theirs.get_text_features(input_ids=torch.tensor(tokens.astype(np.int64))).pooler_output
        image, text = (torch.nn.functional.normalize(features, dim=-1) for features in (image, text))
        expected = (100 * image @ text.T).reshape(2, -1, 2).softmax(-1)[..., 0].mean(-1).numpy()
    np.testing.assert_allclose(QualiCLIP.load(name).score(photos), expected, atol=1e-5)
