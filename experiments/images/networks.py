"""ResNet-18 and VGG-16 for small images, of any width, and a toy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn


class Residual(nn.Module):
    """Two 3 x 3 convolutions with a way around them (He et al.

    2016), with torchvision's parameter names.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Images to images."""
        inner = self.bn1(self.conv1(x)).relu()
        out: Tensor = (self.bn2(self.conv2(inner)) + self.downsample(x)).relu()
        return out


def resnet(
    width: int, channels: int, classes: int, depths: Sequence[int] = (2, 2, 2, 2)
) -> nn.Module:
    """ResNet-18 with the 3 x 3 stem for small images; ``width`` 64 is the published one."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    inputs = width
    for stage, depth in enumerate(depths):
        outputs = width * 2**stage
        for i in range(depth):
            layers.append(Residual(inputs, outputs, 2 if stage and i == 0 else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def vgg(width: int, channels: int, classes: int) -> nn.Module:
    """VGG-16 with batch norm and one linear layer (Simonyan and Zisserman 2015).

    ``width`` 64 is the published one.
    """
    layers: list[nn.Module] = []
    inputs = channels
    for stage, depth in enumerate((2, 2, 3, 3, 3)):
        outputs = width * min(2**stage, 8)
        for _ in range(depth):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
            inputs = outputs
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


def toy(width: int, channels: int, classes: int) -> nn.Module:
    """A ResNet of three blocks, to see whether the experiment runs."""
    return resnet(width, channels, classes, depths=(1, 1, 1))


NETWORKS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "ResNet-18": resnet,
    "VGG-16": vgg,
    "toy": toy,
}
