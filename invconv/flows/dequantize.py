"""Integer levels to continuous values:  z = (x + u) / bins,  u uniform in (0, 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from invconv.errors import InputError
from invconv.flows.base import FlowLayer, check_images
from invconv.flows.context import Context


class Dequantize(FlowLayer):
    r"""`z = (x + u) / bins` with `u ~ U(0, 1)`, `log_det = -dim * log(bins)`.

    Uniform noise makes a density of a probability mass: the expected log-density of `z`, plus
    `log_det`, is a lower bound on `log P(x)`. `z` fills the unit interval, which is what
    *full scale* means throughout. `inverse` is `floor(bins * z)`: it gives the levels back
    whatever the noise was, also from a `z` with rounding errors unless these carry it over the
    edge of a level.

    Theis, van den Oord and Bethge, *A note on the evaluation of generative models* (2016), section
    3.1.

    Args:
        bins: number of levels; `x` holds integers from 0 to `bins - 1`.
        dtype: floating type of `z`; `None` for torch's default.

    Raises:
        InputError: if `x` is no integer batch or has levels out of range.

    Example:
        >>> x = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
        >>> layer = Dequantize()
        >>> z, log_det = layer(x)
        >>> torch.equal(layer.inverse(z)[0], x), round(log_det[0].item(), 2)
        (True, -1064.67)
    """

    def __init__(self, bins: int = 256, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if not 2 <= bins <= 65536:
            raise InputError(f"bins must lie in 2 to 65536, got {bins}")
        self.bins = bins
        self.dtype = dtype

    def forward(
        self,
        x: Tensor,
        context: Context | torch.Generator | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Map integer `x: (batch, channels, height, width)` to `(z, log_det)`, z in [0, 1).

        Args:
            x: integer levels.
            context: carries the generator of the noise; a generator is taken in its place.
            generator: the generator, by its name.
        """
        generator = Context.of(context, generator=generator).generator
        self._check(x)
        dtype = self.dtype or torch.get_default_dtype()
        # Not torch.rand, which with a generator, None too, cannot be compiled for batches of any size.
        noise = torch.empty(x.shape, dtype=dtype, device=x.device).uniform_(generator=generator)
        # A little off both edges: rounding of the sum then never reaches another level.
        edge = torch.finfo(dtype).eps * self.bins
        z = (x.to(dtype) + (edge + (1 - 2 * edge) * noise)) / self.bins
        return z, z.new_full((len(z),), -self._log_volume(z))

    @override
    def inverse(self, z: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """Map `z: (batch, channels, height, width)` to integer `x` and `log_det`; z beyond [0, 1) is clipped."""
        check_images(z, name="z")
        levels = (z * self.bins).floor().clamp(0, self.bins - 1)
        x = levels.to(torch.uint8 if self.bins <= 256 else torch.int32)
        return x, z.new_full((len(z),), self._log_volume(z))

    def _log_volume(self, z: Tensor) -> float:
        return math.prod(z.shape[1:]) * math.log(self.bins)

    def _check(self, x: Tensor) -> None:
        what = f"got {x.dtype} of shape {tuple(x.shape)}"
        if x.ndim != 4:
            raise InputError(f"x must have shape (batch, channels, height, width), {what}")
        if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
            raise InputError(
                f"x must hold integer levels 0 to {self.bins - 1}, {what}; give the images as uint8, before any scaling"
            )
        if x.numel() and not (x.dtype == torch.uint8 and self.bins == 256):
            low, high = int(x.min()), int(x.max())
            if low < 0 or high >= self.bins:
                raise InputError(
                    f"levels must lie in 0 to {self.bins - 1}, got {low} to {high} in shape {tuple(x.shape)}"
                )

    def extra_repr(self) -> str:
        return f"bins={self.bins}"
