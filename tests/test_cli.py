"""The command `invconv`: its words, its help, what it refuses, and what it draws from a trained flow."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import invconv
from invconv import MissingPackageError
from invconv.cli import COMMANDS, main
from invconv.errors import needs
from invconv.flows import MultiScaleFlow
from invconv.lightning import FlowModule, command, drawn


def test_help_tells_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    said = capsys.readouterr().out
    assert all(re.search(rf"^ +invconv {word}\b", said, flags=re.M) for word in COMMANDS)
    for word in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main([word, "--help"])
        assert not ended.value.code and f"invconv {word}" in capsys.readouterr().out


def test_version_is_that_of_the_package() -> None:
    done = subprocess.run([sys.executable, "-m", "invconv", "--version"], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith(f"invconv {invconv.__version__}, torch {torch.__version__}, Python 3.")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["invret"], "no command 'invret': did you mean invert"),
        (["xyz"], "there are summary, invert"),
        (["train", "flwo"], "name one of flow, autoencoder, classifier"),
        (["train", "flow", "dmeo"], "no configuration 'dmeo': did you mean demo"),
        (["sample", "absent.ckpt"], "No such file"),
        (["sample", __file__], "is no checkpoint of a flow"),
        (["invert", "--device", "abacus", "--model", "small"], "device 'abacus' cannot be used"),
        (["invert", "--model", "resnt18"], "did you mean resnet18"),
        (["deblur", "--border", "circular"], "the demonstration has borders"),
    ],
    ids=lambda value: " ".join(value)[-20:] if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_in_one_line(words: list[str], text: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    said = str(ended.value.code)
    assert said.startswith("error: ") and text in said and "\n" not in said


@pytest.mark.parametrize("kind", ["flow", "autoencoder"])
def test_help_of_a_training_lists_its_configurations(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", kind])
    said = capsys.readouterr().out
    files = list((Path(invconv.__file__).parent / "examples" / kind).glob("*.yaml"))
    assert not ended.value.code and files
    for file in files:
        first = file.read_text().partition("\n")[0].removeprefix("# ")
        assert re.search(rf"^  {file.stem} +{re.escape(first)}$", said, flags=re.M)


# -- extras --------------------------------------------------------------------------------------------------------


def test_a_missing_package_is_told_with_its_extra() -> None:
    with (
        pytest.raises(MissingPackageError, match=r'needs no_such_package: pip install "invconv\[pictures\]"'),
        needs("pictures"),
    ):
        import no_such_package.part  # noqa: F401
    with pytest.raises(ImportError, match="no_such_name") as caught, needs("pictures"):
        from invconv.flows import no_such_name  # type: ignore[attr-defined]  # noqa: F401
    assert not isinstance(caught.value, MissingPackageError), "a fault of our own is no missing extra"


LACKING = {
    "import invconv.lightning": ("lightning", "lightning"),
    "from invconv.lightning import FlowModule": ("torchvision", "lightning"),
    "from invconv.inversion import plot": ("matplotlib", "pictures"),
    "import invconv.inversion.figures": ("skimage", "pictures"),
    "import invconv.examples.flow.train": ("lightning", "lightning"),
    "import invconv.examples.deblur.compare": ("skimage", "pictures"),
    "from invconv.cli import main; main(['train', 'flow', 'demo'])": ("lightning", "lightning"),
    "from invconv.cli import main; main(['train', 'classifier'])": ("jsonargparse", "lightning"),
    "from invconv.cli import main; main(['invert'])": ("jsonargparse", "lightning"),
    "from invconv.cli import main; main(['sample', 'a.ckpt'])": ("lightning", "lightning"),
    "from invconv.cli import main; main(['score', 'a.ckpt'])": ("lightning", "lightning"),
    "from invconv.cli import main; main(['deblur'])": ("skimage", "pictures"),
    "from invconv.cli import main; main(['deblur', '--compare'])": ("matplotlib", "pictures"),
    "from invconv.cli import main; main(['summary', '--model', 'resnet18'])": ("torchvision", "lightning"),
}
"""What is run, the package that is not there, and the extra that has it."""


@pytest.mark.parametrize("code", LACKING)
def test_every_missing_extra_is_named(code: str) -> None:
    package, extra = LACKING[code]
    run = f"import sys; sys.modules[{package!r}] = None\n{code}"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", run], capture_output=True, text=True, timeout=120)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.endswith(f'needs {package}: pip install "invconv[{extra}]"'), done.stderr
    assert last.startswith("error: " if "main(" in code else "invconv.errors.MissingPackageError: ")


# -- the layers of a network ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flag", [["--list-layers"], ["--list_layers"], ["--list-layers", "true"], ["--list-layers=true"]]
)
def test_layers_are_listed(flag: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command.run([*flag, "--model", "squeezenet1_1"])
    said = capsys.readouterr().out
    assert re.search(r"^features\.12\.expand3x3 +Conv2d$", said, flags=re.M)


def test_a_flag_can_be_false(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def inverted(*given: object) -> tuple[list[object], list[str]]:
        asked.append(given)
        return [], []

    monkeypatch.setattr(command, "_invert", inverted)
    monkeypatch.setattr(command, "plot", lambda *_, **__: None)
    words = ["--model", "squeezenet1_1", "--weights", "none", "--layers", "features.0", "--size", "64"]
    command.run([*words, "--list-layers", "false", "--device", "cpu", "--out", str(tmp_path / "out.png")])
    assert len(asked) == 1


# -- what a trained flow says --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two flows that were not trained, one with classes, as a Trainer would write them; and images."""
    import lightning as L

    folder = tmp_path_factory.mktemp("flows")
    torch.manual_seed(0)
    images = np.random.default_rng(0).integers(256, size=(12, 3, 8, 8), dtype=np.uint8)
    np.savez(folder / "images.npz", x_test=images, y_test=np.arange(12) % 2)
    for name, classes in (("plain", 0), ("classes", 2)):
        flow = MultiScaleFlow(image_size=8, scales=1, steps=1, hidden=8, num_classes=classes)
        flow(torch.from_numpy(images), torch.zeros(12, dtype=torch.long) if classes else None)  # starts ActNorm
        trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False)
        trainer.strategy.connect(FlowModule(flow))
        trainer.save_checkpoint(folder / f"{name}.ckpt")
    return folder


def test_samples_are_those_of_the_flow(checkpoints: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "samples.png"
    main(
        ["sample", str(checkpoints / "plain.ckpt"), "--count", "6", "--columns", "3", "--seed", "4", "--out", str(out)]
    )
    flow = FlowModule.load_from_checkpoint(checkpoints / "plain.ckpt").eval().flow
    x = flow.sample(6, 0.7, generator=torch.Generator().manual_seed(4))
    drawn_x = torch.from_numpy(np.array(Image.open(out))).movedim(-1, 0)
    assert drawn_x.shape == (3, 2 * 9 + 1, 3 * 9 + 1), "images of 8 with a line between"
    assert torch.equal(drawn_x[:, 1:9, 1:9], x[0]) and torch.equal(drawn_x[:, 10:18, 19:27], x[5])


def test_a_class_is_drawn_where_there_are_classes(checkpoints: Path, tmp_path: Path) -> None:
    picture = {}
    for label in ("0", "1"):
        out = tmp_path / f"{label}.png"
        main(["sample", str(checkpoints / "classes.ckpt"), "--count", "2", "--label", label, "--out", str(out)])
        picture[label] = np.array(Image.open(out))
    assert picture["0"].shape == picture["1"].shape
    with pytest.raises(SystemExit, match="knows no classes"):
        main(["sample", str(checkpoints / "plain.ckpt"), "--label", "1", "--out", str(tmp_path / "a.png")])
    with pytest.raises(SystemExit, match="count must be"):
        main(["sample", str(checkpoints / "plain.ckpt"), "--count", "0", "--out", str(tmp_path / "a.png")])


def test_the_score_is_the_mean_of_bits_per_dim(checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = ["--data", f"npz:{checkpoints / 'images.npz'}", "--batch-size", "5"]
    main(["score", str(checkpoints / "plain.ckpt"), *source])
    said = capsys.readouterr().out.strip().splitlines()[-1]
    module = drawn.load_flow(checkpoints / "plain.ckpt")
    x = torch.from_numpy(np.load(checkpoints / "images.npz")["x_test"])
    each = [module.flow.bits_per_dim(part, None, module.noise(0, i)) for i, part in enumerate(x.split(5))]
    assert said == f"{torch.cat(each).mean():.4f} bits/dim, mean of 12 images: images.npz"
