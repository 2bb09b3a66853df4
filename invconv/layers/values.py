"""The verbs of a layer that its singular values answer, at the borders and the image size that it is asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from invconv import autograd
from invconv.formulas import Operators
from invconv.geometry import Geometry
from invconv.layers.eager import eager


class SpectralVerbs(nn.Module):
    """Singular values of the map A of a layer; see `invconv.InvertibleConv`."""

    if TYPE_CHECKING:  # what `torch.nn.Module` leaves open
        __call__: Callable[..., Tensor]

    _asked: Callable[[Sequence[int], Tensor | None], tuple[Tensor, Operators]]
    effective_weight: Callable[[], Tensor]

    @property
    @abstractmethod
    def geometry(self) -> Geometry:
        """How the layer reads its image."""

    @eager
    def singular_values(self, input_size: Sequence[int], k: int | None = None, weight: Tensor | None = None) -> Tensor:
        """All singular values of A, descending, or the k largest and the k smallest of a large A.

        Those of cyclic and small layers, which can be had all at once, are differentiable, and for k = 1 those of all.
        """
        return autograd.singular_values(*self._asked(input_size, weight), k)

    @eager
    def condition_number(self, input_size: Sequence[int], weight: Tensor | None = None) -> Tensor:
        """The ratio sigma_max / sigma_min of A, by which an error in y may grow in `inverse(y)`.

        It is differentiable whatever the geometry.

        Raises:
            SingularMapError: of a large A of which no inverse tells it.
        """
        return autograd.condition_number(*self._asked(input_size, weight))

    @eager
    def spectral_norm(self, input_size: Sequence[int], weight: Tensor | None = None) -> Tensor:
        """The norm of A, its largest singular value; differentiable whatever the geometry."""
        return autograd.spectral_norm(*self._asked(input_size, weight))

    @eager
    def norm_bound(self, weight: Tensor | None = None) -> Tensor:
        """An upper bound of `spectral_norm` that holds for images of every size; see `functional.conv_norm_bound`."""
        return autograd.norm_bound(self.effective_weight() if weight is None else weight, self.geometry)

    @eager
    def smallest_singular_value(self, input_size: Sequence[int], weight: Tensor | None = None) -> Tensor:
        """The smallest of the min(shape) singular values of A; differentiable whatever the geometry.

        Raises:
            SingularMapError: of a large A of which no inverse tells it.
        """
        return autograd.smallest_singular_value(*self._asked(input_size, weight))
