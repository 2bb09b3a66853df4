"""The cached inverse against the layer's own forward, and against the recipe that is in print.

    python benchmarks/inverse.py

The recipe (Stack Overflow and papers alike): multiply the image's FFT by the pseudo-inverse of the kernel's FFT,
`torch.linalg.pinv` at each call and `einsum` on the natural layout.
"""

from __future__ import annotations

import argparse

import torch
from timing import in_turn, machine, show

from invconv import InvertibleConv2d


def recipe_pinv(weight: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    padded = torch.zeros(*weight.shape[:2], *size)
    padded[:, :, :3, :3] = weight
    centred = padded.roll((-1, -1), (2, 3))
    return torch.linalg.pinv(torch.fft.rfft2(centred).conj().permute(2, 3, 0, 1))


def recipe_apply(y: torch.Tensor, pinv: torch.Tensor) -> torch.Tensor:
    return torch.fft.irfft2(torch.einsum("hwio,bohw->bihw", pinv, torch.fft.rfft2(y)), s=y.shape[2:])


@torch.no_grad()
def main(rounds: int, recipe: bool) -> None:
    print(machine())
    torch.manual_seed(0)
    for channels, side, batch in [(32, 128, 4), (32, 128, 1), (32, 128, 16), (32, 32, 16), (12, 64, 16), (3, 256, 4)]:
        conv = InvertibleConv2d(channels, channels, 3, padding=1, padding_mode="circular", bias=False)
        x = torch.randn(batch, channels, side, side)
        y = conv(x)
        size = (side, side)
        calls = {"forward": lambda c=conv, x=x: c(x), "inverse, cached": lambda c=conv, y=y: c.inverse(y)}
        error = (conv.inverse(y) - x).abs().max().item()
        print(f"c={channels}, {side} x {side}, batch {batch}: largest error of inverse(forward(x)) {error:.1e}")
        times = in_turn(calls, rounds)
        show(times, "forward")
        if recipe and (channels, side, batch) == (32, 128, 4):
            kept = recipe_pinv(conv.weight, size)
            assert torch.allclose(recipe_apply(y, kept), x, atol=1e-4)
            slow = {
                "inverse, cached": calls["inverse, cached"],
                "the recipe, pinv kept": lambda y=y, kept=kept: recipe_apply(y, kept),
                "the recipe, pinv at each call": lambda y=y, c=conv, s=size: recipe_apply(y, recipe_pinv(c.weight, s)),
            }
            show(in_turn(slow, 3, warm_up=1), "inverse, cached")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--no-recipe", dest="recipe", action="store_false", help="leave out the slow comparison")
    main(**vars(parser.parse_args()))
