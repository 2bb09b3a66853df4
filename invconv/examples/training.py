"""Train a network of invertible convolutions on images: a flow, an autoencoder, or a classifier to be inverted.

    invconv train flow demo               minutes on two cores: bits/dim, reconstructions, samples
    invconv train autoencoder demo        a minute or two: what a code 16 times smaller keeps
    invconv train classifier              minutes: what each of its layers still knows of an image

`invconv train flow --help` lists the configurations of each. Images: --data.source folder:PATH, npz:PATH, cifar10,
photos (of scikit-image), or auto, what there is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from invconv.errors import InputError, needs

KINDS = ("flow", "autoencoder", "classifier")


def main(words: Sequence[str]) -> None:
    """Run the training that the first word names.

    Raises:
        InputError: where it names none.
    """
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        sys.exit()
    if words[0] not in KINDS:
        raise InputError(f"there is nothing to train called {words[0]!r}: name one of {', '.join(KINDS)}")
    with needs("lightning"):
        example = import_module(f"invconv.examples.{words[0]}.train")
    example.main(words[1:])
