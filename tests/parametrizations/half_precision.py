"""What half precision may do to a parametrized kernel: round it, and nothing else."""

import copy

import torch


def check_rounding(conv, e, dtype, scale):
    """The kernel of a new E, in half precision, is that of the same parameters in float64, rounded; with gradients.

    Args:
        conv: a layer whose weight is parametrized, with `e` among the parameters; it is left in `dtype`.
    """
    with torch.no_grad():
        e.normal_().clamp_(-4, 4).mul_(scale)
    conv.to(dtype)
    exact = copy.deepcopy(conv).double().weight
    assert conv.weight.dtype == dtype
    assert (conv.weight.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()
    conv.weight.float().square().sum().backward()
    parameters = list(conv.parametrizations.weight.parameters())
    assert parameters and all(parameter.grad.isfinite().all() for parameter in parameters)
