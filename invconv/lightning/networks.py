"""Two small classifiers for images of 32 x 32, which train in minutes: one in the way of VGG, one in that of ResNet."""

from __future__ import annotations

from torch import Tensor, nn


def small_vgg(channels: int = 3, classes: int = 10, width: int = 32) -> nn.Sequential:
    """Six 3 x 3 convolutions with batch norm and ReLU, a pooling after each second one, one linear layer.

    Example:
        >>> import torch
        >>> small_vgg()(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """
    layers: list[nn.Module] = []
    for wide in (width, 2 * width, 4 * width):
        for _ in range(2):
            layers += [nn.Conv2d(channels, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
            channels = wide
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Residual(nn.Module):
    """ReLU(x + conv(ReLU(conv(x)))), with batch norm; a 1 x 1 convolution on the straight way where shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        same = inputs == outputs and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.skip(x) + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))


def small_resnet(channels: int = 3, classes: int = 10, width: int = 32) -> nn.Sequential:
    """A stem and six residual blocks of three widths, the image halved twice.

    Example:
        >>> import torch
        >>> small_resnet()(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 10])
    """
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    inputs = width
    for wide, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
        layers += [Residual(inputs, wide, stride), Residual(wide, wide)]
        inputs = wide
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))
