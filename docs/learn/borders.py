# %% [markdown]
# # Real borders
#
# *For `y = F.conv2d(x, K, padding=1)`, how do I apply the pseudo-inverse efficiently?* That question has a well-known
# answer for images that wrap around like the surface of a torus: divide by the kernel's Fourier transform. Photographs do
# not wrap around, and neither does `padding=1`.

# %%
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from skimage import data

from invconv import functional

torch.manual_seed(0)
photograph = torch.from_numpy(data.coffee()).permute(2, 0, 1)[None, :, 20:276, 150:406].double() / 255
K = 0.05 * torch.randn(3, 3, 3, 3, dtype=torch.float64)
K[..., 1, 1] += torch.eye(3)  # a kernel with a firm middle: it can be undone at any size

y = F.conv2d(photograph, K, padding=1)

# %% [markdown]
# ## The recipe
#
# Transform, solve for each frequency, transform back. It inverts the map with circular borders, exactly, but that is
# another map than the one that made `y`.


# %%
def recipe(y: torch.Tensor, K: torch.Tensor) -> torch.Tensor:
    """Divide by the kernel's Fourier transform, frequency by frequency."""
    size = y.shape[-2:]
    taps = torch.zeros(*K.shape[:2], *size, dtype=K.dtype)
    taps[..., :3, :3] = K
    taps = taps.roll((-1, -1), (-2, -1))  # the middle of the kernel to the origin
    blocks = torch.fft.rfft2(taps).conj().permute(2, 3, 0, 1)  # one 3 x 3 matrix for each frequency
    spectrum = torch.fft.rfft2(y).permute(2, 3, 1, 0)
    return torch.fft.irfft2(torch.linalg.solve(blocks, spectrum).permute(3, 2, 0, 1), s=size)


A = functional.conv_operator(K, photograph.shape, padding=1)
answers = {"the FFT recipe": recipe(y, K), "invconv": A.pseudo_inverse(y)}
for name, x in answers.items():
    print(f"{name:15} relative error {(x - photograph).norm() / photograph.norm():.1e}")

# %% alt="Two rows: the answers of the recipe and of invconv, and below each its error on a logarithmic scale. The recipe's error is largest at the frame of the picture, and invconv's is at rounding everywhere."
figure, axes = plt.subplots(2, 2, figsize=(6.2, 6), height_ratios=(1, 1.05))
for column, (name, x) in zip(axes.T, answers.items(), strict=True):
    column[0].imshow(x[0].permute(1, 2, 0).clamp(0, 1))
    column[0].set_title(name)
    error = (x - photograph).abs().amax(1)[0].clamp_min(1e-17).log10()
    drawn = column[1].imshow(error, cmap="magma", vmin=-16, vmax=0)
    column[1].set_title("its error")
    for axis in column:
        axis.axis("off")
figure.colorbar(drawn, ax=axes[1], ticks=[-16, -12, -8, -4, 0], label="digits: log10 |error|", shrink=0.85)

# %% [markdown]
# The error of the recipe begins at the border and decays inwards, here quickly since the kernel is tame. With a random
# kernel it does not decay, and fills the picture.
#
# ## Why it can be exact all the same
#
# The zero-padded layer is a part of a map on a torus one place larger, looked at through two windows: one shows the
# places of the image, one those of the outputs. On that torus the FFT is exact. What stands between it and the answer are
# the values on the ring of places *outside* of the windows, `c (H + W + 1)` numbers, and for these there is one dense
# system of equations, which is factored once. [The theory](../understand/theory.md) has it on one page.

# %%
print(A.plan())
print(A.report())

# %% [markdown]
# ## A condition that the torus does not have
#
# Borders of zeros can ruin a layer that is benign on a torus. The kernel `[1.5, 1]` in one dimension: on a circle its
# condition is 5 at any length. With zeros beyond the edge it grows exponentially, and every layer says so.

# %%
kernel = torch.tensor([[[1.5, 1.0, 0.0]]], dtype=torch.float64)
print("length   circular      zeros")
for length in (8, 16, 32, 64):
    condition = {
        mode: functional.conv_condition_number(kernel, (length,), padding=1, padding_mode=mode).item()
        for mode in ("circular", "zeros")
    }
    print(f"{length:6} {condition['circular']:10.1f} {condition['zeros']:10.1e}")

# %% [markdown]
# So the same kernel can be undone or not, depending on what stands beyond the edge. `condition_number` is that of the map
# with the borders that it has, and `parametrizations.bounded` makes kernels whose condition is bounded at every size.
#
# ## All the other borders
#
# Every `padding_mode` of PyTorch, strides, dilation and groups are the same call.

# %%
for mode in ("zeros", "reflect", "replicate", "circular"):
    B = functional.conv_operator(K, photograph.shape, padding=1, padding_mode=mode)
    x = B.pseudo_inverse(B.forward(photograph))
    print(f"{mode:10} {B.report().solver:12} error {(x - photograph).norm() / photograph.norm():.1e}")

# %% [markdown]
# **Next:** [never stale](fresh.md): what happens to all of this when the weight changes.
