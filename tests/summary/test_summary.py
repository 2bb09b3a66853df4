"""The table of a network's convolutions, against the dense matrices of its layers."""

from __future__ import annotations

import csv
import itertools
import math
import subprocess
import sys

import numpy
import pytest
import torch
from oracle import dense
from PIL import Image
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import invconv
from invconv import InputError, InvertibleConv2d, MissingPackageError, deadline
from invconv.summary.__main__ import main


class Network(nn.Module):
    """Convolutions of many kinds, one of them run twice, on images of two sizes, and one never."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.grouped = weight_norm(nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2, padding_mode="reflect"))
        self.shared = InvertibleConv2d(6, 6, 3, padding=1, dilation=1, padding_mode="circular")
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ConvTranspose2d(6, 2, 3, stride=2, padding=1, output_padding=1)
        self.blind = nn.Conv2d(2, 16, 1, stride=2)
        self.unused = nn.Conv2d(1, 1, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        x = self.grouped(self.first(self.norm(x)))
        return self.blind(self.up(self.pool(self.shared(self.shared(x)))))


@pytest.fixture(scope="module")
def found():
    torch.manual_seed(0)
    network = Network().double().train()
    return network, invconv.summary(network, (3, 8, 8), tol=1e-6)


def matrix(module, size):
    if not isinstance(module, nn.ConvTranspose2d):
        return dense(module, size)
    count = module.in_channels * math.prod(size)
    images = torch.eye(count, dtype=torch.float64).view(count, module.in_channels, *size)
    return (module(images) - module(torch.zeros_like(images))).flatten(1).T.detach()


def test_rows_are_those_of_the_dense_matrices(found):
    network, table = found
    assert [row.name for row in table] == ["first", "grouped", "shared", "up", "blind"]
    for row in table:
        module = network.get_submodule(row.name)
        a = matrix(module, row.input_size)
        assert row.shape == tuple(a.shape) and row.shape[0] == row.channels[1] * math.prod(row.output_size)
        values = torch.linalg.svdvals(a)
        assert row.sigma_max == pytest.approx(values[0].item(), rel=1e-6)
        assert row.sigma_min == pytest.approx(values[-1].item(), abs=1e-10)
        if row.sigma_min:
            assert row.condition == pytest.approx((values[0] / values[-1]).item(), rel=1e-6)
            assert row.log_volume == pytest.approx(values.log().sum().item(), rel=1e-8)
    assert network.training and network.first.training
    assert not network.first._forward_hooks


def test_what_does_not_exist_is_said(found):
    row = found[1]["blind"]
    assert row.sigma_min == 0 and row.condition == math.inf and row.log_volume is None
    assert "whatever the weight" in row.notes["sigma_min"] and "minus infinity" in row.notes["log_volume"]
    assert "nan" not in str(found[1])


def test_a_layer_of_lower_rank():
    conv = nn.Conv2d(2, 3, 1, stride=2)  # wide, of which each place sees two numbers and gives three
    row = invconv.summary(nn.Sequential(conv), (2, 8, 8))["0"]
    assert row.sigma_min == 0 and row.condition == math.inf and "rounding" in row.notes["sigma_min"]
    assert row.log_volume is None and "minus infinity" in row.notes["log_volume"]


def test_one_module_on_two_sizes_has_two_rows():
    conv = nn.Conv2d(1, 1, 3, padding=1)
    table = invconv.summary(nn.Sequential(conv, nn.MaxPool2d(2), conv), (1, 8, 8), quantities=["sigma_max"])
    assert [row.input_size for row in table] == [(8, 8), (4, 4)]
    first, second = (row.sigma_max or 0.0 for row in table)
    assert first > second > 0


def test_only_what_is_asked_and_done_in_time_is_computed(monkeypatch):
    network = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1))
    monkeypatch.setattr(invconv.ConvOperator, "log_volume", lambda self: pytest.fail("nobody asked"))
    row, exact = invconv.summary(network, (16, 16, 16), quantities=["sigma_max", "sigma_min"], seconds=0.0)
    assert row.sigma_max is None and row.sigma_min is None and row.condition is None and not row.reached
    assert all("more than 0 s" in note for note in row.notes.values()) and set(row.notes) == {"sigma_max", "sigma_min"}
    assert exact.sigma_max
    steps = []
    rows = invconv.summary(network, (1, 16, 16, 16), quantities=[], progress=lambda *step: steps.append(step))
    assert steps == [(0, 2, "0"), (1, 2, "1"), (2, 2, "")] and [row.method for row in rows] == ["", ""]


def test_what_was_reached_in_time_is_told(monkeypatch, tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1)).double()
    norm = torch.linalg.matrix_norm(dense(network[0], (18, 20)), ord=2).item()
    clock = itertools.count()
    monkeypatch.setattr(deadline.time, "monotonic", lambda: next(clock))
    table = invconv.summary(network, (3, 18, 20), quantities=["sigma_max"], seconds=8)
    row = table["0"]
    assert row.sigma_max is None and 0.3 * norm < row.reached["sigma_max"] <= norm * (1 + 1e-9)
    assert f">{row.reached['sigma_max']:.5g}" in str(table)
    table.to_csv(tmp_path / "rows.csv")
    assert "sigma_max: " in (tmp_path / "rows.csv").read_text()


def test_groups_are_decomposed_each_by_itself():
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6, 3, padding=1, groups=6)
    with torch.no_grad():
        conv.weight[3] = torch.tensor([[0, 0, 0], [1.0, 0, 1.0], [0, 0, 0]])  # of an odd width: no full rank
    network = nn.Sequential(conv).double()
    row = invconv.summary(network, (6, 12, 13))["0"]
    assert row.sigma_min == 0 and "rounding" in row.notes["sigma_min"] and row.condition == math.inf
    with torch.no_grad():
        conv.weight[3, 0, 1, 1] = 5.0
    row = invconv.summary(network, (6, 12, 13))["0"]
    values = torch.linalg.svdvals(dense(conv, (12, 13)))
    assert row.sigma_min == pytest.approx(values[-1].item(), rel=1e-10)


def test_bad_input():
    network = nn.Sequential(nn.Conv2d(3, 3, 3))
    with pytest.raises(InputError, match="sigma_mean"):
        invconv.summary(network, (3, 8, 8), quantities=["sigma_mean"])
    with pytest.raises(InputError, match=r"cannot be run on images of size \(4, 8, 8\)"):
        invconv.summary(network, (4, 8, 8))
    with pytest.raises(InputError, match="tol"):
        invconv.summary(network, (3, 8, 8), tol=0.0)
    assert not network[0]._forward_hooks


def test_a_kernel_that_is_not_finite_is_said():
    conv = nn.Conv2d(1, 1, 3)
    with torch.no_grad():
        conv.weight[0, 0, 0, 0] = math.nan
    row = invconv.summary(nn.Sequential(conv), (1, 8, 8))["0"]
    assert row.sigma_max is None and "NaN" in row.notes["sigma_max"]


class PadsByItself(nn.Conv2d):
    def forward(self, x):
        return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))


@pytest.mark.parametrize(("side", "text"), [(8, r"makes (8, 8) of (8, 8)"), (2, "below the kernel's extent 3")])
def test_a_forward_of_its_own_that_pads_is_not_taken_for_another_map(side, text):
    row = invconv.summary(nn.Sequential(PadsByItself(2, 3, 3), nn.Conv2d(3, 3, 1)), (2, side, side))["0"]
    assert row.sigma_max is row.sigma_min is row.log_volume is row.condition is None
    assert all(text in note for note in row.notes.values()) and len(row.notes) == 3
    assert row.shape == (3 * side**2, 2 * side**2)


def test_csv_and_dictionaries(found, tmp_path):
    table = found[1]
    table.to_csv(tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines] == [row.name for row in table]
    assert lines[1]["kernel_size"] == "3x2" and lines[-1]["log_volume"] == ""
    assert float(lines[0]["sigma_max"]) == table.as_dicts()[0]["sigma_max"]
    assert lines[-1]["notes"].startswith("sigma_min: zero")


def test_the_picture(found, tmp_path, monkeypatch):
    network = found[0]
    table = invconv.summary(network, (3, 8, 8), spectra=True)
    for row in table:
        values = torch.linalg.svdvals(matrix(network.get_submodule(row.name), row.input_size))
        assert len(row.spectrum) == 101 and row.spectrum[0] == pytest.approx(values[0].item(), rel=1e-9)
        assert row.spectrum[50] == pytest.approx(values[(len(values) - 1) // 2].item(), rel=1e-9)
    assert not found[1]["first"].spectrum
    table.plot(tmp_path / "spectra.png")
    with Image.open(tmp_path / "spectra.png") as image:
        wanted, blue = len(table), torch.tensor([0x2A, 0x6F, 0x97])
        pixels = torch.from_numpy(numpy.array(image.convert("RGB"))).long()
    lines = ((pixels - blue).abs().sum(2) < 10).any(1)
    lines = lines[2:] & lines[1:-1] & lines[:-2]  # without specks
    assert (lines[1:] & ~lines[:-1]).sum() == wanted
    with pytest.raises(InputError, match="cannot write"):
        table.plot(tmp_path / "spectra.nothing")
    with pytest.raises(InputError, match="no sigma_max to draw"):
        invconv.summary(network, (3, 8, 8), quantities=[]).plot(tmp_path / "none.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingPackageError, match=r"invconv\[pictures\]"):
        table.plot(tmp_path / "spectra.png")


def test_the_command(tmp_path, capsys):
    pytest.importorskip("torchvision")
    words = ["--model", "squeezenet1_1", "--size", "32", "--quantities", "sigma_max", "--csv", str(tmp_path / "x.csv")]
    words += ["--picture", str(tmp_path / "x.png")]
    main(words)
    said = capsys.readouterr()
    assert (
        "features.0" in said.out and "threads" in said.out and "26 of 26" in said.err and (tmp_path / "x.csv").exists()
    )
    assert (tmp_path / "x.png").exists()
    with pytest.raises(SystemExit, match="no_such"):
        main(["--model", "no_such"])
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "invconv.summary", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "python -m invconv.summary" in done.stdout
