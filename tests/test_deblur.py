"""The example that undoes a shake: it runs, and what it says of borders holds."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from invconv import InputError, functional
from invconv.cli import main
from invconv.examples.deblur import methods, scenes
from invconv.examples.deblur.restore import restore
from invconv.examples.quality import psnr

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("border", ["valid", "zeros", "reflect"])
def test_the_example_runs(border, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "deblurred.png"
    size = ["--side", "40", "--taps", "7", "--count", "1", "--dampings", "0.1"]
    options = ["--border", border, *size, "--picture", "camera", "--out", str(picture)]
    done = subprocess.run(
        [sys.executable, "-m", "invconv", "deblur", "--compare", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert picture.stat().st_size > 1000 and "invconv, this border" in done.stdout


def test_the_true_border_is_ahead_where_it_is_dark():
    for scene in scenes.scenes("zeros", 48, 9, 0.002, 3):
        errors = {
            name: float((methods.METHODS[name](scene, 0.1) - scene.truth).norm())
            for name in methods.METHODS
            if name.startswith(("invconv", "circular", "Wiener", "Richardson"))
        }
        assert min(errors, key=errors.__getitem__) == "invconv, this border"


def test_a_kernel_that_wraps_is_undone_by_all_alike():
    """The circular rivals are what they say: on a torus they have the answer of a circular layer."""
    kernel, y = scenes.shake(7), torch.rand(1, 1, 20, 20, dtype=torch.float64)
    answer = functional.conv_proximal(y, y, kernel[None, None], damping=0.1, padding=3, padding_mode="circular")
    torch.testing.assert_close(methods.circular(y, kernel, 0.1), answer)


def test_the_command_restores_a_picture_of_ones_own(tmp_path, capsys):
    """The kernel is a point spread function, as others write it: what it does to a point is seen in its picture."""
    scene = next(scenes.scenes("zeros", 64, 7, 0.0, 1))
    np.save(tmp_path / "psf.npy", 5 * scene.kernel.flip(0, 1).numpy())
    Image.fromarray((255 * scene.blurred[0, 0].clamp(0, 1)).round().byte().numpy()).save(tmp_path / "blurred.png")
    given = ["--image", str(tmp_path / "blurred.png"), "--kernel", str(tmp_path / "psf.npy"), "--border", "zeros"]
    main(["deblur", *given, "--damping", "0.05", "--out", str(tmp_path / "new" / "out.png")])
    found = torch.from_numpy(np.array(Image.open(tmp_path / "new" / "out.png"))) / 255.0
    assert psnr(found, scene.truth[0, 0]) > psnr(scene.blurred, scene.truth) + 3
    with pytest.raises(SystemExit, match="error: give both --image and --kernel"):
        main(["deblur", *given[:2]])
    np.save(tmp_path / "psf.npy", np.zeros((3, 3)))
    with pytest.raises(SystemExit, match=r"error: the kernel of .* has a sum of 0"):
        main(["deblur", *given])


@pytest.mark.parametrize("border", ["valid", "reflect"])
def test_the_demonstration_gains(border, tmp_path, capsys):
    main(["deblur", "--border", border, "--out", str(tmp_path / "out.png")])
    before, after = map(float, capsys.readouterr().out.split(":")[1].split("dB")[0].split(" and "))
    assert after > before + 3 and Image.open(tmp_path / "out.png").size == (512, 256)


@pytest.mark.parametrize("border", ["valid", "zeros", "reflect", "replicate", "circular"])
def test_a_kernel_of_two_sides_is_restored_by_its_minimiser(border):
    """The normal equations of what is minimised hold, for each channel alone."""
    kernel = torch.rand(3, 5, dtype=torch.float64)
    y = torch.rand(2, 12, 13, dtype=torch.float64)
    assert restore(y, kernel, border).shape == y.shape
    torch.testing.assert_close(restore(y[1:], kernel, border)[0], restore(y, kernel, border)[1])
    for wrong in (torch.ones(2, 3), torch.ones(3), torch.ones(3, 15)):
        with pytest.raises(InputError, match="two odd sides"):
            restore(y, wrong, border)
