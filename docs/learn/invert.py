# %% [markdown]
# # Invert a convolution
#
# A convolution is a linear map: each number that comes out is a weighted sum of numbers that went in. Whether a map can
# be undone is a question about its matrix, and `InvertibleConv2d` answers it without ever writing that matrix down.
#
# It is a `torch.nn.Conv2d` in every other respect: same arguments, same `state_dict`, same forward.

# %%
import matplotlib.pyplot as plt
import torch
from skimage import data

from invconv import InvertibleConv2d

photograph = torch.from_numpy(data.chelsea()).permute(2, 0, 1).float()[None] / 255
photograph = photograph[..., :300, 40:440]

torch.manual_seed(0)
conv = InvertibleConv2d(3, 3, kernel_size=5, padding=2)
with torch.no_grad():
    conv.weight += 0.02 * torch.randn_like(conv.weight)  # as if it had been trained
    y = conv(photograph)
    x = conv.inverse(y)

print(f"largest error of a pixel: {(x - photograph).abs().max():.1e}")

# %% alt="A photograph of a cat, what the layer makes of it, and the same photograph brought back from that"
figure, axes = plt.subplots(1, 3, figsize=(8.4, 2.4))
scaled = (y - y.min()) / (y.max() - y.min())
for axis, image, title in zip(axes, (photograph, scaled, x), ("x", "y = conv(x)", "conv.inverse(y)"), strict=True):
    axis.imshow(image[0].permute(1, 2, 0).clamp(0, 1))
    axis.set_title(title)
    axis.axis("off")

# %% [markdown]
# ## What it did, and what the answer is worth
#
# The matrix of this layer on this photograph has 360,000 rows. `operator(size)` is the map on images of one size. It says
# beforehand which way it would take, and afterwards how far to trust what it found.

# %%
A = conv.operator(photograph.shape)
print(A.plan())

# %%
print(A.report())

# %% [markdown]
# `condition` is the factor by which relative errors can grow on the way back. In float32 numbers carry about seven
# digits: a condition of 100 leaves five of them.
#
# ## Not only square layers
#
# A layer with more outputs than inputs can be undone from any of its outputs; noise on them is projected away. One with
# fewer outputs cannot be undone, and `inverse` gives the least image that has these outputs: the pseudo-inverse $A^+$.

# %%
tall = InvertibleConv2d(3, 16, 4, stride=2, padding=1)  # 16 numbers for every 3 x 2 x 2
wide = InvertibleConv2d(3, 6, 4, stride=2, padding=1)  # 6 for every 12: half is lost
with torch.no_grad():
    for layer in (tall, wide):
        back = layer.inverse(layer(photograph))
        again = (layer(back) - layer(photograph)).norm() / layer(photograph).norm()
        print(
            f"{layer.out_channels} channels: image off by {(back - photograph).norm() / photograph.norm():.1e}, "
            f"its outputs by {again:.1e}"
        )

# %% [markdown]
# The image that comes back from the second layer is not the photograph, and has the very same outputs.
#
# ## Log-determinant, singular values, gradients
#
# Everything is differentiable, in the images and in the weight. So a layer can be trained through its own inverse.

# %%
size = (3, 32, 32)
print("log |det A|, nats:   ", conv.log_abs_det(size).item())
print("condition:           ", conv.condition_number(size).item())
print("largest stretch:     ", conv.spectral_norm(size).item())
print("smallest stretch:    ", conv.smallest_singular_value(size).item())

loss = conv.inverse(torch.randn(4, 3, 32, 32)).square().mean() - 1e-3 * conv.log_abs_det(size)
loss.backward()
print("gradient by the weight:", tuple(conv.weight.grad.shape))

# %% alt="The singular values of the layer from largest to smallest, on a logarithmic axis"
values = conv.singular_values((3, 16, 16)).detach()
figure, axis = plt.subplots(figsize=(5.2, 2.4))
axis.semilogy(values)
axis.set(xlabel="number, of 768", ylabel="singular value", title="All of them, zero borders, 16 x 16")
axis.grid(alpha=0.25)

# %% [markdown]
# **Next:** [real borders](borders.md), the question that this library began with.
