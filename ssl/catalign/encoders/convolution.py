"""Convolutions of small feature maps as matrix products, for processors that are slow at the former."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL_MAP = 16
"""Cells of an output map up to which a matrix product is the faster way."""


class MatmulConv2d(nn.Conv2d):
    """A convolution that is one matrix product (im2col, Chellapilla et al. 2006) where its output map is small.

    The last stages of a ResNet on photos of 80 × 60 pixels have maps of 3 × 2 cells. oneDNN's kernels loop over cells,
    and the gradients of the weights of those stages alone take half of a step on processors with AMX. As matrix
    products, a step of ResNet-18 takes .5 of the time at 80 × 60 and .4 at 48 × 36, and one of ResNet-50 .4; without
    AMX it takes as long as before. On other devices, larger maps, and where it is compiled or exported, this is the
    plain layer.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        (rows, columns), (down, right), (along, across) = self.kernel_size, self.stride, map(int, self.padding)
        height = (input.shape[2] + 2 * along - rows) // down + 1
        width = (input.shape[3] + 2 * across - columns) // right + 1
        if height * width > SMALL_MAP or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        padded = F.pad(input.permute(0, 2, 3, 1), (0, 0, across, across, along, along))
        shifted = [
            padded[:, row : row + down * (height - 1) + 1 : down, column : column + right * (width - 1) + 1 : right]
            for row in range(rows)
            for column in range(columns)
        ]
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(torch.cat(shifted, -1), weight, self.bias).permute(0, 3, 1, 2)


def speed_up_small_maps(model: nn.Module) -> None:
    """Let the plain convolutions of a model be :class:`MatmulConv2d`; weights and their names stay as they are."""
    for layer in model.modules():
        if type(layer) is nn.Conv2d and _is_plain(layer):
            layer.__class__ = MatmulConv2d


def _is_plain(layer: nn.Conv2d) -> bool:
    zeros = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return zeros and layer.groups == 1 and layer.dilation == (1, 1)
