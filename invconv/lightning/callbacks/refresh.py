"""Factors computed after each optimizer step of a Trainer, with their numbers in its loggers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from typing_extensions import override

from invconv.errors import InputError, InvconvError, warn
from invconv.layers.freshness import KeptFresh, invertible_layers, keep_fresh


class RefreshInverses(L.Callback):
    """Refreshes the invertible layers after each step of any of the Trainer's optimizers, by `invconv.keep_fresh`.

    Steps are those that the optimizers take, in automatic and in manual optimisation: batches that only accumulate
    gradients, and steps that a scaler skips, are none. The answers are the same without this callback.

    Every `every_n_steps` steps, for each layer at the image size it was last asked for:

    - `inverse/condition_worst`: the largest condition number;
    - `inverse/log_volume`: the sum of the log-volumes, in nats for one image (log |det| of square layers);
    - `inverse/reconstruction_error`: the largest `||A^+ A x - x|| / ||x||` of a random x;
    - `inverse/refresh_seconds`: what refreshing took, for one step, in the mean since it was last logged;
    - `inverse/condition/<layer>`, if `each_layer`.

    Args:
        every_n_steps: optimizer steps between two looks at the numbers; None for never. A look takes the singular
            values of each layer.
        condition: condition number beyond which a look warns, once until the layer is below it again.
        each_layer: log the condition number of each layer.
        input_sizes: see `invconv.keep_fresh`.

    Warns:
        IllConditionedWarning: for a layer beyond `condition`.

    Example:
        >>> trainer = L.Trainer(callbacks=[RefreshInverses(every_n_steps=100)], logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        condition: float = 1e4,
        each_layer: bool = False,
        input_sizes: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise InputError(f"every_n_steps must be at least 1 or None, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.condition = condition
        self.each_layer = each_layer
        self.input_sizes = input_sizes
        self._handles: list[KeptFresh] = []
        self._warned: set[str] = set()

    @property
    def steps(self) -> int:
        """Optimizer steps of this fit so far."""
        return sum(handle.steps for handle in self._handles)

    @property
    def seconds(self) -> float:
        """Time that refreshing took in this fit so far."""
        return sum(handle.seconds for handle in self._handles)

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._remove()
        self._handles = [keep_fresh(optimizer, pl_module, self.input_sizes) for optimizer in trainer.optimizers]
        self._logged = (0, 0.0)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        steps, seconds = self._logged
        if self.every_n_steps is None or self.steps - steps < self.every_n_steps:
            return
        # All processes hold the same weights: one looks.
        if trainer.is_global_zero:
            values = {"inverse/refresh_seconds": (self.seconds - seconds) / (self.steps - steps)}
            values |= self._look(pl_module)
            trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)
        self._logged = (self.steps, self.seconds)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._remove()

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._remove()

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def _look(self, module: L.LightningModule) -> dict[str, float]:
        conditions, volumes, errors = {}, [], []
        for name, layer in invertible_layers(module).items():
            for size in layer.input_sizes()[:1]:
                condition, volume, error = _numbers(layer, size)
                conditions[name] = condition
                volumes.append(volume)
                errors.append(error)
                self._judge(name, size, conditions[name])
        values = {f"inverse/condition/{name}": value for name, value in conditions.items() if self.each_layer}
        if conditions:
            values["inverse/condition_worst"] = _worst(conditions.values())
            values["inverse/log_volume"] = sum(volumes)
            values["inverse/reconstruction_error"] = _worst(errors)
        return values

    def _judge(self, name: str, size: Sequence[int], condition: float) -> None:
        if not condition > self.condition:  # NaN weights are the layer's own to complain of
            self._warned.discard(name)
        elif name not in self._warned:
            self._warned.add(name)
            warn(
                f"layer {name} has a condition number of {condition:.1e} on images of {tuple(size)}, above "
                f"{self.condition:.0e}, by which its inverse enlarges errors: bound its kernel or train it more slowly"
            )


def _numbers(layer: Any, size: Sequence[int]) -> list[float]:
    """Condition, log-volume and reconstruction error; NaN where there is none, for the weight is singular or NaN."""
    numbers = []
    for verb in (
        layer.condition_number,
        layer.log_volume,
        lambda size: layer.operator(size).report().relative_error,
    ):
        try:
            numbers.append(float(verb(size)))
        except InvconvError:
            numbers.append(math.nan)
    return numbers


def _worst(values: Iterable[float]) -> float:
    """The largest; NaN if there is one."""
    return max(values, key=lambda value: math.inf if math.isnan(value) else value)
