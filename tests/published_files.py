"""The files that others publish, laid out as they do, with tiny weights; and what PyTorch makes of them.

Names of files and tensors are those of the public repositories. QualiCLIP+ is put together here after its description:
half of the learned context goes before the words of a prompt, half behind them.
"""

import dataclasses
import functools
import io
import json

import numpy as np
import safetensors.numpy

from qualiclip_jax import prompts, zoo_table
from qualiclip_jax.models import backbones
from tests.parity.torch_clip import CLIP

CONTEXT, WIDTH, VOCABULARY = 16, 16, 49408
RESNET = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 4}}
TEXT = {"context_length": 77, "vocab_size": VOCABULARY, "width": WIDTH, "heads": 1, "layers": 2}
OPEN_CLIP = {"model_cfg": {**RESNET, "text_cfg": TEXT}, "preprocess_cfg": {"mean": [0.4815, 0.4578, 0.4082]}}
LEARNED = {"koniq": "qualiclip+", **{name: f"qualiclip+-{name}" for name in ("clive", "flive", "spaq")}}


@dataclasses.dataclass(frozen=True)
class Published:
    """What is published, and what comes of it.

    Attributes:
      files: path on the server -> content.
      features: name of the model -> float32 [P, 2, D], its prompt features by PyTorch.
      clip: the PyTorch CLIP behind all of it.
    """

    files: dict[str, bytes]
    features: dict[str, np.ndarray]
    clip: CLIP


@functools.cache
def published() -> Published:
    """Every file that an entry of `zoo.TABLE` needs, made from one tiny CLIP."""
    import torch

    torch.manual_seed(0)
    clip = CLIP(16, (1, 1, 1, 1), 4, 2, 32, 2, WIDTH, 1, VOCABULARY).eval()
    state = clip.state_dict()
    tensors = safetensors.numpy.save({name: value.numpy() for name, value in state.items()})
    files = {}
    for backbone in backbones.TABLE.values():
        files[f"{backbone.repository}/open_clip_model.safetensors"] = tensors
        files[f"{backbone.repository}/open_clip_config.json"] = json.dumps(OPEN_CLIP).encode()
        files[f"{backbone.repository}/open_clip_pytorch_model.bin"] = b"not this one"

    with torch.no_grad():
        tokens = torch.tensor(prompts.tokenize(prompts.PAIRS).reshape(-1, 77).astype(np.int64))
        text = clip.encode_text(tokens)
        stored = torch.nn.functional.normalize(torch.randn(14, 16), dim=-1)
    features = dict.fromkeys(backbones.TABLE, _unit(text)) | {"clip-iqa": _unit(text)[:1], "qualiclip": _unit(stored)}
    qualiclip = _saved({f"clip_model.{name}": value for name, value in state.items()} | {"prompts_features": stored})
    files["releases/qualiclip.pth"] = files[f"{zoo_table.IQA_PYTORCH}/QualiCLIP.pth"] = qualiclip

    words = [tokens[i, 1 : 1 + len(ids)] for i, ids in enumerate(ids for pair in prompts.TOKEN_IDS for ids in pair)]
    embedding = clip.token_embedding.weight.detach()
    for rated, name in LEARNED.items():
        context = 0.02 * torch.randn(14, CONTEXT, WIDTH)
        learner = {
            "ctx": context,
            "token_prefix": embedding[tokens[:, :1]],
            "token_suffix": embedding[tokens[:, 1 : 77 - CONTEXT]],
        }
        learner = {f"prompt_learner.{key}": value for key, value in learner.items()}
        files[f"{zoo_table.IQA_PYTORCH}/QualiCLIP+_{rated}.pth"] = _saved({"params": learner})
        with torch.no_grad():
            rows = [_learned_prompt(clip, embedding, part, ids) for part, ids in zip(context, words)]
        features[name] = _unit(torch.stack(rows))
    return Published(files, features, clip)


def _learned_prompt(clip: CLIP, embedding, context, words):
    """The text feature of one prompt with learned context around its words [D]."""
    import torch

    start, end = embedding[prompts.START][None], embedding[prompts.END][None]
    x = torch.cat([start, context[: CONTEXT // 2], embedding[words], context[CONTEXT // 2 :], end])
    x = (x + clip.positional_embedding[: len(x)])[None]
    mask = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)
    for block in clip.transformer.resblocks:
        x = block(x, mask)
    return clip.ln_final(x)[0, -1] @ clip.text_projection  # the last token is the end token


def _unit(features) -> np.ndarray:
    array = features.detach().numpy()
    return (array / np.linalg.norm(array, axis=-1, keepdims=True)).reshape(-1, 2, array.shape[-1])


def _saved(tensors) -> bytes:
    import torch

    torch.save(tensors, file := io.BytesIO())
    return file.getvalue()
