"""The callback that refreshes after each step of a Trainer's optimizers."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from quiet import quiet_trainer
from torch import nn
from torch.utils.data import DataLoader

import invconv
from invconv import IllConditionedWarning, InputError, InvertibleConv2d
from invconv.lightning import FlowModule, ImageDataModule, RefreshInverses

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*log_every_n_steps")

SIZE = (6, 8)
BATCHES: Any = [torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(i)) for i in range(4)]


class Pair(L.LightningModule):
    """Two layers, one with real borders, and as many optimizers as are asked for."""

    def __init__(self, optimizers=1, manual=False, kind=torch.optim.Adam, **options):
        super().__init__()
        torch.manual_seed(0)
        self.first = invconv.parametrizations.bounded(InvertibleConv2d(3, 3, 3, padding=1, padding_mode="circular"))
        self.second = InvertibleConv2d(3, 3, 3, padding=1)
        self.automatic_optimization = not manual
        self.count, self.kind, self.options = optimizers, kind, options
        self.factor = 1.0
        self.fresh = []

    def configure_optimizers(self):
        parts = [self.parameters()] if self.count == 1 else [self.first.parameters(), self.second.parameters()]
        return [self.kind(part, lr=0.01, **self.options) for part in parts]

    def loss(self, batch):
        log_det = self.first.log_abs_det(batch.shape) + self.second.log_abs_det(batch.shape)
        return self.factor * (self.second(self.first(batch)).square().mean() - 0.01 * log_det)

    def on_train_batch_start(self, batch, batch_idx):
        self.note_freshness()

    def training_step(self, batch, batch_idx):
        if self.automatic_optimization:
            return self.loss(batch)
        for optimizer in [self.optimizers()] if self.count == 1 else self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()
            self.note_freshness()
        return None

    def note_freshness(self):
        """Whether the factors that are kept are those of the weights, before anything is asked."""
        stale = [layer._cache.stale(layer.weight) for layer in (self.first, self.second)]
        self.fresh.append(not any(stale))


def train(module, tmp_path, *callbacks, **options):
    settings = dict(max_epochs=2, enable_checkpointing=False, logger=CSVLogger(tmp_path))
    trainer = quiet_trainer(tmp_path, *callbacks, **settings | options)
    trainer.fit(module, DataLoader(BATCHES, batch_size=None))
    return trainer


def rows(trainer):
    with open(Path(trainer.log_dir) / "metrics.csv") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("module", "options", "steps"),
    [
        (dict(), {}, 8),
        (dict(fused=True), {}, 8),
        (dict(kind=torch.optim.LBFGS, max_iter=2), {}, 8),
        (dict(), {"accumulate_grad_batches": 3}, 4),
        (dict(manual=True), {}, 8),
        (dict(manual=True, optimizers=2), {}, 16),
        (dict(), {"precision": "bf16-mixed"}, 8),
        (dict(), {"precision": "64-true"}, 8),
    ],
    ids=["automatic", "fused", "LBFGS", "accumulation", "manual", "two optimizers", "bf16-mixed", "64-true"],
)
def test_factors_are_fresh_after_every_step(tmp_path, module, options, steps):
    module, callback = Pair(**module), RefreshInverses(every_n_steps=2)
    trainer = train(module, tmp_path, callback, **options)
    assert callback.steps == steps and callback.seconds > 0
    assert all(module.fresh)
    logged = [row for row in rows(trainer) if row.get("inverse/condition_worst")]
    assert len(logged) == steps // 2 if module.count == 1 else 8
    # The hooks are gone: a step after the fit is the layers' own business again.
    optimizer = trainer.optimizers[0]
    before = callback.steps
    optimizer.step(lambda: torch.tensor(0.0))
    assert callback.steps == before


def test_without_it_the_factors_are_stale_at_the_next_step(tmp_path):
    module = Pair()
    train(module, tmp_path)
    assert not any(module.fresh[1:])


def test_steps_skipped_by_a_scaler_are_none(tmp_path):
    """Lightning's own scaler is for GPUs; the plug-in takes one for the CPU, with float16."""

    class Overflow(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            pl_module.factor = math.inf if batch_idx == 1 else 1.0

    from lightning.pytorch.plugins import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    module, callback = Pair(), RefreshInverses()
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    train(module, tmp_path, Overflow(), callback, plugins=[plugin])
    assert callback.steps == 6 and scaler.get_scale() < 2.0
    assert all(module.fresh)


def test_what_is_logged(tmp_path):
    module = Pair()
    trainer = train(module, tmp_path, RefreshInverses(every_n_steps=3, each_layer=True))
    logged = [row for row in rows(trainer) if row.get("inverse/condition_worst")]
    assert [int(row["step"]) for row in logged] == [3, 6]
    for row in logged:
        assert 0 < float(row["inverse/refresh_seconds"]) < 5
        assert 0 <= float(row["inverse/reconstruction_error"]) < 1e-5
        each = [float(row[f"inverse/condition/{name}"]) for name in ("first", "second")]
        assert float(row["inverse/condition_worst"]) == max(each) and min(each) >= 1
    module, trainer = Pair(), None
    trainer = train(module, tmp_path, RefreshInverses(every_n_steps=8))
    metrics = trainer.callback_metrics
    expected = [layer.condition_number(SIZE) for layer in (module.first, module.second)]
    assert metrics["inverse/condition_worst"] == pytest.approx(float(max(expected)))
    volume = module.first.log_abs_det(SIZE) + module.second.log_abs_det(SIZE)
    assert metrics["inverse/log_volume"] == pytest.approx(volume.item(), rel=1e-5)


def test_training_is_the_same_with_it_and_without(tmp_path):
    plain, refreshed = Pair(), Pair()
    train(plain, tmp_path, EMAWeightAveraging(decay=0.9))
    train(refreshed, tmp_path, EMAWeightAveraging(decay=0.9), RefreshInverses(every_n_steps=1))
    for a, b in zip(plain.parameters(), refreshed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_layer_beyond_the_condition_is_warned_of_once(tmp_path):
    with pytest.warns(IllConditionedWarning, match=r"has a condition number of .* above 1e\+00") as caught:
        train(Pair(), tmp_path, RefreshInverses(every_n_steps=1, condition=1.0))
    texts = [str(w.message) for w in caught if w.category is IllConditionedWarning]
    assert [text.split()[1] for text in texts] == ["first", "second"]


def test_a_fit_whose_weights_become_nan_is_ended_by_the_layer(tmp_path):
    class Spoil(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1:
                nn.init.constant_(pl_module.second.weight, math.nan)

    callback = RefreshInverses(every_n_steps=1)
    with pytest.raises(InputError, match="NaN or infinite"):
        train(Pair(), tmp_path, Spoil(), callback)
    assert callback.steps == 2


def test_layers_that_were_never_asked_cost_nothing(tmp_path):
    class Quiet(Pair):
        def loss(self, batch):
            return self.second(self.first(batch)).square().mean()

    module = Quiet()
    trainer = train(module, tmp_path, RefreshInverses(every_n_steps=2))
    assert not module.first.input_sizes() and not module.second.input_sizes()
    assert "inverse/condition_worst" not in trainer.callback_metrics
    module = Quiet()
    trainer = train(module, tmp_path, RefreshInverses(every_n_steps=2, input_sizes={"first": SIZE}))
    assert module.first.input_sizes() == [SIZE] and not module.second.input_sizes()
    assert trainer.callback_metrics["inverse/condition_worst"] >= 1


def test_bad_arguments():
    with pytest.raises(InputError, match="every_n_steps must be at least 1 or None, got 0"):
        RefreshInverses(every_n_steps=0)


def test_it_can_stand_in_a_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "own.yaml"
    path.write_text("""
model:
  flow:
    class_path: invconv.flows.MultiScaleFlow
    init_args: {image_size: 8, scales: 1, steps: 1, hidden: 8}
trainer:
  accelerator: cpu
  logger: false
  callbacks:
    - class_path: invconv.lightning.RefreshInverses
      init_args: {every_n_steps: 10, input_sizes: {flow.levels.0.layers.2.conv: [4, 4]}}
""")
    monkeypatch.setattr("sys.argv", ["train.py"])
    cli = LightningCLI(FlowModule, ImageDataModule, run=False, args=["--config", str(path)])
    trainer: Any = cli.trainer
    (callback,) = (c for c in trainer.callbacks if isinstance(c, RefreshInverses))
    assert callback.input_sizes == {"flow.levels.0.layers.2.conv": [4, 4]}
