"""Training of flows with PyTorch Lightning: a module, image data, and callbacks that look on."""

from invconv.lightning.data import ImageDataModule
from invconv.lightning.module import FlowModule
from invconv.lightning.monitor import InvertibilityMonitor
from invconv.lightning.pictures import PictureWriter
from invconv.lightning.refresh import RefreshInverses

__all__ = ["FlowModule", "ImageDataModule", "InvertibilityMonitor", "PictureWriter", "RefreshInverses"]
