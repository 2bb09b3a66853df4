"""The one way to ask: `python -m benchmarks.QUESTION [TRIAL] [options]`.

A trial is a module.  Its docstring is its help, `arguments` adds its options to a parser, `main` runs it, and `QUICK`
has the options with which it only shows, within a minute, that it runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Trial(Protocol):
    """What a module has to hold."""

    __name__: str
    __doc__: str | None

    @property
    def QUICK(self) -> Mapping[str, Any]:  # noqa: N802  (a constant of the module)
        """Options that make it short."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options."""

    def main(self, options: argparse.Namespace) -> None:
        """Measure and print."""


def ask(question: str, description: str | None, *trials: Trial, words: Sequence[str] | None = None) -> None:
    """Run the trial that the command line names, or the only one there is.

    Args:
        question: the name of the module below `benchmarks`.
        description: the docstring of the question.
        trials: each is a subcommand where there are several.
        words: of the command line, by default those of this process.
    """
    words = sys.argv[1:] if words is None else words
    parser = _parser(argparse.ArgumentParser, description, prog=f"python -m benchmarks.{question}")
    if len(trials) == 1:
        _complete(parser, trials[0], words)
    else:
        subcommands = parser.add_subparsers(required=True, metavar="TRIAL")
        for trial in trials:
            name, what = trial.__name__.rpartition(".")[2], trial.__doc__ or ""
            _complete(_parser(subcommands.add_parser, what, name=name, help=what.splitlines()[0]), trial, words)
    options = parser.parse_args(words)
    options.trial.main(options)


def _parser(make: Any, description: str | None, **options: Any) -> argparse.ArgumentParser:
    return make(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **options)


def _complete(parser: argparse.ArgumentParser, trial: Trial, words: Sequence[str]) -> None:
    trial.arguments(parser)
    parser.add_argument("--quick", action="store_true", help="the smallest form, to see that it runs")
    parser.set_defaults(trial=trial)
    if "--quick" in words:
        parser.set_defaults(**trial.QUICK)
