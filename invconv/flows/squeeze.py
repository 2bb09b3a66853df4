"""Space to channels: each block of pixels becomes the channels of one."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from typing_extensions import override

from invconv.errors import InputError
from invconv.flows.base import FlowLayer, check_images, no_volume
from invconv.flows.context import Context
from invconv.layers.record import Recorded
from invconv.scalars import whole_number


class Squeeze(Recorded, FlowLayer):
    r"""`z[4c + 2i + j, u, v] = x[c, 2u + i, 2v + j]`: a permutation, so `log_det = 0`.

    Dinh, Sohl-Dickstein and Bengio, *Density estimation using Real NVP* (2017), section 3.6.

    Args:
        factor: side of the pixel block that becomes channels.

    Raises:
        InputError: if `factor` divides not both sides (forward), or `factor**2` not the
            channels (inverse).

    Example:
        >>> import torch
        >>> z, log_det = Squeeze()(torch.rand(5, 3, 8, 6))
        >>> z.shape, log_det.shape
        (torch.Size([5, 12, 4, 3]), torch.Size([5]))
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.factor = whole_number("factor", factor)

    @override
    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """Map `x: (batch, c, h, w)` to `(batch, c * factor**2, h / factor, w / factor)`."""
        check_images(x)
        if x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise InputError(
                f"height and width must be multiples of {self.factor}, got shape {tuple(x.shape)}; "
                "crop or pad the images"
            )
        return _space_to_channels(x, self.factor), no_volume(x)

    @override
    def inverse(self, z: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """Map `z: (batch, c * factor**2, h, w)` to `(batch, c, h * factor, w * factor)`."""
        check_images(z, name="z")
        if z.shape[1] % self.factor**2:
            raise InputError(f"channels must be a multiple of {self.factor**2}, got shape {tuple(z.shape)}")
        return _channels_to_space(z, self.factor), no_volume(z)

    @override
    def recorded(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


# torch's pixel_unshuffle and pixel_shuffle, except that these take an empty batch.
def _space_to_channels(x: Tensor, factor: int) -> Tensor:
    batch, channels, height, width = x.shape
    height, width, more = height // factor, width // factor, channels * factor**2
    blocks = x.reshape(batch, channels, height, factor, width, factor)
    if x.device.type == "cpu":
        # Channels lie side by side in memory, for all layers to come: convolutions are faster so.
        return blocks.permute(0, 2, 4, 1, 3, 5).reshape(batch, height, width, more).permute(0, 3, 1, 2)
    return blocks.permute(0, 1, 3, 5, 2, 4).reshape(batch, more, height, width)


def _channels_to_space(z: Tensor, factor: int) -> Tensor:
    batch, channels, height, width = z.shape
    blocks = z.reshape(batch, channels // factor**2, factor, factor, height, width)
    shape = (batch, channels // factor**2, height * factor, width * factor)
    return blocks.permute(0, 1, 4, 2, 5, 3).reshape(shape)
