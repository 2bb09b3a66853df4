# %% [markdown]
# # Never stale
#
# An inverse is worth computing once and keeping. Then the weight changes, and the kept one is wrong, silently. Libraries
# that keep an inverse have to be told when to drop it, and there are many ways to change a weight that tell nobody: fused
# optimizers, `.data`, averaged weights that are swapped in, loaded checkpoints.
#
# Here each use compares the weight with the one that its factors were made from, *by value*. That costs microseconds,
# and leaves nothing to remember.

# %%
import copy

import matplotlib.pyplot as plt
import torch
from torch import nn

from invconv import InvertibleConv2d, keep_fresh

torch.manual_seed(0)
conv = InvertibleConv2d(12, 12, 3, padding=1)
x = torch.randn(8, 12, 32, 32)


def error() -> float:
    """How far inverse(conv(x)) is from x."""
    with torch.no_grad():
        return float((conv.inverse(conv(x)) - x).norm() / x.norm())


optimizer = torch.optim.Adam(conv.parameters(), lr=0.01)
average = copy.deepcopy(conv)


def step() -> None:
    """One step of some training."""
    optimizer.zero_grad()
    (conv(x).square().mean() - 1e-4 * conv.log_abs_det(x.shape)).backward()
    optimizer.step()


def write_data() -> None:
    """What moving averages and hand-written updates do."""
    conv.weight.data.mul_(1.1).add_(0.001)


def swap() -> None:
    """Averaged weights take the place of the trained ones."""
    conv.load_state_dict(average.state_dict())


def write_under_a_view() -> None:
    """A write to one tap, through a view, without gradients."""
    with torch.no_grad():
        conv.weight[..., 0, 0].zero_()


changes = {
    "an optimizer step": step,
    "conv.weight.data": write_data,
    "load_state_dict": swap,
    "one tap, by a view": write_under_a_view,
    "torch.nn.utils.vector_to_parameters": lambda: nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(conv.parameters()) * 0.9, conv.parameters()
    ),
}
print(f"{'as initialised':36} {error():.1e}")
for name, change in changes.items():
    change()
    print(f"{name:36} {error():.1e}")

# %% [markdown]
# ## What a kept inverse would have done
#
# The same training, and beside it an inverse that is kept from the first step.

# %% alt="Relative error of the reconstruction over forty training steps: the kept inverse rises from rounding to about one half, invconv's stays at rounding"
conv = InvertibleConv2d(12, 12, 3, padding=1)
optimizer = torch.optim.Adam(conv.parameters(), lr=0.01)
kept = conv.operator(x.shape)  # of the weight as it is now; an operator never changes
fresh, stale = [], []
for _ in range(40):
    with torch.no_grad():
        stale.append(float((kept.pseudo_inverse(conv(x) - conv.bias[:, None, None]) - x).norm() / x.norm()))
    fresh.append(error())
    step()

figure, axis = plt.subplots(figsize=(5.6, 2.7))
axis.semilogy(stale, label="an inverse that is kept")
axis.semilogy(fresh, label="conv.inverse")
axis.set(xlabel="training step", ylabel="relative error")
axis.grid(alpha=0.25)
axis.legend()

# %% [markdown]
# ## Choosing when to pay
#
# Factors are computed at the first question after a change. `keep_fresh` moves that moment to the end of the optimizer's
# step: it changes no answer. Lightning has the callback `invconv.lightning.RefreshInverses`.

# %%
handle = keep_fresh(optimizer, conv, (32, 32))
step()
print("sizes that are ready before anyone asks:", conv.prepared_sizes())

# %% [markdown]
# `make bench-fresh` asks seven questions after each of 67 ways to change a weight, here and in the caches of other
# libraries: [results](../results/freshness.md).
#
# **Next:** [a flow on images](flow.md), where all of this is needed at every step.
