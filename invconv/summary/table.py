"""What was found of the convolutions of a network: rows, printed as a table, given as dictionaries, written as CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from invconv.summary.picture import draw
from invconv.summary.row import Row

_HEADINGS = ("layer", "channels", "image", "kernel", "sigma_max", "sigma_min", "condition", "log-volume", "method")


@dataclass(frozen=True)
class Summary:
    """The rows of a network, in the order in which it runs its convolutions."""

    rows: tuple[Row, ...]
    tol: float
    """Relative accuracy of the singular values of large layers."""

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> Row:
        """The first row of the module of this name."""
        return next(row for row in self.rows if row.name == name)

    def as_dicts(self) -> list[dict[str, Any]]:
        """A dictionary for each row."""
        return [row.as_dict() for row in self.rows]

    def to_csv(self, path: str | Path) -> None:
        """Write a line for each row; sizes as in 3x3, and nothing for what was not computed, the reason in `notes`."""
        with Path(path).open("w", newline="") as file:
            writer = csv.DictWriter(file, [f.name for f in fields(Row) if f.name != "spectrum"], extrasaction="ignore")
            writer.writeheader()
            for row in self.rows:
                writer.writerow({name: _cell(value) for name, value in row.as_dict().items()})

    def plot(self, path: str | Path) -> None:
        """Write a picture: for each convolution its singular values from sigma_min to sigma_max, on logarithmic axes.

        Open arrows stand for what sigma_min is at most, arrows at the edge for what lies far below all others, and
        shades for the share of the values below each, where `summary` was told to compute `spectra`.

        Args:
            path: of the file; its ending, as .png or .pdf, says what kind it is.

        Raises:
            MissingPackageError: without matplotlib.
            InputError: if matplotlib has no such kind, or no sigma_max was computed.
        """
        draw(self.rows, path)

    def __str__(self) -> str:
        lines = [_HEADINGS, *map(_line, self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        reasons: dict[str, list[str]] = {}
        for row in self.rows:
            for what, why in row.notes.items():
                reasons.setdefault(f"{what}: {why}", []).append(row.name)
        notes = [f"- {reason} ({', '.join(names)})" for reason, names in reasons.items()]
        accuracy = f"Singular values of large layers to {self.tol:.0e}, relative."
        return "\n".join([*text, "", accuracy, *notes])


def _line(row: Row) -> Sequence[str]:
    numbers = (_number(row, name) for name in ("sigma_max", "sigma_min", "condition", "log_volume"))
    kernel = " ".join(word for word in (_by(row.kernel_size), *_extras(row)) if word)
    channels, image = (f"{a} -> {b}" for a, b in (row.channels, (_by(row.input_size), _by(row.output_size))))
    return row.name, channels, image, kernel, *numbers, row.method


def _extras(row: Row) -> Iterator[str]:
    """What a kernel has beyond its size, where it is not the usual."""
    if any(s != 1 for s in row.stride):
        yield f"/{_by(row.stride)}"
    if any(map(any, row.padding)):
        yield f"p{_by(tuple(left if left == right else f'{left}+{right}' for left, right in row.padding))}"
    if any(d != 1 for d in row.dilation):
        yield f"d{_by(row.dilation)}"
    if row.groups != 1:
        yield f"g{row.groups}"
    if row.padding_mode != "zeros":
        yield row.padding_mode


def _number(row: Row, name: str) -> str:
    value = getattr(row, name)
    if value is None and name in row.reached:
        return f"{'>' if name == 'sigma_max' else '<'}{row.reached[name]:.5g}"
    if value is None:
        return "-"
    return "inf" if math.isinf(value) else f"{value:.5g}"


def _by(sizes: Sequence[object]) -> str:
    """3 for (3, 3), 3x5 for (3, 5)."""
    return str(sizes[0]) if len(set(sizes)) == 1 else "x".join(map(str, sizes))


def _cell(value: Any) -> Any:
    """A value in a CSV file."""
    if isinstance(value, dict):
        return "; ".join(f"{name}: {what}" for name, what in value.items())
    if isinstance(value, tuple):
        return "x".join("+".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in value)
    return "" if value is None else value
