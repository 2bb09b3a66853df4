"""The public names of the library, read from its source, and the page of the reference that each is on."""

from __future__ import annotations

import ast
import json
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PINNED: dict[str, list[str]] = json.loads((ROOT / "tests" / "data" / "public_names.json").read_text())

PAGES = {
    "errors": ("Errors and warnings", ["errors"]),
    "operator": ("Operators, plans, reports, options", ["operator", "report", "options", "geometry"]),
    "summary": ("Summary of a network", ["summary"]),
    "layers": ("Layers", ["", "layers", "layers.frozen"]),
    "functional": ("Functions of a weight", ["functional"]),
    "parametrizations": ("Kernels by construction", ["parametrizations"]),
    "flows": ("Flows", ["flows"]),
    "inversion": ("Inversion of networks", ["inversion"]),
    "autoencoder": ("Autoencoder", ["autoencoder"]),
    "arrays": ("Arrays larger than memory", ["arrays"]),
    "lightning": ("Lightning", ["lightning"]),
    "interop": ("Plugs", ["interop.*"]),
}
"""The pages: title, and modules below `invconv`; a name that two modules have is on the first of their pages."""

FIRST = ["invconv.InvertibleConv2d", "invconv.flows.MultiScaleFlow", "invconv.inversion.invert"]
"""Names that come before the others of their page."""


def source(module: str) -> Path:
    """The file of a module."""
    path = ROOT / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def modules(page: str) -> list[str]:
    """The modules of a page, by their full names."""
    found = []
    for name in PAGES[page][1]:
        if name.endswith("*"):
            folder = ROOT / "invconv" / name.rpartition(".")[0]
            found += [f"invconv.{folder.name}.{path.stem}" for path in sorted(folder.glob("[!_]*.py"))]
        else:
            found.append(f"invconv.{name}".rstrip("."))
    return found


@cache
def tree(module: str) -> ast.Module:
    """What stands in a module."""
    return ast.parse(source(module).read_text())


@cache
def public(module: str) -> dict[str, str]:
    """The public names of a module, and where each is defined: `__all__`, else its classes and what is pinned."""
    origin = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree(module))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    listed = [
        ast.literal_eval(node.value)
        for node in tree(module).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    classes = [
        node.name for node in tree(module).body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    names = dict.fromkeys((listed[0] if listed else classes) + PINNED.get(module, []))
    return {name: _defined(origin.get(name, f"{module}.{name}")) for name in names}


def _defined(path: str) -> str:
    """The same name where it is defined, through the pages that only hand it on."""
    module, _, name = path.rpartition(".")
    if not source(module).exists() or source(path).exists():
        return path
    for node in tree(module).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("invconv"):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _defined(f"{node.module}.{alias.name}")
    return path


@cache
def reference() -> dict[str, dict[str, str]]:
    """For each page the names that are documented on it, as one imports them, and where each is defined."""
    seen: set[str] = set()
    pages: dict[str, dict[str, str]] = {}
    for page in PAGES:
        pages[page] = {}
        for module in modules(page):
            for name, path in public(module).items():
                if path not in seen and not source(path).exists():
                    seen.add(path)
                    pages[page][f"{module}.{name}"] = path
    for first in FIRST:
        page = next(page for page in pages if first in pages[page])
        pages[page] = {first: pages[page][first], **pages[page]}
    return pages


def undocumented() -> list[str]:
    """Public names that are on no page."""
    documented = {path for paths in reference().values() for path in paths.values()}
    every = {path for module in PINNED for path in public(module).values()}
    return sorted(path for path in every - documented if not source(path).exists())
