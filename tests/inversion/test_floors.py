"""The plan of `invconv.inversion`: what each of its files may use, with imports for type checkers counted as well."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from invconv import inversion

FLOORS = [
    {"interval", "layers", "lbfgs", "wrappers"},
    {"place", "least_squares"},
    {"registry", "coordinates", "recorded", "selection", "whole"},
    {"trace", "rules", "pooling", "entrywise", "moved", "powers", "joint"},
    {"graph"},
    {"chain"},
    {"site", "inputs", "prepared", "starts", "pictured"},
    {"closed_form", "visualize"},
    {"invert"},
    {"figures"},
]


def used(module: str) -> set[str]:
    """Names of the files of `invconv.inversion` that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(inspect.getsource(importlib.import_module(f"invconv.inversion.{module}")))):
        if isinstance(node, ast.ImportFrom) and node.module == "invconv.inversion":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("invconv.inversion."):
            names.add(str(node.module).split(".")[2])
    return names


def test_the_plan_knows_all_files() -> None:
    files = {path.stem for path in Path(inversion.__path__[0]).glob("*.py")}
    assert set.union(*FLOORS) == files - {"__init__", "__main__"}


@pytest.mark.parametrize("floor", range(len(FLOORS)))
def test_each_file_uses_only_those_of_the_floors_below(floor: int) -> None:
    below = set().union(*FLOORS[:floor])
    assert {name: used(name) - below for name in FLOORS[floor] if used(name) - below} == {}


def test_inversion_needs_no_training() -> None:
    code = "import sys, invconv.inversion; print('lightning' in sys.modules, 'matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_public_names() -> None:
    assert set(inversion.__all__) >= {"Interval", "Inversion", "LayerReport", "Place", "Site", "invert", "layer_names"}
    assert set(inversion.__all__) >= {"observe", "plot", "rule", "spread", "total_variation"}
    assert all(getattr(inversion, name).__doc__ for name in inversion.__all__)
