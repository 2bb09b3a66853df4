"""An autoencoder whose decoder is the pseudo-inverse of its encoder, layer by layer, with no weights of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from invconv.errors import InputError
from invconv.layers import InvertibleConv2d
from invconv.layers.init import centre_taps
from invconv.layers.record import Recorded


class LeakyReLU(nn.Module):
    r"""`y = exp(a) max(x, 0) + exp(b) min(x, 0)`, with a and b learned for each channel.

    The inverse is `exp(-a) max(y, 0) + exp(-b) min(y, 0)`.  It starts as the identity.

    Source: He, Zhang, Ren and Sun, *Delving deep into rectifiers* (2015), with both slopes positive.

    Example:
        >>> layer = LeakyReLU(2)
        >>> x = torch.randn(3, 2, 4, 4)
        >>> torch.equal(layer.inverse(layer(x)), x)
        True
    """

    def __init__(self, channels: int):
        super().__init__()
        self.log_slopes = nn.Parameter(torch.zeros(2, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The activation of x: (batch, channels, height, width)."""
        above, below = self.log_slopes.exp()
        return above * x.clamp_min(0) + below * x.clamp_max(0)

    def inverse(self, y: Tensor) -> Tensor:
        """The x whose activation is y: (batch, channels, height, width)."""
        above, below = (-self.log_slopes).exp()
        return above * y.clamp_min(0) + below * y.clamp_max(0)

    def scale_(self, std: Tensor) -> None:
        """Nothing to scale: slopes have no unit."""


class SinhArcsinh(nn.Module):
    r"""`y = s sinh(d asinh(x / s) - e)`, smooth and monotone, with tails like `|x|^d`.

    s > 0, d > 0 and e are learned for each channel; the inverse is `x = s sinh((asinh(y / s) + e) / d)`.  It starts
    as the identity, d = 1 and e = 0.

    Source: Jones and Pewsey, *Sinh-arcsinh distributions* (2009).

    Example:
        >>> layer = SinhArcsinh(2).double()
        >>> _ = nn.init.constant_(layer.skew, 0.3)
        >>> x = torch.randn(3, 2, 4, 4).double()
        >>> torch.allclose(layer.inverse(layer(x)), x)
        True
    """

    def __init__(self, channels: int):
        super().__init__()
        self.log_scale, self.log_tail, self.skew = (nn.Parameter(torch.zeros(channels, 1, 1)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """The activation of x: (batch, channels, height, width)."""
        s = self.log_scale.exp()
        return s * torch.sinh(self.log_tail.exp() * torch.asinh(x / s) - self.skew)

    def inverse(self, y: Tensor) -> Tensor:
        """The x whose activation is y: (batch, channels, height, width)."""
        s = self.log_scale.exp()
        return s * torch.sinh((torch.asinh(y / s) + self.skew) * (-self.log_tail).exp())

    @torch.no_grad()
    def scale_(self, std: Tensor) -> None:
        """Set s to the standard deviation (channels,) of what comes in."""
        self.log_scale.copy_(std.clamp_min(1e-6).log().view(-1, 1, 1))


ACTIVATIONS = {"leaky_relu": LeakyReLU, "sinh_arcsinh": SinhArcsinh}


class PseudoInverseAutoencoder(Recorded):
    r"""z = E(x) and x_hat = E^+(z): each convolution of the encoder is undone by its pseudo-inverse.

    A stage is a convolution of stride 2 with overlapping kernels, then `mixing` square 3 x 3 convolutions, each with an
    invertible activation after it, except that the code comes out of a convolution.

    Args:
        image_shape: (channels, height, width); the stages halve both sides.
        compression: for each stage, how many numbers go in for one that comes out; below 1 it widens.
        kernel_size: of the strided convolutions, even.
        mixing: square convolutions in each stage but the last.
        activation: "sinh_arcsinh", "leaky_relu" or None for a linear autoencoder.
        padding_mode: as in `torch.nn.Conv2d`.

    Attributes:
        arguments: what it was made with, by name.

    Raises:
        CheckpointError: when a `state_dict` is loaded that was saved with another padding mode.
        InputError: for sides that cannot be halved so often, or channels that do not come out whole.

    Example:
        >>> model = PseudoInverseAutoencoder((3, 16, 16), compression=(1, 1, 16))
        >>> x = torch.rand(2, 3, 16, 16)
        >>> x_hat, z = model(x)
        >>> x_hat.shape, z.shape
        (torch.Size([2, 3, 16, 16]), torch.Size([2, 12, 2, 2]))
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (3, 32, 32),
        compression: Sequence[float] = (1, 1, 16),
        kernel_size: int = 4,
        mixing: int = 1,
        activation: str | None = "sinh_arcsinh",
        padding_mode: str = "circular",
    ):
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.arguments = arguments
        channels, height, width = image_shape
        self.image_shape = (channels, height, width)
        if kernel_size < 2 or kernel_size % 2:
            raise InputError(f"kernel_size must be even, so that the stages halve their images; got {kernel_size}")
        if activation is not None and activation not in ACTIVATIONS:
            raise InputError(f"unknown activation {activation!r}; use None or one of {sorted(ACTIVATIONS)}")
        layers: list[nn.Module] = []
        for stage, rate in enumerate(compression):
            last = stage == len(compression) - 1
            if height % 2 or width % 2:
                raise InputError(
                    f"{len(compression)} stages cannot halve images of {image_shape[1]} x {image_shape[2]}"
                )
            out = 4 * channels / rate if rate > 0 else 0
            if out < 1 or out != int(out):
                raise InputError(f"stage {stage} compresses {4 * channels} channels {rate} times: that leaves {out}")
            padding = (kernel_size - 2) // 2
            layers.append(InvertibleConv2d(channels, int(out), kernel_size, 2, padding, padding_mode=padding_mode))
            channels, height, width = int(out), height // 2, width // 2
            for _ in range(0 if last else mixing):
                if activation is not None:
                    layers.append(ACTIVATIONS[activation](channels))
                layers.append(InvertibleConv2d(channels, channels, 3, padding=1, padding_mode=padding_mode))
            if activation is not None and not last:
                layers.append(ACTIVATIONS[activation](channels))
        self.layers = nn.ModuleList(layers)
        self.initialized: Tensor
        self.register_buffer("initialized", torch.tensor(False))
        self.code_shape = (channels, height, width)
        self.compression = math.prod(self.image_shape) / math.prod(self.code_shape)

    def recorded(self) -> dict[str, Any]:
        """The borders; all else shows in the names and shapes of the tensors."""
        return {"padding_mode": self.arguments["padding_mode"]}

    if TYPE_CHECKING:  # what `torch.nn.Module` leaves open
        __call__: Callable[..., tuple[Tensor, Tensor]]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruct images: `(x_hat, z)`, with x_hat = decode(z) and z = encode(x)."""
        z = self.encode(x)
        return self.decode(z), z

    def encode(self, x: Tensor) -> Tensor:
        """Map images (batch, *image_shape) to codes (batch, *code_shape)."""
        if tuple(x.shape[1:]) != self.image_shape:
            raise InputError(f"images have shape {tuple(x.shape)}, expected (batch, *{self.image_shape})")
        for layer in self.layers:
            x = layer(x)
        return x

    def decode(self, z: Tensor) -> Tensor:
        """Map codes (batch, *code_shape) to images (batch, *image_shape)."""
        if tuple(z.shape[1:]) != self.code_shape:
            raise InputError(f"codes have shape {tuple(z.shape)}, expected (batch, *{self.code_shape})")
        for layer in reversed(self.layers):
            z = layer.inverse(z)  # type: ignore[operator]
        return z

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Start as the principal components of 2 x 2 blocks, of blocks of these, and so on; sets `initialized`.

        Args:
            x: (batch, *image_shape), some hundred images.
        """
        for layer in self.layers:
            if isinstance(layer, InvertibleConv2d):
                _principal_components_(layer, x)
            else:
                layer.scale_(x.movedim(1, 0).flatten(1).std(1))  # type: ignore[operator]
            x = layer(x)
        self.initialized.fill_(True)

    @torch.no_grad()
    def condition_numbers(self) -> dict[str, Tensor]:
        """The condition number of each convolution at its image size, by its name."""
        height, width = self.image_shape[1:]
        numbers = {}
        for place, layer in enumerate(self.layers):
            if isinstance(layer, InvertibleConv2d):
                numbers[f"layers.{place}"] = layer.condition_number((height, width))
                height, width = height // layer.stride[0], width // layer.stride[1]
        return numbers

    def extra_repr(self) -> str:
        return f"image_shape={self.image_shape}, code_shape={self.code_shape}"


def _principal_components_(layer: InvertibleConv2d, x: Tensor) -> None:
    """Set kernels that see each pixel once, and take the largest components of what one place sees."""
    rows, columns = layer.weight.shape[:2]
    taps = centre_taps(layer.geometry)
    seen = columns * len(taps)
    if layer.stride[0] == 1 and rows == columns:
        layer.weight.zero_()
        layer.weight.flatten(2)[:, :, taps[0]] = torch.eye(rows).to(layer.weight)
        return
    looking = torch.zeros(seen, *layer.weight.shape[1:], dtype=x.dtype, device=x.device)
    looking.flatten(2)[:, :, taps] = torch.eye(seen).to(x).view(seen, columns, len(taps))
    values = layer.convolve(x, looking).movedim(1, 0).flatten(1).double()
    mean = values.mean(1)
    components = torch.linalg.eigh(torch.cov(values)).eigenvectors.flip(1).T
    if rows > seen:  # a widening layer: turned copies of all components
        components = torch.cat([components, nn.init.orthogonal_(components.new_empty(rows - seen, seen))])
    kernel = components[:rows].to(layer.weight)
    layer.weight.zero_()
    layer.weight.flatten(2)[:, :, taps] = kernel.view(rows, columns, len(taps))
    if layer.bias is not None:
        layer.bias.copy_(-(kernel @ mean.to(kernel)))
