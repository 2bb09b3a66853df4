"""Ways to undo a blur: ours, which knows the border, and those that pretend that the picture wraps.

All that are linear minimise ||A x - y||^2 + d^2 ||x - v||^2 with the same d and the same v, the blurred picture itself,
and differ by what they take for A beyond the edge.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from scipy.sparse.linalg import factorized
from torch import Tensor

from invconv import InvertibleConv2d
from invconv.errors import needs
from invconv.examples.deblur.scenes import PADDING_MODES, Scene

with needs("pictures"):
    from skimage import restoration

Method = Callable[[Scene, float], Tensor]


def _prior(taps: int) -> Tensor:
    """A kernel B that makes of white noise what varies as photographs do, about: 1 / r, with a window."""
    line = torch.arange(taps, dtype=torch.float64) - taps // 2
    r = (line[:, None] ** 2 + line**2).sqrt()
    kernel = torch.cos(torch.pi * r / (taps + 1)).clamp_min(0) / (r + 0.5)
    return kernel / kernel.norm()


PRIOR = _prior(9)


def layer(scene: Scene) -> InvertibleConv2d:
    """The blur as a layer, with the borders that it has; one for all photographs, which share its factors."""
    return _layer(scene.border, tuple(map(tuple, scene.kernel.tolist())))


@cache
def _layer(border: str, kernel: tuple[tuple[float, ...], ...]) -> InvertibleConv2d:
    padding = 0 if border == "valid" else len(kernel) // 2
    conv = InvertibleConv2d(
        1, 1, len(kernel), padding=padding, padding_mode=PADDING_MODES[border], bias=False, dtype=torch.float64
    )
    conv.weight.data.copy_(torch.tensor(kernel))
    return conv.requires_grad_(False)


def drawn_to(scene: Scene) -> Tensor:
    """The blurred picture, its edge pixels repeated as far as the blur has read."""
    reach = len(scene.kernel) // 2 if scene.border == "valid" else 0
    return F.pad(scene.blurred, (reach,) * 4, mode="replicate")


def ours(scene: Scene, damping: float) -> Tensor:
    """The proximal operator of a layer with the borders of the scene."""
    return crop(layer(scene).proximal(scene.blurred, drawn_to(scene), damping), scene)


def ours_twice(scene: Scene, damping: float) -> Tensor:
    """The same, drawn to what a circular FFT with a smooth margin makes of the picture."""
    first = smooth_answer(scene, damping)
    beyond = len(scene.kernel) - (len(scene.kernel) // 2 if scene.border == "valid" else 0)
    v = first[..., beyond:-beyond, beyond:-beyond]
    return crop(layer(scene).proximal(scene.blurred, v, damping), scene)


def ours_with_prior(scene: Scene, damping: float) -> Tensor:
    """The same with a prior: x = v + B z, and z is drawn to zero, by a layer whose kernel is that of A B."""
    reach, span = len(scene.kernel), len(PRIOR)
    v = smooth_answer(scene, damping)[
        ..., reach - reach // 2 : reach // 2 - reach, reach - reach // 2 : reach // 2 - reach
    ]
    both = F.conv2d(F.pad(scene.kernel[None, None], (span - 1,) * 4), PRIOR[None, None])[0, 0]
    conv = _layer("valid", tuple(map(tuple, both.tolist())))
    rest = scene.blurred - F.conv2d(v, scene.kernel[None, None])
    z = torch.zeros(1, 1, *(n + span - 1 for n in v.shape[-2:]), dtype=v.dtype)
    return crop(v + F.conv2d(conv.proximal(rest, z, damping), PRIOR[None, None]), scene)


def crop(x: Tensor, scene: Scene) -> Tensor:
    """The middle, of the size of the picture."""
    reach = (x.shape[-1] - scene.truth.shape[-1]) // 2
    return x[..., reach : x.shape[-2] - reach, reach : x.shape[-1] - reach]


# -- a picture that wraps ------------------------------------------------------------------------------------------


def circular(
    y: Tensor, kernel: Tensor, damping: float, v: Tensor | None = None, penalty: Tensor | float = 1.0
) -> Tensor:
    """The same problem on a torus, by the FFT, drawn to v, or to y itself; the penalty is that of each frequency."""
    spectrum = transfer(kernel, y.shape[-2:])
    seen, drawn = torch.fft.fft2(y), torch.fft.fft2(y if v is None else v)
    answer = drawn + spectrum.conj() * (seen - spectrum * drawn) / (spectrum.abs() ** 2 + damping**2 * penalty)
    return torch.fft.ifft2(answer).real


def transfer(kernel: Tensor, size: tuple[int, ...]) -> Tensor:
    """What a blur of a torus multiplies each frequency by."""
    reach = len(kernel) // 2
    wide = F.pad(kernel.flip(0, 1), (0, size[1] - len(kernel), 0, size[0] - len(kernel)))
    return torch.fft.fft2(wide.roll((-reach, -reach), (0, 1)))


def wrapped(scene: Scene, damping: float) -> Tensor:
    """A circular FFT of the picture as it is."""
    return circular(scene.blurred, scene.kernel, damping)


def padded(mode: str) -> Method:
    """A circular FFT of a padded picture, cropped."""

    def method(scene: Scene, damping: float) -> Tensor:
        wide = F.pad(scene.blurred, (len(scene.kernel),) * 4, mode=mode)
        return crop(circular(wide, scene.kernel, damping), scene)

    return method


def tapered(scene: Scene, damping: float) -> Tensor:
    """A circular FFT of a padded picture that fades into its own blur towards the edges (MATLAB's edgetaper)."""
    wide = F.pad(scene.blurred, (len(scene.kernel),) * 4, mode="replicate")
    soft = torch.fft.ifft2(torch.fft.fft2(wide) * transfer(scene.kernel, wide.shape[-2:])).real
    sides = []
    for axis in (0, 1):
        line = scene.kernel.sum(axis)
        power = torch.fft.fft(line, n=wide.shape[-1] - 1).abs() ** 2
        kept = torch.fft.ifft(power).real
        sides.append(1 - torch.cat([kept, kept[:1]]) / kept.max())
    alpha = sides[1][:, None] * sides[0]
    return crop(circular(alpha * wide + (1 - alpha) * soft, scene.kernel, damping), scene)


def smoothed(scene: Scene, damping: float) -> Tensor:
    """A circular FFT of a picture whose padding leads from edge to opposite edge, smooth (after Liu and Jia 2008)."""
    return crop(smooth_answer(scene, damping), scene)


def smoothed_twice(scene: Scene, damping: float, penalty: Tensor | float = 1.0) -> Tensor:
    """The same once more, drawn to the first answer."""
    wide, v = _bridged(scene.blurred, len(scene.kernel)), smooth_answer(scene, damping)
    return crop(circular(wide, scene.kernel, damping, v, penalty), scene)


def smoothed_with_prior(scene: Scene, damping: float) -> Tensor:
    """The same once more, drawn to the first answer, with the prior that ours has."""
    side = scene.blurred.shape[-1] + 2 * len(scene.kernel)
    return smoothed_twice(scene, damping, transfer(PRIOR, (side, side)).abs() ** -2)


def smooth_answer(scene: Scene, damping: float) -> Tensor:
    """The answer of the circular FFT with its smooth margin."""
    return circular(_bridged(scene.blurred, len(scene.kernel)), scene.kernel, damping)


def _bridged(y: Tensor, width: int) -> Tensor:
    """The picture with a margin in which its bilaplacian on the torus is zero."""
    wide = F.pad(y, (width,) * 4)
    unknown, solve, biharmonic = _margin(wide.shape[-1], width)
    image = wide.flatten().numpy().copy()
    image[unknown] = solve(-(biharmonic @ image)[unknown])
    return torch.from_numpy(image).view(wide.shape)


@cache
def _margin(side: int, width: int) -> tuple[np.ndarray, Callable, sparse.csr_matrix]:
    """The places of a margin, what solves for them, and the bilaplacian of a torus."""
    ring = sparse.eye(side, k=1) + sparse.eye(side, k=-1) + sparse.eye(side, k=side - 1) + sparse.eye(side, k=1 - side)
    one = sparse.eye(side)
    laplacian = sparse.kron(ring, one) + sparse.kron(one, ring) - 4 * sparse.eye(side**2)
    biharmonic = (laplacian @ laplacian).tocsr()
    margin = np.ones((side, side), bool)
    margin[width:-width, width:-width] = False
    unknown = np.flatnonzero(margin)
    return unknown, factorized(biharmonic[unknown][:, unknown].tocsc()), biharmonic


# -- scikit-image and deepinv --------------------------------------------------------------------------------------


def wiener(scene: Scene, damping: float) -> Tensor:
    """The Wiener filter of scikit-image with the same penalty, of a picture that is mirrored at its edges."""
    return _wiener(scene, damping**2, np.ones((1, 1)))


def wiener_laplacian(scene: Scene, damping: float) -> Tensor:
    """The Wiener filter of scikit-image with its own penalty, of the balance that is best for this very photograph."""
    answers = [_wiener(scene, damping**2 * 10.0**power, None) for power in (-1, -0.5, 0, 0.5, 1, 1.5, 2)]
    return min(answers, key=lambda x: float((x - scene.truth).norm()))


def _wiener(scene: Scene, balance: float, penalty: np.ndarray | None) -> Tensor:
    wide, psf = _for_skimage(scene)
    return crop(torch.from_numpy(restoration.wiener(wide, psf, balance, reg=penalty, clip=False))[None, None], scene)


def richardson_lucy(scene: Scene, damping: float) -> Tensor:  # noqa: ARG001
    """Richardson-Lucy of scikit-image, mirrored at the edges, of as many steps as are best for this very photograph."""
    wide, psf = _for_skimage(scene)
    answers = [torch.from_numpy(restoration.richardson_lucy(wide, psf, steps))[None, None] for steps in (10, 30, 100)]
    return crop(min(answers, key=lambda x: float((crop(x, scene) - scene.truth).norm())), scene)


def _for_skimage(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    wide = F.pad(scene.blurred, (len(scene.kernel),) * 4, mode="reflect")
    return wide[0, 0].numpy(), scene.kernel.flip(0, 1).numpy()


def deepinv_circular(scene: Scene, damping: float) -> Tensor:
    """`BlurFFT.prox_l2` of deepinv, of a mirrored picture."""
    from deepinv.physics import BlurFFT

    wide = F.pad(scene.blurred, (len(scene.kernel),) * 4, mode="reflect")
    physics = BlurFFT(tuple(wide.shape[1:]), scene.kernel.flip(0, 1)[None, None])
    return crop(physics.prox_l2(wide, wide, damping**-2), scene)


def deepinv_iterated(scene: Scene, damping: float) -> Tensor:
    """`Blur.prox_l2` of deepinv with the borders of the scene, by 100 steps of conjugate gradients."""
    from deepinv.physics import Blur

    padding = {"valid": "valid", "zeros": "constant", "reflect": "reflect"}[scene.border]
    physics = Blur(scene.kernel.flip(0, 1)[None, None], padding=padding).to(torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = physics.prox_l2(drawn_to(scene), scene.blurred, damping**-2, max_iter=100, tol=1e-6)
    return crop(x, scene)


METHODS: dict[str, Method] = {
    "invconv, this border": ours,
    "circular FFT": wrapped,
    "circular FFT, edge repeated": padded("replicate"),
    "circular FFT, mirrored": padded("reflect"),
    "circular FFT, edge taper": tapered,
    "circular FFT, smooth margin (Liu-Jia)": smoothed,
    "Wiener (scikit-image), mirrored": wiener,
    "deepinv BlurFFT, mirrored": deepinv_circular,
    "deepinv Blur, this border, 100 CG": deepinv_iterated,
    "twice: invconv": ours_twice,
    "twice: smooth margin": smoothed_twice,
    "twice, prior: invconv": ours_with_prior,
    "twice, prior: smooth margin": smoothed_with_prior,
    "Wiener (scikit-image), Laplacian, best": wiener_laplacian,
    "Richardson-Lucy (scikit-image), best": richardson_lucy,
}
ONLY_VALID = ("twice, prior: invconv", "twice, prior: smooth margin")
"""A blur after another is one convolution where nothing is padded."""
