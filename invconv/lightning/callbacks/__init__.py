"""Callbacks that look on while a `Trainer` trains, or keep the inverses fresh."""

from invconv.lightning.callbacks.inversions import InversionPictures
from invconv.lightning.callbacks.monitor import InvertibilityMonitor
from invconv.lightning.callbacks.pictures import PictureWriter
from invconv.lightning.callbacks.refresh import RefreshInverses

__all__ = ["InversionPictures", "InvertibilityMonitor", "PictureWriter", "RefreshInverses"]
