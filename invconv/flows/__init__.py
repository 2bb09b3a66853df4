"""Normalizing flows for images: `forward` goes from data to latent, log-dets are in nats."""

from invconv.flows.actnorm import ActNorm
from invconv.flows.base import FlowLayer
from invconv.flows.chain import Chain
from invconv.flows.context import Context
from invconv.flows.conv import ConvFlow
from invconv.flows.coupling import AffineCoupling
from invconv.flows.dequantize import Dequantize
from invconv.flows.multiscale import MultiScaleFlow
from invconv.flows.pair import PairFlow
from invconv.flows.prior import GaussianPrior
from invconv.flows.rates import parameter_groups
from invconv.flows.reversed import Reversed
from invconv.flows.split import Split
from invconv.flows.squeeze import Squeeze
from invconv.layers.shares import shared_log_dets

__all__ = [
    "ActNorm",
    "AffineCoupling",
    "Chain",
    "Context",
    "ConvFlow",
    "Dequantize",
    "FlowLayer",
    "GaussianPrior",
    "MultiScaleFlow",
    "PairFlow",
    "Reversed",
    "Split",
    "Squeeze",
    "parameter_groups",
    "shared_log_dets",
]
