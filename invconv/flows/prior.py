"""The Gaussian at the top of a flow, one for each class where there are classes:  z = (x - mu_y) / sigma_y."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from invconv.errors import InputError
from invconv.flows.base import FlowLayer, check_images, soft_clamp, sum_per_image
from invconv.flows.context import Context
from invconv.layers.record import Recorded
from invconv.scalars import whole_number


class GaussianPrior(Recorded, FlowLayer):
    r"""`z = (x - mu_y) / sigma_y` by channel, `log_det = -height * width * sum log sigma_y`.

    A learned prior `N(mu_y, sigma_y**2)`, written as the map that whitens it. It starts standard
    normal.

    Kingma and Dhariwal, *Glow* (2018), appendix B (`ycond`).

    Args:
        channels: channels of `x`.
        num_classes: number of classes; 0 for one prior without labels.
        max_log_scale: bound on `|log sigma|`, in nats.

    Raises:
        InputError: if labels are missing, superfluous, of another length or out of range.

    Example:
        >>> prior = GaussianPrior(6, num_classes=10)
        >>> z, log_det = prior(torch.randn(2, 6, 4, 4), torch.tensor([3, 9]))
        >>> z.shape, log_det.shape
        (torch.Size([2, 6, 4, 4]), torch.Size([2]))
    """

    def __init__(self, channels: int, num_classes: int = 0, max_log_scale: float = 4.0) -> None:
        super().__init__()
        self.channels = channels = whole_number("channels", channels)
        self.num_classes = num_classes = whole_number("num_classes", num_classes, least=0)
        self.max_log_scale = max_log_scale
        self.moments = nn.Embedding(max(num_classes, 1), 2 * channels)
        nn.init.zeros_(self.moments.weight)

    def forward(
        self, x: Tensor, context: Context | Tensor | None = None, *, y: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Whiten `x: (batch, channels, height, width)`.

        Args:
            x: what is left at the top of a flow.
            context: carries the labels, (batch,) integers; labels are taken in its place.
            y: the labels, by their name.
        """
        check_images(x, self.channels)
        mean, log_std = self._moments(x, Context.of(context, y).y)
        return (x - mean) * torch.exp(-log_std), -self._volume(x, log_std)

    def inverse(
        self, z: Tensor, context: Context | Tensor | None = None, *, y: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Colour `z: (batch, channels, height, width)`.

        Args:
            z: standard normal latents.
            context: carries the labels, (batch,) integers; labels are taken in its place.
            y: the labels, by their name.
        """
        check_images(z, self.channels, name="z")
        mean, log_std = self._moments(z, Context.of(context, y).y)
        return mean + z * torch.exp(log_std), self._volume(z, log_std)

    def _moments(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.num_classes == 0:
            if y is not None:
                raise InputError("labels were given, but num_classes is 0; leave y out")
            y = torch.zeros(len(x), dtype=torch.long, device=x.device)
        elif y is None:
            raise InputError(f"a prior of {self.num_classes} classes needs labels y: (batch,)")
        elif y.shape != (len(x),) or y.is_floating_point():
            raise InputError(f"y must be {len(x)} integer labels, got {y.dtype} of shape {tuple(y.shape)}")
        elif y.numel() and (int(y.min()) < 0 or int(y.max()) >= self.num_classes):
            raise InputError(f"labels must lie in 0 to {self.num_classes - 1}, got {int(y.min())} to {int(y.max())}")
        mean, log_std = self.moments(y.long())[:, :, None, None].chunk(2, 1)
        return mean, soft_clamp(log_std, self.max_log_scale)

    @staticmethod
    def _volume(x: Tensor, log_std: Tensor) -> Tensor:
        return x.shape[2] * x.shape[3] * sum_per_image(log_std)

    @override
    def recorded(self) -> dict[str, Any]:
        return {"max_log_scale": self.max_log_scale}

    def extra_repr(self) -> str:
        return f"channels={self.channels}, num_classes={self.num_classes}"
