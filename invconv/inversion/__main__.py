"""Invert the layers of a network for one photograph: `python -m invconv.inversion --help`."""

from invconv.lightning.command import run

run()
