"""Invert the layers of a network for one photograph: `python -m invconv.inversion --help`, or `invconv invert`.

The command trains a network where it is asked to, and so lives with the training; it is looked up when it runs.
"""

import sys
from importlib import import_module

from invconv.errors import InvconvError

try:
    command = import_module("invconv.lightning.command")
    command.run()
except (InvconvError, OSError) as error:
    sys.exit(f"error: {' '.join(str(error).split())}")
