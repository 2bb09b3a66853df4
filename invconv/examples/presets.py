"""Configurations by name: the YAML files beside a script, whose first line says what each is for."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from invconv.errors import InputError

COMMANDS = ("fit", "validate", "test", "predict")
"""Of LightningCLI, which take a configuration of one's own."""


class Presets:
    """The configurations beside a script.

    Args:
        script: its `__file__`.
    """

    def __init__(self, script: str) -> None:
        self.files = {path.stem: path for path in sorted(Path(script).parent.glob("*.yaml"))}

    def __str__(self) -> str:
        lines = [(name, path.read_text().partition("\n")[0].lstrip("# ")) for name, path in self.files.items()]
        return "\n".join(["configurations:", *(f"  {name:10}{line}" for name, line in lines)])

    def arguments(self, words: Sequence[str], doc: str | None) -> tuple[list[str], bool]:
        """What LightningCLI is called with, and whether a configuration was named.

        Args:
            words: of the command line; without any, or with "--help", `doc` and the configurations are printed.
            doc: what the script does.

        Raises:
            InputError: where the first word is neither a configuration nor a command of LightningCLI.
            SystemExit: after the help.
        """
        first = words[0] if words else "--help"
        if first in ("-h", "--help"):
            print(f"{doc}\n{self}")
            sys.exit()
        if first in self.files:
            return ["fit", "--config", str(self.files[first]), *words[1:]], True
        if first not in COMMANDS:
            near = difflib.get_close_matches(first, [*self.files, *COMMANDS], n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InputError(
                f"there is no configuration {first!r}: {hint}There are {', '.join(self.files)}, and fit --config FILE"
            )
        return list(words), False
