r"""Pictures of what excites a class, a channel or a unit of a trained network: images that make an objective large.

$$ \max_z \; g(f(T x)), \qquad x = \mathrm{decode}(z) $$

with $f$ the features that are named, $g$ their mean or another number, and $T$ a small random shift, turn and zoom, so
that what only an exact place excites does not grow. Moved in are the coordinates of natural images (`coordinates`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invconv.errors import InputError
from invconv.inversion import inputs
from invconv.inversion.coordinates import Natural
from invconv.inversion.joint import STEPS
from invconv.inversion.layers import evaluation, frozen, read
from invconv.inversion.pictured import Pictured
from invconv.inversion.selection import Selection, select
from invconv.inversion.wrappers import eager, unwrapped
from invconv.scalars import whole_number

RATE = 0.05
"""Learning rate of Adam, in coordinates where photographs have a deviation of one. What is measured at SHIFT
is -14.2 with 0.03, and -15.9 with 0.1."""
AMPLITUDES = 0.1, 0.5, 2.0
"""Of the noise that is started from, in the same coordinates: the first by which every image has a derivative."""
SHIFT, TURN, ZOOM = 1 / 8, math.radians(15), 0.2
"""Largest shift, in sides, turn, relative change of size. Pictures of six classes by EfficientNet-Lite0 and SqueezeNet,
96 px, 100 steps, have a mean log-probability of -11.4 in the eyes of the other network; of -12.7 with half of each,
-17.5 with a quarter, and -14.8 with 1/5, 25 degrees and 0.35."""
STILL = 0.25
"""Share of that for caricatures, whose features have their places."""
SHARP = 2.0
"""Power of the cosine in the objective of a caricature: what is like the features of the image counts, not how much."""

Objective = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Visualization(Pictured):
    """Images that make an objective large; `save(path)` and `plot()` show them."""

    image: Tensor
    """(batch, channels, height, width), in the model's input space."""
    value: Tensor
    """(batch,): the objective of the images, by the model itself."""
    start: Tensor
    """(batch,): the objective of the noise that they began as."""
    layer: str
    """What the objective is of."""
    seconds: float
    """Time that it took."""
    mean: Sequence[float] | float | None = None
    """Per channel, as it was given; std x + mean lies between black and white."""
    std: Sequence[float] | float = 1.0

    def __str__(self) -> str:
        return f"{self.layer}: from {self.start.mean():.3g} to {self.value.mean():.3g}, {self.seconds:.1f} s"


def visualize(
    model: nn.Module,
    layer: str | Sequence[str],
    *,
    input_size: Sequence[int] | None = None,
    image: Tensor | None = None,
    objective: Objective | None = None,
    batch: int = 1,
    steps: int = STEPS,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float = 1.0,
    seed: int = 0,
    watch: Callable[[Tensor], None] | None = None,
) -> Visualization:
    r"""Images that excite a class, a channel or a unit as much as possible; or, of an image, what a layer makes of it.

    Adam in coordinates of natural images, on images that are shifted, turned and zoomed a little at random each time
    (Olah, Mordvintsev and Schubert 2017, *Feature visualization*).

    Args:
        model: any network, float32 or float64, also one that cannot be traced. It is run in eval mode and put back.
        layer: as in `invert`: `"fc[281]"` is a class, `"layer4[7]"` a channel, `"layer4[7, 3, 3]"` a unit; of several
            with plus signs between, their objectives are added.
        input_size: (height, width) or (channels, height, width) of the images; not needed with `image`.
        image: (batch, channels, height, width), in the model's input space: a caricature is drawn of each, which has
            its features (f_0 below) but larger.
        objective: (batch, ...) -> (batch,), of the features of each part, to be made large. By default their mean, or
            with `image` <f, f_0> cos(f, f_0)^2 / ||f_0||^2.
        batch: how many images, from as many starts.
        steps: of Adam; 0 for the noise that it starts from.
        mean, std: per channel, as in `invert`: images keep between black and white. Without a mean they keep a mean
            square of one, as normalised photographs have.
        seed: of the noise and of the shifts.
        watch: called with the images at each step.

    Returns:
        The images and their objective, by the model itself and unshifted.

    Raises:
        InputError: for an unknown layer, a model in half precision, images of a wrong shape, counts out of range, an
            objective of a wrong shape, or one without a derivative: of a unit that is off whatever is shown.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
        >>> r = visualize(model, "4[2]", input_size=(16, 16), steps=20, mean=0.5, std=0.25)
        >>> r.image.shape, bool(r.value > r.start)
        (torch.Size([1, 3, 16, 16]), True)
    """
    begin = time.perf_counter()
    model, prefix = unwrapped(model)
    selection = select(model, layer, prefix)
    parameter = inputs.check_model(model)
    (steps,) = inputs.check_counts(steps=steps)
    batch = whole_number("batch", batch)
    precise = torch.autocast(parameter.device.type, enabled=False)
    with torch.inference_mode(False), precise, eager(model), evaluation(model), frozen(model), torch.enable_grad():
        if image is None:
            like = inputs.empty_image(model, batch, input_size, parameter)
        else:
            inputs.check_image(image, model, parameter)
            like = torch.zeros_like(image)
        box = inputs.pixel_box(mean, std, like)
        goal = _Goal(model, selection, objective)
        if image is not None:
            inputs.check_within(image, box)
            goal.towards(image)
        climb = _Climb(goal, Natural(like[:0], like.shape, box), seed)
        z = climb.start()
        before = goal.measure(climb.decode(z))
        z = climb.run(z, steps, watch)
        x = climb.decode(z).detach()
        value = goal.measure(x)
    return Visualization(x, value, before, selection.text, time.perf_counter() - begin, mean, std)


class _Goal:
    """The objective, of images."""

    def __init__(self, model: nn.Module, selection: Selection, objective: Objective | None) -> None:
        self.model, self.selection, self.objective = model, selection, objective
        self.wanted: list[Tensor] | None = None
        self.calls: dict[str, int] | None = None  # of each layer; once it is known, nothing behind the last is run

    def features(self, x: Tensor) -> list[Tensor]:
        """Of each part: (batch, ...)."""
        try:
            outputs, self.calls = read(self.model, self.selection.layers, x, self.calls)
        except InputError:
            raise
        except Exception as error:  # whatever its own code raises
            name = type(self.model).__name__
            raise InputError(f"{name} cannot take images of shape {tuple(x.shape)}: {error}") from error
        missing = [layer for layer in self.selection.layers if layer not in outputs]
        if missing:
            raise InputError(f"layer {missing[0]!r} is not used in the forward pass of {type(self.model).__name__}")
        return [part.of(outputs[part.layer], len(x)) for part in self.selection.parts]

    @torch.no_grad()
    def towards(self, image: Tensor) -> None:
        """Take the features of an image for the direction of a caricature."""
        self.wanted = self.features(image)

    def of(self, x: Tensor) -> Tensor:
        """(batch,): the sum over all parts."""
        found = self.features(x)
        if self.objective is not None:
            values = [self.objective(part) for part in found]
        elif self.wanted is not None:
            values = [_likeness(part, wanted) for part, wanted in zip(found, self.wanted, strict=True)]
        else:
            values = [part.flatten(1).mean(1) for part in found]
        for value in values:
            if not isinstance(value, Tensor) or value.shape != (len(x),):
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise InputError(f"the objective gives {shape} for {len(x)} images, expected ({len(x)},)")
        return torch.stack(values).sum(0)

    @torch.no_grad()
    def measure(self, x: Tensor) -> Tensor:
        """(batch,): the objective, if it is a number."""
        value = self.of(x)
        if not bool(value.isfinite().all()):
            raise InputError(f"the objective of {self.selection.text!r} is {value.tolist()}, expected finite numbers")
        return value


class _Climb:
    """Adam in the coordinates of natural images."""

    def __init__(self, goal: _Goal, coordinates: Natural, seed: int) -> None:
        self.goal, self.coordinates = goal, coordinates
        self.generator = torch.Generator().manual_seed(seed)

    def decode(self, z: Tensor) -> Tensor:
        """The images; without bounds for the pixels, of the mean square one that normalised photographs have."""
        x = self.coordinates.decode(z)
        if self.coordinates.box is not None:
            return x
        return x / x.square().flatten(1).mean(1).sqrt().clamp_min(1e-12).view(-1, *(1,) * (x.dim() - 1))

    def start(self) -> Tensor:
        """Noise, as weak as has a derivative for every image.

        Raises:
            InputError: where none has.
        """
        shape = self.coordinates.shape
        noise = torch.randn(shape, generator=self.generator).to(self.coordinates.like)
        for amplitude in AMPLITUDES:
            z = (amplitude * noise).requires_grad_()
            value = self.goal.of(self.decode(z))
            if value.requires_grad:
                (slope,) = torch.autograd.grad(value.sum(), z)
                if bool(slope.flatten(1).ne(0).any(1).all()):
                    return z.detach()
        raise InputError(
            f"the objective of {self.goal.selection.text!r} does not change with the image: it has no derivative for "
            "noise of any contrast, as that of a unit that is always off; take the layer before its activation"
        )

    def run(self, z: Tensor, steps: int, watch: Callable[[Tensor], None] | None) -> Tensor:
        """The coordinates after so many steps (Kingma and Ba 2015), the last quarter of them ever smaller."""
        z = z.clone().requires_grad_()
        optimizer = torch.optim.Adam([z], lr=RATE)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = RATE * min(1.0, 4 * (1 - step / steps))
            optimizer.zero_grad()
            x = self.decode(z)
            if watch is not None:
                watch(x.detach())
            (-self.goal.of(self.shaken(x)).sum()).backward()
            optimizer.step()
        return z.detach()

    def shaken(self, x: Tensor) -> Tensor:
        """The images shifted; those with two dimensions also turned and zoomed, all of them alike."""
        if x.dim() != 4:
            shifts = [round(self._number(SHIFT * n)) for n in x.shape[2:]]
            return x.roll(shifts, tuple(range(2, x.dim())))
        angle, zoom = self._number(TURN), 1 + self._number(ZOOM)
        height, width = x.shape[2:]
        cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
        right, down = (2 * self._number(SHIFT) for _ in range(2))
        rows = [[cos, -sin * height / width, right], [sin * width / height, cos, down]]
        theta = torch.tensor(rows, dtype=x.dtype, device=x.device).expand(len(x), 2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)

    def _number(self, most: float) -> float:
        """A random number up to `most` either way, of a caricature a part of that."""
        most *= 1.0 if self.goal.wanted is None else STILL
        return most * (2 * float(torch.rand((), generator=self.generator)) - 1)


def _likeness(features: Tensor, wanted: Tensor) -> Tensor:
    """(batch,): the features along those wanted, in their lengths, times a power of the cosine between both."""
    a, b = features.flatten(1), wanted.flatten(1)
    length = b.norm(dim=1).clamp_min(torch.finfo(b.dtype).tiny)
    along = (a * b).sum(1) / length
    cosine = along / a.norm(dim=1).clamp_min(torch.finfo(a.dtype).tiny)
    return along / length * cosine.clamp_min(0.1) ** SHARP
