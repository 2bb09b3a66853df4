"""One object for one weight value and one image size: it chooses the method, computes once, and reports."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from invconv.engine import choice, convolution
from invconv.engine import extremes as lanczos
from invconv.engine.choice import Method, Plan
from invconv.engine.solvers import dense
from invconv.engine.solvers.circulant import Circulant
from invconv.engine.solvers.dense import Dense
from invconv.engine.solvers.sparse import SparseLU
from invconv.errors import IllConditionedWarning, InputError, NotSquareError, SingularMapError
from invconv.geometry import Geometry, Size
from invconv.options import DEFAULTS, Options

T = TypeVar("T")


@dataclass(frozen=True)
class Report:
    """How far to trust an operator's answers."""

    shape: tuple[int, int]
    """(outputs, inputs) of A per image."""
    solver: str
    """"fft" (cyclic, block-diagonal), "fft and ring", "fft and symmetric ring" (real borders), "svd" (the explicit
    matrix of a small layer), "sparse lu" (a square one that the torus cannot invert) or "lsmr" (iterative)."""
    unknowns: int
    """Size of the dense system of the ring, for each group of channels."""
    dtype: torch.dtype
    """What the factors are computed in."""
    rank: int | None
    """Singular values that the pseudo-inverse keeps; None where they were not counted."""
    condition: float
    """Of A: an upper bound ("fft"), the value ("svd") or an estimate (else; "lsmr": of what it reached, preconditioned,
    which can lie far below; `growth` tells more, `condition_number()` all)."""
    torus_growth: float
    """By what factor rounding errors grow on the torus, about: a condition number in the root mean square."""
    growth: float
    """The same for the whole solution, the ring included."""
    relative_residual: float
    """||A A^+ y - y|| / ||y|| for a random y in the range of A."""
    relative_error: float
    """||A^+ A x - x|| / ||x|| for a random x in the range of A^+, where the rounding of A x is counted."""
    seconds: float
    """Time that the factorisation took."""
    bytes: int
    """Memory that the factors hold."""

    def __str__(self) -> str:
        rank = "" if self.rank is None else f", rank {self.rank}"
        ring = f" of {self.unknowns} unknowns" if self.unknowns else ""
        return (
            f"{self.shape[0]} x {self.shape[1]}{rank}, condition about {self.condition:.1e}; {self.solver}{ring} in "
            f"{str(self.dtype).removeprefix('torch.')}, relative residual {self.relative_residual:.1e}, error "
            f"{self.relative_error:.1e}, {self.seconds:.3f} s, {self.bytes / 2**20:.2f} MiB"
        )


class ConvOperator:
    r"""The linear map :math:`A x = \mathrm{conv}(x, K)` on images of one size, its pseudo-inverse and invariants.

    Arguments:
        weight: K, (out_channels, in_channels/groups, \*kernel_size); detached and copied, so it never changes.
        geometry: stride, padding, dilation, groups and padding mode.
        input_size: spatial size of x.
        options: rtol, damping, solver, tol, max_iter; see `invconv.options.Options`.

    Half-precision weights are computed in float32.

    Raises:
        InputError: for weights that are not real and finite, or sizes that do not fit.
        OutOfMemoryError: where solver="direct" needs more memory than there is.
        SingularMapError: where no digit of the answer can be trusted.

    Example:
        >>> geometry = Geometry.of((3, 3), padding=1, padding_mode="circular")
        >>> op = ConvOperator(torch.randn(8, 8, 3, 3), geometry, (16, 16))
        >>> x = torch.randn(2, 8, 16, 16)
        >>> torch.allclose(op.pseudo_inverse(op.forward(x)), x, atol=1e-2)
        True
    """

    def __init__(
        self,
        weight: Tensor,
        geometry: Geometry,
        input_size: Size,
        options: Options = DEFAULTS,
    ):
        check_weight(weight, geometry)
        with torch.inference_mode(False), torch.no_grad():
            self.source = weight.detach().clone()
            self.weight = self.source.to(compute_dtype(weight.dtype)).contiguous()
        if not torch.isfinite(self.weight).all():
            bad = (~torch.isfinite(self.weight)).sum().item()
            raise InputError(f"the weight of shape {tuple(weight.shape)} has {bad} entries that are NaN or infinite")
        self.geometry = geometry
        self.input_size = geometry.check_input_size(input_size)
        self.output_size = geometry.output_size(input_size)
        self.in_channels = weight.shape[1] * geometry.groups
        self.out_channels = weight.shape[0]
        self.options = options
        self.seconds = 0.0
        self._method: Method | None = None
        self._volume: Method | None = None
        self.ready = False
        self._values: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs) of A for one image."""
        return self.out_channels * math.prod(self.output_size), self.in_channels * math.prod(self.input_size)

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    @property
    def has_volume(self) -> bool:
        """Whether the log-volume was asked for."""
        return self._volume is not None

    @property
    def factored(self) -> bool:
        """Whether there are factors to be split: a log-volume may have come from a coarser grid."""
        return isinstance(self._method, Circulant) and "_factors" in vars(self._method)

    def split(self, count: int) -> list[ConvOperator]:
        """Of a cyclic layer: an operator for each of `count` shares of its groups, with its part of the factors."""
        method = self.method
        assert isinstance(method, Circulant)
        parts = []
        for source, own in zip(self.source.chunk(count), method.split(count), strict=True):
            part = copy.copy(self)
            part.source, part.weight, part.geometry = source, own.weight, own.grid.geometry
            part.in_channels, part.out_channels = self.in_channels // count, self.out_channels // count
            part._method, part._volume, part._values, part.ready = own, None, None, False
            parts.append(part)
        return parts

    @property
    def method(self) -> Method:
        """The way that was chosen, with its factors: see `invconv.engine.choice`."""
        if self._method is None:
            self._method = self._timed(lambda: choice.method(self.weight, self.geometry, self.input_size, self.options))
        return self._method

    def plan(self) -> Plan:
        """The way that will be tried first and the memory that it will take; computes nothing.

        Raises:
            OutOfMemoryError: where solver="direct" needs more memory than there is.
        """
        return choice.plan(self.weight, self.geometry, self.input_size, self.options)

    def _timed(self, compute: Callable[[], T]) -> T:
        start = time.perf_counter()
        with _exactly(self.weight.device, keep=True):
            result = compute()
        self.seconds += time.perf_counter() - start
        return result

    # -- the map ---------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """A x. x: (batch, in_channels, \\*input_size)."""
        with _exactly(x.device):
            return convolution.forward(self.check_input(x), self.weight, self.geometry)

    def adjoint(self, y: Tensor) -> Tensor:
        """A' y. y: (batch, out_channels, \\*output_size)."""
        with _exactly(y.device):
            return convolution.adjoint(self.check_output(y), self.weight, self.geometry, self.input_size)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A^+ y: the x of least norm among those that minimise ||A x - y||."""
        y = self.check_output(y)
        self.prepare()
        with _exactly(y.device):
            return self.method.pseudo_inverse(y.to(self.method.weight.dtype)).to(self.dtype)

    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        """(A^+)' x. x: (batch, in_channels, \\*input_size)."""
        x = self.check_input(x)
        self.prepare()
        with _exactly(x.device):
            return self.method.pseudo_inverse_adjoint(x.to(self.method.weight.dtype)).to(self.dtype)

    def to_dense(self) -> Tensor:
        """The explicit matrix of A, `shape` entries: for tests and small images."""
        return convolution.to_dense(self.weight, self.geometry, self.input_size)

    def check_input(self, x: Tensor) -> Tensor:
        """`x` in the operator's dtype, if A can be applied to it."""
        return check_image("x", x, self.in_channels, self.input_size, self.weight)

    def check_output(self, y: Tensor) -> Tensor:
        """`y` in the operator's dtype, if A^+ can be applied to it."""
        return check_image("y", y, self.out_channels, self.output_size, self.weight)

    # -- invariants ------------------------------------------------------------------------------------------------

    def log_abs_det(self) -> Tensor:
        """log |det A|, nats for one image; square maps only."""
        self.check_square()
        return self.log_volume()

    def check_square(self) -> None:
        if self.shape[0] != self.shape[1]:
            raise NotSquareError(
                f"the map is {self.shape[0]} x {self.shape[1]} and has no determinant; log_volume is its counterpart"
            )

    def log_volume(self) -> Tensor:
        """1/2 log det(A'A), or of AA' for wide A; nats for one image."""
        with _exactly(self.weight.device, keep=True):
            return self._volume_method.log_volume.to(self.dtype)

    def log_volume_gradient(self) -> Tensor:
        """d log_volume / d weight."""
        with _exactly(self.weight.device, keep=True):
            return self._volume_method.log_volume_gradient.to(self.dtype)

    @property
    def _volume_method(self) -> Method:
        if self._volume is None:
            arguments = self.weight, self.geometry, self.input_size, self.options
            self._volume = choice.volume_method(self.method, *arguments)
        return self._volume

    def singular_values(self, k: int | None = None) -> Tensor:
        """All min(shape) of them, descending; or the k largest and the k smallest, 2 k values.

        All are exact for cyclic layers and small ones; else they take k, and are found by Lanczos' method.
        """
        count = min(self.shape)
        if k is not None and not 1 <= k <= count // 2:
            raise InputError(f"k must lie between 1 and {count // 2}, half the {count} singular values, got {k}")
        if self.geometry.is_cyclic(self.input_size) or math.prod(self.shape) <= dense.MOST_ENTRIES:
            with _exactly(self.weight.device, keep=True):
                if self._values is None:
                    self._values = self._all_singular_values()
                return self._values if k is None else torch.cat([self._values[:k], self._values[-k:]])
        if k is None:
            raise InputError(
                f"all {count} singular values of a {self.shape[0]} x {self.shape[1]} layer with real borders are too "
                f"many (up to {dense.MOST_ENTRIES} matrix entries): give k= for the largest and the smallest"
            )
        return lanczos.extreme_singular_values(self, k).to(self.weight)

    def _all_singular_values(self) -> Tensor:
        if self.geometry.is_cyclic(self.input_size):
            method = self.method
            assert isinstance(method, Circulant)
            return method.singular_values
        return torch.linalg.svdvals(self.to_dense())

    def condition_number(self) -> Tensor:
        """sigma_max / sigma_min."""
        count = min(self.shape)
        few = not self.geometry.is_cyclic(self.input_size) and math.prod(self.shape) > dense.MOST_ENTRIES and count > 1
        values = self.singular_values(1 if few else None)
        return values[0] / values[-1]

    # -- gradients -------------------------------------------------------------------------------------------------

    def pseudo_inverse_gradient(self, y: Tensor, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of <grad, A^+ y> by y and by the weight, for x = A^+ y.

        grad_y = (A^+)' g,   grad_K = -wgrad(x, (A^+)' g) + wgrad((A'A)^+ g, y - A x) + wgrad(g - A^+ A g, (A^+)' x)

        The second term vanishes where A has full row rank, the third where it has full column rank or is damped
        (Golub and Pereyra 1973, eq. 4.12).
        """

        def by_weight(image: Tensor, output: Tensor) -> Tensor:
            return convolution.weight_gradient(image, output, self.weight.shape, self.geometry)

        rows, columns = self.shape
        grad_y = self.pseudo_inverse_adjoint(grad)
        grad_weight = -by_weight(x, grad_y)
        damping, rank = self.options.damping, self.method.rank
        if damping or rank is None or rank < rows:
            gram = self.method.gram_inverse(grad.to(self.method.weight.dtype)).to(self.dtype)
            grad_weight += by_weight(gram, y - self.forward(x))
        if not damping and (rank is None or rank < columns):
            unseen = grad - self.pseudo_inverse(self.forward(grad))
            grad_weight += by_weight(unseen, self.pseudo_inverse_adjoint(x))
        return grad_y, grad_weight

    # -- report ----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Compute now what the pseudo-inverse needs; say what it is worth.

        Warns:
            IllConditionedWarning: where fewer than two digits can be trusted, or singular values are cut off.

        Raises:
            SingularMapError: where none can.
        """
        if not self.ready:
            method = self.method
            self._timed(method.prepare)
            error = getattr(method, "error", 0.0)
            if isinstance(method, Dense | SparseLU) and method.weight.dtype != self.dtype and not self.options.damping:
                error = max(error, self._trial()[1])  # factored in float64: what is lost is in rounding the outputs
            self._check(error)
            self.ready = True

    def _trial(self) -> tuple[float, float]:
        """Relative residual, and relative error of a random image that is sent through the layer and back."""
        method = self.method

        def back(y: Tensor) -> Tensor:
            return method.pseudo_inverse(y.to(method.weight.dtype)).to(self.dtype)

        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, self.in_channels, *self.input_size, generator=generator, dtype=self.dtype)
        with _exactly(self.weight.device, keep=True):
            x = x.to(self.weight.device)
            if self.shape[0] < self.shape[1] or (method.rank is not None and method.rank < min(self.shape)):
                x = back(self.forward(x))
            y = self.forward(x)
            found = back(y)
            residual = (self.forward(found) - y).norm() / y.norm()
            error = (found - x).norm() / x.norm()
        return residual.item(), error.item()

    def _check(self, error: float) -> None:
        """Of the error with which a known image came back."""
        if error < 1e-2:
            return
        text = (
            f"{self.method.solver} gives a random image back with a relative error of {error:.0e} in {self.dtype}: "
            f"rounding errors grow about {self.method.growth:.0e} times in this {self.shape[0]} x {self.shape[1]} layer"
        )
        if not error < 0.5:
            wider = "" if self.dtype == torch.float64 else "float64, "
            raise SingularMapError(
                f"{text}; no digit can be trusted. Use {wider}damping or a better conditioned kernel"
            )
        warnings.warn(f"{text}; use float64, damping or rtol", IllConditionedWarning, stacklevel=4)

    def report(self) -> Report:
        """Residual, condition, rank, method, time and memory of this operator."""
        self.prepare()
        method = self.method
        residual, error = self._trial()
        torus = getattr(method, "torus", method)
        return Report(
            self.shape,
            method.solver,
            getattr(method, "unknowns", 0),
            method.weight.dtype,
            method.rank,
            method.condition,
            torus.growth,
            method.growth,
            residual,
            error,
            self.seconds,
            method.bytes,
        )

    def __repr__(self) -> str:
        return f"ConvOperator({self.shape[0]} x {self.shape[1]}, input_size={self.input_size}, dtype={self.dtype})"


@contextmanager
def _exactly(device: torch.device, keep: bool = False) -> Iterator[None]:
    """No autocast; and where the result is kept, no inference mode, so that training can use it later."""
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if keep:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        yield


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precisions, otherwise the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def check_weight(weight: Tensor, geometry: Geometry) -> None:
    if hasattr(weight, "full_tensor"):  # torch.distributed.tensor.DTensor, which not every build of PyTorch has
        raise InputError(
            f"the weight of shape {tuple(weight.shape)} is sharded over processes: call unshard() on the layer first, "
            "or leave it whole with fully_shard(..., ignored_params=set(layer.parameters()))"
        )
    if not weight.is_floating_point():
        raise InputError(f"the weight must be real floating point, got {weight.dtype}")
    if weight.dim() != geometry.dims + 2 or tuple(weight.shape[2:]) != geometry.kernel_size:
        raise InputError(f"a weight of shape {tuple(weight.shape)} does not fit kernel size {geometry.kernel_size}")
    if weight.shape[0] % geometry.groups:
        raise InputError(f"{weight.shape[0]} output channels cannot be split into {geometry.groups} groups")


def check_image(name: str, x: Tensor, channels: int, size: Size, weight: Tensor) -> Tensor:
    """`x` in the dtype of the weight, if it is a batch of images of this shape."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = getattr(x, "dtype", type(x).__name__)
        raise InputError(f"{name} must be a real floating point tensor, got {kind}")
    if x.dim() != len(size) + 2 or tuple(x.shape[1:]) != (channels, *size):
        expected = ", ".join(map(str, ("batch", channels, *size)))
        raise InputError(f"{name} has shape {tuple(x.shape)}, expected ({expected})")
    if torch.finfo(x.dtype).eps < torch.finfo(weight.dtype).eps:
        raise InputError(f"{name} is {x.dtype} but the weight is {weight.dtype}: call .to({x.dtype}) on the layer")
    if x.device != weight.device:
        raise InputError(f"{name} is on {x.device} but the weight is on {weight.device}")
    return x.to(weight.dtype)
