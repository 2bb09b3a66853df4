"""One object for one weight value and one image size: it chooses the method, computes once, and reports."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from invconv import convolution, dense
from invconv.circulant import Circulant
from invconv.dense import Dense
from invconv.errors import InputError, NotSquareError
from invconv.geometry import Geometry, Size


@dataclass(frozen=True)
class Report:
    """How far to trust an operator's answers."""

    shape: tuple[int, int]
    """(outputs, inputs) of A per image."""
    solver: str
    """"fft" (cyclic, block-diagonal) or "svd" (the explicit matrix of a small layer)."""
    dtype: torch.dtype
    """What the factors are computed in."""
    rank: int
    """Singular values that the pseudo-inverse keeps."""
    condition_bound: float
    """An upper bound of the condition number, at most the number of channels times it."""
    relative_residual: float
    """||A A^+ y - y|| / ||y|| for a random y in the range of A."""
    seconds: float
    """Time that the factorisation took."""
    bytes: int
    """Memory that the factors hold."""

    def __str__(self) -> str:
        return (
            f"{self.shape[0]} x {self.shape[1]}, rank {self.rank}, condition at most {self.condition_bound:.2e}; "
            f"{self.solver} in {str(self.dtype).removeprefix('torch.')}, relative residual "
            f"{self.relative_residual:.1e}, {self.seconds:.3f} s, {self.bytes / 2**20:.2f} MiB"
        )


class ConvOperator:
    r"""The linear map :math:`A x = \mathrm{conv}(x, K)` on images of one size, its pseudo-inverse and invariants.

    Arguments:
        weight: K, (out_channels, in_channels/groups, \*kernel_size); detached and copied, so it never changes.
        geometry: stride, padding, dilation, groups and padding mode.
        input_size: spatial size of x.
        rtol: singular values below `rtol` times the largest count as zero; None for
            eps * max(rows, columns) of a block, as in `torch.linalg.pinv`.
        damping: Tikhonov parameter d, in units of singular values: each 1/s becomes s / (s^2 + d^2).

    Half-precision weights are computed in float32.

    Raises:
        InputError: for weights that are not real and finite, or sizes that do not fit.
        NotImplementedError: for borders that do not wrap (and cyclic ones that a stride cuts, beyond small images).

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
        rtol: float | None = None,
        damping: float = 0.0,
    ):
        check_weight(weight, geometry)
        if rtol is not None and not 0 <= rtol < 1:
            raise InputError(f"rtol must lie in [0, 1), got {rtol}")
        if not 0 <= damping < math.inf:
            raise InputError(f"damping must be a finite number of at least 0, got {damping}")
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
        self.rtol = rtol
        self.damping = damping
        self.seconds: float | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs) of A for one image."""
        return self.out_channels * math.prod(self.output_size), self.in_channels * math.prod(self.input_size)

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    @cached_property
    def solver(self) -> Circulant | Dense:
        """The method: the torus where the layer is cyclic, the explicit matrix for small cyclic leftovers."""
        arguments = (self.weight, self.geometry, self.input_size, self.rtol, self.damping)
        if self.geometry.is_cyclic(self.input_size):
            return Circulant(*arguments)
        if self.geometry.padding_mode != "circular":
            raise NotImplementedError(
                f"padding_mode={self.geometry.padding_mode!r} with padding {self.geometry.padding}: the inverse at "
                "borders that do not wrap is not there yet; padding_mode='circular' with the padding of 'same' is"
            )
        if math.prod(self.shape) > dense.MOST_ENTRIES:
            raise NotImplementedError(
                f"input size {self.input_size} with stride {self.geometry.stride} and padding {self.geometry.padding} "
                f"is not cyclic, and its {self.shape[0]} x {self.shape[1]} matrix is above the {dense.MOST_ENTRIES} "
                "entries that are factored directly; use the padding of 'same' and a size that the stride divides"
            )
        return Dense(*arguments)

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
            return self.solver.pseudo_inverse(y)

    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        """(A^+)' x. x: (batch, in_channels, \\*input_size)."""
        x = self.check_input(x)
        self.prepare()
        with _exactly(x.device):
            return self.solver.pseudo_inverse_adjoint(x)

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
            return self.solver.log_volume.to(self.dtype)

    def log_volume_gradient(self) -> Tensor:
        """d log_volume / d weight."""
        with _exactly(self.weight.device, keep=True):
            return self.solver.log_volume_gradient

    def singular_values(self) -> Tensor:
        """All min(shape) of them, descending."""
        with _exactly(self.weight.device, keep=True):
            return self.solver.singular_values

    def condition_number(self) -> Tensor:
        """sigma_max / sigma_min."""
        values = self.singular_values()
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
        if self.damping or self.solver.rank < rows:
            grad_weight += by_weight(self.solver.gram_inverse(grad), y - self.forward(x))
        if not self.damping and self.solver.rank < columns:
            unseen = grad - self.pseudo_inverse(self.forward(grad))
            grad_weight += by_weight(unseen, self.pseudo_inverse_adjoint(x))
        return grad_y, grad_weight

    # -- report ----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Compute now what the pseudo-inverse needs."""
        if self.seconds is None:
            start = time.perf_counter()
            with _exactly(self.weight.device, keep=True):
                self.solver.prepare()
            self.seconds = time.perf_counter() - start

    def report(self) -> Report:
        """Residual, condition, rank, method, time and memory of this operator."""
        self.prepare()
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, self.in_channels, *self.input_size, generator=generator, dtype=self.dtype)
        with torch.no_grad():
            y = self.forward(x.to(self.weight.device))
            residual = (self.forward(self.pseudo_inverse(y)) - y).norm() / y.norm()
        return Report(
            self.shape,
            self.solver.solver,
            self.dtype,
            self.solver.rank,
            self.solver.condition_bound,
            residual.item(),
            self.seconds or 0.0,
            self.solver.bytes,
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
