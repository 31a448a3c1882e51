"""CLIP with a ResNet in plain PyTorch, written from the published architecture, with OpenAI's parameter names.

Deliberately literal: the attention pool computes every query, the images are not masked, nothing is fused.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, average pool, 1 x 1; the shortcut is pooled in the same way."""

    def __init__(self, into: int, narrow: int, stride: int):
        super().__init__()
        wide = 4 * narrow
        self.stride = stride
        self.conv1, self.bn1 = nn.Conv2d(into, narrow, 1, bias=False), nn.BatchNorm2d(narrow)
        self.conv2, self.bn2 = nn.Conv2d(narrow, narrow, 3, padding=1, bias=False), nn.BatchNorm2d(narrow)
        self.conv3, self.bn3 = nn.Conv2d(narrow, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.downsample = None
        if stride > 1 or into != wide:
            self.downsample = nn.ModuleDict({"0": nn.Conv2d(into, wide, 1, bias=False), "1": nn.BatchNorm2d(wide)})

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(F.avg_pool2d(y, self.stride)))
        if self.downsample is not None:
            x = self.downsample["1"](self.downsample["0"](F.avg_pool2d(x, self.stride)))
        return torch.relu(x + y)


class AttentionPool(nn.Module):
    """Self-attention over the mean token and all others; the mean token's output counts."""

    def __init__(self, grid: int, features: int, heads: int, out: int):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(grid * grid + 1, features) / features**0.5)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(features, features) for _ in range(3))
        self.c_proj = nn.Linear(features, out)

    def forward(self, x, position: bool):
        x = x.flatten(2).transpose(1, 2)  # [N, H * W, C]
        x = torch.cat([x.mean(1, keepdim=True), x], 1)
        if position:
            x = x + self.positional_embedding
        n, t, c = x.shape
        q, k, v = (
            project(x).reshape(n, t, self.heads, c // self.heads).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        weights = torch.softmax(q @ k.transpose(-1, -2) / (c // self.heads) ** 0.5, -1)
        return self.c_proj((weights @ v).transpose(1, 2).reshape(n, t, c))[:, 0]


class ModifiedResNet(nn.Module):
    """Stem of three convolutions, four stages, attention pool."""

    def __init__(self, layers, width: int, heads: int, image_size: int, out: int):
        super().__init__()
        half = width // 2
        self.conv1, self.bn1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = nn.Conv2d(half, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        into = width
        for stage, blocks in enumerate(layers):
            narrow, stride = width * 2**stage, 1 if stage == 0 else 2
            stack = [Bottleneck(into, narrow, stride)]
            stack += [Bottleneck(4 * narrow, narrow, 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*stack))
            into = 4 * narrow
        self.attnpool = AttentionPool(image_size // 32, into, heads, out)

    def forward(self, x, position: bool):
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = torch.relu(norm(conv(x)))
        x = F.avg_pool2d(x, 2)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.attnpool(x, position)


class TextBlock(nn.Module):
    """Pre-norm transformer block with QuickGELU."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x, mask):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        y = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](y * torch.sigmoid(1.702 * y))


class CLIP(nn.Module):
    """Image and text encoder with the attribute names that give OpenAI's parameter names."""

    def __init__(self, embed_dim, layers, width, heads, image_size, text_layers, text_width, text_heads, vocab_size):
        super().__init__()
        self.visual = ModifiedResNet(layers, width, heads, image_size, embed_dim)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(TextBlock(text_width, text_heads) for _ in range(text_layers))
        self.token_embedding = nn.Embedding(vocab_size, text_width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(77, text_width))
        self.ln_final = nn.LayerNorm(text_width)
        self.text_projection = nn.Parameter(torch.randn(text_width, embed_dim) / text_width**0.5)
        self.logit_scale = nn.Parameter(torch.tensor(2.66))

    def encode_image(self, images, position: bool):
        return self.visual(images, position)

    def encode_text(self, tokens):
        x = self.token_embedding(tokens) + self.positional_embedding
        mask = torch.full((77, 77), float("-inf")).triu(1)
        for block in self.transformer.resblocks:
            x = block(x, mask)
        x = self.ln_final(x)[torch.arange(len(tokens)), tokens.argmax(-1)]
        return x @ self.text_projection
