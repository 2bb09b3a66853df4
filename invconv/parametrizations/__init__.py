"""Kernels that are what they should be by construction, as parametrizations of `torch.nn.utils.parametrize`."""

from invconv.layers.plain import to_conv
from invconv.parametrizations.bounded import Bounded, bounded
from invconv.parametrizations.causal import Causal, causal
from invconv.parametrizations.lipschitz import Lipschitz, lipschitz

__all__ = ["Bounded", "Causal", "Lipschitz", "bounded", "causal", "lipschitz", "to_conv"]
