"""Lines of code of each plug in `invconv.interop`: without blank lines, comments and docstrings.

python -m benchmarks.speed plugs
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import invconv.interop

QUICK: Mapping[str, Any] = {}


def arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""


def lines_of_code(source: str) -> int:
    """Lines that hold code, after docstrings and comments have gone and long lines have been folded anew."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return sum(bool(line.strip()) for line in ast.unparse(tree).splitlines())


def main(_: argparse.Namespace) -> None:
    for path in sorted(Path(invconv.interop.__file__).parent.glob("*.py")):
        if path.stem != "__init__":
            print(f"{path.stem:<16}{lines_of_code(path.read_text()):>4}")
