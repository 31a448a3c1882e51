"""How fast images are scored, against the same network in PyTorch, ONNX Runtime and OpenVINO, in turns in one run.

    python benchmarks/score.py                    # all of it: about ten minutes on two cores
    python benchmarks/score.py batch mixed        # parts: batch, mixed, large, huge, start

batch: 8 images of 224 x 224. mixed: a folder of JPEG files of many sizes, decoding included. large: 12 megapixels.
huge: 100 megapixels, ours only. start: from the command to the first score, with an empty compilation cache and then a
filled one. The network is CLIP's RN50 with random weights. PyTorch computes one query in the attention pool, as we do
(with all of them, as in the released code, 12 megapixels take 17 GB). Memory is the peak of a process that does nothing
else. The others are those that are installed: PyTorch (eager; the extra `parity`), and our ONNX file in ONNX Runtime
and OpenVINO (float32; the extra `onnx`, and `pip install openvino`).
"""

import argparse
import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from qualiclip_jax import cli

PARTS = ("batch", "mixed", "large", "huge", "start")
COMMON = [(480, 640), (640, 480), (375, 500), (500, 375), (600, 800), (768, 1024), (1024, 768), (512, 512)]
ROUNDS = 3
TEMPERATURE = 20.0  # keeps the scores of random weights off 0 and 1, so that their comparison means something
MEGAPIXELS_12, MEGAPIXELS_100 = (3000, 4000), (8660, 11547)
Scorer = Callable[[np.ndarray], np.ndarray]  # uint8 [N, H, W, 3] -> float32 [N]


def photo(height: int, width: int, seed: int) -> np.ndarray:
    """A picture with structure at all scales, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    for scale in (32, 8, 2):
        size = (max(1, height // scale), max(1, width // scale), 3)
        detail = Image.fromarray(rng.integers(64, 192, size, dtype=np.uint8)).resize((width, height), Image.BILINEAR)
        image = Image.blend(image, detail, 0.2)
    return np.asarray(image)


def our_model():
    """RN50 with random weights, running statistics included, and random prompt features."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from qualiclip_jax import QualiCLIP, models, prompts
    from qualiclip_jax.models import backbones

    config = backbones.get("RN50")
    config = type(config)(**{field: getattr(config, field) for field in ("embed_dim", "image", "position")})
    graph, state = nnx.split(nnx.eval_shape(lambda: models.CLIP(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        name = path[-2].key if hasattr(path[-2], "key") else str(path[-2])
        if name in ("scale", "var"):
            value = rng.uniform(0.5, 1.0, leaf.shape)
        else:
            value = rng.normal(size=leaf.shape) / max(1.0, np.prod(leaf.shape[:-1])) ** 0.5
        return jnp.asarray(value, jnp.float32)

    clip = nnx.merge(graph, jax.tree_util.tree_map_with_path(fill, state))
    features = prompts.random_text_features(len(prompts.PAIRS), config.embed_dim, seed=0)
    return QualiCLIP(clip, prompts.PAIRS, features, temperature=TEMPERATURE)


def torch_scorer(model) -> Scorer:
    """The same network in PyTorch."""
    import torch

    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "parity"))
    import torch_clip

    from qualiclip_jax import models
    from qualiclip_jax.models import convert

    class OneQuery(torch_clip.AttentionPool):
        def forward(self, x, position):
            x = x.flatten(2).transpose(1, 2)
            x = torch.cat([x.mean(1, keepdim=True), x], 1)
            n, t, c = x.shape
            split = lambda y: y.reshape(n, -1, self.heads, c // self.heads).transpose(1, 2)
            q, k, v = split(self.q_proj(x[:, :1])), split(self.k_proj(x)), split(self.v_proj(x))
            pooled = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            return self.c_proj(pooled.transpose(1, 2).reshape(n, c))

    image = model.clip.config.image
    torch_clip.AttentionPool = OneQuery
    network = torch_clip.ModifiedResNet(image.layers, image.width, image.heads, image.image_size, 1024).eval()
    state = {k.removeprefix("visual."): v for k, v in convert.to_openai_state_dict(model.clip).items() if "visual" in k}
    network.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()}, strict=False)
    mean, std = (torch.tensor(values)[:, None, None] for values in (models.MEAN, models.STD))
    prompt_features = torch.from_numpy(model.prompt_features)

    @torch.inference_mode()
    def score(images: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 255
        features = torch.nn.functional.normalize(network((x - mean) / std, False), dim=-1)
        logits = 100 / TEMPERATURE * torch.einsum("nd,pcd->npc", features, prompt_features)
        return logits.softmax(-1)[..., 0].mean(-1).numpy()

    return score


def onnxruntime_scorer(model) -> Scorer:
    """Our ONNX file in ONNX Runtime."""
    import onnxruntime

    from qualiclip_jax.export import onnx_file

    session = onnxruntime.InferenceSession(onnx_file.build(model, "RN50").SerializeToString())
    return lambda images: session.run(["score"], {"images": images})[0]


def openvino_scorer(model) -> Scorer:
    """Our ONNX file in OpenVINO, in float32."""
    import openvino

    from qualiclip_jax.export import onnx_file

    file = onnx_file.build(model, "RN50").SerializeToString()
    network = openvino.Core().compile_model(
        openvino.Core().read_model(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return lambda images: network({"images": images})["score"]


PEERS = {
    "PyTorch": ("torch", torch_scorer),
    "onnxruntime": ("onnxruntime", onnxruntime_scorer),
    "OpenVINO": ("openvino", openvino_scorer),
}


def installed_peers() -> dict[str, Callable[..., Scorer]]:
    """The peers whose package is there, by name."""
    return {name: make for name, (package, make) in PEERS.items() if importlib.util.find_spec(package)}


def in_turns(ways: dict[str, Callable[[], np.ndarray]]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Times several ways in turns: the median of the seconds, and what came out, of each by its name."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    found = {name: way() for name, way in ways.items()}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in times.items()}, found


def compare(title: str, images: int, ways: dict[str, Callable[[], np.ndarray]]) -> None:
    """Times several ways to the same scores in turns, ours first; prints images/s and ratios of the medians to ours."""
    median, scores = in_turns(ways)
    print(f"{title:34s} ours {images / median['ours']:7.2f} images/s", flush=True)
    for name in [*ways][1:]:
        difference = np.abs(scores["ours"] - scores[name]).max()
        line = f"{name:12s} {images / median[name]:7.2f}   ratio {median[name] / median['ours']:.2f}"
        print(f"{'':34s} {line}   largest difference of a score {difference:.1e}", flush=True)


def batch(model, peers: dict[str, Scorer]) -> None:
    images = np.stack([photo(224, 224, k) for k in range(8)])
    compare("8 x 224 x 224", 8, {name: functools.partial(way, images) for name, way in all_of(model, peers).items()})


def mixed(model, peers: dict[str, Scorer]) -> None:
    rng = np.random.default_rng(0)
    sizes = [COMMON[k] for k in rng.integers(len(COMMON), size=24)]
    sizes += [tuple(size) for size in rng.integers(224, 1024, (8, 2)).tolist()]
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{k}.jpg" for k in range(len(sizes))]
        for k, (path, size) in enumerate(zip(paths, sizes)):
            Image.fromarray(photo(*size, k)).save(path, quality=90)

        def one_by_one(score: Scorer) -> np.ndarray:
            return np.concatenate([score(np.array(Image.open(path).convert("RGB"))[None]) for path in paths])

        megapixels = sum(height * width for height, width in sizes) / 1e6
        title = f"{len(sizes)} files, {len(set(sizes))} sizes, {megapixels:.0f} MP"
        theirs = {name: functools.partial(one_by_one, score) for name, score in peers.items()}
        compare(title, len(sizes), {"ours": lambda: model.score_files(paths)} | theirs)
        shapes = len(model._encoder.compiled)
    print(f"{'':34s} in {shapes} compiled shapes")


def large(model, peers: dict[str, Scorer]) -> None:
    image = photo(*MEGAPIXELS_12, 0)[None]
    compare("12 megapixels", 1, {name: functools.partial(way, image) for name, way in all_of(model, peers).items()})


def all_of(model, peers: dict[str, Scorer]) -> dict[str, Scorer]:
    return {"ours": model.score} | peers


def peak(which: str, size: tuple[int, int]) -> None:
    """Scores one JPEG file in a process of its own; prints its peak memory and how long it took."""
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(photo(*size, 0)).save(f"{folder}/photo.jpg", quality=90)
        command = [sys.executable, __file__, "--alone", which, f"{folder}/photo.jpg"]
        result = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    print(
        f"{size[0] * size[1] / 1e6:.0f} megapixels, one file: {which:8s} peak memory {result['GiB']:.2f} GiB, "
        f"{result['seconds']:.0f} s, score {result['score']:.6f}",
        flush=True,
    )


def alone(which: str, path: str) -> None:
    """What `peak` runs."""
    model = our_model()
    start = time.perf_counter()
    if which == "ours":
        score = model.score_files([path])[0]
    else:
        score = PEERS[which][1](model)(np.array(Image.open(path).convert("RGB"))[None])[0]
    print(json.dumps({"GiB": peak_memory(), "seconds": time.perf_counter() - start, "score": float(score)}))


def peak_memory() -> float:
    """Of this program, GiB. (`ru_maxrss` would count the process that started it.)"""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 2**20


def start(model) -> None:
    """From the command to the score of one photo on the terminal, twice with the same cache."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model")
        Image.fromarray(photo(768, 1024, 0)).save(f"{folder}/photo.jpg")
        command = [
            sys.executable,
            "-m",
            "qualiclip_jax.score",
            "--checkpoint",
            f"{folder}/model",
            f"{folder}/photo.jpg",
        ]
        environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
        environment["XDG_CACHE_HOME"] = f"{folder}/cache"
        for state in ("cold", "warm", "warm"):
            begin = time.perf_counter()
            subprocess.run(command, env=environment, capture_output=True, check=True)
            print(f"first score of a 768 x 1024 photo, {state}: {time.perf_counter() - begin:.1f} s", flush=True)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.alone:
        return alone(*args.alone)
    parts = args.parts or PARTS
    model = our_model()
    peers = {name: make(model) for name, make in installed_peers().items()}
    for name, part in (("batch", batch), ("mixed", mixed), ("large", large)):
        if name in parts:
            part(model, peers)
    if "large" in parts:
        for which in ("ours", *installed_peers()):
            peak(which, MEGAPIXELS_12)
    if "huge" in parts:
        peak("ours", MEGAPIXELS_100)
    if "start" in parts:
        start(model)
    return None


if __name__ == "__main__":
    sys.exit(cli.run(main))
