"""Numbers that tell whether a flow is still exactly invertible."""

from __future__ import annotations

from typing import Any

import lightning as L
from typing_extensions import override

from invconv.lightning.flow import FlowModule


class InvertibilityMonitor(L.Callback):
    """Logs how well images come back, and how well conditioned the convolutions are.

    Logged during validation and test, as maxima: `val/reconstruction_error` (over the pixels of the first batch; over
    all test images in `test/reconstruction_error`), in shares of full scale and from all latents;
    `val/condition_worst`; and `condition/<layer>` for each layer if `each_layer`.

    Args:
        each_layer: log the condition number of each layer.
    """

    def __init__(self, each_layer: bool = True) -> None:
        self.each_layer = each_layer

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
        if batch_idx == 0:
            self._log("val", pl_module, batch, batch_idx)

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
        self._log("test", pl_module, batch, batch_idx)

    def _log(self, stage: str, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(module, FlowModule), "this callback watches a FlowModule"
        error = module.flow.reconstruction_error(batch[0], module.labels(batch), module.noise(0, batch_idx))
        values = {f"{stage}/reconstruction_error": error.max()}
        if batch_idx == 0:
            conditions = module.flow.condition_numbers()
            self._worst = max(conditions.values())
            if self.each_layer:
                values |= {f"condition/{name}": value for name, value in conditions.items()}
        values[f"{stage}/condition_worst"] = self._worst
        for name, value in values.items():
            module.log(
                name,
                value.float(),
                on_step=False,
                on_epoch=True,
                reduce_fx="max",
                sync_dist=True,
                batch_size=len(batch[0]),
            )
