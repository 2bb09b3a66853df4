"""What is known of one convolution of a network."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

Size = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One convolution on images of one size: what map it is, and what is known of it.

    What is None was not computed, or does not exist; `notes` says why, under the same name.
    """

    name: str
    """Of the module in its network."""
    kind: str
    """Class of the module."""
    channels: tuple[int, int]
    """In and out."""
    input_size: Size
    output_size: Size
    kernel_size: Size
    stride: Size
    padding: tuple[tuple[int, int], ...]
    dilation: Size
    groups: int
    padding_mode: str
    shape: tuple[int, int]
    """Outputs and inputs of the map for one image."""
    sigma_max: float | None = None
    """The norm of the map, at its real borders."""
    sigma_min: float | None = None
    """The smallest of its min(shape) singular values; zero where pixels are read by no output."""
    condition: float | None = None
    """sigma_max / sigma_min."""
    log_volume: float | None = None
    """1/2 log det(A'A), or of AA' for a wide map, in nats for one image."""
    method: str = ""
    """How the inverse is come by, where one was needed: the solver tried first, as `invconv.Plan` names it."""
    notes: dict[str, str] = field(default_factory=dict)
    reached: dict[str, float] = field(default_factory=dict)
    """How far iterations had come when their time was up: sigma_max is at least that, sigma_min at most, up to the
    accuracy of the inverse."""
    spectrum: tuple[float, ...] = ()
    """Percentiles of all singular values, from the largest to the smallest, where these were asked for and can be had:
    of cyclic, separable and small layers."""

    def as_dict(self) -> dict[str, Any]:
        """All of it, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
