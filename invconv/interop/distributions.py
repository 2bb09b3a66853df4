"""A transform of `torch.distributions`, for it and for what is built on it: zuko, pyro."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Transform, constraints
from typing_extensions import override

from invconv.interop.directions import check_batch, check_layer, encode
from invconv.layers import InvertibleLayer


class ConvTransform(Transform):
    r"""`z = conv(x)`, `inv(z) = A^-1 (z - bias)`, `log_abs_det_jacobian(x, z) = log |det A|` for each image.

    It goes from data to latent, as transforms do in zuko. A `TransformedDistribution` wants the way from latent to
    data: give it `ConvTransform(conv).inv`.

    Args:
        conv: an `InvertibleConv1d`, `2d` or `3d` whose outputs are as many as its inputs. Its last `dims + 1` axes
            are the event; any number of axes before them are the batch, none included.

    Raises:
        InputError: if `conv` is no such layer, or images have another shape than it takes.
        NotSquareError: if `conv` has no determinant.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal, TransformedDistribution
        >>> from invconv import InvertibleConv2d
        >>> base = Independent(Normal(torch.zeros(4, 8, 8), 1.0), 3)
        >>> images = TransformedDistribution(base, ConvTransform(InvertibleConv2d(4, 4, 3, padding=1)).inv)
        >>> x = images.sample((2, 5))
        >>> x.shape, images.log_prob(x).shape
        (torch.Size([2, 5, 4, 8, 8]), torch.Size([2, 5]))
    """

    bijective = True

    def __init__(self, conv: InvertibleLayer) -> None:
        super().__init__()
        self.conv = check_layer(conv)
        self.domain = self.codomain = constraints.independent(constraints.real, conv.geometry.dims + 1)

    @override
    def with_cache(self, cache_size: int = 1) -> ConvTransform:
        """The transform itself: a cache by identity of x outlives a change of the weight, the layer's does not."""
        return self

    def _call(self, x: Tensor) -> Tensor:
        z = self.conv(self._batch("x", x, self.conv.in_channels))
        return z.reshape(self.forward_shape(x.shape))

    def _inverse(self, z: Tensor) -> Tensor:
        x = self.conv.inverse(self._batch("z", z, self.conv.out_channels))
        return x.reshape(self.inverse_shape(z.shape))

    @override
    def log_abs_det_jacobian(self, x: Tensor, z: Tensor) -> Tensor:
        """The log-determinant log |det dz/dx| in nats, of the shape of the batch."""
        event = self.domain.event_dim
        return self.conv.log_abs_det(x.shape[-event:]).repeat(x.shape[:-event])

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both z and log |det dz/dx|, with a parametrized kernel computed once: what zuko calls."""
        z, log_det = encode(self.conv, self._batch("x", x, self.conv.in_channels))
        return z.reshape(self.forward_shape(x.shape)), log_det.reshape(x.shape[: -self.domain.event_dim])

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of z for an x of this shape."""
        dims = self.conv.geometry.dims
        return (*shape[: -dims - 1], self.conv.out_channels, *self.conv.geometry.output_size(shape[-dims:]))

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of x for a z of this shape."""
        dims = self.conv.geometry.dims
        return (*shape[: -dims - 1], self.conv.in_channels, *self.conv.geometry.input_size(shape[-dims:]))

    def _batch(self, name: str, images: Tensor, channels: int) -> Tensor:
        """The images with all axes before the event as one, checked."""
        batch = images.reshape(-1, *images.shape[-self.domain.event_dim :])
        check_batch(name, batch, channels, self.conv)
        return batch
