"""The networks that a plan may name: a table of builders. Needs torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

import torch
from torch import Tensor, nn

from dicom_node.errors import UsageError

__all__ = ["ARCHITECTURES", "Architecture", "build"]

_RARE = -3.0
"""Bias of the last layer: at the start every voxel is held empty with 95 %, as nearly all are."""


class UNet3d(nn.Module):
    """A U-Net for volumes (Ronneberger 2015, Cicek 2016): one channel in, logits out, same size.

    Input (N, 1, D, H, W) float32, each spatial axis a multiple of 2 ** (levels - 1); output (N, classes, D, H, W).
    """

    def __init__(self, channels: tuple[int, ...], classes: int = 1) -> None:
        super().__init__()
        widths = (1, *channels)
        self.down = nn.ModuleList(_two_convolutions(a, b) for a, b in pairwise(widths))
        pairs = list(zip(channels[:0:-1], channels[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose3d(deep, wide, 2, stride=2) for deep, wide in pairs)
        self.merge = nn.ModuleList(_two_convolutions(2 * wide, wide) for _, wide in pairs)
        self.last = nn.Conv3d(channels[0], classes, 1)
        self.pool = nn.MaxPool3d(2)
        nn.init.constant_(self.last.bias, _RARE)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits."""
        kept = []
        for level, block in enumerate(self.down):
            image = block(image if level == 0 else self.pool(image))
            kept.append(image)
        for up, merge, skip in zip(self.up, self.merge, kept[-2::-1], strict=True):
            image = merge(torch.cat([skip, up(image)], dim=1))
        logits: Tensor = self.last(image)
        return logits


def _two_convolutions(before: int, after: int) -> nn.Sequential:
    """Return convolution, normalisation and ReLU, twice."""
    layers: list[nn.Module] = []
    for width in (before, after):
        layers += [nn.Conv3d(width, after, 3, padding=1, bias=False), nn.BatchNorm3d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A network by name."""

    describe: str
    divisor: int
    """Each spatial axis is a multiple of it."""
    make: Callable[[], nn.Module]


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "unet3d_small": Architecture(
            describe="3D U-Net, 8-16-32 channels, batch normalisation", divisor=4, make=lambda: UNet3d((8, 16, 32))
        ),
        "unet3d_tiny": Architecture(
            describe="3D U-Net, 4-8 channels: for tests of the training itself", divisor=2, make=lambda: UNet3d((4, 8))
        ),
    }
)


def build(name: str) -> nn.Module:
    """Return a new network.

    Raises
    ------
    UsageError
        No architecture has this name.
    """
    if name not in ARCHITECTURES:
        raise UsageError(f"no architecture {name!r}; there are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name].make()
