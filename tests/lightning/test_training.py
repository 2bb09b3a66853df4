"""Flows in the real Trainer: resuming, accumulation, averaging, what is logged and drawn, the example."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from quiet import quiet_trainer

from invconv.flows import ActNorm, MultiScaleFlow
from invconv.lightning import FlowModule, ImageDataModule, InvertibilityMonitor, PictureWriter

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*log_every_n_steps")

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "invconv" / "examples" / "flow"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """96 training and 10 test images with structure: smooth random colours."""
    coarse = torch.rand(106, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear")
    images = (255 * smooth).byte().numpy()
    labels = np.arange(106) % 3
    path = tmp_path_factory.mktemp("data") / "smooth.npz"
    np.savez(path, x_train=images[:96], x_test=images[96:], y_train=labels[:96], y_test=labels[96:])
    return f"npz:{path}"


def _data(source, batch_size=16):
    return ImageDataModule(source, batch_size=batch_size, flip=True, val_fraction=1 / 6)


def _module(**options):
    torch.manual_seed(0)
    flow = MultiScaleFlow(image_size=16, scales=2, steps=1, hidden=8, **options)
    return FlowModule(flow, optimizer="adam", lr=5e-3, warmup_steps=2)


class _Losses(L.Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(float(outputs["loss"]))


def _trainer(root, *callbacks, **options):
    settings = dict(max_epochs=3, gradient_clip_val=1.0, log_every_n_steps=1, logger=CSVLogger(root))
    return quiet_trainer(root, *callbacks, **settings | options)


@pytest.mark.parametrize("stop", [5, 7, 10], ids=["epoch's end", "mid-epoch", "second epoch's end"])
@pytest.mark.parametrize("averaging", [False, True])
def test_resumed_run_repeats_the_straight_one(source, tmp_path, stop, averaging):
    """Losses to the last bit: order, mirroring, noise, optimizer, schedule, ActNorm, averages."""
    more = [EMAWeightAveraging(decay=0.9)] if averaging else []
    straight = _Losses()
    module = _module()
    trainer = _trainer(tmp_path, straight, *more)
    trainer.fit(module, datamodule=_data(source))
    assert len(straight.values) == 15 and straight.values[-1] < straight.values[0]

    first, second = _Losses(), _Losses()
    save = ModelCheckpoint(tmp_path / "saved", save_last=True, every_n_train_steps=stop)
    more = [EMAWeightAveraging(decay=0.9)] if averaging else []
    _trainer(tmp_path, first, save, *more, max_steps=stop).fit(_module(), datamodule=_data(source))
    torch.manual_seed(99)
    resumed = _module()
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.mul_(1.1)
    more = [EMAWeightAveraging(decay=0.9)] if averaging else []
    _trainer(tmp_path, second, *more).fit(
        resumed, datamodule=_data(source), ckpt_path=tmp_path / "saved" / "last.ckpt", weights_only=False
    )
    assert first.values + second.values == straight.values
    for a, b in zip(module.state_dict().values(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_actnorm_starts_once_under_gradient_accumulation(source, tmp_path):
    class Watch(L.Callback):
        shifts = []  # noqa: RUF012

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            layer = next(m for m in pl_module.modules() if isinstance(m, ActNorm))
            self.shifts.append(layer.shift.detach().clone())

    watch = Watch()
    module = _module()
    data = _data(source)
    trainer = _trainer(tmp_path, watch, max_epochs=1, accumulate_grad_batches=4, limit_train_batches=4)
    trainer.fit(module, datamodule=data)
    x = (next(iter(data.train_dataloader()))[0] + 0.5) / 256
    expected = torch.nn.functional.pixel_unshuffle(x, 2).mean((0, 2, 3))
    torch.testing.assert_close(watch.shifts[0], expected, atol=3e-4, rtol=0)
    assert all(torch.equal(s, watch.shifts[0]) for s in watch.shifts[:3])
    assert not torch.equal(watch.shifts[3], watch.shifts[0])


def test_averaged_weights_are_started_and_evaluated(source, tmp_path):
    module = _module()
    average = EMAWeightAveraging(decay=0.5)
    trainer = _trainer(tmp_path, average, InvertibilityMonitor(), max_epochs=2)
    trainer.fit(module, datamodule=_data(source))
    starts = [m.initialized for m in average._average_model.modules() if isinstance(m, ActNorm)]
    assert len(starts) == 2 and all(starts)
    # At the end the module holds the averages: their inverse and log-det must be theirs, not stale.
    fresh = _module()
    fresh.load_state_dict(module.state_dict())
    fresh.eval(), module.eval()
    x = torch.cat([x for x, _ in trainer.datamodule.test_dataloader()])
    bits = [m.flow.bits_per_dim(x, generator=torch.Generator().manual_seed(0)) for m in (module, fresh)]
    torch.testing.assert_close(bits[0], bits[1], rtol=1e-6, atol=1e-6)
    assert module.flow.reconstruction_error(x).max() < 1e-5


def test_what_is_logged_and_drawn(source, tmp_path):
    module = _module()
    trainer = _trainer(
        tmp_path, EMAWeightAveraging(decay=0.9), InvertibilityMonitor(), PictureWriter(), LearningRateMonitor()
    )
    trainer.fit(module, datamodule=_data(source))
    test = trainer.test(module, datamodule=_data(source), verbose=False)[0]
    assert test["test/reconstruction_error"] < 1e-5 and 1 <= test["test/condition_worst"] < 50
    errors = [
        module.flow.reconstruction_error(b[0], generator=module.noise(0, i))
        for i, b in enumerate(trainer.test_dataloaders)
    ]
    assert test["test/reconstruction_error"] == pytest.approx(float(torch.cat(errors).max()), rel=0.5)
    assert (
        test["test/bits_per_dim"]
        == trainer.test(module, datamodule=_data(source), verbose=False)[0]["test/bits_per_dim"]
    )
    with open(Path(trainer.log_dir) / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    for name in ("train/bits_per_dim", "val/bits_per_dim", "val/reconstruction_error", "condition/level1.layer2"):
        values = [float(row[name]) for row in rows if row[name]]
        assert len(values) >= 3 and np.isfinite(values).all()
    for group, times in (("networks", 1), ("kernels", 3)):
        rates = [float(row[f"lr-Adam/{group}"]) for row in rows if row.get(f"lr-Adam/{group}")]
        assert rates[:3] == pytest.approx([2.5e-3 * times, 5e-3 * times, 5e-3 * times])
    for name in ("reconstructions", "samples", "training"):
        with Image.open(Path(trainer.log_dir) / f"{name}.png") as picture:
            assert min(picture.size) > 300 and np.asarray(picture.convert("L")).std() > 5
    curves = next(c for c in trainer.callbacks if isinstance(c, PictureWriter)).state_dict()["curves"]
    assert len(curves["train"]) == 15 and len(curves["val"]) == 3


def test_training_lowers_bits_per_dim_and_keeps_reconstruction(source, tmp_path):
    module = _module()
    losses = _Losses()
    _trainer(tmp_path, losses, max_epochs=30, check_val_every_n_epoch=30).fit(module, datamodule=_data(source))
    assert np.mean(losses.values[-5:]) < 0.75 * losses.values[0]
    # No explosion after the warm-up.
    assert max(np.diff(losses.values[10:])) < 0.5
    data = _data(source)
    data.setup()
    x, _ = next(iter(data.test_dataloader()))
    assert module.eval().flow.reconstruction_error(x).max() < 1e-4


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate"])
def test_flows_with_real_borders_train_and_reconstruct(source, tmp_path, padding_mode):
    module, losses = _module(padding_mode=padding_mode), _Losses()
    trainer = _trainer(tmp_path, losses, InvertibilityMonitor(), max_epochs=4)
    trainer.fit(module, _data(source))
    assert sum(losses.values[-3:]) < sum(losses.values[:3])
    metrics = trainer.test(module, _data(source), verbose=False)[0]
    assert metrics["test/reconstruction_error"] < 1e-5 and metrics["test/condition_worst"] < 20


def test_class_conditional_flow_trains(source, tmp_path):
    module = _module(num_classes=3)
    _trainer(tmp_path, PictureWriter(), max_epochs=1).fit(module, datamodule=_data(source))
    moments = module.flow.prior.moments.weight
    assert moments.abs().sum(1).min() > 0 and not torch.equal(moments[0], moments[1])


def test_cosine_ends_at_zero(source, tmp_path):
    module = _module()
    module.cosine = True
    trainer = _trainer(tmp_path, LearningRateMonitor())
    trainer.fit(module, datamodule=_data(source))
    assert trainer.lr_scheduler_configs[0].scheduler.get_last_lr()[0] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ["demo", "small", "full", "pair"])
def test_every_configuration_builds(name, tmp_path, monkeypatch):
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.chdir(tmp_path)
    sizes = ["--model.flow.init_args.steps=1", "--model.flow.init_args.hidden=8"]
    device = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.strategy=auto"]
    monkeypatch.setattr(sys, "argv", ["train.py"])
    cli = LightningCLI(
        FlowModule, ImageDataModule, run=False, args=["--config", str(EXAMPLE / f"{name}.yaml"), *sizes, *device]
    )
    assert cli.model.flow.image_shape == (3, 32, 32) and len(cli.trainer.loggers) == 2
    trainer: Any = cli.trainer
    kinds = [type(callback) for callback in trainer.callbacks]
    assert kinds.index(EMAWeightAveraging) < kinds.index(PictureWriter)


def test_demo_ends_with_its_table_and_pictures(tmp_path):
    """The command itself, shortened; the photographs need no network."""
    command = [sys.executable, "-m", "invconv", "train", "flow", "demo", "--data.source=photos"]
    command += ["--model.flow.init_args.steps=1", "--model.flow.init_args.hidden=8"]
    command += ["--trainer.max_epochs=1", "--trainer.limit_train_batches=3", "--trainer.limit_test_batches=1"]
    command += ["--trainer.check_val_every_n_epoch=1", "--trainer.limit_val_batches=1"]
    environment = os.environ | {"COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, cwd=tmp_path, env=environment | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for line in ("photographs of scikit-image", "test bits/dim", "reconstruction error", "condition number", "seconds"):
        assert line in done.stdout
    pictures = sorted(p.name for p in (tmp_path / "runs" / "demo" / "version_0").glob("*.png"))
    assert pictures == ["reconstructions.png", "samples.png", "training.png"]
    assert list((tmp_path / "runs").rglob("events.out.tfevents*")) and list((tmp_path / "runs").rglob("last.ckpt"))


@pytest.mark.parametrize("padding_mode", ["circular", "zeros"])
def test_bfloat16_trains_and_reconstructs_to_its_accuracy(source, tmp_path, padding_mode):
    losses = _Losses()
    module = _module(padding_mode=padding_mode)
    trainer = _trainer(tmp_path, losses, InvertibilityMonitor(), precision="bf16-mixed")
    data = _data(source)
    trainer.fit(module, datamodule=data)
    assert len(losses.values) == 15 and np.mean(losses.values[-5:]) < np.mean(losses.values[:5])
    error = trainer.test(module, datamodule=data, verbose=False)[0]["test/reconstruction_error"]
    assert error < 20 * torch.finfo(torch.bfloat16).eps
    assert all(p.dtype == torch.float32 for p in module.parameters())
    # The weights are as good as any: in float32 they reconstruct to float32.
    exact = _trainer(tmp_path, InvertibilityMonitor()).test(module, datamodule=data, verbose=False)[0][
        "test/reconstruction_error"
    ]
    assert exact < 1e-4
