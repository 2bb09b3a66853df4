"""The multi-scale flow: squeeze, mix, couple, split, and again at half the size;  log p(x) = log N(z) + log_det."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from invconv.errors import InputError
from invconv.flows.actnorm import ActNorm
from invconv.flows.base import FlowLayer, check_images
from invconv.flows.chain import Chain
from invconv.flows.context import Composite, Context
from invconv.flows.conv import ConvFlow
from invconv.flows.coupling import AffineCoupling
from invconv.flows.dequantize import Dequantize
from invconv.flows.pair import PairFlow
from invconv.flows.prior import GaussianPrior
from invconv.flows.reversed import Reversed
from invconv.flows.split import Split
from invconv.flows.squeeze import Squeeze
from invconv.layers.conv import InvertibleConv
from invconv.layers.record import ChecksRecords
from invconv.scalars import whole_number, whole_numbers

MIXING = ("dense", "pair", "1x1")


class MultiScaleFlow(ChecksRecords, Composite):
    r"""`log p(x) = sum_i log N(z_i; 0, 1) + log_det` for images of integer levels.

    Each of `scales` levels squeezes, applies `steps` times ActNorm, invertible convolution and
    affine coupling, and splits off half of its channels; a Gaussian prior whitens what is left at
    the top. All latents are standard normal.

    `forward` and `inverse` go between integer images and latents, dequantisation and its log-determinant included.
    `encode` and `decode` are the bijection in between, on images in the unit interval: what they reconstruct, they
    reconstruct to rounding error. All of them take labels and a generator as such, and make the context of the layers.

    Dinh et al., *Real NVP* (2017), section 3.6; Kingma and Dhariwal, *Glow* (2018), section 3.

    Args:
        in_channels: channels of the images.
        image_size: side of the images, or (height, width); multiples of `2**scales`.
        scales: number of levels (Glow's L).
        steps: steps of flow in each level (Glow's K).
        hidden: width of the coupling networks.
        kernel_size: side of the invertible kernels; 1 gives Glow.
        rho: bound of the kernels' off-centre part, `None` for free kernels (see `ConvFlow` and `PairFlow`).
        padding_mode: of dense convolutions; pairs have borders of zeros.
        num_classes: classes of a class-conditional prior; 0 for none.
        bins: number of integer levels of the images.
        volume_tol: of dense convolutions; `None` for exact log-determinants (see `invconv.Options`).
        mixing: "dense" for a convolution of all taps (`ConvFlow`), "pair" for two masked ones that see the same, whose
            log-determinant costs nothing (`PairFlow`), "1x1" for Glow whatever `kernel_size` is.
        reversed_mixing: whether these layers are run backwards (`Reversed`): trained through their inverses, sampled
            by plain convolutions.

    Attributes:
        arguments: what it was made with, by name.

    Raises:
        InputError: for another `mixing`; on images of another shape or type, a size that `2**scales` does not divide,
            or weights of a type that is too coarse for the levels of images (bfloat16).
        CheckpointError: when a `state_dict` is loaded that was saved by a flow with other options.

    Example:
        >>> flow = MultiScaleFlow(image_size=8, scales=2, steps=1, hidden=8)
        >>> x = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
        >>> z, log_det = flow(x)
        >>> [tuple(part.shape) for part in z], log_det.shape
        ([(2, 6, 4, 4), (2, 24, 2, 2)], torch.Size([2]))
        >>> flow.reconstruction_error(x).max().item() < 1e-5
        True
        >>> flow.sample(3, temperature=0.7).shape
        torch.Size([3, 3, 8, 8])
    """

    def __init__(
        self,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 32,
        scales: int = 3,
        steps: int = 8,
        hidden: int = 64,
        kernel_size: int = 3,
        rho: float | None = 0.5,
        padding_mode: str = "circular",
        num_classes: int = 0,
        bins: int = 256,
        volume_tol: float | None = None,
        mixing: Literal["dense", "pair", "1x1"] = "dense",
        reversed_mixing: bool = False,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.arguments = arguments
        height, width = whole_numbers("image_size", image_size, 2)
        in_channels, scales = whole_number("in_channels", in_channels), whole_number("scales", scales)
        steps, hidden = whole_number("steps", steps), whole_number("hidden", hidden)
        if height % 2**scales or width % 2**scales:
            raise InputError(f"image_size must be a multiple of {2**scales} for {scales} scales, got {(height, width)}")
        if mixing not in MIXING:
            raise InputError(f"mixing must be one of {MIXING}, got {mixing!r}")
        self.image_shape = (in_channels, height, width)
        self.latent_shapes: list[tuple[int, int, int]] = []
        self.levels: Any = nn.ModuleList()
        self.splits: Any = nn.ModuleList()
        channels = in_channels
        for scale in range(1, scales + 1):
            channels *= 4
            layers: list[FlowLayer] = [Squeeze()]
            for _ in range(steps):
                layers += [ActNorm(channels), self._mixes(channels), AffineCoupling(channels, hidden)]
            self.levels.append(Chain(*layers))
            if scale < scales:
                split = Split(channels)
                self.splits.append(split)
                self.latent_shapes.append((channels - split.kept, height >> scale, width >> scale))
                channels = split.kept
        self.latent_shapes.append((channels, height >> scales, width >> scales))
        self.prior = GaussianPrior(channels, num_classes)
        # After those with parameters: Lightning puts what it loads where the first tensor of a checkpoint is.
        self.dequantize = Dequantize(bins)

    if TYPE_CHECKING:  # what `torch.nn.Module` leaves open
        __call__: Callable[..., tuple[list[Tensor], Tensor]]

    def _mixes(self, channels: int) -> FlowLayer:
        """A new layer that mixes channels, and space."""
        mixing, kernel_size, rho, padding_mode, volume_tol, turned = (
            self.arguments[name]
            for name in ("mixing", "kernel_size", "rho", "padding_mode", "volume_tol", "reversed_mixing")
        )
        layer: FlowLayer
        if mixing == "pair" and kernel_size > 1:
            layer = PairFlow(channels, kernel_size, rho)
        else:
            layer = ConvFlow(channels, 1 if mixing == "1x1" else kernel_size, padding_mode, rho, volume_tol)
        return Reversed(layer) if turned else layer

    @property
    def convolutions(self) -> Sequence[InvertibleConv]:
        """The convolutions of all levels, finest first."""
        return [conv for level in self.levels for conv in level.convolutions]

    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Map integer images to `(z, log_det)`.

        Args:
            x: (batch, in_channels, height, width), integer levels.
            y: (batch,) labels, for a class-conditional flow.
            generator: of the dequantisation noise.

        Returns:
            z: all latents, finest first, as in `latent_shapes`; log_det: (batch,), nats.
        """
        continuous, log_det = self.dequantize(x, Context(generator=generator))
        dtype = self.prior.moments.weight.dtype
        self.dequantize.check_dtype(dtype)
        z, more = self.encode(continuous.to(dtype), y)
        return z, log_det + more

    def inverse(self, z: Sequence[Tensor], y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map all latents to `(x, log_det)`, x with integer levels."""
        continuous, log_det = self.decode(z, y)
        x, more = self.dequantize.inverse(continuous)
        return x, log_det + more

    def encode(self, x: Tensor, y: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Map continuous images in [0, 1), (batch, in_channels, height, width), to `(z, log_det)`."""
        self._check_shape(x)
        context = Context(y, convolutions=self.convolutions)
        h, z, log_det = x, [], x.new_zeros(len(x))
        for index, level in enumerate(self.levels):
            h, more = level(h, context)
            log_det = log_det + more
            if index < len(self.splits):
                (h, part), more = self.splits[index](h, context)
                z.append(part)
                log_det = log_det + more
        h, more = self.prior(h, context)
        return [*z, h], log_det + more + self._log_abs_det(context)

    def decode(self, z: Sequence[Tensor], y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map all latents to `(x, log_det)`, x continuous."""
        if [part.shape[1:] for part in z] != [torch.Size(shape) for shape in self.latent_shapes]:
            raise InputError(
                f"latents must be a list of shapes (batch, ...) with {self.latent_shapes}, "
                f"got {[tuple(part.shape) for part in z]}"
            )
        context = Context(y, convolutions=self.convolutions)
        h, log_det = self.prior.inverse(z[-1], context)
        for index in reversed(range(len(self.levels))):
            if index < len(self.splits):
                h, more = self.splits[index].inverse((h, z[index]), context)
                log_det = log_det + more
            h, more = self.levels[index].inverse(h, context)
            log_det = log_det + more
        return h, log_det + self._log_abs_det(context)

    def log_prob(
        self,
        x: Tensor,
        y: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """A lower bound, by one draw of the noise, on `log P(x)`: (batch,), nats per image."""
        z, log_det = self(x, y, generator)
        flat = torch.cat([part.flatten(1) for part in z], 1).to(log_det.dtype)
        return log_det - 0.5 * (flat.square() + math.log(2 * math.pi)).sum(1)

    def bits_per_dim(
        self,
        x: Tensor,
        y: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The cost `-log_prob(x) / (dim * log 2)`: (batch,), bits per channel value."""
        return -self.log_prob(x, y, generator) / (math.prod(self.image_shape) * math.log(2))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        temperature: float = 1.0,
        y: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw `n` images (n, in_channels, height, width) of integer levels.

        Args:
            temperature: standard deviation of the latents; below 1 likelier and smoother images.
            y: (n,) labels, for a class-conditional flow.
            generator: of the latents.
        """
        like = self.prior.moments.weight
        z = [
            temperature * torch.randn((n, *shape), dtype=like.dtype, device=like.device, generator=generator)
            for shape in self.latent_shapes
        ]
        return self.inverse(z, y)[0]

    @torch.no_grad()
    def reconstruction_error(
        self,
        x: Tensor,
        y: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The largest error `max |decode(encode(v)) - v|` in shares of full scale: (batch,).

        v is the dequantised image; all its latents are used.
        """
        continuous = self.dequantize(x, Context(generator=generator))[0].to(self.prior.moments.weight.dtype)
        again, _ = self.decode(self.encode(continuous, y)[0], y)
        return (again - continuous).abs().flatten(1).amax(1)

    @torch.no_grad()
    def condition_numbers(self) -> dict[str, Tensor]:
        """The condition number of each invertible convolution at its image size, by level and place.

        Those of a pair, `level1.layer2.1` and `level1.layer2.2`, have a product that bounds that of their composition.
        """
        _, height, width = self.image_shape
        conditions = {}
        for index, level in enumerate(self.levels, start=1):
            for place, layer in enumerate(level.layers):
                for number, conv in enumerate(layer.convolutions, start=1):
                    name = f"level{index}.layer{place}" + (f".{number}" if len(layer.convolutions) > 1 else "")
                    conditions[name] = conv.condition_number((height >> index, width >> index))
        return conditions

    def _check_shape(self, x: Tensor) -> None:
        check_images(x, self.image_shape[0])
        if tuple(x.shape[1:]) != self.image_shape:
            raise InputError(
                f"this flow is built for images of shape {self.image_shape}, "
                f"got {tuple(x.shape[1:])} in shape {tuple(x.shape)}; resize or crop them"
            )

    def extra_repr(self) -> str:
        return f"image_shape={self.image_shape}, latent_shapes={self.latent_shapes}"
