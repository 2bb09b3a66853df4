"""The command `invconv`, and `python -m invconv`: a word for what is to be done, and options of its own.

    invconv summary --model resnet18          singular values, condition, log-volume of every convolution
    invconv invert --model squeezenet1_1      what the layers of a network still know of a photograph
    invconv train flow demo                   train a flow, an autoencoder or a classifier on images
    invconv sample CHECKPOINT                 draw images from a trained flow
    invconv score CHECKPOINT                  bits/dim of images under a trained flow
    invconv deblur                            restore a blurred photograph at the borders that it has
    invconv rescale                           learn to halve photographs so that they come back

`invconv WORD --help` tells the options. Pictures take the extra "pictures", networks and training "lightning":
pip install "invconv[lightning]".
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

import torch

import invconv
from invconv.errors import InputError, InvconvError

COMMANDS = {
    "summary": ("invconv.summary.__main__", "main"),
    "invert": ("invconv.lightning.command", "run"),
    "train": ("invconv.examples.training", "main"),
    "sample": ("invconv.lightning.drawn", "draw"),
    "score": ("invconv.lightning.drawn", "score"),
    "deblur": ("invconv.examples.deblur.restore", "main"),
    "rescale": ("invconv.examples.rescale", "main"),
}
NAMED = ("summary", "invert")
"""Commands that have another name as well, and so are told this one."""


def main(words: Sequence[str] | None = None) -> None:
    """Do what the words ask for.

    Raises:
        SystemExit: with an error in one line.
    """
    word, *rest = [*(sys.argv[1:] if words is None else words)] or ["--help"]
    if word in ("-h", "--help", "help"):
        print(__doc__)
    elif word in ("-V", "--version"):
        python = ".".join(map(str, sys.version_info[:3]))
        print(f"invconv {invconv.__version__}, torch {torch.__version__}, Python {python}")
    else:
        try:
            _run(word, rest)
        except (InvconvError, OSError) as error:
            sys.exit(f"error: {' '.join(str(error).split())}")


def _run(word: str, rest: list[str]) -> None:
    """Run one command."""
    if word not in COMMANDS:
        near = difflib.get_close_matches(word, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise InputError(f"there is no command {word!r}: {hint}")
    module, name = COMMANDS[word]
    command = getattr(import_module(module), name)
    command(rest, prog=f"invconv {word}") if word in NAMED else command(rest)
