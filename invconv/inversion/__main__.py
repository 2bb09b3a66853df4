"""Invert the layers of a network for one photograph: `python -m invconv.inversion --help`.

The command trains a network where it is asked to, and so lives with the training; it is looked up when it runs.
"""

import sys
from importlib import import_module

try:
    command = import_module("invconv.lightning.command")
except ImportError as error:  # a package that is missing, by our word for it or by Python's
    advice = "" if "invconv[" in str(error) else ": pip install 'invconv[lightning]'"
    sys.exit(f"error: {error}{advice}")
command.run()
