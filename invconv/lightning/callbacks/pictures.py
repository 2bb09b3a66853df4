"""Pictures of what a flow has learned, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import override

from invconv.lightning.figures import image_grid, stacked
from invconv.lightning.flow import FlowModule


class PictureWriter(L.Callback):
    """Writes `reconstructions.png`, `samples.png` and `training.png` to `trainer.log_dir`.

    Inputs, their reconstructions from all latents, and the difference, amplified until it shows; samples at each
    temperature; bits/dim against optimizer steps. Written at each validation, when the fit ends, and, with test
    images, at a test. To picture averaged weights, stand after the averaging callback in the Trainer's list.

    Args:
        temperatures: standard deviations of the latents of the samples.
        columns: images in a row.
        rows: rows of samples at each temperature.
        seed: of the samples.
    """

    def __init__(
        self,
        temperatures: Sequence[float] = (0.7, 1.0),
        columns: int = 10,
        rows: int = 3,
        seed: int = 0,
    ) -> None:
        self.temperatures = tuple(temperatures)
        self.columns = columns
        self.rows = rows
        self.seed = seed
        self.curves: dict[str, list[tuple[int, float]]] = {"train": [], "val": []}
        self._batch: list[Tensor] | None = None

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if batch_idx % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._note(trainer, "train")

    @override
    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0 and not trainer.sanity_checking:
            self._batch = [part[: self.columns] for part in batch]
            self._write(trainer, pl_module, "validation")

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._note(trainer, "val")

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._batch is not None:
            self._write(trainer, pl_module, "validation")

    @override
    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0:
            self._batch = [part[: self.columns] for part in batch]
            self._write(trainer, pl_module, "test")

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"curves": self.curves}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.curves = state_dict["curves"]

    def _note(self, trainer: L.Trainer, stage: str) -> None:
        value = trainer.callback_metrics.get(f"{stage}/bits_per_dim")
        if value is not None:
            self.curves[stage].append((trainer.global_step, float(value)))

    @torch.no_grad()
    def _write(self, trainer: L.Trainer, module: L.LightningModule, which: str) -> None:
        # Every process asks for the folder, since the answer is broadcast; one writes.
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        if not trainer.is_global_zero:
            return
        assert isinstance(module, FlowModule), "this callback draws a FlowModule"
        training = module.training
        module.eval()
        folder.mkdir(parents=True, exist_ok=True)
        self._reconstructions(module, which).savefig(folder / "reconstructions.png")
        self._samples(module).savefig(folder / "samples.png")
        if self.curves["train"]:
            self._training().savefig(folder / "training.png")
        module.train(training)

    def _reconstructions(self, module: FlowModule, which: str) -> Figure:
        assert self._batch is not None
        flow = module.flow
        batch = [part.to(module.device) for part in self._batch]
        labels = module.labels(batch)
        x, _ = flow.dequantize(batch[0], module.noise(0, 0))
        x = x.to(flow.prior.moments.weight.dtype)
        again, _ = flow.decode(flow.encode(x, labels)[0], labels)
        difference = (again - x).abs()
        largest = float(difference.max())
        gain = float(f"{0.25 / max(float(difference.mean()), 1e-12):.0e}")
        return stacked(
            [
                (f"{which} images", image_grid(x, self.columns)),
                ("reconstructed from all latents", image_grid(again, self.columns)),
                (
                    f"|difference| x {gain:,.0f}  (largest {largest:.1e} of full scale)",
                    image_grid(difference * gain, self.columns),
                ),
            ]
        )

    def _samples(self, module: FlowModule) -> Figure:
        flow = module.flow
        count = self.columns * self.rows
        classes = flow.prior.num_classes
        y = torch.arange(count, device=module.device) % classes if classes else None
        panels = []
        for temperature in self.temperatures:
            generator = torch.Generator(module.device).manual_seed(self.seed)
            samples = flow.sample(count, temperature, y, generator)
            scaled = samples.float() / (flow.dequantize.bins - 1)
            panels.append((f"samples, temperature {temperature:g}", image_grid(scaled, self.columns)))
        return stacked(panels)

    def _training(self) -> Figure:
        figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
        axes = FigureCanvasAgg(figure).figure.add_subplot()
        styles = {"train": dict(lw=1, color="C0"), "val": dict(marker="o", ms=4, color="C1")}
        labels = {"train": "training batches", "val": "validation"}
        for stage, points in self.curves.items():
            if points:
                last = points[-1][1]
                steps, values = zip(*points, strict=True)
                label = f"{labels[stage]} (last {last:.2f})"
                axes.plot(steps, values, label=label, **styles[stage])  # type: ignore[arg-type]
        # The first steps fall steeply: the picture is of what comes after.
        every = sorted(value for points in self.curves.values() for _, value in points)
        low, top = every[0], every[int(0.95 * (len(every) - 1))]
        axes.set_ylim(low - 0.05 * (top - low) - 0.02, top + 0.1)
        axes.set(xlabel="optimizer steps", ylabel="bits/dim", title="Negative log-likelihood")
        axes.grid(alpha=0.3)
        axes.legend()
        return figure
