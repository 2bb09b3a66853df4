"""Images larger than memory: from one array on disk to another, window by window, with the borders of the whole image.

`y` and `out` are whatever has a shape, a dtype and slices: `numpy.memmap`, zarr, h5py, plain NumPy.
"""

from invconv.arrays.passes import Written, apply, inverse

__all__ = ["Written", "apply", "inverse"]
