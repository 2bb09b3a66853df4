"""What was found, shown: levels between black and white, files, PSNR."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from torch import nn

from invconv import InputError
from invconv.inversion import Inversion, invert, visualize

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def found(batch: int = 1, channels: int = 3) -> tuple[Inversion, torch.Tensor]:
    """A layer that halves what it knows, and the images."""
    model = nn.Sequential(nn.Conv2d(channels, 2 * channels, 3, stride=2))
    shift, scale = (torch.tensor(v[:channels]).view(-1, 1, 1) for v in (MEAN, STD))
    x = (torch.rand(batch, channels, 9, 11) - shift) / scale
    return invert(model, "0", image=x, steps=3, mean=MEAN[:channels], std=STD[:channels]), x


@pytest.mark.parametrize("batch", [1, 2])
def test_psnr_is_that_of_what_is_shown(batch: int) -> None:
    r, x = found(batch)
    shown = [(v.movedim(1, -1) * torch.tensor(STD) + torch.tensor(MEAN)).clamp(0, 1).numpy() for v in (x, r.image)]
    wanted = [peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in zip(*shown, strict=True)]
    assert r.psnr(x).tolist() == pytest.approx(wanted, rel=1e-5)
    assert bool(r.psnr(r.image).isinf().all())
    with pytest.raises(InputError, match=r"expected \(\d, 3, 9, 11\)"):
        r.psnr(x[..., 1:])


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_files_hold_the_levels(channels: int, mode: str, tmp_path: Path) -> None:
    r, _ = found(1, channels)
    (file,) = r.save(tmp_path / "new" / "a.png")
    picture = Image.open(file)
    assert picture.mode == mode and picture.size == (11, 9)
    levels = r.levels()[0].movedim(0, -1).squeeze(-1)
    assert np.array_equal(np.array(picture), (255 * levels).round().byte().numpy())


def test_several_images_are_numbered(tmp_path: Path) -> None:
    r, x = found(2)
    assert [file.name for file in r.save(tmp_path / "a.png")] == ["a-0.png", "a-1.png"]
    assert len(r.plot(x, title="two", to=tmp_path / "b.png")) == 2 and (tmp_path / "b-1.png").exists()


def test_what_excites_is_shown_as_well(tmp_path: Path) -> None:
    r = visualize(nn.Sequential(nn.Conv2d(3, 2, 3)), "0[1]", input_size=(9, 11), steps=1, mean=0.5, std=0.25)
    assert r.save(tmp_path / "a.png")[0].exists() and len(r.plot()) == 1
    assert (r.mean, r.std) == (0.5, 0.25)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    r = invert(nn.Sequential(nn.Conv1d(2, 4, 3)), "0", image=torch.rand(1, 2, 12), steps=0)
    with pytest.raises(InputError, match=r"\(1, 2, 12\), expected \(batch, 1 or 3"):
        r.save(tmp_path / "a.png")
    with pytest.raises(InputError, match="ending that Pillow cannot write"):
        found()[0].save(tmp_path / "a.docx")
