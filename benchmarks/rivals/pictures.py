"""Other ways from features to a picture, each with its usual settings, until a time of the processor is spent.

- `plain`: L-BFGS from grey, in Fourier coefficients scaled by 1 / f and decorrelated colours (Olah et al. 2017).
- `adam`: Adam on pixels with total variation (Mahendran and Vedaldi 2015; settings of captum's tutorials).
- `jittered`: Adam in the coordinates of `plain` on an image that is shifted at each step, as lucent does.
- `pixels`: L-BFGS on pixels from the closed form, or from noise where that explains more: ours until its coordinates
  were those of natural images.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from invconv.inversion import invert, total_variation
from invconv.inversion.closed_form import noise
from invconv.inversion.coordinates import Pixels
from invconv.inversion.inputs import pixel_box
from invconv.inversion.joint import JointSolve

COLOURS = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.0, -0.05], [0.27, -0.09, 0.03]])
"""Square root of the covariance of ImageNet's colours, as lucid and lucent have it."""
MOST = 100_000
"""Evaluations, where the time is the limit."""


class _Over(Exception):
    """The time is up."""


@dataclass
class Task:
    """Features of one layer, to be turned into a picture of levels from 0 to 1."""

    model: nn.Module
    layer: str
    mean: Tensor
    std: Tensor
    features: Tensor
    like: Tensor
    """The photograph: for its shape, and for the switches of pooling that `pixels` takes."""
    seconds: float = float("inf")
    """Of the processor."""
    evaluations: int = MOST
    """At most."""

    def __post_init__(self) -> None:
        self.began, self.count = time.process_time(), 0
        self.best, self.least = torch.full_like(self.like, 0.5), float("inf")

    def error(self, picture: Tensor, shifted: bool = False) -> Tensor:
        """The squared relative error; of all pictures that are not shifted, the best is kept."""
        if time.process_time() - self.began > self.seconds or self.count >= self.evaluations:
            raise _Over
        self.count += 1
        y = features_of(self.model, self.layer, (picture - self.mean) / self.std)
        error = (y - self.features).square().sum() / self.features.square().sum()
        if not shifted and float(error.detach()) < self.least:
            self.best, self.least = picture.detach().clone(), float(error.detach())
        return error


def features_of(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    """What the layer gives; nothing behind it is run."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, _args: object, output: Tensor) -> None:
        found.append(output.clone())
        raise StopIteration

    hook = model.get_submodule(layer).register_forward_hook(keep)
    try:
        model(x)
    except (StopIteration, RuntimeError):
        if not found:
            raise
    finally:
        hook.remove()
    return found[0]


def _fourier(like: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Coefficients of grey, and the picture of coefficients."""
    height, width = like.shape[2:]
    f = (torch.fft.fftfreq(height)[:, None].square() + torch.fft.rfftfreq(width).square()).sqrt()
    scale = 1 / f.clamp_min(1 / max(height, width))
    scale = scale / scale.square().mean().sqrt()
    colours = COLOURS / COLOURS.norm(dim=0).max()

    def picture(z: Tensor) -> Tensor:
        levels = torch.fft.irfft2(torch.view_as_complex(z) * scale, s=(height, width), norm="ortho")
        return torch.einsum("dc,bchw->bdhw", colours, levels).sigmoid()

    return torch.zeros(*like.shape[:2], *scale.shape, 2), picture


def plain(task: Task) -> Tensor:
    """The best picture that L-BFGS has seen."""
    z, picture = _fourier(task.like)
    z.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [z],
        max_iter=MOST,
        max_eval=MOST,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 1e4 * task.error(picture(z))
        loss.backward()
        return loss

    with contextlib.suppress(_Over):
        optimizer.step(closure)
    return task.best


def _adam(z: Tensor, rate: float, loss: Callable[[Tensor], Tensor]) -> None:
    """Adam until the time is over."""
    optimizer = torch.optim.Adam([z.requires_grad_()], lr=rate)
    try:
        while True:
            optimizer.zero_grad()
            loss(z).backward()
            optimizer.step()
    except _Over:
        pass


def adam(task: Task) -> Tensor:
    """The best picture that Adam has seen."""
    start = (0.5 + 0.01 * torch.randn(task.like.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    _adam(start, 0.02, lambda x: task.error(x.clamp(0, 1)) + 0.003 * total_variation(x).sum())
    return task.best


def jittered(task: Task) -> Tensor:
    """The last picture, as lucent gives it."""
    z, picture = _fourier(task.like)
    z = 0.01 * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)

    def loss(z: Tensor) -> Tensor:
        shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
        return task.error(picture(z).roll(shift, (2, 3)), shifted=True)

    _adam(z, 0.05, loss)
    return picture(z).detach()


def pixels(task: Task) -> Tensor:
    """The best picture of the joint solve on pixels; the closed form's time counts."""
    closed = invert(task.model, task.layer, image=(task.like - task.mean) / task.std, steps=0).image
    x = closed * task.std + task.mean
    other = noise(closed.shape, closed) * task.std + task.mean
    start = min((x, other), key=lambda p: float(replace(task).error(p.clamp(0, 1))))
    box = pixel_box(0.0, 1.0, x)
    seen: list[Tensor] = [start.clamp(0, 1)]
    solve = JointSolve(MOST, total_variation, 0.03, lambda image: seen.__setitem__(0, image), Pixels(box))
    norm = task.features.norm()

    def apply(x: Tensor) -> Tensor:
        if time.process_time() - task.began > task.seconds:
            raise _Over
        y = features_of(task.model, task.layer, (x - task.mean) / task.std)
        error = float((y - task.features).norm() / norm)
        if x.min() >= 0 and x.max() <= 1 and error < task.least:
            task.best, task.least = x.detach().clone(), error
        return y

    task.best = start.clamp(0, 1)
    with contextlib.suppress(_Over):
        solve.run(apply, task.features, start)
    return task.best


RIVALS: dict[str, Callable[[Task], Tensor]] = {"pixels": pixels, "plain": plain, "adam": adam, "jittered": jittered}
