"""Kernels that are what they should be by construction, as parametrizations of `torch.nn.utils.parametrize`."""

from invconv.parametrizations.bounded import Bounded, bounded
from invconv.parametrizations.causal import Causal, causal

__all__ = ["Bounded", "Causal", "bounded", "causal"]
