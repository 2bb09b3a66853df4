r"""Images in coordinates in which natural ones are near zero and all directions matter alike.

$$ x = \sigma(M \, C^T (a \odot z)) $$

with $C$ the cosine transform along each axis, $a \sim 1 / f$ the amplitude that a frequency $f$ has in a photograph,
$M$ from brightness and two contrasts to colours, and $\sigma$ from all numbers into the bounds of a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from invconv.inversion.interval import Interval
from invconv.inversion.least_squares import Map

CONTRASTS = (1.0, 0.5, 0.25)
"""Amplitudes of brightness, red against blue, and green against both, relative. Of logits of CIFAR-10 they are 1, 0.26
and 0.13, but colours that a photograph does have are then found late: geometric means over four photographs after 130
evaluations are 0.049, 0.090, 0.075 and 0.114 in place of 0.053, 0.101, 0.082 and 0.127 (SqueezeNet, features.4 and .7,
EfficientNet-Lite0, `_blocks.2` and `.10`); with 1, 0.8 and 0.5 they are 0.057, 0.096, 0.084 and 0.125."""
DEVIATION = 1.4
"""Standard deviation of the logit of a pixel; on CIFAR-10 1.6, where those at a bound count as a level inside."""
INSIDE = 0.004
"""How near to a bound a pixel is encoded, in widths: one level of 256; at the bound itself a logit is infinite."""
PROBES = 4
"""Random cotangents from which the strength of the network's derivative is told, frequency by frequency; speed only."""
WEAKEST = 0.01
"""Share of the strongest frequency's squared derivative below which a frequency counts for no less. With 0.1 the error
after 100 evaluations is 0.0120 in place of 0.0063 (EfficientNet-Lite0, `_blocks.0`), and with 0.001 the PSNR is 0.9 dB
lower."""
BANDS = 3.0
"""Bands of frequencies per octave, over which the squared derivative is averaged; speed only."""


def total_variation(x: Tensor) -> Tensor:
    """(batch,): mean length of the gradient over all axes, forward differences, rounded off below 0.01.

    Example:
        >>> total_variation(torch.tensor([[[[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]]]))
        tensor([0.5050])
    """
    inner: Any = (..., *(slice(n - 1) for n in x.shape[2:]))  # where all axes have a next entry
    squared = torch.stack([(x.roll(-1, dim) - x)[inner].square() for dim in range(2, x.dim())]).sum(0)
    return (squared + 1e-4).sqrt().flatten(1).mean(1)


class Coordinates(Protocol):
    """What a joint solve moves in."""

    @property
    def box(self) -> Interval | None:
        """What values the pixels can have; None for any."""

    @property
    def within(self) -> bool:
        """Whether no image leaves the box."""

    def decode(self, z: Tensor) -> Tensor:
        """(batch, channels, ...): the image at these coordinates."""

    def encode(self, image: Tensor) -> Tensor:
        """The coordinates of an image, or of one near to it."""

    def prior(self, z: Tensor) -> Tensor:
        """(batch,): how unlike a photograph the image at these coordinates is."""


@dataclass(frozen=True)
class Pixels:
    """The pixels themselves: where an image is known to the last digits, and nothing is to be rounded."""

    box: Interval | None = None

    @property
    def within(self) -> bool:
        """Whether no image leaves the box."""
        return self.box is None

    def decode(self, z: Tensor) -> Tensor:
        """The image itself, which may leave its bounds."""
        return z

    def encode(self, image: Tensor) -> Tensor:
        """The image itself."""
        return image

    def prior(self, z: Tensor) -> Tensor:
        """Total variation."""
        return total_variation(z)


@dataclass(frozen=True)
class Natural:
    """Cosine coefficients of brightness and contrasts, in the amplitudes that photographs have.

    Borders need no care: cosines do not wrap around. With bounds no image leaves them.

    Example:
        >>> image = torch.rand(1, 3, 8, 8)
        >>> natural = Natural(image.new_empty(0), image.shape)
        >>> torch.allclose(natural.decode(natural.encode(image)), image, atol=1e-5)
        True
    """

    like: Tensor
    """An empty tensor of the images' dtype and device."""
    shape: torch.Size
    """(batch, channels, ...) of the images."""
    box: Interval | None = None
    flat: float = 1.0
    """Frequency, in half periods over the longest side, up to which all have one amplitude."""
    amplitude: Tensor = field(default=None)  # type: ignore[assignment]
    """(channels, ...): of each coefficient; those of photographs where nothing is said."""

    cosines: list[Tensor] = field(init=False)
    """For each axis the orthogonal matrix whose rows are cosines, slow ones first."""
    colours: Tensor = field(init=False)
    """(channels, channels): from brightness and contrasts to colours."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cosines", [_cosines(n).to(self.like) for n in self.shape[2:]])
        object.__setattr__(self, "colours", self._colours())
        if self.amplitude is None:
            object.__setattr__(self, "amplitude", self._photographs())

    @property
    def within(self) -> bool:
        """Whether no image leaves the box: a sigmoid does not."""
        return True

    def decode(self, z: Tensor) -> Tensor:
        """The image at these coordinates; within its bounds, if it has any."""
        u = self._mixed(self.amplitude * z, self.colours)
        u = self._transformed(u, [cosines.T for cosines in self.cosines])
        if self.box is None:
            return u
        return self.box.lower + (self.box.upper - self.box.lower) * u.sigmoid()

    def encode(self, image: Tensor) -> Tensor:
        """The coordinates of an image; pixels at a bound are taken a level away from it."""
        u = image
        if self.box is not None:
            u = ((image - self.box.lower) / (self.box.upper - self.box.lower)).clamp(INSIDE, 1 - INSIDE).logit()
        u = self._transformed(u, self.cosines)
        return self._mixed(u, torch.linalg.inv(self.colours)) / self.amplitude

    def prior(self, z: Tensor) -> Tensor:
        """Mean square of the coordinates, one for a photograph: a Gaussian whose spectrum is that of photographs."""
        return z.square().flatten(1).mean(1)

    def whitened(self, apply: Map, z: Tensor) -> Natural:
        """The same coordinates with amplitudes by which `apply` answers about alike to each, as far as it sees them.

        Random signs, pulled back by the transposed derivative, have the mean squares of its columns.
        """
        generator = torch.Generator().manual_seed(0)
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            y = apply(self.decode(z))
            if not y.requires_grad:
                return self
            squares = torch.zeros_like(self.amplitude)
            for _ in range(PROBES):
                signs = (torch.randint(0, 2, y.shape, generator=generator) * 2 - 1).to(y)
                squares += torch.autograd.grad(y, z, signs, retain_graph=True)[0].square().mean(0)
        band = (BANDS * torch.log2(1 + self._frequencies())).long()
        for k in range(int(band.max()) + 1):
            squares[:, band == k] = squares[:, band == k].mean(1, keepdim=True) if bool((band == k).any()) else 0.0
        largest = squares.max()
        if not largest > 0:
            return self
        return replace(self, amplitude=self.amplitude / (squares / largest + WEAKEST).sqrt())

    def _frequencies(self) -> Tensor:
        """(...): length of each vector of frequencies, in half periods over the longest side."""
        longest = max(self.shape[2:])
        axes = [torch.arange(n, dtype=self.like.dtype, device=self.like.device) * longest / n for n in self.shape[2:]]
        return torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()

    def _photographs(self) -> Tensor:
        """1 / f, scaled to the deviation that photographs have, or to one where pixels have no bounds."""
        a = 1 / self._frequencies().clamp_min(self.flat)
        deviation = 1.0 if self.box is None else DEVIATION
        return (a * deviation / a.square().mean().sqrt()).expand(self.shape[1:])

    def _colours(self) -> Tensor:
        """(channels, channels): from brightness and contrasts to colours; of other than three channels, themselves."""
        if self.shape[1] != 3:
            return torch.eye(self.shape[1]).to(self.like)
        axes = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]])
        scale = torch.tensor(CONTRASTS) / axes.norm(dim=1)
        scale = scale * math.sqrt(3 / sum(c * c for c in CONTRASTS))
        return (axes.T * scale).to(self.like)

    @staticmethod
    def _transformed(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
        """Each axis multiplied by its matrix."""
        *others, last = matrices
        x = x @ last.T
        for axis, matrix in enumerate(others, 2):
            x = matrix @ x if axis == x.dim() - 2 else (x.movedim(axis, -1) @ matrix.T).movedim(-1, axis)
        return x

    @staticmethod
    def _mixed(x: Tensor, matrix: Tensor) -> Tensor:
        """Channels mixed by a matrix."""
        return (matrix @ x.flatten(2)).view_as(x)


def _cosines(n: int) -> Tensor:
    """(n, n): the orthogonal cosine transform, slow cosines first."""
    k, i = (torch.arange(n, dtype=torch.float64) for _ in range(2))
    rows = torch.cos(math.pi / n * (i + 0.5) * k[:, None]) * math.sqrt(2 / n)
    rows[0] /= math.sqrt(2)
    return rows
