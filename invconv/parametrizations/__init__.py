"""Kernels that are what they should be by construction, as parametrizations of `torch.nn.utils.parametrize`."""

from invconv.parametrizations.bounded import Bounded, bounded

__all__ = ["Bounded", "bounded"]
