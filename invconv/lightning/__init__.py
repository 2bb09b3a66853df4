"""Training with PyTorch Lightning: modules, image data, and callbacks that look on."""

from invconv.errors import needs

with needs("lightning"):
    from invconv.lightning.autoencoder import AutoencoderModule
    from invconv.lightning.callbacks.inversions import InversionPictures
    from invconv.lightning.callbacks.monitor import InvertibilityMonitor
    from invconv.lightning.callbacks.pictures import PictureWriter
    from invconv.lightning.callbacks.refresh import RefreshInverses
    from invconv.lightning.classifier import ClassifierModule
    from invconv.lightning.data import ImageDataModule
    from invconv.lightning.flow import FlowModule

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
