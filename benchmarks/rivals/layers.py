"""What others published, as PyTorch layers to be timed beside ours: ports, written from the papers.

Each has `forward(x) -> z, log_det` and `inverse(z) -> x`; the log-determinant is in nats for one image.  A port may be
faster than its authors' code, never slower on purpose: where they spend time on something that PyTorch does better, it
takes the better way and says so.  The convolution exponential and the autoregressive emerging convolution, which train
whole flows as well, are in `flow_layers.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.rivals.recipe import Size, multiply, spectrum


def _near_orthogonal(channels: int, kernel: int) -> Tensor:
    """An orthogonal centre tap plus noise of 0.02, as the periodic layer of the emerging paper starts."""
    weight = 0.02 * torch.randn(channels, channels, kernel, kernel)
    weight[:, :, kernel // 2, kernel // 2] += torch.linalg.qr(torch.randn(channels, channels))[0]
    return weight


class PeriodicConv(nn.Module):
    """Port of the periodic convolution of Hoogeboom, van den Berg, Welling (2019), Emerging convolutions, sec. 3.2.

    log|det| = sum over frequencies of log|det K_f| and x_f = K_f^-1 z_f, both of a kernel that is transformed and
    factored anew at each call.  Their TensorFlow multiplies by broadcasting; here it is an einsum, which is faster.
    """

    def __init__(self, channels: int, kernel: int = 3):
        super().__init__()
        self.weight = nn.Parameter(_near_orthogonal(channels, kernel))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        k = self.weight.shape[-1] // 2
        return F.conv2d(F.pad(x, (k, k, k, k), mode="circular"), self.weight), self.log_abs_det(x.shape[2:])

    def log_abs_det(self, size: Size) -> Tensor:
        each = torch.linalg.slogdet(spectrum(self.weight, size))[1]
        # The columns that the half spectrum leaves out are conjugates of columns that it has.
        twice = slice(1, -1) if size[1] % 2 == 0 else slice(1, None)
        return each.sum() + each[:, twice].sum()

    def inverse(self, z: Tensor) -> Tensor:
        return multiply(torch.linalg.inv(spectrum(self.weight, z.shape[2:])), z)


class Woodbury(nn.Module):
    """Port of Lu and Huang (2020), Woodbury transformations for deep generative flows, sec. 3.

    z = (I + U_c V_c) x (I + U_s V_s) for x of c channels by n = H W places; by Sylvester's identity
    log|det| = n log|det(I + V_c U_c)| + c log|det(I + V_s U_s)|, and by Woodbury's
    (I + U V)^-1 = I - U (I + V U)^-1 V.  No matrix of n x n is formed.
    """

    def __init__(self, channels: int, size: Size, rank: int = 16):
        super().__init__()
        places = size[0] * size[1]
        self.left = nn.ParameterList(_low_rank(channels, min(rank, channels)))
        self.right = nn.ParameterList(_low_rank(places, min(rank, places)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.flatten(2)
        (u, v), (p, q) = self.left, self.right
        y = y + u @ (v @ y)
        z = y + (y @ p) @ q
        log_det = y.shape[2] * _small(u, v).slogdet()[1] + y.shape[1] * _small(p, q).slogdet()[1]
        return z.view_as(x), log_det

    def inverse(self, z: Tensor) -> Tensor:
        y = z.flatten(2)
        (u, v), (p, q) = self.left, self.right
        y = y - (y @ p) @ torch.linalg.solve(_small(p, q), q)
        x = y - u @ torch.linalg.solve(_small(u, v), v @ y)
        return x.view_as(z)


def _low_rank(places: int, rank: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(shape) / places) for shape in ((places, rank), (rank, places))]


def _small(u: Tensor, v: Tensor) -> Tensor:
    """I + V U."""
    return torch.eye(u.shape[1], dtype=u.dtype, device=u.device) + v @ u


class CayleyConv(nn.Module):
    """Port of Trockman and Kolter (2021), Orthogonalizing convolutional layers with the Cayley transform, algorithm 1.

    Q_f = (I + A_f)^-1 (I - A_f) with A_f = K_f - K_f^H, K the weight scaled to a learned norm: orthogonal at each
    frequency, so that log|det| = 0 and the inverse is the transpose.  `orthogonium` has the forward, for square images.
    """

    def __init__(self, channels: int, size: Size, kernel: int = 3):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels, kernel, kernel) / (channels * kernel**2) ** 0.5)
        self.alpha = nn.Parameter(spectrum(self.weight, size).norm().detach())

    def blocks(self, size: Size) -> Tensor:
        """Q_f."""
        k = spectrum(self.weight, size)
        k = self.alpha / k.norm() * k
        skew, identity = k - k.mH, torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
        return torch.linalg.solve(identity + skew, identity - skew)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return multiply(self.blocks(x.shape[2:]), x), x.new_zeros(())

    def inverse(self, z: Tensor) -> Tensor:
        return multiply(self.blocks(z.shape[2:]).mH, z)
