"""Integer levels to continuous values:  z = (x + u) / bins,  u uniform in (0, 1)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from invconv.errors import InputError
from invconv.flows.base import FlowLayer, check_images, volume_dtype
from invconv.flows.context import Context
from invconv.layers.record import Recorded


class Dequantize(Recorded, FlowLayer):
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
        dtype: floating type of `z`; `None` for torch's default, but float32 at least.

    Raises:
        InputError: if `x` is no integer batch or has levels out of range; if `dtype`, or that of a `z` to be
            inverted, is too coarse for the levels, as bfloat16 is for more than 32 and float16 for more than 256.

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
        if dtype is not None:
            self.check_dtype(dtype)

    @override
    def recorded(self) -> dict[str, Any]:
        return {"bins": self.bins}

    def check_dtype(self, dtype: torch.dtype) -> None:
        """Raise InputError where values of `dtype` between 0 and 1 are not at least four times as dense as levels."""
        if not dtype.is_floating_point:
            raise InputError(f"the levels become real floating point numbers, not {dtype}")
        if torch.finfo(dtype).eps * self.bins > 0.25:
            raise InputError(
                f"{dtype} cannot tell {self.bins} levels and the noise between them apart: it has "
                f"{1 / torch.finfo(dtype).eps:.0f} values from 1/2 to 1. Use float32, or autocast "
                "(precision='bf16-mixed'), which leaves the images and the weights in float32"
            )

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
        dtype = self.dtype or torch.promote_types(torch.get_default_dtype(), torch.float32)
        wide = torch.promote_types(dtype, torch.float32)
        # Not torch.rand, which with a generator, None too, cannot be compiled for batches of any size.
        noise = torch.empty(x.shape, dtype=wide, device=x.device).uniform_(generator=generator)
        # A little off both edges: rounding of the sum then never reaches another level.
        edge = torch.finfo(dtype).eps * self.bins
        z = (x.to(wide) + (edge + (1 - 2 * edge) * noise)) / self.bins
        return z.to(dtype), z.new_full((len(z),), -self._log_volume(z))

    @override
    def inverse(self, z: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """Map `z: (batch, channels, height, width)` to integer `x` and `log_det`; z beyond [0, 1) is clipped."""
        check_images(z, name="z")
        self.check_dtype(z.dtype)
        wide = volume_dtype(z)
        levels = (z.to(wide) * self.bins).floor().clamp(0, self.bins - 1)
        x = levels.to(torch.uint8 if self.bins <= 256 else torch.int32)
        return x, z.new_full((len(z),), self._log_volume(z), dtype=wide)

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
