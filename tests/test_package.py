"""The wheel and the sdist, as those get them who install them: `make wheel` runs all of it."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from installed import ROOT, Environment, build

import invconv

PLUGS = {"nflows": "nflows", "normflows": "normflows", "freia": "FrEIA", "zuko": "zuko", "deepinv": "deepinv"}
"""Extras, and the package that each is for."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(tmp_path_factory.mktemp("dist"))


@pytest.mark.slow
def test_the_wheel_has_what_it_needs_and_no_more(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as archive:
        names = set(archive.namelist())
        head = Parser().parsestr(archive.read(f"invconv-{invconv.__version__}.dist-info/METADATA").decode())
    here = {str(file.relative_to(ROOT)) for file in (ROOT / "invconv").rglob("*.py")}
    here |= {str(file.relative_to(ROOT)) for file in (ROOT / "invconv").rglob("*.yaml")} | {"invconv/py.typed"}
    assert {name for name in names if ".dist-info/" not in name} == here
    assert head["Version"] == invconv.__version__ and head["License-Expression"] == "MIT"
    assert {"pictures", "lightning", *PLUGS} <= set(head.get_all("Provides-Extra", []))
    assert head["Keywords"] and head.get_all("Classifier") and head.get_all("Project-URL")


@pytest.mark.slow
def test_without_extras(built: tuple[Path, Path], tmp_path: Path) -> None:
    """The layer works; what needs an extra says which."""
    bare = Environment(tmp_path / "bare", built[0], [])
    code = (
        "import torch, invconv, invconv.flows, invconv.inversion, invconv.autoencoder, invconv.arrays, sys\n"
        "import invconv.interop.scipy, invconv.interop.distributions\n"
        "conv, x = invconv.InvertibleConv2d(3, 3, 3, padding=1), torch.rand(1, 3, 8, 8)\n"
        "assert torch.allclose(conv.inverse(conv(x)), x, atol=1e-4)\n"
        "assert 'site-packages' in invconv.__file__\n"
        "assert not {'lightning', 'matplotlib', 'PIL', 'skimage', 'rich', 'torchvision'} & set(sys.modules)\n"
    )
    done = bare.run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    done = bare.run("invconv", "--version")
    assert done.stdout.startswith(f"invconv {invconv.__version__}, torch"), done.stderr
    lacking = {"lightning": "lightning", "inversion.figures": "pictures", **{f"interop.{name}": name for name in PLUGS}}
    code = (
        "import importlib, invconv\n"
        f"for module, extra in {lacking!r}.items():\n"
        "    try:\n"
        "        importlib.import_module(f'invconv.{module}')\n"
        "    except invconv.MissingPackageError as error:\n"
        "        assert str(error).endswith(f'pip install \"invconv[{extra}]\"'), error\n"
        "    else:\n"
        "        raise AssertionError(module)\n"
    )
    done = bare.run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    for words in (["train", "flow", "demo"], ["deblur"]):
        done = bare.run("invconv", *words)
        assert done.stderr.startswith("error: ") and 'pip install "invconv[' in done.stderr, (words, done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("extra", PLUGS)
def test_with_the_extra_of_a_plug(extra: str, built: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip(PLUGS[extra])
    done = Environment(tmp_path / extra, built[0], [extra]).run(
        "python", "-W", "ignore", "-c", f"import invconv.interop.{extra}"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_with_pictures(built: tuple[Path, Path], tmp_path: Path) -> None:
    """Figures and a photograph restored, without Lightning."""
    environment = Environment(tmp_path / "pictures", built[0], ["pictures"])
    code = (
        "import torch; from torch import nn; from invconv.inversion import invert\n"
        "x = torch.rand(1, 3, 16, 16); r = invert(nn.Sequential(nn.Conv2d(3, 8, 3)), '0', image=x, steps=0, mean=0.0)\n"
        "r.plot(x, to='figure.png'); r.save('found.png'); print(float(r.psnr(x)) > 40)\n"
    )
    done = environment.run("python", "-c", code, where=tmp_path)
    assert done.stdout == "True\n", done.stderr
    done = environment.run("invconv", "deblur", where=tmp_path)
    assert done.returncode == 0 and (tmp_path / "deblurred.png").exists(), done.stderr
    assert (tmp_path / "figure.png").exists() and (tmp_path / "found.png").exists()


@pytest.mark.slow
def test_with_lightning(built: tuple[Path, Path], tmp_path: Path) -> None:
    """From the wheel alone: the demo, shortened, then samples and a score of what it has trained."""
    environment = Environment(tmp_path / "lightning", built[0], ["lightning"])
    few = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=3", "--trainer.limit_test_batches=1"]
    small = ["--model.flow.init_args.steps=1", "--model.flow.init_args.hidden=8", "--data.source=photos"]
    done = environment.run("invconv", "train", "flow", "demo", *few, *small, where=tmp_path)
    assert done.returncode == 0 and "test bits/dim" in done.stdout, done.stderr
    (checkpoint,) = map(str, tmp_path.glob("runs/demo/**/last.ckpt"))
    done = environment.run("invconv", "sample", checkpoint, "--count", "4", where=tmp_path)
    assert done.returncode == 0 and (tmp_path / "samples.png").exists(), done.stderr
    done = environment.run("invconv", "score", checkpoint, "--data", "photos", where=tmp_path)
    assert done.returncode == 0 and "bits/dim, mean of" in done.stdout, done.stderr
    done = environment.run(
        "invconv", "summary", "--model", "squeezenet1_1", "--size", "32", "--seconds", "0.1", where=tmp_path
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_tests_of_the_sdist_run(built: tuple[Path, Path], tmp_path: Path) -> None:
    with tarfile.open(built[1]) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    kept = [
        name
        for name in ("tests", "benchmarks", "docs", "README.md", "CHANGELOG.md", "Makefile", "LICENSE")
        if not (folder / name).exists()
    ]
    assert kept == []
    own = {**os.environ, "PYTHONPATH": str(folder)}
    for words in (
        ["--collect-only"],
        ["tests/layers/test_conversion.py", "tests/test_cli.py", "-k", "network or help"],
    ):
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
        done = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
