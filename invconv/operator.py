"""One object for one weight value and one image size: it chooses the solver, computes once, and reports."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from invconv.checks import check_finite, check_image, check_options, check_square, check_weight, compute_dtype
from invconv.engine import choice, transposed, trust
from invconv.engine.norms import SingularValues
from invconv.engine.precision import exactly
from invconv.engine.scale import Scale
from invconv.engine.solvers.base import Solver, Volume
from invconv.errors import InputError
from invconv.geometry import Geometry, Size
from invconv.linear import linear
from invconv.options import DEFAULTS, Options
from invconv.regularised import Regularised
from invconv.report import Plan, Report
from invconv.spectra import HasSingularValues
from invconv.threads import new_lock

__all__ = ["ConvOperator", "Report", "check_image", "check_weight", "compute_dtype"]

T = TypeVar("T")


class ConvOperator(HasSingularValues, Regularised):
    r"""The linear map $A x = \mathrm{conv}(x, K)$ on images of one size, its pseudo-inverse and invariants.

    Args:
        weight: K, (out_channels, in_channels/groups, \*kernel_size); detached and copied, so it never changes.  Half
            precision is computed in float32.
        geometry: stride, padding, dilation, groups and padding mode; a `TransposedGeometry` for the map of a transposed
            convolution, whose weight is (in_channels, out_channels/groups, \*kernel_size).
        input_size: spatial size of x.
        options: how the inverse is to be computed.

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

    def __init__(self, weight: Tensor, geometry: Geometry, input_size: Size, options: Options = DEFAULTS) -> None:
        check_weight(weight, geometry)
        check_options(options)
        with torch.inference_mode(False), torch.no_grad():
            self.source = weight.detach().clone()
            self.weight = self.source.to(compute_dtype(weight.dtype)).contiguous()
        check_finite(self.weight)
        self.conv = transposed.map_of(self.weight, geometry, input_size)
        self.options, self.scale = options, Scale.of(self.weight, options)
        self.reduced = self.scale.reduced(self.conv.untransposed, options)  # what the solvers see: of order one
        self.seconds, self._factored = 0.0, False
        self.ready: set[torch.dtype] = set()  # of outputs for which the inverse is prepared, and worth something
        self._choice: tuple[Solver, Plan] | None = None
        self._volume: Volume | None = None
        self._values = SingularValues(self.reduced[0], options.tolerance(self.weight.dtype))
        self._lock = new_lock()  # whoever asks first decides on refinement: no answer depends on who that was

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_twins")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "conv" not in state:
            raise InputError("this operator was saved by an earlier version: make it anew from its weight")
        self.__dict__.update(state, ready=set(), _factored=False, _lock=new_lock())  # some solvers leave theirs behind

    @property
    def geometry(self) -> Geometry:
        """Stride, padding, dilation, groups and padding mode."""
        return self.conv.geometry

    @property
    def input_size(self) -> Size:
        """Spatial size of x."""
        return self.conv.input_size

    @property
    def output_size(self) -> Size:
        """Spatial size of A x."""
        return self.conv.output_size

    @property
    def in_channels(self) -> int:
        """Channels of x."""
        return self.conv.in_channels

    @property
    def out_channels(self) -> int:
        """Channels of A x."""
        return self.conv.out_channels

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs of A for one image."""
        return self.conv.shape

    @property
    def dtype(self) -> torch.dtype:
        """Precision of images and answers."""
        return self.conv.dtype

    @property
    def has_volume(self) -> bool:
        """Whether the log-volume has been asked for."""
        return self._volume is not None

    # -- the way that is taken, and what it is worth -------------------------------------------------------------------

    def plan(self, volume: bool = False) -> Plan:
        """The way that is tried first for an inverse, or a log-volume, its memory and time; computes next to nothing.

        Once there are factors, it is the plan of the way that was taken, and says why those before it were not.

        Raises:
            OutOfMemoryError: where solver="direct" needs more memory than there is.
        """
        if volume and (found := choice.volume_plan(*self.reduced, self._volume)):
            return found
        if self._choice is None or (volume and not self._choice[0].gives_volume):
            return choice.plan(*self.reduced, factored=volume)
        return choice.timed(*self._choice)

    @property
    def solver(self) -> Solver:
        """The way that was chosen, with its factors; that of a transposed convolution turned round."""
        return transposed.turned(self._chosen, self.conv)

    @property
    def _chosen(self) -> Solver:
        """The way that was chosen for the convolution, whether this is it or its transpose."""
        if self._choice is None:  # else nobody waits, say for a log-determinant that another thread asked for
            with self._lock:
                self._choice = self._choice or self._timed(lambda: choice.choose(*self.reduced, self.scale))
        return self._choice[0]

    def prepare(self, outputs: torch.dtype | None = None) -> None:
        """Compute now what the pseudo-inverse needs, for outputs of this dtype or the layer's; say what it is worth.

        Warns:
            IllConditionedWarning: where fewer than two digits can be trusted, or singular values are cut off.

        Raises:
            SingularMapError: where no digit can be trusted.
        """
        if (outputs or self.dtype) in self.ready:
            return
        with self._lock:
            self._factors()
            solver = self.solver
            for dtype in {self.dtype, outputs or self.dtype} - self.ready:
                trust.judge(solver, dtype, solver.error if dtype == self.dtype else solver.trial(dtype))
                self.ready.add(dtype)

    def _factors(self) -> Solver:
        """The solver, prepared the first time that it is asked for; the caller holds the lock."""
        if not self._factored:
            self._timed(self._chosen.prepare)
            self._factored = True
        return self._chosen

    def report(self) -> Report:
        """Residual, condition, rank, solver, time and memory of this operator."""
        self.prepare()
        with self._lock:
            return trust.report(self.conv, self.solver, self.seconds)

    def split(self, count: int) -> list[ConvOperator]:
        """Operators for `count` shares of the groups, with their parts of the factors; none where it is no gain."""
        if self._choice is None or self.conv is not self.conv.untransposed:  # a log-volume may need no solver
            return []
        solvers = self._choice[0].split(count)
        operators = []
        for source, solver in zip(self.source.chunk(count), solvers, strict=False):
            part = object.__new__(ConvOperator)  # nothing has to be checked or copied once more
            reduced, weight = solver.conv, source.to(self.dtype)
            new = {"source": source, "weight": weight, "conv": replace(reduced, weight=weight), "_volume": None}
            values = SingularValues(reduced, self.options.tolerance(reduced.dtype))
            new |= {"reduced": (reduced, self.reduced[1]), "_values": values}
            part.__setstate__({**self.__getstate__(), **new, "_choice": (solver, self.plan())})
            operators.append(part)
        return operators

    @property
    def joins(self) -> bool:
        """Whether layers that are groups of this map keep their digits in what gives its log-volume."""
        with self._lock, exactly(self.weight.device, keep=True):
            self._volume = self._volume or choice.joined_volume(*self.reduced)
        return (self._volume or self._chosen).joins

    def _timed(self, compute: Callable[[], T]) -> T:
        """Compute what is kept, and add its time to `seconds`."""
        start = time.perf_counter()
        with exactly(self.weight.device, keep=True):
            result = compute()
        self.seconds += time.perf_counter() - start
        return result

    # -- the map ---------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """A x. x: (batch, in_channels, *input_size)."""
        with exactly(x.device):
            return self.conv.forward(self.check_input(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """A' y. y: (batch, out_channels, *output_size)."""
        with exactly(y.device):
            return self.conv.adjoint(self.check_output(y))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A^+ y: the x of least norm among those that minimise ||A x - y||."""
        return linear(self.check_output(y), partial(self._inverse, outputs=y.dtype), self._inverse_adjoint)

    def _inverse(self, y: Tensor, outputs: torch.dtype | None = None) -> Tensor:
        self.prepare(outputs)
        with exactly(y.device):
            return self.solver.pseudo_inverse(self.scale.times(y.to(self.solver.conv.dtype), -1)).to(self.dtype)

    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        """(A^+)' x. x: (batch, in_channels, *input_size)."""
        return linear(self.check_input(x), self._inverse_adjoint, self._inverse)

    def _inverse_adjoint(self, x: Tensor) -> Tensor:
        self.prepare()
        with exactly(x.device):
            return self.scale.times(self.solver.pseudo_inverse_adjoint(x.to(self.solver.conv.dtype)), -1).to(self.dtype)

    def pseudo_inverse_gradient(self, y: Tensor, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of <grad, A^+ y> by y and by the weight, for x = A^+ y: see `inverse_gradient`."""
        grad = self.check_input(grad)
        self.prepare()
        with exactly(y.device):
            y = self.scale.times(y.to(self.solver.conv.dtype), -1)
            found = trust.pseudo_inverse_gradient(self.solver, y, x, grad.to(y.dtype))
            return self.scale.times(found.by_y, -1).to(self.dtype), self.scale.times(found.by_weight, -1).to(self.dtype)

    def to_dense(self) -> Tensor:
        """The explicit matrix of A, `shape` entries: for tests and small images."""
        return self.conv.to_dense()

    def check_input(self, x: Tensor) -> Tensor:
        """`x` in the operator's dtype, if A can be applied to it."""
        return check_image("x", x, self.in_channels, self.input_size, self.weight)

    def check_output(self, y: Tensor) -> Tensor:
        """`y` in the operator's dtype, if A^+ can be applied to it."""
        return check_image("y", y, self.out_channels, self.output_size, self.weight)

    # -- invariants ------------------------------------------------------------------------------------------------

    def log_abs_det(self) -> Tensor:
        """log |det A|, nats for one image, whatever damping and rtol are; square maps only."""
        check_square(self.shape)
        return self.log_volume()

    def log_volume(self) -> Tensor:
        """1/2 log det(A'A), or of AA' for wide A; nats for one image, whatever damping and rtol are."""
        with self._lock, exactly(self.weight.device, keep=True):
            value = trust.log_volume(self._volume_solver, self.reduced[0])
            return (value + self.scale.log(min(self.shape))).to(self.dtype)

    def log_volume_gradient(self) -> Tensor:
        """d log_volume / d weight."""
        with self._lock, exactly(self.weight.device, keep=True):
            gradient = trust.log_volume_gradient(self._volume_solver, self.reduced[0])
            return self.scale.times(gradient, -1).to(self.dtype, copy=True)  # what is kept is nobody's

    @property
    def _volume_solver(self) -> Volume:
        """What gives the log-volume."""
        self._volume = self._volume or choice.volume(*self.reduced, lambda: self._chosen)
        return self._volume

    def __repr__(self) -> str:
        return f"ConvOperator({self.shape[0]} x {self.shape[1]}, input_size={self.input_size}, dtype={self.dtype})"
