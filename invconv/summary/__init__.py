"""Singular values, condition and log-volume of every convolution of a network: `invconv.summary(model, input_size)`."""

from invconv.summary.network import summary
from invconv.summary.row import Row
from invconv.summary.table import Summary

__all__ = ["Row", "Summary", "summary"]
