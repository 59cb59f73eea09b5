"""A small U-Net for periodic fields, neuraloperator's FNO where it is installed, and a toy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

NO_OPERATOR = (
    "the FNO needs neuraloperator: "
    "pip install --no-deps neuraloperator==2.0.0 tensorly-torch==0.5.0, after "
    "pip install requests pyyaml tensorly==0.10.0 opt-einsum==3.4.0 "
    "(what else it asks for is not used here)"
)


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3 x 3 convolutions, each with a group norm and GELU."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        convolution = nn.Conv2d(
            channels, outputs, 3, padding=1, padding_mode="circular", bias=False
        )
        layers += [convolution, nn.GroupNorm(4, outputs), nn.GELU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) of ``depth`` halvings, for fields (n, 1, side, side).

    Side a multiple of 2^depth.

    Norms are group norms, sides are halved by means. As in the FNO, edges are joined and the
    coordinates are two more channels of the input.
    """

    def __init__(self, width: int, depth: int = 2) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(depth + 1)]
        self.down = nn.ModuleList(block(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(
            block(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Fields to fields."""
        x, kept = torch.cat([x, coordinates(x)], dim=1), []
        for i, stage in enumerate(self.down):
            x = stage(x if i == 0 else nn.functional.avg_pool2d(x, 2))
            kept.append(x)
        x = kept.pop()
        for stage in self.up:
            larger = nn.functional.interpolate(
                x, scale_factor=2, mode="bilinear", align_corners=False
            )
            x = stage(torch.cat([larger, kept.pop()], dim=1))
        out: Tensor = self.head(x)
        return out


def coordinates(x: Tensor) -> Tensor:
    """Of each point of (n, 1, side, side), from 0 to 1: (n, 2, side, side)."""
    line = torch.linspace(0, 1, x.shape[-1], device=x.device)
    return torch.stack(torch.meshgrid(line, line, indexing="ij")).expand(len(x), -1, -1, -1)


def fno(width: int, modes: int = 6) -> nn.Module:
    """Fourier neural operator (Li et al. 2021) of neuraloperator, four layers.

    Its MLPs are ``width`` and twice that.

    Raises:
        ModuleNotFoundError: neuraloperator is not installed.

    """
    try:
        from neuralop.models import FNO
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(NO_OPERATOR) from error
    network: nn.Module = FNO(
        n_modes=(modes, modes), in_channels=1, out_channels=1, hidden_channels=width, n_layers=4,
        lifting_channel_ratio=2, projection_channel_ratio=2, channel_mlp_expansion=1.0,
    )  # fmt: skip
    return network


NETWORKS: dict[str, Callable[[int], nn.Module]] = {"FNO": fno, "U-Net": UNet}

SPECTRAL = {"FNO": ("fno_blocks.convs.*",)}
"""Globs of a network's complex spectral weights, which published code does not analyse."""
