"""The example that halves pictures: its start is the bicubic filter, and its projection gives more back."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("matplotlib")

from invconv.examples import rescale


def test_it_starts_as_the_bicubic_filter():
    x = torch.rand(2, 3, 40, 36)
    inner = (rescale.halving()(x) - rescale.bicubic(x, 0.5))[..., 4:-4, 4:-4]
    assert inner.abs().max() < 1e-6


def test_haar_and_its_way_back_are_a_pseudo_inverse():
    y = torch.rand(1, 3, 8, 6)
    torch.testing.assert_close(rescale.haar(rescale.haar_back(y, (16, 12))), y)


def test_the_example_runs(tmp_path):
    picture = tmp_path / "rescaled.png"
    options = ["--steps", "3", "--likeness", "0.03", "--side", "96", "--out", str(picture)]
    environment = {**os.environ, "COLUMNS": "120"}  # a name on one line
    done = subprocess.run(
        [sys.executable, "-m", "invconv", "rescale", *options],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert picture.stat().st_size > 1000
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    trips = {name: float(trip) for name, trip, *_ in rows if trip}
    assert len(trips) == 6 and trips["bicubic, projected back"] > trips["bicubic, bicubic"]  # a projection, which nears
