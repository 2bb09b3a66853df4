"""Coordinates of natural images, where the joint solve starts in them, and what they make of a trained layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invconv import InputError
from invconv.inversion import inputs, invert
from invconv.inversion.coordinates import Coordinates, Natural, Pixels
from invconv.inversion.joint import SHAKEN, JointSolve, feature_error
from invconv.inversion.starts import ENOUGH, FEW, share_known, solve_jointly

MEAN, STD = [0.5, 0.4, 0.3], [0.3, 0.2, 0.1]


def smooth(channels: int = 3, side: int = 24) -> Tensor:
    """An image whose spectrum falls as that of photographs does, in float64."""
    like = torch.zeros(1, channels, side, side, dtype=torch.float64)
    z = torch.randn(like.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return Natural(like[:0], like.shape, inputs.pixel_box(0.0, 1.0, like)).decode(z)


@pytest.mark.parametrize("shape", [(1, 3, 7, 12), (2, 1, 9), (1, 2, 4, 5, 6)])
def test_coordinates_name_each_image_once(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    for box in (None, inputs.pixel_box(0.0, 1.0, x)):
        natural = Natural(x[:0], x.shape, box)
        assert torch.allclose(natural.decode(natural.encode(x)), x, rtol=0, atol=1e-12)


def test_no_coordinates_leave_the_bounds() -> None:
    like = torch.zeros(1, 3, 8, 8)
    box = inputs.pixel_box(MEAN, STD, like)
    assert box is not None
    natural = Natural(like[:0], like.shape, box)
    assert not box.excess(natural.decode(100 * torch.randn(like.shape))).any()
    at_the_bounds = box.lower.expand(like.shape)
    assert natural.encode(at_the_bounds).isfinite().all()
    levels = (natural.decode(natural.encode(at_the_bounds)) - box.lower) / (box.upper - box.lower)
    assert levels.max() < 1 / 200


def test_amplitudes_fall_with_the_frequency_and_colours_are_paler_than_light() -> None:
    like = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
    natural = Natural(like[:0], like.shape)
    amplitude = natural.amplitude[0]
    assert torch.allclose(amplitude[0, 2] / amplitude[0, 8], torch.tensor(4.0).double())
    z = torch.randn(64, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pixels = natural.decode(z)
    grey = pixels.mean(1, keepdim=True)
    assert pixels.std() == pytest.approx(1.0, rel=0.1)
    assert (pixels - grey).square().mean() < 0.4 * grey.square().mean()
    assert torch.allclose(natural.prior(z), z.square().flatten(1).mean(1))


def test_whitened_coordinates_are_answered_to_alike() -> None:
    """The columns of the dense Jacobian, here of the identity: all of one length, but for what is floored."""
    like = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    natural = Natural(like[:0], like.shape)

    def columns(coordinates: Natural) -> Tensor:
        jacobian = torch.autograd.functional.jacobian(coordinates.decode, like)
        return torch.as_tensor(jacobian).reshape(192, 192).norm(dim=0)

    before, after = columns(natural), columns(natural.whitened(lambda x: x, like))
    assert after.log().std() < 0.6 * before.log().std()
    assert torch.equal(natural.whitened(lambda x: 0 * x, like).amplitude, natural.amplitude), "nothing is answered"


def test_natural_coordinates_find_a_natural_image_sooner() -> None:
    """Half as many equations as unknowns: of the images that explain them, the natural one is wanted."""
    truth = smooth()
    weight = torch.randn(6, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def apply(x: Tensor) -> Tensor:
        return F.conv2d(x, weight, stride=2).tanh()

    features, box = apply(truth), inputs.pixel_box(0.0, 1.0, truth)
    grey, like = torch.full_like(truth, 0.5), truth[:0]
    ways: list[Coordinates] = [Pixels(box), Natural(like, truth.shape, box)]
    found = {type(c).__name__: JointSolve(40, coordinates=c).run(apply, features, grey) for c in ways}
    errors = {name: float((x - truth).norm() / truth.norm()) for name, x in found.items()}
    assert errors["Natural"] < 0.6 * errors["Pixels"], errors


def test_the_same_seed_and_a_batch_by_its_images() -> None:
    truth = torch.cat([smooth(), smooth().flip(2)])
    weight = torch.randn(6, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def apply(x: Tensor) -> Tensor:
        return F.conv2d(x, weight, stride=4)

    options = JointSolve(10), apply
    both = solve_jointly(*options, apply(truth), None, truth, inputs.pixel_box(0.0, 1.0, truth))
    for i in range(2):
        x = truth[i : i + 1]
        assert torch.equal(solve_jointly(*options, apply(x), None, x, inputs.pixel_box(0.0, 1.0, x)), both[i : i + 1])


def test_a_shaken_image_leaves_flat_ground() -> None:
    """Units that are all off at grey have no derivative there: a line search would end at once."""
    truth = smooth(side=16)

    def apply(x: Tensor) -> Tensor:
        return F.relu(F.avg_pool2d(x, 4).mean(1).flatten(1) - 0.5)

    features = apply(truth)
    assert 0 < share_known(features, truth.numel()) < FEW < ENOUGH
    box = inputs.pixel_box(0.0, 1.0, truth)
    still = JointSolve(60, coordinates=Natural(truth[:0], truth.shape, box)).run(apply, features, truth * 0 + 0.5)
    assert feature_error(apply, still, features) == 1
    x = solve_jointly(JointSolve(SHAKEN + 60), apply, features, None, truth, box)
    assert feature_error(apply, x, features) < 0.5


def test_unseen_borders_are_not_of_noise() -> None:
    """A stride that leaves the last row and column out: they are to look like what is beside them."""
    torch.manual_seed(0)
    x = torch.linspace(0.2, 0.8, 24).expand(1, 3, 24, 24) * torch.tensor([1.0, 0.9, 0.7]).view(1, 3, 1, 1)
    model = nn.Sequential(nn.Conv2d(3, 32, 3, stride=2), nn.ReLU())
    r = invert(model, "1", image=x, mean=0.0, std=1.0)
    assert r.feature_error < 1e-3
    border = (r.image - x)[..., -1, :].square().mean().sqrt()
    assert border < 0.1, "of noise it would be 0.3"


def test_what_noise_fills_up_counts_for_no_equation() -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 3, 16, 16)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 1, 3, padding=1))
    closed = invert(model, "1", image=x, steps=0)
    assert [r.equations for r in closed.layers] == [256, 256]
    assert "fewer equations than unknowns" in closed.layers[-1].note
    (left,) = invert(model, "1", image=x, steps=3).layers
    assert left.kind == "joint solve" and "at most 256 equations for 4096 unknowns at '1'" in left.note


def test_features_alone_do_as_well_as_the_image() -> None:
    torch.manual_seed(0)
    x = smooth(side=32).float()
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 8, 3), nn.ReLU()).eval()
    with torch.no_grad():
        features = model(x)
    ours = invert(model, "4", image=x, mean=0.0, steps=60)
    theirs = invert(model, "4", features=features, input_size=(32, 32), mean=0.0, steps=60)
    assert theirs.feature_error <= 1.1 * ours.feature_error
    assert (theirs.image - x).norm() <= 1.1 * (ours.image - x).norm()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (dict(steps=-1), "steps.*-1"),
        (dict(prior_weight=-0.1), "prior_weight.*-0.1"),
        (dict(image=torch.full((1, 3, 16, 16), 1.2)), r"pixel of level 1.2, expected 0 to 1"),
        (dict(image=torch.full((1, 3, 16, 16), -0.2)), r"pixel of level -0.2, expected 0 to 1"),
        (dict(image=None, features=2 * [torch.zeros(1, 4, 14, 14)], input_size=(16, 16)), "features has 2 tensors"),
        (dict(image=None, features=[[1.0]], input_size=(16, 16)), "features is list"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_bad_input(change: dict, text: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.raises(InputError, match=text):
        invert(model, "1", **{"image": torch.zeros(1, 3, 16, 16), "mean": 0.0, **change})


def test_of_few_steps_half_are_left_to_l_bfgs() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 1, 3)), torch.rand(1, 3, 16, 16)
    assert invert(model, "1[0, 2, 3]", image=x, steps=10).feature_error < 1e-3, "by steps along the gradient alone 0.09"


def test_a_layer_that_does_not_depend_on_the_image() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)
            self.register_buffer("fixed", torch.ones(1, 2))

        def forward(self, x: Tensor) -> Tensor:
            return x.mean() + self.inner(self.fixed)

    with pytest.raises(InputError, match="'inner' does not depend on the image"):
        invert(Constant(), "inner", image=torch.zeros(1, 3, 8, 8))
