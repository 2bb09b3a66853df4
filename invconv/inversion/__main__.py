"""Invert the layers of a network for one photograph: `python -m invconv.inversion --help`.

The command trains a network where no weights can be had, and so lives with the training; it is looked up when it runs.
"""

from importlib import import_module

import_module("invconv.lightning.command").run()
