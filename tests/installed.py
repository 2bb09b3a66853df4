"""An environment with the wheel, and nothing else but what it and some of its extras require: links to what is here."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def closure(extras: list[str]) -> set[str]:
    """Names of all distributions that invconv requires, with extras, as far as they are installed here."""
    found: set[tuple[str, str]] = set()
    queue = [(requirement, extra) for requirement in metadata.requires("invconv") or [] for extra in ["", *extras]]
    while queue:
        text, extra = queue.pop()
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in ["", *requirement.extras]:
            if (name, wanted) in found:
                continue
            found.add((name, wanted))
            try:
                queue += [(more, wanted) for more in metadata.requires(name) or []]
            except metadata.PackageNotFoundError:
                continue
    return {name for name, _ in found} - {"invconv"}


def build(folder: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel that is made of it, built by what is installed here."""
    _build("sdist", folder, ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    _build("wheel", folder, folder / sdist.name.removesuffix(".tar.gz"))
    return next(folder.glob("*.whl")), sdist


def _build(kind: str, folder: Path, source: Path) -> None:
    code = f"import setuptools.build_meta as backend; backend.build_{kind}({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True, timeout=300)


def alone() -> dict[str, str]:
    """What processes are told of this one, but not where it finds its modules."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


class Environment:
    """A virtual environment with the wheel, and links to what it requires.

    Args:
        folder: where it is put.
        wheel: the file.
        extras: names of extras.
    """

    def __init__(self, folder: Path, wheel: Path, extras: list[str]) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
        self.site = next((folder / "lib").glob("python*")) / "site-packages"
        for name in closure(extras):
            self._link(name)
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--no-deps", "--no-index"]
        subprocess.run([*pip, "--quiet", str(wheel)], env=alone(), check=True, timeout=120)

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def _link(self, name: str) -> None:
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            return
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            place, link = Path(str(distribution.locate_file(top))), self.site / top
            if place.exists() and not link.exists():
                link.symlink_to(place)

    def run(self, *words: str, where: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a script of the environment, or a module by "-m"."""
        command = [str(self.folder / "bin" / words[0]), *words[1:]]
        return subprocess.run(
            command, cwd=where or self.folder, env=alone(), capture_output=True, text=True, timeout=500
        )
