"""The convolutions of a network and the images that they are run on: each as an operator, asked what it is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from invconv import deadline
from invconv.engine.extremes import all_in_reach, groups_are_small
from invconv.errors import InputError, InvconvError, unsaid
from invconv.functional import spatial_size
from invconv.geometry import Geometry, Size
from invconv.layers.kernel import effective_weight
from invconv.layers.plain import PLAIN, TRANSPOSED
from invconv.operator import ConvOperator
from invconv.options import Options
from invconv.report import Plan
from invconv.scalars import real_number
from invconv.summary.row import Row
from invconv.summary.table import Summary
from invconv.transposed import TransposedGeometry

QUANTITIES = ("sigma_max", "sigma_min", "log_volume")

ANSWERS = 60
"""Answers of an inverse that Lanczos' method asks for, about: half as many products with A^+ (A^+)'.  Speed only."""

Progress = Callable[[int, int, str], None]


def summary(
    model: nn.Module,
    input_size: Sequence[int],
    *,
    quantities: Sequence[str] = QUANTITIES,
    seconds: float = 10.0,
    tol: float = 1e-3,
    spectra: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """What each convolution of a network is as a linear map: singular values, condition, log-volume, at real borders.

    The network is run once, on an image of random numbers, in eval mode and without gradients, to see what image each
    of its modules is given. Seen are modules of the classes `torch.nn.Conv1d` to `Conv3d` and `ConvTranspose1d` to
    `ConvTranspose3d`, whatever parametrizes their weight; a module that is run on images of several sizes has a row for
    each.

    Args:
        model: the network; it is left as it is.
        input_size: (C, H, W) or (N, C, H, W), of what it takes.
        quantities: which of "sigma_max", "sigma_min" and "log_volume" to compute; the condition comes with the first
            two.
        seconds: spent on each layer and quantity, about: what is foreseen to take longer is not begun, and what turns
            out to is stopped. Of singular values the row then has what iterations have `reached`.
        tol: relative accuracy of the squares of singular values that are iterated for, from 1e-6 on. Those of cyclic
            layers and of small matrices are exact.
        spectra: whether to compute the percentiles of all singular values, where they can be had, for the picture.
        progress: called with the number of layers done, of all, and the name of the next.

    Returns:
        The rows, which print as a table; `as_dicts`, `to_csv`, `plot`.

    Raises:
        InputError: if a quantity has no such name, or the size none that the network takes.

    Example:
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))
        >>> found = summary(network, (3, 8, 8), quantities=["sigma_max"])
        >>> [row.name for row in found], found["2"].sigma_min
        (['0', '2'], None)
    """
    for name in quantities:
        if name not in QUANTITIES:
            raise InputError(f"quantities are of {QUANTITIES}, got {name!r}")
    real_number("seconds", seconds, "be at least 0", lambda v: v >= 0, optional=False)
    real_number("tol", tol, "lie in [1e-6, 0.1]", lambda v: 1e-6 <= v <= 0.1, optional=False)
    calls = seen(model, input_size)
    rows = []
    for index, (name, module, sizes) in enumerate(calls):
        if progress:
            progress(index, len(calls), name)
        rows.append(_Asked(name, module, *sizes).row(quantities, seconds, tol, spectra))
    if progress:
        progress(len(calls), len(calls), "")
    return Summary(tuple(rows), tol)


def seen(model: nn.Module, input_size: Sequence[int]) -> list[tuple[str, Any, tuple[Size, Size]]]:
    """Each convolution by name, with the spatial sizes of an image that it was given and of what it made of it.

    Args:
        model: the network.
        input_size: of what it takes, with or without the batch.

    Raises:
        InputError: if the network cannot be run on it; the text has what it says.
    """
    calls: dict[Any, tuple[str, Any, tuple[Size, Size]]] = {}
    names = {module: name for name, module in model.named_modules() if isinstance(module, PLAIN)}

    def record(module: Any, inputs: Any, output: Tensor) -> None:
        dims = len(module.kernel_size)
        sizes = tuple(inputs[0].shape[-dims:]), tuple(output.shape[-dims:])
        calls.setdefault((module, sizes), (names[module], module, sizes))

    tensor = next((t for t in [*model.parameters(), *model.buffers()] if t.is_floating_point()), torch.empty(0))
    shape = tuple(input_size) if len(tuple(input_size)) > 3 else (1, *input_size)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(shape, generator=generator).to(tensor)
    handles = [module.register_forward_hook(record) for module in names]
    try:
        with _in_eval(model), torch.no_grad():
            model(image)
    except Exception as error:  # whatever a model's own code raises
        raise InputError(
            f"{type(model).__name__} cannot be run on images of size {tuple(input_size)}: {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return list(calls.values())


@contextmanager
def _in_eval(model: nn.Module) -> Iterator[None]:
    """All modules in eval mode, and back in their own afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


class _Asked:
    """One convolution on images of one size, as a map that is asked."""

    def __init__(self, name: str, module: Any, given: Size, made: Size) -> None:
        self.name, self.module, self.sizes = name, module, (given, made)
        kind = TransposedGeometry if isinstance(module, TRANSPOSED) else Geometry
        self.geometry = kind.of(
            module.kernel_size, module.stride, module.padding, module.dilation, module.groups, module.padding_mode
        ).between(given, made)
        self.input_size = spatial_size(given, len(module.kernel_size))
        self.notes: dict[str, str] = {}
        self.reached: dict[str, float] = {}

    def row(self, quantities: Sequence[str], seconds: float, tol: float, spectra: bool) -> Row:
        """What is asked for, as far as the time allows."""
        with torch.no_grad(), unsaid():
            weight = effective_weight(self.module).detach()
            self.seconds, found, method = seconds, dict[str, float | None](), ""
            self._plan: Plan | None = None
            spectrum: tuple[float, ...] = ()
            try:
                self._check_output()
                self.operator = ConvOperator(weight, self.geometry, self.input_size, Options(tol=tol))
            except InvconvError as error:
                self.notes = dict.fromkeys(quantities, f"not computed: {error}")
            else:
                verbs = {"sigma_max": self._sigma_max, "sigma_min": self._sigma_min, "log_volume": self._log_volume}
                found = {name: self._tried(name, verbs[name]) for name in quantities}
                spectrum = self._spectrum() if spectra else ()
                method = "" if self._plan is None else self._plan.solver
        geometry, module, (given, made) = self.geometry, self.module, self.sizes
        return Row(
            name=self.name,
            kind=type(module).__name__,
            channels=(module.in_channels, module.out_channels),
            input_size=given,
            output_size=made,
            kernel_size=geometry.kernel_size,
            stride=geometry.stride,
            padding=geometry.padding,
            dilation=geometry.dilation,
            groups=geometry.groups,
            padding_mode=geometry.padding_mode,
            shape=(module.out_channels * math.prod(made), module.in_channels * math.prod(given)),
            condition=_ratio(found.get("sigma_max"), found.get("sigma_min")),
            method=method,
            notes=self.notes,
            reached=self.reached,
            spectrum=spectrum,
            **found,
        )

    def _check_output(self) -> None:
        """Refuse a module that pads by itself, or whatever else makes of an image what its padding and stride do not.

        Raises:
            InputError: with both sizes.
        """
        given, made = self.sizes
        told = tuple(self.geometry.output_size(self.geometry.check_input_size(given)))
        if told != made:
            raise InputError(
                f"{type(self.module).__name__} makes {made} of {given}, where its padding and stride make {told}: "
                "its forward is one of its own, which pads, say"
            )

    def _tried(self, name: str, verb: Callable[[], float | None]) -> float | None:
        """A number, or None and a note of why there is none."""
        try:
            with deadline.within(self.seconds):
                value = verb()
        except (InvconvError, MemoryError) as error:
            self._reach(name, error)
            # Without the list of ways that were refused.
            self.notes[name] = f"not computed: {re.sub(r' [(][^()]{60,}[)]', '', str(error))}"
            return None
        if value is not None and not math.isfinite(value):
            self.notes[name] = f"not computed: the answer was {value}"
            return None
        return value

    def _reach(self, name: str, error: Exception) -> None:
        """Note how far iterations had come before an error."""
        if isinstance(error, InvconvError) and error.reached:
            self.reached[name] = self.operator.scale.times(torch.tensor(error.reached).double(), 1).item()

    def _sigma_max(self) -> float:
        return self.operator.spectral_norm().item()

    def _sigma_min(self) -> float | None:
        if self.operator.conv.blind_spots:
            self.notes["sigma_min"] = f"zero whatever the weight, {self.operator.conv.blind_spots}"
            return 0.0
        conv, rows = self.operator.conv, max(self.operator.conv.block_shape)
        if groups_are_small(conv):
            rows = max(conv.shape) // conv.geometry.groups  # of what is decomposed
        else:
            plan = self._inverse()
            if plan.solver == "lsmr":
                self.notes["sigma_min"] = "not computed: the inverse has no way but iterations"
                return None
            deadline.look(plan.seconds_for(ANSWERS))
        value, norm = self.operator.smallest_singular_value().item(), self.operator.spectral_norm().item()
        if value <= torch.finfo(torch.float64).eps * rows * norm:
            self.notes["sigma_min"] = "zero to the rounding of float64"
            return 0.0
        return value

    def _log_volume(self) -> float | None:
        if self.operator.conv.blind_spots:
            self.notes["log_volume"] = f"minus infinity whatever the weight, {self.operator.conv.blind_spots}"
            return None
        if self.notes.get("sigma_min", "").startswith("zero"):
            self.notes["log_volume"] = "minus infinity to rounding"
            return None
        self._inverse()
        plan = self.operator.plan(volume=True)
        if plan.solver == "lsmr":
            self.notes["log_volume"] = "not computed: the inverse has no way but iterations"
            return None
        deadline.look(plan.seconds)
        return self.operator.log_volume().item()

    def _spectrum(self) -> tuple[float, ...]:
        """Percentiles of all singular values; none where they are out of reach."""
        if not all_in_reach(self.operator.conv):
            return ()
        values = self.operator.singular_values()
        return tuple(values[torch.linspace(0, len(values) - 1, 101).long()].tolist())

    def _inverse(self) -> Plan:
        """How the inverse is come by, which is found out once."""
        self._plan = self._plan or self.operator.plan()
        return self._plan


def _ratio(largest: float | None, smallest: float | None) -> float | None:
    if largest is None or smallest is None or not largest:
        return None
    return largest / smallest if smallest else math.inf
