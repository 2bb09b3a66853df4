"""Two invertible 3 x 3 convolutions of other papers, as layers of our flows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from invconv.flows import Context, FlowLayer


class ConvExponential(FlowLayer):
    r"""Mixing and an exponential: `z = exp(K) * (W x)`.

    `log_det = height * width * (log |det W| + trace K_centre)`.

    `exp(K) * x = x + K * x + K * K * x / 2! + ...` for a 3 x 3 kernel K with zero borders, and `exp(-K)` undoes it. K
    is scaled down to a norm of at most `coeff`, which is estimated by one power iteration for each training step. A
    1 x 1 convolution W comes first, because such an exponential alone stays near the identity.

    A port of Hoogeboom, Garcia Satorras, Tomczak and Welling, *The convolution exponential and generalized Sylvester
    flows* (2020), section 3, with the constants of the authors' code: 6 terms in training, 13 otherwise, coeff 0.9,
    the same start. Left out are its biases: the demo flow has those of ActNorm. The spectral normalisation is that of
    Gouk et al. (2018), as in *Invertible residual networks* (2019).

    Args:
        channels: channels of `x` and `z`.
        size: (height, width) of `x`, on which the power iteration runs.
        coeff: bound of the norm of K.
        terms: of the series in training.
    """

    v: Tensor

    def __init__(self, channels: int, size: tuple[int, int], coeff: float = 0.9, terms: int = 6) -> None:
        super().__init__()
        self.channels = channels
        self.coeff = coeff
        self.terms = terms
        self.mixing = _orthogonal(channels)
        self.kernel = nn.Parameter(torch.randn(channels, channels, 3, 3) / (9 * channels))
        self.register_buffer("v", _unit(torch.randn(1, channels, *size)))

    @override
    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """`x: (batch, channels, height, width)` to `(z, log_det)`."""
        if self.training:
            self._power_iteration()
        kernel = self.normalised_kernel()
        terms = self.terms if self.training else 2 * self.terms + 1
        z = _exponential(F.conv2d(x, self.mixing[:, :, None, None]), kernel, terms)
        return z, self._log_det(x, kernel)

    @override
    def inverse(self, z: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """`z: (batch, channels, height, width)` to `(x, log_det)`."""
        kernel = self.normalised_kernel()
        mixed = _exponential(z, -kernel, 2 * self.terms + 1)
        return _unmix(self.mixing, mixed), -self._log_det(z, kernel)

    def normalised_kernel(self) -> Tensor:
        """K, smaller where its norm is estimated above `coeff`; v is a constant for the gradient, as is u."""
        image = F.conv2d(self.v, self.kernel, padding=1)
        u = _unit(image.detach())
        return self.kernel / ((u * image).sum() / self.coeff).clamp_min(1)

    @torch.no_grad()
    def _power_iteration(self) -> None:
        back = F.conv_transpose2d(F.conv2d(self.v, self.kernel, padding=1), self.kernel, padding=1)
        self.v.copy_(_unit(back))

    def _log_det(self, x: Tensor, kernel: Tensor) -> Tensor:
        one = torch.linalg.slogdet(self.mixing).logabsdet + kernel[:, :, 1, 1].trace()
        return (x.shape[2] * x.shape[3] * one).expand(len(x))


class Emerging(FlowLayer):
    r"""Mixing and two triangular maps: `z = K2 * (K1 * (W x))`.

    `log_det = height * width * (log |det W| + sum log |diag K1| + sum log |diag K2|)`.

    K1 reads a pixel, those on its right and below, and of the pixel itself the channels up to the one it writes; K2
    has the opposite order. Both are triangular matrices, undone by substitution, and together they see all of 3 x 3.
    The 1 x 1 convolution W comes first.

    A port of Hoogeboom, van den Berg and Welling, *Emerging convolutions for generative normalizing flows* (2019),
    section 3.1, with the start of the authors' code and its fast path: of the 3 x 3 kernels only the 2 x 2 places
    that the masks leave are convolved, and W is folded into K1. Left out is its bias: the demo flow has that of
    ActNorm. W is free, not factored.

    Args:
        channels: channels of `x` and `z`.
    """

    mask: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.mixing = _orthogonal(channels)
        self.first = nn.Parameter(0.02 * torch.randn(channels, channels, 2, 2))
        self.second = nn.Parameter(0.02 * torch.randn(channels, channels, 2, 2))
        with torch.no_grad():
            self.first[:, :, 0, 0] += torch.eye(channels)
            self.second[:, :, 1, 1] += torch.eye(channels)
        mask = torch.ones(channels, channels, 2, 2)
        mask[:, :, 0, 0] = mask[:, :, 0, 0].tril()
        self.register_buffer("mask", mask, persistent=False)

    @override
    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """`x: (batch, channels, height, width)` to `(z, log_det)`."""
        first, second = self.kernels()
        z = F.conv2d(F.pad(x, (0, 1, 0, 1)), torch.einsum("oiab,ij->ojab", first, self.mixing))
        z = F.conv2d(F.pad(z, (1, 0, 1, 0)), second)
        return z, self._log_det(x)

    @override
    def inverse(self, z: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """`z: (batch, channels, height, width)` to `(x, log_det)`."""
        first, second = self.kernels()
        # Turned by half a turn, in its channels too, K2 has the order of K1.
        turned = _substitute(second.flip(0, 1, 2, 3), z.flip(1, 2, 3)).flip(1, 2, 3)
        return _unmix(self.mixing, _substitute(first, turned)), -self._log_det(z)

    def kernels(self) -> tuple[Tensor, Tensor]:
        """K1 and K2 where the masks leave them, (channels, channels, 2, 2): the pixel itself is first, and last."""
        return self.first * self.mask, self.second * self.mask.flip(0, 1, 2, 3)

    def _log_det(self, x: Tensor) -> Tensor:
        one = torch.linalg.slogdet(self.mixing).logabsdet
        for centre in (self.first[:, :, 0, 0], self.second[:, :, 1, 1]):
            one = one + centre.diagonal().abs().log().sum()
        return (x.shape[2] * x.shape[3] * one).expand(len(x))


def _orthogonal(channels: int) -> nn.Parameter:
    return nn.Parameter(nn.init.orthogonal_(torch.empty(channels, channels)))


def _unit(images: Tensor) -> Tensor:
    """Each image of the batch divided by its norm."""
    return F.normalize(images, dim=(1, 2, 3))  # type: ignore[arg-type]


def _unmix(mixing: Tensor, z: Tensor) -> Tensor:
    return torch.linalg.solve(mixing, z.flatten(2)).view_as(z)


def _exponential(x: Tensor, kernel: Tensor, terms: int) -> Tensor:
    """`exp(kernel) * x`, the series broken off after `terms` convolutions."""
    total = term = x
    for n in range(1, terms + 1):
        term = F.conv2d(term, kernel / n, padding=1)
        total = total + term
    return total


def _substitute(kernel: Tensor, z: Tensor) -> Tensor:
    """The x with `kernel * x = z`, pixel by pixel from the last one; kernel as K1 of `Emerging`."""
    batch, channels, height, width = z.shape
    x = z.new_zeros(batch, channels, height + 1, width + 1)  # with the zeros beyond the right and lower borders
    rest = kernel.clone()
    rest[:, :, 0, 0] = 0
    rest = rest.flatten(1)
    for i in reversed(range(height)):
        for j in reversed(range(width)):
            known = x[:, :, i : i + 2, j : j + 2].flatten(1) @ rest.mT
            solved = torch.linalg.solve_triangular(kernel[:, :, 0, 0], (z[:, :, i, j] - known).mT, upper=False)
            x[:, :, i, j] = solved.mT
    return x[:, :, :-1, :-1]
