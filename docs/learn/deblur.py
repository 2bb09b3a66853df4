# %% [markdown]
# # Deblur a photograph
#
# A shaken camera makes of a picture its convolution with the path of the shake. To undo it means to solve for the picture,
# but not exactly: noise that is small in the picture is large in its inverse. What is wanted is
#
# $$\min_x \; \|A x - y\|^2 + d^2 \|x - v\|^2$$
#
# near some guess v, with a damping d that says how much noise there is. `conv.proximal(y, v, damping=d)` is that minimum,
# with the borders that the picture has.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from skimage import color, data

from invconv import InvertibleConv2d

torch.manual_seed(0)
photograph = torch.from_numpy(color.rgb2gray(data.astronaut())[:192, 128:320])[None, None]

random = np.random.default_rng(3)
path = np.cumsum(np.cumsum(random.normal(size=(300, 2)), axis=0), axis=0)  # of the hand, during the exposure
path = (path - path.min(0)) / np.ptp(path, axis=0).max() * 12 + 1
kernel = np.zeros((15, 15))
for place in np.round(path).astype(int):
    kernel[tuple(place)] += 1
kernel = torch.from_numpy(kernel / kernel.sum())[None, None]

y = F.conv2d(photograph, kernel, padding=7)  # taken in a dark room: nothing beyond the edge
y = y + 0.01 * torch.randn_like(y)

# %% [markdown]
# ## With the borders that there are, and with those of a torus


# %%
def restored(mode: str, damping: float = 0.03) -> torch.Tensor:
    """The minimum, if beyond the edge stood what `mode` says."""
    conv = InvertibleConv2d(1, 1, 15, padding=7, padding_mode=mode, bias=False, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(kernel)
        return conv.proximal(y, y, damping=damping)


def psnr(x: torch.Tensor) -> float:
    """Peak signal to noise in dB."""
    return float(-10 * (x.clamp(0, 1) - photograph).square().mean().log10())


shown = {"blurred": y, "circular borders": restored("circular"), "zero borders": restored("zeros")}
for name, x in shown.items():
    print(f"{name:17} {psnr(x):.1f} dB")

# %% alt="The blurred photograph, the one restored with circular borders, with bars and ripples at its edges, and the one restored with zero borders, which is clear"
figure, axes = plt.subplots(1, 4, figsize=(8.6, 2.4))
for axis, (name, x) in zip(axes, [*shown.items(), ("the photograph", photograph)], strict=True):
    axis.imshow(x[0, 0].clamp(0, 1), vmin=0, vmax=1)
    axis.set_title(name)
    axis.axis("off")

# %% [markdown]
# With circular borders, what stands beyond one edge is taken for what stands at the opposite one: bars at the edges, and ripples
# that come in from there.
#
# ## How much damping?
#
# Too little, and the noise is blown up; too much, and the blur stays. The factors are found anew for each d, in a fraction
# of a second.

# %% alt="Peak signal to noise against damping for zero and circular borders; zero borders have their best in the middle and lie far above circular ones everywhere"
dampings = [0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2]
figure, axis = plt.subplots(figsize=(5.4, 2.6))
for mode in ("zeros", "circular"):
    axis.semilogx(dampings, [psnr(restored(mode, d)) for d in dampings], marker="o", markersize=4, label=mode)
axis.axhline(psnr(y), color="gray", linestyle=":", label="blurred")
axis.set(xlabel="damping d", ylabel="PSNR, dB")
axis.grid(alpha=0.25)
axis.legend()

# %% [markdown]
# ## Learn from it
#
# The minimum is differentiable in y, v, the kernel and d. So d can be found by gradient descent, or the kernel, or a network
# can be trained that makes the guess v; `invconv.interop.deepinv.ConvPhysics` puts it into the loops of deepinv.

# %%
conv = InvertibleConv2d(1, 1, 15, padding=7, bias=False, dtype=torch.float64)
with torch.no_grad():
    conv.weight.copy_(kernel)
conv.weight.requires_grad_(False)
log_d = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
optimizer = torch.optim.Adam([log_d], lr=0.3)
for _ in range(8):
    loss = (conv.proximal(y, y, damping=log_d.exp()) - photograph).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"found: d = {log_d.exp().item():.3f}, {-10 * loss.log10().item():.1f} dB")

# %% [markdown]
# `make deblur` does this for twelve photographs and three kinds of border, beside the usual remedies:
# [results](../results/borders.md#photographs-restored).
