# %% [markdown]
# # A flow on images, and its samples
#
# A normalizing flow maps images to noise by steps that can be undone, so that the probability of an image is that of its
# noise, corrected by the log-determinants of the steps. Between the steps the channels have to be mixed. Glow mixes them by
# 1 x 1 convolutions, since these are easily undone; here any kernel is.
#
# This is a small flow, trained for half a minute of one core on crops of photographs that come with scikit-image.
# `make demo` trains a larger one for three minutes.

# %%
import time

import matplotlib.pyplot as plt
import torch
from torchvision.utils import make_grid

from invconv.flows import MultiScaleFlow, parameter_groups
from invconv.lightning import FlowModule, ImageDataModule

SECONDS = 30
torch.manual_seed(0)
photos = ImageDataModule("photos", batch_size=64, image_size=16, flip=True)
photos.setup()


def batches():
    """Integer images (64, 3, 16, 16), without end."""
    while True:
        yield from (x for x, _ in photos.train_dataloader())


flow = MultiScaleFlow(image_size=16, scales=2, steps=3, hidden=48, kernel_size=3, rho=0.9)
optimizer = torch.optim.Adam(parameter_groups(flow, lr=2e-3, kernel_rate=10))
losses, start = [], time.perf_counter()
for x in batches():
    loss = flow.bits_per_dim(x).mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
    optimizer.step()
    losses.append(loss.item())
    if time.perf_counter() - start > SECONDS:
        break

flow.eval()
held_out, _ = next(iter(photos.test_dataloader()))
with torch.no_grad():
    print(
        f"{len(losses)} steps, held-out images: {flow.bits_per_dim(held_out).mean():.2f} bits/dim (8 without a model)"
    )

# %% alt="The loss in bits for each value of a pixel, falling over the steps of training"
figure, axis = plt.subplots(figsize=(5.2, 2.4))
axis.plot(losses)
axis.set(xlabel="step", ylabel="bits/dim", ylim=(min(losses) - 0.2, 8))
axis.grid(alpha=0.25)

# %% [markdown]
# ## Back from the latents
#
# An image goes through every step and back. What returns is the image to rounding error, whatever the flow has learnt.

# %%
print(f"largest error, full scale being 1: {flow.reconstruction_error(held_out).max():.1e}")

# %% alt="Three rows of sixteen small pictures: held-out photographs, samples of the flow, samples at a lower temperature"
torch.manual_seed(1)
with torch.no_grad():
    rows = {
        "held-out photographs": held_out[:16],
        "samples": flow.sample(16),
        "samples, temperature 0.7": flow.sample(16, temperature=0.7),
    }
figure, axes = plt.subplots(3, 1, figsize=(8, 2.4))
for axis, (title, images) in zip(axes, rows.items(), strict=True):
    axis.imshow(make_grid(images.float() / 255, 16, padding=1, pad_value=1).permute(1, 2, 0))
    axis.set_title(title)
    axis.axis("off")

# %% [markdown]
# Half a minute teaches it colours and edges, not objects. What matters is that no sample is infinite and that training
# does not blow up, and that is no luck: `rho` bounds what a kernel adds to its centre tap, and with it the condition of
# each layer, at every image size.

# %%
conditions = [conv.condition_number(size).item() for conv in flow.convolutions for size in conv.input_sizes()[:1]]
print("conditions of the layers:", " ".join(f"{condition:.1f}" for condition in conditions))

# %% [markdown]
# ## A flow that had longer
#
# [flow.ckpt](../assets/flow.ckpt), 0.8 MB, is a flow of this kind after 2,250 steps, six minutes of one core: `invconv train flow demo
# --data.source photos --data.image_size 16`, with two scales and couplings 64 wide. A checkpoint says how its network is made, so
# that one line loads it.

# %%
longer = FlowModule.load_from_checkpoint("docs/assets/flow.ckpt").eval().flow  # where it was put
with torch.no_grad():
    print(f"held-out images: {longer.bits_per_dim(held_out).mean():.2f} bits/dim")

# %% alt="Samples of the flow that was trained for longer, at two temperatures: stone, brick, sky, skin"
torch.manual_seed(1)
figure, axes = plt.subplots(2, 1, figsize=(8, 2.6))
for axis, temperature in zip(axes, (1.0, 0.8), strict=True):
    samples = longer.sample(32, temperature=temperature)
    axis.imshow(make_grid(samples / 255, 16, padding=1, pad_value=1).permute(1, 2, 0))
    axis.set_title(f"samples, temperature {temperature:g}")
    axis.axis("off")

# %% [markdown]
# `invconv sample docs/assets/flow.ckpt` draws a picture of them without any Python.
#
# ## Which mixing?
#
# `MultiScaleFlow(mixing="pair")` takes two masked convolutions that together see 3 x 3 and whose log-determinant is that of
# one tap: the best by the clock where borders are zeros. `mixing="dense"`, the default, is one convolution with whatever
# borders. [Bits/dim in ten minutes](../results/flows.md) compares them; [Lightning](../howto/lightning.md) trains them on
# your own images.
#
# **Next:** [back through a trained network](network.md).
