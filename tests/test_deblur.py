"""The example that undoes a shake: it runs, and what it says of borders holds."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "deblur" / "deblur.py"


@pytest.mark.parametrize("border", ["valid", "zeros", "reflect"])
def test_the_example_runs(border, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "deblurred.png"
    size = ["--side", "40", "--taps", "7", "--count", "1", "--dampings", "0.1"]
    options = ["--border", border, *size, "--picture", "camera", "--out", str(picture)]
    done = subprocess.run([sys.executable, str(EXAMPLE), *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert picture.stat().st_size > 1000 and "invconv, this border" in done.stdout


def test_the_true_border_is_ahead_where_it_is_dark(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    import deblur_methods
    import deblur_scenes

    for scene in deblur_scenes.scenes("zeros", 48, 9, 0.002, 3):
        errors = {
            name: float((deblur_methods.METHODS[name](scene, 0.1) - scene.truth).norm())
            for name in deblur_methods.METHODS
            if name.startswith(("invconv", "circular", "Wiener", "Richardson"))
        }
        assert min(errors, key=errors.__getitem__) == "invconv, this border"


def test_a_kernel_that_wraps_is_undone_by_all_alike(monkeypatch):
    """The circular rivals are what they say: on a torus they have the answer of a circular layer."""
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    import deblur_methods
    import deblur_scenes
    import torch

    from invconv import functional

    kernel, y = deblur_scenes.shake(7), torch.rand(1, 1, 20, 20, dtype=torch.float64)
    answer = functional.conv_proximal(y, y, kernel[None, None], damping=0.1, padding=3, padding_mode="circular")
    torch.testing.assert_close(deblur_methods.circular(y, kernel, 0.1), answer)
