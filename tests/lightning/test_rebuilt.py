"""`load_from_checkpoint(path)`: all it takes for the library's own networks; for others an error says what to give."""

import io
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from quiet import quiet_trainer
from torch import nn

from invconv import CheckpointError
from invconv.autoencoder import PseudoInverseAutoencoder
from invconv.flows import MultiScaleFlow
from invconv.lightning import AutoencoderModule, ClassifierModule, FlowModule, ImageDataModule

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*log_every_n_steps")

SMALL: dict[str, Any] = {"image_size": 16, "scales": 2, "steps": 1, "hidden": 8}


class OwnFlow(MultiScaleFlow):
    """The flow of a user."""


class OwnModule(FlowModule):
    """A module of a user, which makes its flow itself."""

    def __init__(self, width: int = 8):
        super().__init__(MultiScaleFlow(**SMALL | {"hidden": width}))


class OwnArguments(FlowModule):
    def __init__(self, flow: MultiScaleFlow, more: int = 0):
        super().__init__(flow)
        self.more = more


class Halves(nn.Module):
    """An autoencoder of a user."""

    def encode(self, x):
        return x[:, :, ::2]

    def decode(self, z):
        return z.repeat_interleave(2, 2)

    def forward(self, x):
        return self.decode(self.encode(x)), self.encode(x)


MODULES: dict[str, Any] = {
    "flow": lambda: FlowModule(MultiScaleFlow(**SMALL), optimizer="adam", lr=5e-3, seed=3),
    "flow with options": lambda: FlowModule(
        MultiScaleFlow(
            **SMALL | {"image_size": (16, 16), "hidden": np.int64(8)}, rho=0.9, padding_mode="zeros", bins=300
        )
    ),
    "free flow": lambda: FlowModule(MultiScaleFlow(3, 16, 2, 1, 8, rho=None)),
    "flow of pairs": lambda: FlowModule(MultiScaleFlow(**SMALL, mixing="pair")),
    "classes": lambda: FlowModule(MultiScaleFlow(**SMALL, num_classes=3)),
    "autoencoder": lambda: AutoencoderModule(PseudoInverseAutoencoder((3, 16, 16), (1, 4)), sparsity=0.1),
    "autoencoder with options": lambda: AutoencoderModule(
        PseudoInverseAutoencoder((3, 16, 16), (0.5, 2), 2, 2, "leaky_relu", "reflect"), loss="mse"
    ),
    "vgg": lambda: ClassifierModule("vgg", 3, 3, 8),
    "resnet": lambda: ClassifierModule("resnet", 3, 3, 8),
    "user's module": lambda: OwnModule(12),
    "user's arguments": lambda: OwnArguments(MultiScaleFlow(**SMALL), more=2),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16), dtype=np.uint8)
    path = tmp_path_factory.mktemp("data") / "images.npz"
    labels = np.arange(40) % 3
    np.savez(path, x_train=images[:32], x_test=images[32:], y_train=labels[:32], y_test=labels[32:])
    return f"npz:{path}"


def trained(module, source, folder, *callbacks, **options):
    trainer = quiet_trainer(folder, *callbacks, **{"max_steps": 2, "logger": True, **options})
    trainer.fit(module, ImageDataModule(source, batch_size=8, val_fraction=0.25))
    return trainer


def same(module, again, hyperparameters=True):
    state, other = module.state_dict(), again.state_dict()
    assert list(state) == list(other)
    for name, value in state.items():
        assert torch.equal(value, other[name]) and value.dtype == other[name].dtype, name
    assert not hyperparameters or again.hparams == module.hparams


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)
def test_one_line_loads_a_trained_module(make, source, tmp_path, recwarn):
    module = make()
    trainer = trained(module, source, tmp_path, ModelCheckpoint(tmp_path / "kept", save_last=True))
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    recwarn.clear()
    for path in (tmp_path / "saved.ckpt", tmp_path / "kept" / "last.ckpt"):
        for weights_only in (None, True, False):
            again = type(module).load_from_checkpoint(path, weights_only=weights_only)
            assert type(again) is type(module)
            same(module, again)
    assert not [w for w in recwarn if "options" in str(w.message)]
    x = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    if isinstance(module, FlowModule):
        assert again.flow.arguments == module.flow.arguments or again.flow.image_shape == module.flow.image_shape
        bits = [m.eval().flow.bits_per_dim(x, torch.tensor([0, 2]) if m.flow.prior.num_classes else None,
                                           torch.Generator().manual_seed(0)) for m in (module, again)]  # fmt: skip
        assert torch.equal(*bits)
    # What was loaded can be trained on, saved and loaded once more.
    trained(again, source, tmp_path / "more").save_checkpoint(tmp_path / "more.ckpt")
    same(again, type(module).load_from_checkpoint(tmp_path / "more.ckpt"))


@pytest.mark.parametrize("name", ["flow", "autoencoder", "vgg"])
def test_what_was_trained_in_double_precision_is_loaded_without_a_loss(name, source, tmp_path):
    module = MODULES[name]()
    trained(module, source, tmp_path, precision="64-true").save_checkpoint(tmp_path / "saved.ckpt")
    assert all(p.dtype == torch.float64 for p in module.parameters())
    same(module, type(module).load_from_checkpoint(tmp_path / "saved.ckpt"))


def test_averaged_weights_are_loaded(source, tmp_path):
    module = MODULES["flow"]()
    trainer = trained(module, source, tmp_path, EMAWeightAveraging(decay=0.5))
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    saved = torch.load(tmp_path / "saved.ckpt")["state_dict"]
    again = FlowModule.load_from_checkpoint(tmp_path / "saved.ckpt").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in saved.items())


@pytest.mark.parametrize("name", ["flow", "autoencoder", "vgg"])
def test_a_whole_module_is_pickled(name):
    module = MODULES[name]()
    same(module, pickle.loads(pickle.dumps(module)))
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    same(module, torch.load(file, weights_only=False))


# -- networks of others, and other options -------------------------------------------------------------------------


def test_the_flow_of_a_user_is_to_be_given(source, tmp_path):
    module = FlowModule(OwnFlow(**SMALL, rho=0.8))
    trained(module, source, tmp_path).save_checkpoint(tmp_path / "saved.ckpt")
    with pytest.raises(CheckpointError, match=r"class .*OwnFlow.*load by FlowModule.load_from_checkpoint\(path, flow="):
        FlowModule.load_from_checkpoint(tmp_path / "saved.ckpt")
    same(module, FlowModule.load_from_checkpoint(tmp_path / "saved.ckpt", flow=OwnFlow(**SMALL, rho=0.8)))
    with pytest.raises(CheckpointError, match=r"saved with rho = 0.8, and is loaded into a Bounded with rho = 0.5"):
        FlowModule.load_from_checkpoint(tmp_path / "saved.ckpt", flow=OwnFlow(**SMALL))


def test_the_autoencoder_of_a_user_is_to_be_given(tmp_path):
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_model_summary=False, default_root_dir=tmp_path)
    trainer.strategy.connect(AutoencoderModule(Halves()))  # type: ignore[arg-type]
    trainer.save_checkpoint(tmp_path / "saved.ckpt", weights_only=True)
    with pytest.raises(CheckpointError, match=r"class .*Halves.*AutoencoderModule.load_from_checkpoint\(path, model="):
        AutoencoderModule.load_from_checkpoint(tmp_path / "saved.ckpt")
    assert isinstance(AutoencoderModule.load_from_checkpoint(tmp_path / "saved.ckpt", model=Halves()).model, Halves)


def test_a_flow_that_was_changed_after_it_was_made_is_no_silent_other(source, tmp_path):
    module: Any = MODULES["flow"]()
    module.flow.levels[0].layers[3].max_log_scale = 1.0
    trained(module, source, tmp_path).save_checkpoint(tmp_path / "saved.ckpt")
    with pytest.raises(CheckpointError, match=r"max_log_scale = 1.0"):
        FlowModule.load_from_checkpoint(tmp_path / "saved.ckpt")


def test_arguments_that_are_given_come_before_those_of_the_checkpoint(source, tmp_path):
    module = MODULES["flow"]()
    trained(module, source, tmp_path).save_checkpoint(tmp_path / "saved.ckpt")
    again = FlowModule.load_from_checkpoint(tmp_path / "saved.ckpt", lr=1e-4, flow=MultiScaleFlow(**SMALL))
    assert again.lr == 1e-4 and again.seed == 3
    with pytest.raises(CheckpointError, match="padding_mode = 'zeros'"):
        FlowModule.load_from_checkpoint(tmp_path / "saved.ckpt", flow=MultiScaleFlow(**SMALL, padding_mode="zeros"))


@pytest.mark.filterwarnings("ignore:.*does not say with which options")
def test_a_checkpoint_of_before_says_what_is_missing(source, tmp_path):
    module = MODULES["flow"]()
    trained(module, source, tmp_path).save_checkpoint(tmp_path / "saved.ckpt")
    checkpoint = torch.load(tmp_path / "saved.ckpt")
    del checkpoint["hyper_parameters"]["flow"]
    checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if not k.endswith("_extra_state")}
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.raises(TypeError, match="flow"):
        FlowModule.load_from_checkpoint(tmp_path / "old.ckpt")
    again = FlowModule.load_from_checkpoint(tmp_path / "old.ckpt", flow=MultiScaleFlow(**SMALL))
    same(module, again)


def test_a_checkpoint_cannot_name_a_class_of_its_own(source, tmp_path):
    trained(MODULES["flow"](), source, tmp_path).save_checkpoint(tmp_path / "saved.ckpt")
    checkpoint = torch.load(tmp_path / "saved.ckpt")
    checkpoint["hyper_parameters"]["flow"] = {"class_path": "subprocess.Popen", "init_args": {"args": "true"}}
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=r"class subprocess\.Popen, which it cannot make"):
        FlowModule.load_from_checkpoint(tmp_path / "other.ckpt")


# -- LightningCLI --------------------------------------------------------------------------------------------------

FLOW = ["flow=invconv.flows.MultiScaleFlow", *(f"flow.init_args.{name}={value}" for name, value in SMALL.items())]
OWN_FLOW = [argument.replace("invconv.flows.MultiScaleFlow", f"{__name__}.OwnFlow") for argument in FLOW]
AUTOENCODER = [
    "model=PseudoInverseAutoencoder",
    "model.init_args.image_shape=[3,16,16]",
    "model.init_args.compression=[1,4]",
]
COMMANDS: dict[str, tuple[Any, list[str]]] = {
    "flow": (FlowModule, [*FLOW, "flow.init_args.rho=0.8", "lr=0.002"]),
    "user's flow": (FlowModule, OWN_FLOW),
    "user's module": (OwnModule, ["width=12"]),
    "user's arguments": (OwnArguments, [*FLOW, "more=2"]),
    "autoencoder": (AutoencoderModule, AUTOENCODER),
    "classifier": (ClassifierModule, ["classes=3", "width=8"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_modules_of_the_command_line_are_loaded_by_one_line_too(name, source, tmp_path):
    kind, model = COMMANDS[name]
    trainer = ["accelerator=cpu", "devices=1", "max_steps=1", "logger=false", "num_sanity_val_steps=0"]
    trainer += ["enable_progress_bar=false", "enable_model_summary=false", f"default_root_dir={tmp_path}"]
    arguments = ["fit", f"--data.source={source}", "--data.batch_size=8"]
    arguments += [f"--model.{each}" for each in model] + [f"--trainer.{each}" for each in trainer]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
        cli = LightningCLI(kind, ImageDataModule, args=arguments, save_config_callback=None)
    cli.trainer.save_checkpoint(tmp_path / "saved.ckpt")
    if name == "user's flow":
        with pytest.raises(CheckpointError, match=r"OwnFlow.*flow=\.\.\."):
            kind.load_from_checkpoint(tmp_path / "saved.ckpt")
    else:
        again = kind.load_from_checkpoint(tmp_path / "saved.ckpt")
        same(cli.model, again, hyperparameters=False)  # those of a command say which command it was
        assert getattr(again, "more", 2) == 2 and getattr(again, "lr", 0) == getattr(cli.model, "lr", 0)


@pytest.mark.parametrize("example", ["flow", "autoencoder"])
def test_the_demo_is_loaded_by_one_line(example, tmp_path, monkeypatch):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "invconv", "train", example, "demo", "--data.source=photos"]
    command += ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_test_batches=1"]
    command += ["--trainer.limit_val_batches=1"]
    if example == "flow":
        command += ["--model.flow.init_args.steps=1", "--model.flow.init_args.hidden=8"]
    monkeypatch.setenv("PYTHONPATH", str(root))
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    path = next((tmp_path / "runs").rglob("*.ckpt"))
    if example == "flow":
        module = FlowModule.load_from_checkpoint(path)
        assert module.flow.arguments["rho"] == 0.9
        assert module.flow.levels[0].layers[2].conv.parametrizations.weight[0].rho == 0.9
        assert module.flow.sample(2).shape == (2, 3, 32, 32)
    else:
        model = AutoencoderModule.load_from_checkpoint(path).model
        assert isinstance(model, PseudoInverseAutoencoder) and model.arguments["activation"] == "leaky_relu"
        assert model.initialized
