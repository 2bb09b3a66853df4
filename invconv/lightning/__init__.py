"""Training with PyTorch Lightning: modules, image data, and callbacks that look on."""

from invconv.lightning.autoencoder import AutoencoderModule
from invconv.lightning.classifier import ClassifierModule
from invconv.lightning.data import ImageDataModule
from invconv.lightning.inversions import InversionPictures
from invconv.lightning.module import FlowModule
from invconv.lightning.monitor import InvertibilityMonitor
from invconv.lightning.pictures import PictureWriter
from invconv.lightning.refresh import RefreshInverses

__all__ = [
    "AutoencoderModule",
    "ClassifierModule",
    "FlowModule",
    "ImageDataModule",
    "InversionPictures",
    "InvertibilityMonitor",
    "PictureWriter",
    "RefreshInverses",
]
