"""Kernels that read pixels in one order, and stay well conditioned:  weight = W o (delta + E),  ||E|| < rho.

E reads later pixels only. With borders of zeros the layer is then a block-triangular matrix with W on its diagonal,

    log |det A| = places * log |det W|,

whatever E is, and its inverse goes through the pixels backwards (`invconv.engine.solvers.triangular`).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from invconv.engine.precision import without_autocast
from invconv.errors import InputError
from invconv.geometry import Geometry
from invconv.layers.init import centre_taps
from invconv.layers.kernel import SharedKernel
from invconv.layers.record import Recorded
from invconv.parametrizations.isometry import surplus
from invconv.parametrizations.norms import at_least_float32, check_rho, inside, norm_bound, parameter_of
from invconv.parametrizations.raster import check_order, later_taps
from invconv.parametrizations.registration import Layer, check_free, register


class Causal(Recorded, SharedKernel):
    """The function weight = W o (delta + E), in which E has the taps of later pixels of an order alone.

    `forward(W, E)` gives the weight, or `forward(E)` where nothing mixes, which is W = 1; `right_inverse(weight)` gives
    what it takes.  Both compute in float32 at least.

        W: (groups, channels/groups, channels/groups)      E: (groups, channels/groups, channels/groups, later taps)

    The `state_dict` has the order, rho and the geometry in it, and is loaded by a function of the same ones only.
    """

    identity: Tensor
    places: Tensor
    version: Tensor

    def __init__(
        self, geometry: Geometry, columns: int, order: str, rho: float | None, support: str, mixing: bool
    ) -> None:
        super().__init__()
        self.geometry = geometry
        self.order, self.support = order, support
        self.rho, self.mixing = rho, mixing
        (self.own_tap,) = centre_taps(geometry)
        later = later_taps(geometry, order, support)
        self.register_buffer("identity", torch.eye(columns).unsqueeze(-1), persistent=False)
        self.register_buffer("places", torch.tensor([self.own_tap, *later]), persistent=False)
        # So that a later version can tell a state_dict of this one.
        self.register_buffer("version", torch.tensor(1.0))

    @property
    def kind(self) -> Hashable:
        """The order and the bound, all else being read from the geometry and the shapes."""
        return self.order, self.support, self.rho, self.mixing

    def recorded(self) -> dict[str, Any]:
        """What decides the kernel, and the map that it is."""
        options = {"order": self.order, "support": self.support, "rho": self.rho, "mixing": self.mixing}
        return options | asdict(self.geometry)

    def extra_repr(self) -> str:
        return f"order={self.order!r}, support={self.support!r}, rho={self.rho}, mixing={self.mixing}"

    def forward(self, *parameters: Tensor) -> Tensor:
        """The weight, of the pair W and E or of E alone."""
        e = parameters[-1]
        # Not in the precision of autocast: the weight must be the same inside it and outside.
        with without_autocast(e.device.type):
            mixing, taps = parameters[0], e.to(at_least_float32(e.dtype))
            if self.rho is not None:
                taps = inside(taps, _norm_bound, self.rho)
            kernel = torch.cat([self.identity.to(taps).expand(len(taps), -1, -1, -1), taps], dim=-1)
            if self.mixing:
                kernel = (mixing.to(kernel) @ kernel.flatten(2)).view_as(kernel)
            empty = kernel.new_zeros(*kernel.shape[:-1], len(self.geometry.taps()))
            weight = empty.index_copy(-1, self.places, kernel).to(e.dtype)
            return weight.reshape(-1, e.shape[2], *self.geometry.kernel_size)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """W from the own tap, E from the later ones; what is beyond the bound is drawn back inside.

        The other taps are left out, and where nothing mixes the own tap is.
        """
        groups, columns = self.geometry.groups, weight.shape[1]
        kernel = weight.detach().to(at_least_float32(weight.dtype)).reshape(groups, columns, columns, -1)
        kernel = kernel[..., self.places]
        mixing, e = kernel[..., 0], kernel[..., 1:]
        if self.mixing:
            e = (torch.linalg.pinv(mixing) @ e.flatten(2)).view_as(e)
        if self.rho is not None:
            e = parameter_of(e, _norm_bound, self.rho, 0.95)
        parameters = (mixing, e) if self.mixing else (e,)
        return tuple(parameter.to(weight.dtype).contiguous() for parameter in parameters)


def _norm_bound(e: Tensor) -> Tensor:
    """An upper bound of ||E||: see `norm_bound`."""
    return norm_bound(e.permute(0, 3, 1, 2))


def causal(
    conv: Layer,
    order: str = "right-down",
    rho: float | None = 0.5,
    support: str = "quarter",
    mixing: bool = True,
) -> Layer:
    r"""Keep a layer's kernel masked to later pixels, and well conditioned:  weight = W o (delta + E),  ||E|| < rho.

    Each output reads its own pixel by the matrix W and later ones by E. The log-determinant is then that of W, once for
    each place, and the inverse is substitution, which the layer finds by itself: `conv.operator(size).plan()` says so.
    The condition number stays below cond(W) (1 + rho) / (1 - rho) for every image. The norm is bounded as by `bounded`.

    Germain et al., *MADE* (2015), and van den Oord et al., *Pixel recurrent neural networks* (2016), mask kernels so;
    Hoogeboom, van den Berg and Welling, *Emerging convolutions for generative normalizing flows* (2019), section 3.1,
    invert pairs of them.

    Args:
        conv: an invertible convolution with borders of zeros, no stride, as many output channels as input channels and
            an output of the size of the input: `padding="same"` and an odd kernel.
        order: the way in which pixels are read, a direction for each axis, the fastest first: "right-down" reads the
            pixels on the right, then the lines below, "up-left" the pixels above, then the columns on the left. The
            third axis, of depth, has "in" and "out".
        rho: bound of the norm of E, in (0, 1); None for a kernel that is masked and nothing else.
        support: "half" for all later pixels within the kernel, 5 taps of 3 x 3 with the own one; "quarter" for those
            that are on the right and below, say, 4 taps.
        mixing: whether there is a W; without, it is 1 and no parameter.

    Returns:
        conv, its weight parametrized as by `torch.nn.utils.parametrize`: W and E are
        `conv.parametrizations.weight.original0` and `original1`, without mixing E is `original0`. The kernel it had is
        kept where the mask and the bound leave it. The `state_dict` carries order, rho and geometry, and is refused by
        a layer of others.

    Raises:
        InputError: if rho is out of range, the order names other axes than the image has, the weight is parametrized
            already or set by a hook, or the geometry is no such one.

    Example:
        >>> from invconv import InvertibleConv2d
        >>> conv = causal(InvertibleConv2d(8, 8, 3, padding=1), "left-up", rho=0.9, support="half")
        >>> (conv.weight[0, 0] != 0).int().tolist()
        [[1, 1, 1], [1, 1, 0], [0, 0, 0]]
        >>> conv.operator((16, 16)).plan().solver
        'triangular'
    """
    rho = None if rho is None else check_rho(rho)
    check_free(conv, "causal", "mask")
    geometry, weight = conv.geometry, conv.weight
    order = check_order(order, support, geometry.dims)
    _check_geometry(geometry, weight.shape[0] // geometry.groups, weight.shape[1])
    if not later_taps(geometry, order, support):
        raise InputError(
            f"kernel size {geometry.kernel_size} with padding {geometry.padding} has no tap that reads a later pixel "
            f"in the order {order!r}: use an odd kernel of 3 and more, or the layer as it is"
        )
    register(conv, Causal(geometry, weight.shape[1], order, rho, support, mixing))
    return conv


def _check_geometry(geometry: Geometry, rows: int, columns: int) -> None:
    """Refuse a geometry in which a masked kernel is no triangular matrix."""
    wrong = []
    if rows != columns:
        wrong.append(f"{columns} to {rows} channels (in each group)")
    if any(s != 1 for s in geometry.stride):
        wrong.append(f"stride {geometry.stride}")
    if geometry.padding_mode != "zeros":
        wrong.append(f"padding_mode={geometry.padding_mode!r}")
    own = geometry.taps()[centre_taps(geometry)[0]][0]
    if any(surplus(geometry)) or any(own):
        wrong.append(
            f"kernel size {geometry.kernel_size} with padding {geometry.padding}, dilation {geometry.dilation}"
        )
    if wrong:
        raise InputError(
            f"a masked kernel is triangular only with borders of zeros, no stride, as many channels out as in and an "
            f"output of the size of the image, its own pixel among those that are read; got {', '.join(wrong)}. Use "
            "padding='same', an odd kernel size and padding_mode='zeros'"
        )
