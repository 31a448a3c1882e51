"""The same training step in PyTorch, without degradations, for comparison; `train_step.py --peer` runs it.

    python benchmarks/peer_torch.py --config configs/vitb.py --config.model.weights=random \
        --config.model.backbone=ViT-B/16

It prints one line of JSON. Written as one would for speed: `torch.compile` and fused AdamW on a GPU,
`scaled_dot_product_attention`, channels last, autocast to bfloat16 where `model.compute_dtype` says so, and in the ViT
a residual stream of that type, as ours is. Weights, images and losses are ours; parameters carry OpenAI's names.
"""

import argparse
import contextlib
import itertools
import json
import os
import time

os.environ["JAX_PLATFORMS"] = "cpu"  # JAX only makes the weights: the GPU is PyTorch's

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from qualiclip_jax import train
from qualiclip_jax.models import convert
from qualiclip_jax.models.clip_config import ResNetConfig, ViTConfig
from qualiclip_jax.models.pixels import MEAN, STD
from qualiclip_jax.training import build

LOSSES = ("consistency", "positive", "negative")
ACTIVATIONS = {
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class LayerNorm(nn.LayerNorm):
    """In float32, back in the type of its input."""

    def forward(self, x):
        return super().forward(x.float()).to(x.dtype)


class Attention(nn.Module):
    """Self-attention with one projection to queries, keys and values."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.in_proj_weight, self.in_proj_bias = (nn.Parameter(torch.empty(3 * width, *s)) for s in ((width,), ()))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x):
        n, t, width = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias).reshape(n, t, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, width))


class Block(nn.Module):
    """x + attention(norm(x)), then x + perceptron(norm(x))."""

    def __init__(self, shape):
        super().__init__()
        width, hidden = shape.width, shape.mlp_width or 4 * shape.width
        self.ln_1, self.ln_2 = (LayerNorm(width, shape.layer_norm_eps) for _ in range(2))
        self.attn = Attention(width, shape.heads)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, hidden), "c_proj": nn.Linear(hidden, width)})
        self.activation = ACTIVATIONS[shape.activation]

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](self.activation(self.mlp["c_fc"](self.ln_2(x))))


class ViT(nn.Module):
    """CLIP's vision transformer, at its native size."""

    def __init__(self, config):
        super().__init__()
        shape = config.image
        width = shape.width
        self.conv1 = nn.Conv2d(3, width, shape.patch_size, shape.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(1 + shape.grid**2, width))
        self.ln_pre, self.ln_post = (LayerNorm(width, shape.layer_norm_eps) for _ in range(2))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.proj = nn.Parameter(torch.empty(width, config.embed_dim))
        self.remat = config.remat

    def forward(self, x):
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], 1)
        x = self.ln_pre(x + self.positional_embedding.to(x.dtype))
        for block in self.transformer.resblocks:
            x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False) if self.remat else block(x)
        return self.ln_post(x[:, 0]) @ self.proj


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, average pool, 1 x 1, beside a shortcut."""

    def __init__(self, into, narrow, stride):
        super().__init__()
        wide = 4 * narrow
        self.conv1, self.bn1 = nn.Conv2d(into, narrow, 1, bias=False), nn.BatchNorm2d(narrow)
        self.conv2, self.bn2 = nn.Conv2d(narrow, narrow, 3, padding=1, bias=False), nn.BatchNorm2d(narrow)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3, self.bn3 = nn.Conv2d(narrow, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.downsample = None
        if stride > 1 or into != wide:
            self.downsample = nn.ModuleDict({"0": nn.Conv2d(into, wide, 1, bias=False), "1": nn.BatchNorm2d(wide)})

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.pool(F.relu(self.bn2(self.conv2(y))))
        y = self.bn3(self.conv3(y))
        if self.downsample is not None:
            x = self.downsample["1"](self.downsample["0"](self.pool(x)))
        return F.relu(x + y)


class AttentionPool(nn.Module):
    """Attention with one query, the mean of the tokens."""

    def __init__(self, config):
        super().__init__()
        shape = config.image
        self.heads, self.native = shape.heads, config.position != "none"
        self.positional_embedding = nn.Parameter(torch.empty(1 + shape.grid**2, shape.features))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(shape.features, shape.features) for _ in range(3))
        self.c_proj = nn.Linear(shape.features, config.embed_dim)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], 1)
        if self.native:
            x = x + self.positional_embedding.to(x.dtype)
        n = len(x)
        q, k, v = self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x)
        q, k, v = (y.reshape(n, y.shape[1], self.heads, -1).transpose(1, 2) for y in (q, k, v))
        return self.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, -1))


class ResNet(nn.Module):
    """CLIP's modified ResNet, BatchNorm frozen."""

    def __init__(self, config):
        super().__init__()
        shape = config.image
        width, into = shape.width, shape.width
        self.conv1, self.bn1 = nn.Conv2d(3, width // 2, 3, 2, 1, bias=False), nn.BatchNorm2d(width // 2)
        self.conv2, self.bn2 = nn.Conv2d(width // 2, width // 2, 3, 1, 1, bias=False), nn.BatchNorm2d(width // 2)
        self.conv3, self.bn3 = nn.Conv2d(width // 2, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        for stage, blocks in enumerate(shape.layers):
            narrow, stride = width * 2**stage, 1 if stage == 0 else 2
            stack = [Bottleneck(into, narrow, stride)] + [Bottleneck(4 * narrow, narrow, 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*stack))
            into = 4 * narrow
        self.attnpool = AttentionPool(config)
        self.eval()

    def forward(self, x):
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)))
        return self.attnpool(self.layer4(self.layer3(self.layer2(self.layer1(F.avg_pool2d(x, 2))))))


def encoder(clip):
    """The image encoder of a `models.CLIP` as a PyTorch module with the same weights."""
    kinds = {ResNetConfig: ResNet, ViTConfig: ViT}
    kind = kinds.get(type(clip.config.image))
    if kind is None or getattr(clip.config.image, "pool", "token") != "token":
        raise SystemExit("the peer knows CLIP's ResNets and ViTs only")
    visual = kind(clip.config)
    tensors = {name: torch.from_numpy(array) for name, array in convert.to_openai_state_dict(clip).items()}
    tensors = {name.removeprefix("visual."): x for name, x in tensors.items() if name.startswith("visual.")}
    tensors |= {name: x for name, x in visual.state_dict().items() if "num_batches_tracked" in name}
    visual.load_state_dict(tensors)
    return visual


def margin_losses(sim_pos, sim_neg, margin_consistency, margin_rank):
    """The mean over images [B, L, 2, P] of the three losses of arXiv 2403.11176, as `objective.margin_losses`."""
    milder, stronger = map(list, zip(*itertools.combinations(range(sim_pos.shape[1]), 2)))

    def consistency(s):
        return F.relu((s[:, :, 0] - s[:, :, 1]).abs() - margin_consistency).sum(1)

    def ranking(s):
        return F.relu(s[:, stronger, None, :] - s[:, milder, :, None] + margin_rank).sum((1, 2, 3))

    losses = {
        "consistency": consistency(sim_pos) + consistency(sim_neg),
        "positive": ranking(sim_pos),
        "negative": ranking(-sim_neg),
    }
    return {name: value.mean() for name, value in losses.items()}


class Step:
    """A training step of the encoder of a model on images that are degraded already.

    Args:
      config: of a training run.
      model: the `models.Model` it starts from.
    """

    def __init__(self, config, model):
        known = {f"weight_{name}" for name in LOSSES}
        for name, value in config.loss.items():
            if value and (name == "factors" or name.startswith("weight_") and name not in known):
                raise SystemExit(f"config.loss.{name} is {value!r}: the peer has {', '.join(LOSSES)} only")
        self.config, self.on_gpu = config, torch.cuda.is_available()
        self.device = torch.device("cuda" if self.on_gpu else "cpu")
        self.visual = encoder(model.clip).to(self.device, memory_format=torch.channels_last)
        decayed = {True: [], False: []}
        for name, parameter in self.visual.named_parameters():
            kernel = parameter.ndim > 1 or "embedding" in name  # as `training.optimizer` does it
            decayed[kernel].append(parameter)
        o = config.optimizer
        groups = [{"params": decayed[True], "weight_decay": o.weight_decay}, {"params": decayed[False]}]
        self.optimizer = torch.optim.AdamW(
            groups, config.learning_rate, (o.b1, o.b2), o.eps, weight_decay=0.0, fused=self.on_gpu
        )
        self.prompts = torch.from_numpy(np.asarray(model.prompt_features)).to(self.device)
        self.mean, self.std = (torch.tensor(x, device=self.device)[:, None, None] for x in (MEAN, STD))
        self.compiled, self.loss_fn = "not compiled", self.loss
        if self.on_gpu:
            torch.set_float32_matmul_precision("high")
            with contextlib.suppress(ImportError):
                import triton

                self.compiled, self.loss_fn = f"torch.compile, triton {triton.__version__}", torch.compile(self.loss)

    def put(self, images):
        """Images float32 [B, L, 2, H, W, 3] on the device, [B * L * 2, 3, H, W] in channels last."""
        return torch.from_numpy(images).to(self.device).flatten(0, 2).permute(0, 3, 1, 2)

    def loss(self, images):
        """The loss of images as `put` gives them."""
        low = self.config.model.compute_dtype == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            features = self.visual((images - self.mean) / self.std).float()
        with torch.autocast(self.device.type, enabled=False):
            features = F.normalize(features, dim=-1)
            similarity = torch.einsum("nd,pcd->npc", features, self.prompts)
            similarity = similarity.unflatten(0, (-1, self.config.degradations.levels, 2))
            c = self.config.loss
            losses = margin_losses(similarity[..., 0], similarity[..., 1], c.margin_consistency, c.margin_rank)
            return sum(c[f"weight_{name}"] * value for name, value in losses.items())

    def __call__(self, images):
        """One step; the loss before it, and the norm of the gradient."""
        loss = self.loss_fn(images)
        loss.backward()
        most = self.config.optimizer.clip_norm or float("inf")
        norm = nn.utils.clip_grad_norm_(self.visual.parameters(), most)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach(), norm

    def wait(self):
        """Until the device has done everything."""
        if self.on_gpu:
            torch.cuda.synchronize()


def main():
    """Prints what the step takes, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.py")
    parser.add_argument("--repeats", type=int, default=10)
    args, fields = parser.parse_known_args()
    config, _, _ = train.parse(["--config", args.config, *fields])
    step = Step(config, build.build_model(config))
    b, size, levels = config.batch_size, config.data.crop_size, config.degradations.levels
    images = step.put(np.random.default_rng(0).random((b, levels, 2, size, size, 3), np.float32))
    start = time.perf_counter()
    loss, norm = (float(x) for x in step(images))
    first, times = time.perf_counter() - start, []
    for _ in range(args.repeats):
        step.wait()
        start = time.perf_counter()
        step(images)
        step.wait()
        times.append(time.perf_counter() - start)
    result = {
        "ms": 1e3 * float(np.median(times)),
        "loss": loss,
        "gradient_norm": norm,
        "first_s": first,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if step.on_gpu else None,
        "device": torch.cuda.get_device_name() if step.on_gpu else "cpu",
        "how": f"PyTorch {torch.__version__}, {step.compiled}",
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
