"""The code in a page, run from top to bottom as one script; what a block prints is shown below it.

It runs in a folder of its own, in which `docs` is that of the repository.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
COLUMNS = re.compile(r"^.*\S  +\S.*$", re.M)
"""A line with a gap in it."""


def shown(said: str) -> str:
    """What code has printed, as a block; a table is not broken into shorter lines."""
    table = " .table" if len(COLUMNS.findall(said)) > 2 else ""
    return f"```{{.text .output{table}}}\n{said}\n```"


def run(page: str, text: str) -> str:
    """The page with what its blocks print; an error names the page and the block."""
    names: dict[str, Any] = {"__name__": "page"}

    def with_output(match: re.Match[str]) -> str:
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed), warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                exec(compile(match.group(1), page, "exec"), names)
        except Exception as error:
            raise RuntimeError(f"{page}: {type(error).__name__}: {error}, in\n{match.group(1)}") from error
        said = printed.getvalue().rstrip()
        return match.group(0) + (f"\n\n{shown(said)}" if said else "")

    before = os.getcwd()
    with tempfile.TemporaryDirectory() as place:
        os.symlink(DOCS, os.path.join(place, "docs"))
        os.chdir(place)
        try:
            return BLOCK.sub(with_output, text)
        finally:
            os.chdir(before)
