"""Figures, command, callback and example of feature inversion, from end to end."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torchvision
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from skimage import data

from invconv import IllConditionedWarning, InputError
from invconv.cli import main
from invconv.inversion import invert, total_variation, visualize
from invconv.inversion.figures import plot
from invconv.lightning import ClassifierModule, ImageDataModule, InversionPictures, command, trained
from invconv.lightning.classifier import train_classifier
from invconv.lightning.networks import small_vgg


@pytest.mark.parametrize("channels", [1, 3])
def test_one_figure_for_each_image(channels: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = small_vgg(channels, width=32).eval(), torch.rand(2, channels, 32, 32)
    inversions = [invert(model, layer, image=x, steps=5) for layer in ("0", "2", "3")]
    figures = plot(inversions, x, title="three layers", to=tmp_path / "new" / "picture.png")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["picture-0.png", "picture-1.png"]
    assert [axis.get_title() for axis in figures[0].axes] == ["input", "0 (Conv2d)", "2 (ReLU)", "3 (Conv2d)"]
    assert figures._repr_html_().count("<img src=") == 2, "what a notebook shows"
    below = figures[0].axes[2].get_xlabel()
    assert "feature error" in below and float(below.split(" dB")[0].split()[-1]) > 60, "decibels of an exact inversion"
    assert float(below.split("SSIM ")[1]) > 0.99
    shown: Any = figures[1].axes[0].images[0].get_array()
    assert np.allclose(np.squeeze(shown), x[1].movedim(0, -1).squeeze(-1).numpy(), atol=1e-6)


def test_figures_refuse_what_does_not_fit() -> None:
    torch.manual_seed(0)
    inversion = invert(small_vgg(width=8), "0", image=torch.rand(1, 3, 32, 32), steps=0)
    with pytest.raises(InputError, match=r"picture of '0' has shape \(1, 3, 32, 32\)"):
        plot([inversion], torch.rand(1, 3, 16, 16))
    with pytest.raises(InputError, match="1 or 3 channels"):
        plot([], torch.rand(1, 4, 16, 16))
    with pytest.raises(InputError, match=r"cannot write.*png"):
        plot([], torch.rand(1, 3, 16, 16), to="picture.docx")


@pytest.mark.filterwarnings("ignore::invconv.IllConditionedWarning")
def test_the_command_runs_without_arguments_that_need_a_download(tmp_path: Path) -> None:
    Image.fromarray(data.coffee()).save(tmp_path / "photo.jpg")
    out = tmp_path / "out.png"
    command.main(image=tmp_path / "photo.jpg", layers="[2, 6,12]", steps=5, train_steps=3, out=out)
    assert Image.open(out).size[0] > 600
    with pytest.raises(InputError, match="size is 0"):
        command.main(size=0)
    with pytest.raises(InputError, match=r"no layer 'relu'.*layer_names"):
        command.main(layers=["relu"])
    with pytest.raises(InputError, match="cannot be read as an image"):
        command.main(image=tmp_path / "none.jpg", train_steps=1, out=out)


def test_the_command_shows_what_excites_a_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(data.coffee()).save(tmp_path / "photo.jpg")
    (tmp_path / "own_excited.py").write_text(OWN)
    options: Any = {
        "model": f"{tmp_path / 'own_excited.py'}:network",
        "size": 32,
        "steps": 5,
        "out": tmp_path / "a.png",
    }
    command.main(excite="3[2],3[0, 1:5, 1:5]", **options)
    width, _ = Image.open(options["out"]).size
    assert capsys.readouterr().out.count(" s\n") == 2, "a line for each"
    command.main(excite=["3"], image=tmp_path / "photo.jpg", **options)
    assert abs(Image.open(options["out"]).size[0] - width) < 20, "the photograph beside its caricature"
    with pytest.raises(InputError, match="layers or excite, not both"):
        command.main(excite="3[2]", layers="3", **options)
    with pytest.raises(InputError, match="no layer 'relu'"):
        command.main(excite="relu[2]", **options)


def test_a_figure_of_inversions_needs_their_image() -> None:
    torch.manual_seed(0)
    model, x = small_vgg(width=4).eval(), torch.rand(1, 3, 32, 32)
    found = visualize(model, "3[1]", image=x, steps=1, mean=0.0)
    (figure,) = plot([found])
    assert "objective" in figure.axes[0].get_xlabel() and len(figure.axes) == 1
    for wrong in ([], [invert(model, "0", image=x, steps=0)]):
        with pytest.raises(InputError, match="give image="):
            plot(wrong)


def test_the_command_draws_no_other_network_where_no_weights_can_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    advice = r"resnet18 cannot be had \(no network\): give --weights FILE.*https.*--weights none.*--model small"
    with pytest.raises(InputError, match=advice):
        command.main("resnet18", out=tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()
    out = tmp_path / "random.png"
    command.main("resnet18", layers=["relu"], weights="none", size=32, steps=0, details=True, out=out)
    said = capsys.readouterr().out
    assert "resnet18: random weights" in said and "inequalities, 3072 unknowns" in said and out.exists()


class Caught(Exception):
    """In place of an inversion."""


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[torch.nn.Module]:
    """The networks that the command would invert, which takes no time here."""
    networks: list[torch.nn.Module] = []

    def catch(network: torch.nn.Module, *args: object, **kwargs: object) -> None:
        networks.append(network)
        raise Caught

    monkeypatch.setattr(command, "invert", catch)
    return networks


@pytest.mark.parametrize("kind", ["state_dict", "checkpoint", "parallel"])
def test_the_command_takes_a_file_of_weights(kind: str, given: list[torch.nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = torchvision.models.squeezenet1_1(weights=None).state_dict()
    written: Any = {
        "state_dict": state,
        "checkpoint": {"epoch": 3, "state_dict": state},
        "parallel": {f"module.{name}": value for name, value in state.items()},
    }
    torch.save(written[kind], tmp_path / "weights.pth")
    with pytest.raises(Caught):
        command.main("squeezenet1_1", weights=str(tmp_path / "weights.pth"), size=32, out=tmp_path / "out.png")
    assert all(torch.equal(value, state[name]) for name, value in given[0].state_dict().items())
    assert not given[0].training


def test_the_command_refuses_weights_that_do_not_fit(given: list[torch.nn.Module], tmp_path: Path) -> None:
    state = torchvision.models.squeezenet1_1(weights=None).state_dict()
    first = next(iter(state))
    contents: dict[str, tuple[Any, str]] = {
        "other": (small_vgg().state_dict(), r"does not fit SqueezeNet \(52 missing: features.0.weight, .*unknown"),
        "short": ({n: v for n, v in state.items() if n != first}, f"1 missing: {first}"),
        "more": ({**state, "head": torch.zeros(1)}, "1 unknown: head"),
        "shape": ({**state, first: torch.zeros(1, 2)}, rf"1 of another shape: {first} is \(1, 2\) and not \(64, 3"),
        "nan": ({**state, first: state[first] * torch.nan}, f"NaN or infinite.*{first}"),
        "list": ([1, 2], "holds no state_dict.*list"),
        "empty": ({}, "holds no state_dict.*dict"),
        "code": (torch.nn.ReLU(), "is no file of tensors alone"),
    }
    for name, (content, text) in contents.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(InputError, match=text):
            command.main("squeezenet1_1", weights=str(tmp_path / name), out=tmp_path / "out.png")
    (tmp_path / "text").write_text("no weights")
    (tmp_path / "nothing").touch()
    for name, text in (("text", "no file of tensors"), ("nothing", "no file of tensors"), ("absent", "No such file")):
        with pytest.raises(InputError, match=text):
            command.main("squeezenet1_1", weights=str(tmp_path / name), out=tmp_path / "out.png")
    with pytest.raises(InputError, match="cannot be read"):
        command.main("squeezenet1_1", weights=str(tmp_path), out=tmp_path / "out.png")
    assert not given and not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (dict(model="resnt18"), "no network 'resnt18': did you mean resnet18"),
        (dict(model="resnet18", weights="none", layers=["relux"]), "no layer 'relux': did you mean 'relu'"),
        (dict(weights="none"), "small is trained here"),
        (dict(steps=-1), "steps must be an integer of at least 0"),
        (dict(train_steps=-1), "train_steps must be an integer of at least 0"),
        (dict(prior_weight=float("nan")), "prior_weight must be a finite number"),
    ],
    ids=str,
)
def test_the_command_refuses_before_it_trains_or_downloads(
    arguments: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("too late")

    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    monkeypatch.setattr(trained, "train_classifier", fail)
    with pytest.raises(InputError, match=text):
        command.main(**arguments, out=tmp_path / "out.png")


def test_the_command_takes_trained_weights_and_turns_photographs_upright(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    weighted = torchvision.models.squeezenet1_1(weights=None)
    monkeypatch.setattr(
        torchvision.models.SqueezeNet1_1_Weights, "get_state_dict", lambda self, *args, **kwargs: weighted.state_dict()
    )
    seen: list[tuple[torch.Tensor, list[float]]] = []
    plain = command.invert

    def watched(model: torch.nn.Module, layer: str, **kwargs: Any) -> Any:
        seen.append((kwargs["image"], [float(p.detach().sum()) for p in model.parameters()]))
        return plain(model, layer, **kwargs)

    monkeypatch.setattr(command, "invert", watched)
    upright = Image.fromarray(data.coffee()[:300, :300])
    upright.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    for name in ("upright.png", "turned.png"):
        out = tmp_path / "out.png"
        command.main("squeezenet1_1", image=tmp_path / name, layers=["features.1"], size=64, steps=0, out=out)
    assert seen[0][1] == [float(p.detach().sum()) for p in weighted.parameters()]
    assert torch.equal(seen[0][0], seen[1][0])


def test_the_command_says_what_is_wrong_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "invconv.inversion", "--model", "resnet17"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: torchvision has no network")


@pytest.mark.parametrize("package", ["torchvision", "lightning", "matplotlib"])
def test_the_command_says_which_package_it_lacks(package: str) -> None:
    code = (
        f"import sys, runpy; sys.modules[{package!r}] = None; runpy.run_module('invconv.inversion', None, '__main__')"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert last.startswith("error: ") and package in last and 'pip install "invconv[' in last


class Bare(L.LightningModule):
    """A network that is its own model, trained on bare batches of floating-point images, without validation."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Album(CSVLogger):
    """A logger that takes pictures in the way of Weights & Biases."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.pictures: dict[str, int] = {}

    def log_image(self, key: str, images: list[Any]) -> None:
        self.pictures[key] = len(images)


def test_the_callback_needs_neither_validation_nor_names(tmp_path: Path) -> None:
    def fit(callback: L.Callback, scale: float = 1.0, **options: Any) -> None:
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=options.pop("logger", False),
            default_root_dir=tmp_path,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[callback],
            **options,
        )
        torch.manual_seed(0)
        module = Bare()
        images: Any = scale * torch.rand(8, 3, 16, 16)
        trainer.fit(module, torch.utils.data.DataLoader(images, batch_size=4))

    fit(InversionPictures(images=1, steps=2, mean=0.0, std=1.0))
    (drawn,) = tmp_path.glob("**/inversions/*.png")
    assert drawn.name == "step000002.png"
    album = Album(tmp_path)
    fit(InversionPictures(["body.1"], images=2, steps=2, mean=[0.1, 0.2, 0.3], std=[0.5] * 3), logger=album)
    assert album.pictures == {"inversions": 2}
    with pytest.raises(InputError, match=r"bfloat16.*model.float"):
        fit(InversionPictures(images=1), precision="bf16-true")
    with pytest.raises(InputError, match=r"no layer 'bodi': did you mean 'body'"):
        fit(InversionPictures(["bodi"]))
    outside = InversionPictures(["body.0", "body.1"], images=1, steps=2, mean=0.0, std=1.0)
    with pytest.warns(
        IllConditionedWarning, match=r"without bounds.*mean 0.0 and std 1.0, image has a pixel of level 2"
    ):
        fit(outside, scale=2.0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(outside, scale=2.0)
    assert not any("without bounds" in str(w.message) for w in said), "it is said once"
    with pytest.raises(InputError, match="mean and std are"):
        fit(InversionPictures(["body.0"], mean=[0.5, 0.5]))
    with pytest.raises(InputError, match="divide levels of 0 to 255"):
        fit(InversionPictures(["body.0"]), scale=255.0)
    with pytest.raises(InputError, match="at least 1, got 0"):
        InversionPictures(every_n_epochs=0)


TWO_PROCESSES = """
import lightning as L, torch
from invconv.lightning import InversionPictures
from tests.lightning.test_inversion_pictures import Bare

if __name__ == "__main__":
    quiet = dict(enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, logger=False)
    pictures = InversionPictures(images=1, steps=2, mean=0.0, std=1.0)
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, callbacks=[pictures], **quiet)
    trainer.fit(Bare(), torch.utils.data.DataLoader(torch.rand(8, 3, 16, 16), batch_size=2))
"""


def test_one_of_two_processes_draws(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TWO_PROCESSES)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "train.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [p.name for p in tmp_path.glob("inversions/*.png")] == ["step000002.png"]


def test_the_callback_draws_and_leaves_the_training_alone(tmp_path: Path) -> None:
    def train(*callbacks: L.Callback) -> torch.Tensor:
        L.seed_everything(0, verbose=False)
        module = ClassifierModule(classes=6, width=8)
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=2,
            limit_train_batches=2,
            limit_val_batches=1,
            num_sanity_val_steps=0,
            logger=TensorBoardLogger(tmp_path),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=list(callbacks),
        )
        trainer.fit(module, datamodule=ImageDataModule("photos", batch_size=8))
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    plain = train()
    drawn = train(InversionPictures(["2"], every_n_epochs=2, images=1, steps=2))
    assert torch.equal(plain, drawn)
    pictures = list(tmp_path.glob("**/inversions/*.png"))
    assert [p.name for p in pictures] == ["step000004.png"]


@pytest.mark.filterwarnings("ignore::invconv.IllConditionedWarning")
@pytest.mark.parametrize("network", ["vgg", "resnet"])
def test_the_example_runs(network: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--epochs=1", "--images=1", "--steps=2", "--max_steps=2"]
    main(["train", "classifier", f"--network={network}", "--data=photos", *few, f"--out={tmp_path}"])
    assert "test accuracy" in capsys.readouterr().out
    assert (tmp_path / f"{network}.png").exists()


def test_a_classifier_needs_labels(tmp_path: Path) -> None:
    images = np.zeros((20, 3, 32, 32), np.uint8)
    np.savez(tmp_path / "bare.npz", x_train=images, x_test=images)
    with pytest.raises(InputError, match="needs labels"):
        train_classifier("vgg", ImageDataModule(f"npz:{tmp_path / 'bare.npz'}"))


def test_a_classifier_learns_and_a_prior_smooths() -> None:
    module, accuracy = train_classifier(
        "vgg", ImageDataModule("photos", batch_size=32), max_steps=30, enable_progress_bar=False
    )
    assert accuracy > 0.4, "six photographs: chance is about 0.17"
    x = module.prepare(torch.tensor(data.astronaut()[100:164:2, 200:264:2]).permute(2, 0, 1)[None])
    options: Any = {"image": x, "steps": 60, "prior": total_variation}
    rough, smooth = (invert(module.model, "13", **options, prior_weight=w) for w in (0.0, 1.0))
    assert total_variation(smooth.image) < total_variation(rough.image)
    assert smooth.feature_error < 0.3


OWN = """
import torch
from invconv.lightning.networks import small_vgg

def network():
    torch.manual_seed(3)
    return small_vgg(width=4)

def nothing():
    return 3

def needs(size):
    return small_vgg(width=size)
"""


@pytest.mark.filterwarnings("ignore::invconv.IllConditionedWarning")
@pytest.mark.parametrize("named", ["file", "module"])
def test_the_command_takes_a_network_and_weights_of_ones_own(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"own_{named}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    model = f"own_{named}:network" if named == "module" else f"{tmp_path / f'own_{named}.py'}:network"
    state = small_vgg(width=4).state_dict()
    torch.save({"state_dict": state}, tmp_path / "own.pt")
    seen: list[tuple[str, Any]] = []
    plain = command.invert

    def watched(network: torch.nn.Module, layer: str, **kwargs: Any) -> Any:
        seen.append((layer, {**kwargs, "state": network.state_dict()}))
        return plain(network, layer, **kwargs)

    monkeypatch.setattr(command, "invert", watched)
    layers = "2[0, 1:5] + 3, 0[1]"
    options: Any = {"size": 32, "steps": 0, "out": tmp_path / "own.png", "mean": [0.5] * 3, "std": [0.25] * 3}
    monkeypatch.syspath_prepend("")
    command.main(model, layers=layers, weights=str(tmp_path / "own.pt"), **options)
    assert [layer for layer, _ in seen] == ["2[0, 1:5] + 3", "0[1]"] and (tmp_path / "own.png").exists()
    assert all(torch.equal(value, state[name]) for name, value in seen[0][1]["state"].items())
    assert (seen[0][1]["mean"], seen[0][1]["std"]) == ([0.5] * 3, [0.25] * 3)
    with pytest.raises(InputError, match="no layer 'relu'"):
        command.main(model, layers=["relu"], **options)
    for wrong, text in (("nothing", "gives int, expected"), ("needs", "TypeError"), ("absent", "AttributeError")):
        with pytest.raises(InputError, match=text):
            command.main(model.replace("network", wrong), **options)
    with pytest.raises(InputError, match=r"no_such_file:network gives no network .ModuleNotFoundError"):
        command.main("no_such_file:network", **options)


@pytest.mark.filterwarnings("ignore::invconv.IllConditionedWarning")
def test_the_command_takes_segmentation_networks(tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    layers = ["backbone.0", "classifier.cbr.0[3]"]
    command.main("lraspp_mobilenet_v3_large", layers=layers, weights="none", size=48, steps=0, out=out)
    assert out.exists()
