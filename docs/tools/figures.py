"""The figures of the theory: the torus and its windows, how fast an inverse decays, what small images tell."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from invconv import InvertibleConv2d, functional

STYLE = mpl.rc_params_from_file(Path(__file__).parent / "matplotlibrc", fail_on_error=False, use_default_template=False)
IMAGE, RING, OUTSIDE = "#56B4E9", "#D55E00", "#FFFFFF"


def _svg(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
    return file.getvalue()


def windows() -> bytes:
    """A torus one place larger than the image, the window of the image, and the ring outside of it."""
    n, figure = 8, Figure(figsize=(7.2, 2.7))
    titles = (
        "circular borders\ntorus = image, no ring",
        "zero borders, 3 x 3\nring: one row, one column",
        "valid, 3 x 3\nring: two rows, two columns",
    )
    for axis, title, ring in zip(figure.subplots(1, 3), titles, (0, 1, 2), strict=True):
        side = n + (ring == 1)
        inner = side - ring
        for i in range(side):
            for j in range(side):
                colour = IMAGE if i < inner and j < inner else RING
                axis.add_patch(Rectangle((j, -i - 1), 0.9, 0.9, facecolor=colour))
        axis.set(xlim=(-0.4, 9.4), ylim=(-9.4, 0.4), aspect="equal")
        axis.set_title(title)
        axis.axis("off")
    return _svg(figure)


def locality() -> bytes:
    """What one output contributes to the image, by its distance."""
    torch.manual_seed(0)
    figure = Figure(figsize=(5.6, 2.8))
    axis = figure.subplots()
    size, dtype = (65, 65), torch.float64
    for scale in (0.0, 0.05, 0.1):
        conv = InvertibleConv2d(3, 3, 3, padding=1, bias=False, dtype=dtype)
        conv.weight.data += scale * torch.randn(3, 3, 3, 3, dtype=dtype)
        point = torch.zeros(1, 3, *size, dtype=dtype)
        point[0, 0, 32, 32] = 1
        answer = conv.inverse(point).detach()[0].abs().amax(0)
        reach = [max(answer[32 - d, 32].item(), answer[32 + d, 32].item(), 1e-18) for d in range(33)]
        condition = conv.condition_number(size).item()
        axis.semilogy(reach, label=f"condition {condition:.1f}")
    axis.set(xlabel="distance in pixels", ylabel="largest entry of the inverse", ylim=(1e-17, 2))
    axis.grid(alpha=0.25)
    axis.legend()
    return _svg(figure)


def sections() -> bytes:
    """How far four small images tell the log-determinant of one of 40 x 40."""
    torch.manual_seed(0)
    figure = Figure(figsize=(5.6, 2.8))
    axis = figure.subplots()
    n, sides = 40, range(3, 15)
    for scale in (0.0, 0.05, 0.1):
        conv = InvertibleConv2d(3, 3, 3, padding=1, bias=False, dtype=torch.float64)
        weight = conv.weight.detach() + scale * torch.randn(3, 3, 3, 3, dtype=torch.float64)

        def f(height: int, width: int, weight: torch.Tensor = weight) -> float:
            return float(functional.conv_log_abs_det(weight, (height, width), padding=1))

        exact, errors = f(n, n), []
        for w in sides:
            corners = f(w, w), f(w + 1, w), f(w, w + 1), f(w + 1, w + 1)
            m = n - w
            told = (1 - m) ** 2 * corners[0] + (1 - m) * m * (corners[1] + corners[2]) + m * m * corners[3]
            errors.append(max(abs(told - exact) / (3 * n * n), 1e-17))
        condition = float(functional.conv_condition_number(weight, (n, n), padding=1))
        axis.semilogy(list(sides), errors, marker="o", markersize=3, label=f"condition {condition:.1f}")
    axis.set(xlabel="side w of the small images", ylabel="error, nats per unknown")
    axis.grid(alpha=0.25)
    axis.legend()
    return _svg(figure)


def all_figures() -> dict[str, bytes]:
    """Each figure, by its file name in `understand/`."""
    with mpl.rc_context(STYLE):
        return {f"{draw.__name__}.svg": draw() for draw in (windows, locality, sections)}
