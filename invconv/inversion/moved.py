"""The rules of layers that move entries about, leave some out, or set others beside them: nothing is solved for."""

from __future__ import annotations

import math
import operator

import torch
import torch.nn.functional as F
from torch import nn

from invconv.inversion.interval import Interval
from invconv.inversion.place import Place
from invconv.inversion.registry import rule

INF = math.inf


@rule(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, range=None, copies=True)
@rule(nn.FeatureAlphaDropout, F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, range=None, copies=True)
@rule("contiguous", "clone", "detach", torch.clone, torch.detach, "float", "stochastic_depth", range=None, copies=True)
def identity(_place: Place, output: Interval) -> Interval:
    """The output itself: in eval mode there is nothing to undo."""
    return output


@rule(nn.Flatten, nn.Unflatten, torch.flatten, "flatten", "view", "reshape", torch.reshape, range=None, copies=True)
@rule("squeeze", torch.squeeze, "unsqueeze", torch.unsqueeze, "unflatten", torch.unflatten, range=None, copies=True)
@rule("reshape_as", "view_as", range=None, copies=True)
def reshape(place: Place, output: Interval) -> Interval:
    """Entries in the same order, in the shape of the input."""
    return output.map(lambda y: y.reshape(place.shape))


@rule(
    "permute", torch.permute, "transpose", torch.transpose, nn.PixelShuffle, nn.PixelUnshuffle, range=None, copies=True
)
@rule(
    nn.ChannelShuffle,
    F.pixel_shuffle,
    F.pixel_unshuffle,
    "roll",
    torch.roll,
    "flip",
    torch.flip,
    range=None,
    copies=True,
)
@rule(
    "swapaxes",
    "swapdims",
    torch.swapaxes,
    torch.swapdims,
    "movedim",
    torch.movedim,
    "t",
    torch.t,
    range=None,
    copies=True,
)
@rule("fliplr", torch.fliplr, "flipud", torch.flipud, "rot90", torch.rot90, range=None, copies=True)
@rule(operator.getitem, "chunk", torch.chunk, "split", torch.split, "unbind", torch.unbind, range=None, copies=True)
@rule("select", torch.select, "narrow", torch.narrow, "index_select", torch.index_select, range=None, copies=True)
@rule("expand", "expand_as", "repeat", "tile", torch.tile, range=None, copies=True)
@rule("repeat_interleave", torch.repeat_interleave, "unfold", range=None, copies=True)
@rule(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, nn.ReplicationPad1d, range=None, copies=True)
@rule(nn.ReplicationPad2d, nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad2d, range=None, copies=True)
@rule(nn.CircularPad3d, nn.UpsamplingNearest2d, range=None, copies=True)
@rule(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, copies=True)
@rule(F.pad, nn.Unfold, F.unfold, torch.cat, torch.concat, torch.stack, "_patch_merging_pad", copies=True)
@rule("masked_fill", torch.masked_fill, torch.where, "tril", torch.tril, "triu", torch.triu, copies=True)
def copied(place: Place, output: Interval) -> Interval:
    """Each entry where the layer has put it, which it tells when it is given the numbers of the entries.

    Of one that is put in several places, the mean of those that are known, or all that bounds it; of one that is left
    out, nothing is known.
    """
    count = place.shape.numel()  # of the whole batch, which may be moved as well
    numbers = torch.arange(count, dtype=torch.float64, device=output.lower.device).view(place.shape)
    first, second = place.apply(numbers).flatten(), place.apply(numbers + count).flatten()
    moved = second - first == count  # a constant stays where it is
    origin = first[moved].long()
    lower, upper = output.lower.flatten()[moved], output.upper.flatten()[moved]
    exact, bound = lower == upper, output.lower.new_full((count,), INF)
    known = torch.zeros_like(bound).scatter_reduce(0, origin[exact], lower[exact], "mean", include_self=False)
    apart = (lower - known[origin]).abs()[exact].max() if bool(exact.any()) else 0.0
    if apart > torch.finfo(known.dtype).eps ** 0.5 * known.abs().max():
        place.note = f"copies of one entry disagree by up to {apart:.1e}: their mean"
    found = torch.zeros_like(bound, dtype=torch.bool).index_fill(0, origin[exact], True)
    if bool(found.all()):
        return Interval.point(known.view(place.shape))
    low = torch.where(found, known, (-bound).scatter_reduce(0, origin, lower, "amax"))
    high = torch.where(found, known, bound.scatter_reduce(0, origin, upper, "amin"))
    return Interval(torch.minimum(low, high).view(place.shape), torch.maximum(low, high).view(place.shape))


@rule(nn.Upsample, F.interpolate, F.upsample, solves=True)
def resized(place: Place, output: Interval) -> Interval:
    """Of the nearest entry: moved; of a mean of several: the least-squares solution."""
    if str(place.option("mode", 2, "nearest")).startswith("nearest"):
        return copied(place, output)
    return place.solve(output, affine=True)
