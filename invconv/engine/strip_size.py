"""What the strips of a damped layer take, before anything is computed: unknowns, memory, operations (see `strips`)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from invconv.engine import cost
from invconv.engine.convolution import Convolution
from invconv.engine.cut import Cut
from invconv.geometry import Geometry

SPARSE_PRODUCT = 25.0
"""Operations of a product of matrices that one of a sparse matrix takes.  Speed only."""

SKINNY = 4.0
"""Operations that one takes in products of matrices of few columns.  Speed only."""

PASS = 80.0
"""What an entry of the strips takes that is laid out, and taken apart by reflections.  Speed only."""


def plane(conv: Convolution) -> Convolution:
    """The same map on images of two axes: a line is an image of one row."""
    g = conv.geometry
    if g.dims == 2:
        return conv
    geometry = Geometry(
        (1, *g.kernel_size), (1, *g.stride), ((0, 0), *g.padding), (1, *g.dilation), g.groups, g.padding_mode
    )
    return Convolution(conv.weight.unsqueeze(2), geometry, (1, *conv.input_size))


def turned(conv: Convolution) -> Convolution:
    """The same map on images whose two axes have changed places."""
    g = conv.geometry
    sides = {name: getattr(g, name)[::-1] for name in ("kernel_size", "stride", "padding", "dilation")}
    return Convolution(conv.weight.mT.contiguous(), replace(g, **sides), conv.input_size[::-1])


@dataclass(frozen=True)
class StripSize:
    """The second of two axes cut last.

    Args:
        conv: on images of two axes.
        cuts: of both axes.
        halvings: reflections that the strips fall apart by.
    """

    conv: Convolution
    cuts: tuple[Cut, Cut]
    halvings: int = 0

    @property
    def channels(self) -> tuple[int, int]:
        """Outputs and inputs of a group."""
        return len(self.conv.weight) // self.conv.geometry.groups, self.conv.weight.shape[1]

    def _dropped(self, cut: Cut, outputs: int, inputs: int) -> int:
        """Unknowns of a cut, where outputs and inputs of one of its places are so many."""
        return (len(cut.dropped_outputs) + len(cut.added)) * outputs + len(cut.dropped_inputs) * inputs

    @property
    def unknowns(self) -> int:
        """Places of both strips, times their channels."""
        (outs, ins), line = self.channels, self.cuts[0]
        return self._dropped(self.cuts[1], outs * line.outputs, ins * line.inputs)

    @property
    def _column(self) -> int:
        (outs, ins), line = self.channels, self.cuts[0]
        return outs * line.outputs + ins * line.inputs

    @property
    def _distances(self) -> int:
        """Distances between columns that the strips have."""
        cut = self.cuts[1]
        columns = len(cut.dropped_outputs) + len(cut.dropped_inputs)
        return min(cut.torus // 2, max(columns, len(cut.touched)) + 1) if columns + len(cut.touched) else 0

    @property
    def _frequencies(self) -> tuple[int, int]:
        """Frequencies of the second axis, and unknowns of the first for each."""
        return self.cuts[1].torus // 2 + 1, self._dropped(self.cuts[0], *self.channels)

    @property
    def bytes(self) -> int:
        """Memory at the peak, for a kernel of each group."""
        (outs, ins), (count, first) = self.channels, self._frequencies
        places = self.cuts[0].torus * self.cuts[1].torus
        kernels = 8 * (self._distances + 2) * self._column**2
        added = len(self.cuts[1].added) * outs * self.cuts[0].outputs
        touched = len(self.cuts[1].touched) * ins * self.cuts[0].inputs
        lines = 16 * count * (4 * self._column * first + 3 * first**2) + 16 * 4 * places * (outs + ins) ** 2
        held = self.conv.geometry.groups * (lines // 2 + 8 * self.unknowns**2)
        return (
            held + lines + kernels + int(8 * (1.4 if self.halvings else 1.7) * self.unknowns**2) + 8 * added * touched
        )

    def cost(self) -> cost.Cost:
        """The kernels between columns, the strips, and one image sent through, refined, and by a solution checked."""
        (outs, ins), (count, first) = self.channels, self._frequencies
        n, groups = float(self.unknowns), self.conv.geometry.groups
        kernels = SKINNY * 8 * count * self._column**2 * (first + self._distances / 2)
        taps = int(self.conv.weight[:outs].count_nonzero()) / outs
        added = len(self.cuts[1].added) * outs * self.cuts[0].outputs
        touched = len(self.cuts[1].touched) * ins * self.cuts[0].inputs
        sparse = SPARSE_PRODUCT * 2 * added * taps * (n + touched) / min(2, 1 + self.halvings)
        pieces = 2**self.halvings
        system = n**3 / 3 / pieces**2 + PASS * n**2
        places = float(self.cuts[0].torus * self.cuts[1].torus)
        once = 2 * cost.transforms(places, 2 * (outs + ins)) + 8 * cost.BYTE * count * self._column * first
        once += cost.BYTE * 16 * n**2 / pieces + cost.CALL * 10
        answer = 2 * groups * (once + cost.convolution(self.conv))
        return cost.Cost(30 * cost.CALL + groups * (kernels + sparse + system) + 2 * answer, answer)


def cuts_of(conv: Convolution) -> tuple[Cut, Cut] | str:
    """Both axes of a map on images of two axes, or why there is no cut."""
    lines, columns = (Cut.of(conv.geometry, axis, n) for axis, n in enumerate(conv.input_size))
    if isinstance(lines, str):
        return lines
    return columns if isinstance(columns, str) else (lines, columns)
