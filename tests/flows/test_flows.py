"""Flow layers against the dense Jacobian, and the promises that each of them makes."""

import copy
import math

import pytest
import torch
from torch.autograd.functional import jacobian

from invconv import InvertibleConv2d
from invconv.errors import InputError
from invconv.flows import (
    ActNorm,
    AffineCoupling,
    Chain,
    ConvFlow,
    Dequantize,
    GaussianPrior,
    MultiScaleFlow,
    PairFlow,
    Reversed,
    Split,
    Squeeze,
    parameter_groups,
)

# name: (constructor, shape of one image). A new layer is tested by adding a line.
CASES = {
    "squeeze": (lambda: Squeeze(), (2, 4, 6)),
    "squeeze 3": (lambda: Squeeze(3), (1, 3, 6)),
    "split": (lambda: Split(4), (4, 3, 2)),
    "split odd": (lambda: Split(3), (3, 2, 3)),
    "actnorm": (lambda: ActNorm(3), (3, 3, 2)),
    "coupling": (lambda: AffineCoupling(4, 8), (4, 3, 3)),
    "coupling odd": (lambda: AffineCoupling(3, 8), (3, 3, 2)),
    "conv 3x3 bounded": (lambda: ConvFlow(3), (3, 4, 5)),
    "conv 3x3 free": (lambda: ConvFlow(2, rho=None), (2, 5, 4)),
    "conv 5x5": (lambda: ConvFlow(2, 5, rho=0.8), (2, 6, 4)),
    "conv 3x3 zeros": (lambda: ConvFlow(3, padding_mode="zeros"), (3, 4, 5)),
    "conv 3x3 reflect": (lambda: ConvFlow(2, padding_mode="reflect"), (2, 5, 4)),
    "conv 3x3 replicate, free": (lambda: ConvFlow(2, padding_mode="replicate", rho=None), (2, 4, 4)),
    "conv 1x1": (lambda: ConvFlow(4, 1), (4, 2, 3)),
    "pair": (lambda: PairFlow(3), (3, 4, 5)),
    "pair 5x5 half": (lambda: PairFlow(2, 5, 0.7, "half"), (2, 6, 4)),
    "pair 3x3 half, free": (lambda: PairFlow(2, 3, None, "half"), (2, 1, 5)),
    "pair 7x7 free": (lambda: PairFlow(2, 7, None), (2, 5, 2)),
    "reversed pair": (lambda: Reversed(PairFlow(3)), (3, 4, 5)),
    "reversed conv": (lambda: Reversed(ConvFlow(3)), (3, 4, 5)),
    "chain of pairs": (lambda: Chain(PairFlow(3), Reversed(PairFlow(3)), ConvFlow(3), PairFlow(3)), (3, 3, 4)),
    "prior": (lambda: GaussianPrior(3), (3, 2, 2)),
    "chain": (lambda: Chain(Squeeze(), ActNorm(4), ConvFlow(4), AffineCoupling(4, 8)), (1, 6, 4)),
    "multiscale": (lambda: _Continuous(MultiScaleFlow(1, 8, 2, 1, 8)), (1, 8, 8)),
    "multiscale zeros": (lambda: _Continuous(MultiScaleFlow(1, 8, 2, 1, 8, padding_mode="zeros")), (1, 8, 8)),
    "multiscale reversed": (
        lambda: _Continuous(MultiScaleFlow(1, 8, 2, 1, 8, mixing="pair", reversed_mixing=True)),
        (1, 8, 8),
    ),
    "multiscale pair": (lambda: _Continuous(MultiScaleFlow(1, 8, 2, 1, 8, mixing="pair")), (1, 8, 8)),
    "multiscale 1x1": (lambda: _Continuous(MultiScaleFlow(2, (4, 8), 1, 2, 8, 1)), (2, 4, 8)),
}


class _Continuous(torch.nn.Module):
    """The bijection inside a flow on integer images."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x):
        return self.flow.encode(x)

    def inverse(self, z):
        return self.flow.decode(z)


@pytest.fixture(params=CASES)
def case(request):
    """A layer in double precision, away from its start, a batch of three images, and another such layer."""
    torch.manual_seed(0)
    build, shape = CASES[request.param]
    layer = build().double()
    x = torch.randn(3, *shape, dtype=torch.float64)
    layer(x)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return layer, x, build().double()


def _flat(z):
    """Tensors, tuples and lists of latents alike: (batch, dim)."""
    return z.flatten(1) if isinstance(z, torch.Tensor) else torch.cat([_flat(p) for p in z], 1)


def test_inverse_gives_the_input_back(case):
    layer, x, _ = case
    z, log_det = layer(x)
    again, back = layer.inverse(z)
    assert log_det.shape == back.shape == (3,)
    torch.testing.assert_close(again, x, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(back, -log_det, rtol=1e-9, atol=1e-9)


def test_log_det_is_that_of_the_dense_jacobian(case):
    layer, x, _ = case
    _, log_det = layer(x)
    for image, expected in zip(x, log_det, strict=True):
        dense = jacobian(lambda v: _flat(layer(v[None])[0])[0], image).flatten(1)
        assert dense.shape == (image.numel(), image.numel())
        torch.testing.assert_close(torch.linalg.slogdet(dense)[1], expected, rtol=1e-8, atol=1e-8)


def test_gradients_reach_input_and_every_parameter(case):
    layer, x, _ = case
    x = x.clone().requires_grad_()
    z, log_det = layer(x)
    (_flat(z).square().sum() - log_det.sum()).backward()
    for tensor in [x, *layer.parameters()]:
        assert tensor.grad is not None and tensor.grad.isfinite().all() and tensor.grad.any()


def test_parameter_gradients_agree_with_differences(case):
    layer, x, _ = case
    parameters = list(layer.parameters())

    def objective():
        z, log_det = layer(x)
        return (_flat(z).square().sum(1) / 2 - log_det).sum()

    if parameters:
        torch.manual_seed(1)
        directions = [torch.randn_like(p) for p in parameters]
        slopes = torch.autograd.grad(objective(), parameters)
        slope = sum((g * d).sum() for g, d in zip(slopes, directions, strict=True))
        ends = []
        for step in (1e-5, -1e-5):
            saved = [p.detach().clone() for p in parameters]
            with torch.no_grad():
                for p, d in zip(parameters, directions, strict=True):
                    p += step * d
                ends.append(objective())
                for p, s in zip(parameters, saved, strict=True):
                    p.copy_(s)
        torch.testing.assert_close(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-6)


def test_state_dict_carries_the_whole_map(case):
    layer, x, other = case
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(_flat(other(x)[0]), _flat(layer(x)[0]), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(_flat(copy.deepcopy(layer)(x)[0]), _flat(layer(x)[0]))


@pytest.mark.parametrize("name", ["pair", "pair 3x3 half, free", "reversed pair", "reversed conv"])
def test_gradients_of_both_directions_by_images_and_parameters(name):
    torch.manual_seed(0)
    build, shape = CASES[name]
    layer = build().double()
    names, values = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
    z = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
    for direction, images in ((layer.forward, x), (layer.inverse, z)):
        call = _Call(layer, direction.__name__)
        renamed = [f"layer.{n}" for n in names]
        assert torch.autograd.gradcheck(
            lambda images, *p, call=call, renamed=renamed: torch.func.functional_call(
                call, dict(zip(renamed, p, strict=True)), images
            ),
            (images, *(p.detach().requires_grad_() for p in values)),
            fast_mode=True,
        )


class _Call(torch.nn.Module):
    """One direction of a layer, as a module of which `functional_call` can set the parameters."""

    def __init__(self, layer, direction):
        super().__init__()
        self.layer, self.direction = layer, direction

    def forward(self, images):
        return getattr(self.layer, self.direction)(images)


def test_empty_batch(case):
    layer, x, _ = case
    z, log_det = layer(x[:0])
    assert log_det.shape == (0,)
    assert layer.inverse(z)[0].shape == x[:0].shape


# ActNorm's start


def test_actnorm_starts_from_the_first_training_batch_only():
    torch.manual_seed(0)
    layer = ActNorm(3)
    first, second = 4 + 3 * torch.randn(8, 3, 5, 5), torch.randn(8, 3, 5, 5)
    layer.eval()
    assert torch.equal(layer(second)[0], second) and not layer.initialized
    layer.train()
    layer(first[:0])
    assert not layer.initialized
    z, _ = layer(first)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)
    before = copy.deepcopy(layer.state_dict())
    layer(second)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    assert before["initialized"]


def test_actnorm_does_not_start_anew_after_loading():
    layer, loaded = ActNorm(2), ActNorm(2)
    layer(torch.randn(4, 2, 3, 3))
    loaded.load_state_dict(layer.state_dict())
    loaded(9 + torch.randn(4, 2, 3, 3))
    assert torch.equal(loaded.shift, layer.shift)
    layer.load_state_dict(ActNorm(2).state_dict())
    layer(9 + torch.randn(4, 2, 3, 3))
    assert layer.shift.min() > 5


def test_actnorm_survives_a_large_mean_and_a_constant_channel():
    x = torch.stack([1e4 + torch.randn(64, 4, 4), torch.full((64, 4, 4), 3.0)], 1)
    z, log_det = ActNorm(2)(x)
    assert abs(z[:, 0].std() - 1) < 0.05 and z.isfinite().all() and log_det.isfinite().all()


def _started(rank, world_size, address, results):
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
    layer = ActNorm(3)
    layer(_batch()[rank::world_size])
    results[rank] = (layer.shift.tolist(), layer.log_scale.tolist())
    torch.distributed.destroy_process_group()


def _batch():
    scale = torch.tensor([1.0, 2.0, 5.0])[:, None, None]
    return 3 + scale * torch.randn(7, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_actnorm_starts_from_the_batch_of_all_processes(tmp_path):
    with torch.multiprocessing.get_context("spawn").Manager() as manager:
        shared = manager.dict()
        address = f"file://{tmp_path / 'rendezvous'}"
        torch.multiprocessing.spawn(_started, (2, address, shared), nprocs=2)
        results = dict(shared)
    alone = ActNorm(3)
    alone(_batch())
    for rank in range(2):
        torch.testing.assert_close(torch.tensor(results[rank][0]), alone.shift.detach())
        torch.testing.assert_close(torch.tensor(results[rank][1]), alone.log_scale.detach())


# Dequantisation


@pytest.mark.parametrize("bins", [2, 32, 100, 256, 1000, 65536])
def test_dequantize_gives_all_levels_back(bins):
    x = torch.arange(bins).repeat(max(1, 4096 // bins)).view(1, 1, 1, -1)
    layer = Dequantize(bins)
    for _ in range(20):
        z, log_det = layer(x)
        again, back = layer.inverse(z)
        assert torch.equal(again.long(), x) and z.min() >= 0 and z.max() < 1
    torch.testing.assert_close(log_det, torch.tensor([-x.numel() * math.log(bins)]))
    assert torch.equal(back, -log_det)


def test_dequantisation_noise_is_uniform_and_follows_its_generator():
    x = torch.zeros(1, 1, 100, 100, dtype=torch.uint8)
    noise = [256 * Dequantize()(x, torch.Generator().manual_seed(s))[0] for s in (0, 0, 1)]
    assert torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2])
    counts = torch.histc(noise[0], 10, 0, 1)
    assert (counts - 1000).abs().max() < 150


def test_dequantisation_noise_does_not_depend_on_the_layout():
    x = torch.randint(0, 256, (2, 3, 4, 4))
    layouts = x, x.contiguous(memory_format=torch.channels_last)
    z = [Dequantize()(each, torch.Generator().manual_seed(0))[0] for each in layouts]
    assert torch.equal(*z)


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("bins", [2, 32, 33, 256, 257, 65536])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dequantize_gives_all_levels_back_in_a_type_or_refuses_it(bins, dtype):
    x = torch.arange(bins).repeat(max(1, 4096 // bins)).view(1, 1, 1, -1)
    dense_enough = {torch.float16: bins <= 256, torch.bfloat16: bins <= 32}.get(dtype, True)
    z = ((x + 0.5) / bins).to(dtype)
    if dense_enough:
        layer = Dequantize(bins, dtype)
        for seed in range(20):
            z, log_det = layer(x, torch.Generator().manual_seed(seed))
            again, back = layer.inverse(z)
            assert z.dtype == dtype and torch.equal(again.long(), x) and z.max() < 1
            expected = -x.numel() * math.log(bins)
            assert log_det.item() == pytest.approx(expected, rel=4e-3) and back.item() == pytest.approx(
                -expected, rel=1e-6
            )
    else:
        with pytest.raises(InputError, match=rf"{dtype} cannot tell {bins} levels .* apart"):
            Dequantize(bins, dtype)
        with pytest.raises(InputError, match=rf"{dtype} cannot tell {bins} levels .* apart"):
            Dequantize(bins).inverse(z)
    with pytest.raises(InputError, match=r"not torch\.int32"):
        Dequantize(bins, torch.int32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_default_type_loses_a_level(dtype):
    x = torch.arange(256).repeat(16).view(1, 1, 64, 64).byte()
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # as Lightning's precision="bf16-true" does in every step
    try:
        layer = Dequantize().to(dtype)
        z, log_det = layer(x)
        again, _ = layer.inverse(z)
    finally:
        torch.set_default_dtype(default)
    assert z.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(again, x) and log_det.item() == pytest.approx(-4096 * math.log(256), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_log_dets_of_half_precision_are_sums_in_float32(dtype):
    """The rest is rounding of the values that are summed: less than eps for each, and not of the sum."""
    torch.manual_seed(0)
    layers = [
        ActNorm(12),
        ConvFlow(12),
        AffineCoupling(12, 8),
        GaussianPrior(12),
        Squeeze(),
        Chain(Squeeze(), ActNorm(48)),
    ]
    x = torch.randn(2, 12, 32, 32)
    for layer in [*layers, Split(12), Chain(*copy.deepcopy(layers[:4]))]:
        layer(x)  # ActNorm's start
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        layer.to(dtype)
        exact = copy.deepcopy(layer).double()
        _, log_det = layer(x.to(dtype))
        z, expected = exact(x.to(dtype).double())
        z = tuple(part.to(dtype) for part in z) if isinstance(z, tuple) else z.to(dtype)
        back = layer.inverse(z)[1]
        for found, sign in ((log_det, 1), (back, -1)):
            assert found.dtype == torch.float32, layer
            # 12,288 errors of eps / 2 each, of which most cancel
            assert ((sign * found - expected).abs() <= 0.5 + 12288**0.5 * torch.finfo(dtype).eps * 4).all(), layer


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bits_per_dim_of_half_precision_is_that_of_its_weights_or_refused(dtype):
    torch.manual_seed(0)
    x = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    flow = MultiScaleFlow(image_size=16, scales=2, steps=1, hidden=8)
    flow(x)
    flow.to(dtype)
    if dtype == torch.bfloat16:
        for call in (flow, flow.bits_per_dim, lambda _: flow.sample(2)):
            with pytest.raises(InputError, match=r"bfloat16 cannot tell 256 levels .* Use float32"):
                call(x)
    else:
        noise = [torch.Generator().manual_seed(0) for _ in range(2)]
        found = flow.bits_per_dim(x, generator=noise[0])
        expected = copy.deepcopy(flow).double().bits_per_dim(x, generator=noise[1])
        torch.testing.assert_close(found.double(), expected, atol=2e-3, rtol=0)


def test_autocast_sums_log_dets_in_float32():
    x = torch.rand(2, 12, 32, 32)
    for layer in (AffineCoupling(12, 8), Split(12)):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        with torch.autocast("cpu", torch.bfloat16):
            z, log_det = layer(x)
            _, back = layer.inverse(z)
        assert log_det.dtype == back.dtype == torch.float32
        assert torch.allclose(log_det, layer(x)[1], rtol=torch.finfo(torch.bfloat16).eps)
        # All digits that float32 has of such a sum, and not the eight bits of bfloat16.
        assert not torch.equal(log_det, log_det.bfloat16().float())


# The multi-scale flow


@pytest.fixture(scope="module")
def flow():
    torch.manual_seed(0)
    flow = MultiScaleFlow(image_size=16, scales=3, steps=2, hidden=16)
    flow(torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return flow.eval()


def test_flow_reconstructs_from_all_latents_in_single_precision(flow):
    x = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8)
    z, log_det = flow(x)
    assert sum(part[0].numel() for part in z) == x[0].numel()
    assert [tuple(part.shape[1:]) for part in z] == flow.latent_shapes
    again, back = flow.inverse(z)
    assert again.dtype == torch.uint8
    # A level is lost only where the noise lies within rounding error of its edge.
    assert (again != x).float().mean() < 1e-3 and (again.int() - x.int()).abs().max() <= 1
    torch.testing.assert_close(back, -log_det, rtol=1e-5, atol=1e-2)
    assert flow.reconstruction_error(x).max() < 1e-5
    assert flow.reconstruction_error(x).shape == (8,)


def test_bits_per_dim_of_a_standard_normal_flow():
    """By hand: a new flow with orthogonal 1 x 1 kernels is a rotation of the image."""
    torch.manual_seed(0)
    flow = MultiScaleFlow(1, 4, scales=1, steps=1, hidden=4, kernel_size=1).eval()
    with torch.no_grad():
        flow.levels[0].layers[2].conv.weight.copy_(torch.linalg.qr(torch.randn(4, 4))[0][..., None, None])
    x = torch.randint(256, (5, 1, 4, 4), dtype=torch.uint8)
    continuous, _ = flow.dequantize(x, torch.Generator().manual_seed(3))
    nats = 0.5 * continuous.square().flatten(1).sum(1) + 16 * (0.5 * math.log(2 * math.pi) + math.log(256))
    bits = flow.bits_per_dim(x, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(bits, nats / (16 * math.log(2)))


def test_levels_are_called_as_modules(flow):
    seen = []
    for level in flow.levels:
        level.register_forward_hook(lambda module, inputs, outputs: seen.append(module))
    flow.bits_per_dim(torch.randint(0, 256, (2, *flow.image_shape)))
    assert seen == list(flow.levels)


def test_convolutions_of_a_chain_keep_their_own_sizes():
    chain = Chain(ConvFlow(3, padding_mode="zeros"), Squeeze(), ConvFlow(12, padding_mode="zeros")).double()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    z, log_det = chain(x)
    sizes = [(8, 8), None, (4, 4)]
    expected = sum(layer.conv.log_abs_det(size) for layer, size in zip(chain.layers, sizes, strict=True) if size)
    assert torch.allclose(log_det, expected.expand(2), rtol=1e-12)
    again, back = chain.inverse(z)
    assert torch.allclose(again, x) and torch.allclose(back, -log_det, rtol=1e-12)


def test_samples_follow_temperature_and_generator(flow):
    draws = [flow.sample(4, t, generator=torch.Generator().manual_seed(s)) for t, s in [(1, 0), (1, 0), (1, 1), (0, 0)]]
    assert draws[0].shape == (4, 3, 16, 16) and draws[0].dtype == torch.uint8
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(draws[3][0], draws[3][1])
    assert flow.sample(0).shape == (0, 3, 16, 16)


def test_condition_numbers_are_those_of_every_convolution(flow):
    conditions = flow.condition_numbers()
    assert len(conditions) == 6 and all(1 <= value < 10 for value in conditions.values())
    conv = flow.levels[1].layers[2].conv
    dense = torch.linalg.cond(conv.double().operator((4, 4)).to_dense())
    conv.float()
    torch.testing.assert_close(conditions["level2.layer2"].double(), dense, rtol=1e-4, atol=0)


def test_mixing_says_which_layers_mix():
    def kinds(**options):
        flow = MultiScaleFlow(1, 8, scales=2, steps=1, hidden=4, **options)
        return [(type(level.layers[2]), level.convolutions[0].kernel_size) for level in flow.levels]

    assert kinds() == kinds(mixing="dense") == [(ConvFlow, (3, 3))] * 2
    assert kinds(mixing="pair", kernel_size=5) == [(PairFlow, (5, 5))] * 2
    assert kinds(mixing="1x1") == kinds(mixing="pair", kernel_size=1) == [(ConvFlow, (1, 1))] * 2


def test_condition_numbers_of_pairs_are_those_of_both_and_bounded():
    torch.manual_seed(0)
    rho = 0.6
    flow = MultiScaleFlow(1, 8, scales=2, steps=1, hidden=4, rho=rho, mixing="pair").double()
    for conv in flow.convolutions:
        torch.nn.init.normal_([*conv.parametrizations.weight.parameters()][-1])  # E
    conditions = flow.condition_numbers()
    assert list(conditions) == [f"level{level}.layer2.{number}" for level in (1, 2) for number in (1, 2)]
    for name, level, size in (("level1.layer2", flow.levels[0], (4, 4)), ("level2.layer2", flow.levels[1], (2, 2))):
        pair = level.layers[2]
        first, second = (conv.operator(size).to_dense() for conv in pair.convolutions)
        bound = (1 + rho) / (1 - rho)
        mixing = torch.linalg.cond(pair.second.parametrizations.weight.original0[0])
        for number, (matrix, most) in enumerate(((first, bound), (second, mixing * bound)), start=1):
            condition = torch.linalg.cond(matrix)
            assert conditions[f"{name}.{number}"] == pytest.approx(condition.item(), rel=1e-2) and condition <= most
        product = conditions[f"{name}.1"] * conditions[f"{name}.2"]
        assert torch.linalg.cond(second @ first) <= product * 1.02


def test_class_conditional_prior_tells_classes_apart():
    torch.manual_seed(0)
    flow = MultiScaleFlow(1, 4, scales=1, steps=1, hidden=4, num_classes=3).eval()
    torch.nn.init.normal_(flow.prior.moments.weight)
    x, y = torch.randint(256, (3, 1, 4, 4), dtype=torch.uint8), torch.arange(3)
    log_probs = [flow.log_prob(x, y.roll(r), torch.Generator().manual_seed(0)) for r in range(2)]
    assert (log_probs[0] - log_probs[1]).abs().min() > 1e-3
    assert torch.equal(flow.inverse(flow(x, y)[0], y)[0], x)
    assert flow.sample(3, y=y).shape == x.shape


# Bad input


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Squeeze()(torch.rand(1, 3, 5, 4)), "multiples of 2.*5, 4"),
        (lambda: Squeeze().inverse(torch.rand(1, 3, 4, 4)), "multiple of 4.*1, 3, 4, 4"),
        (lambda: Squeeze()(torch.rand(3, 4, 4)), "batch dimension"),
        (lambda: ActNorm(3)(torch.rand(1, 4, 4, 4)), "3 channels.*1, 4, 4, 4"),
        (lambda: ActNorm(3)(torch.ones(1, 3, 4, 4, dtype=torch.long)), "Dequantize first"),
        (lambda: AffineCoupling(1), "channels must be an integer of at least 2, got 1"),
        (lambda: AffineCoupling(4)(torch.rand(1, 5, 4, 4)), "4 channels"),
        (lambda: MultiScaleFlow((3, 16, 16)), r"in_channels must be an integer of at least 1, got \(3, 16, 16\)"),  # type: ignore[arg-type]
        (lambda: MultiScaleFlow(scales=0), "scales must be an integer of at least 1, got 0"),
        (lambda: MultiScaleFlow(image_size="32"), "image_size must be"),  # type: ignore[arg-type]
        (lambda: ActNorm([4]), "channels must be an integer"),  # type: ignore[arg-type]
        (lambda: Squeeze(0), "factor must be an integer of at least 1, got 0"),
        (lambda: Split(1), "channels must be an integer of at least 2, got 1"),
        (lambda: ConvFlow(4)(torch.rand(1, 5, 4, 4)), "4 channels"),
        (lambda: ConvFlow(4)(torch.rand(1, 4, 4, 4, dtype=torch.cfloat)), "complex64"),
        (lambda: PairFlow(4)(torch.rand(1, 5, 4, 4)), "4 channels"),
        (lambda: PairFlow(4).inverse(torch.rand(1, 5, 4, 4)), "z must have 4 channels"),
        (lambda: PairFlow(4, 1), "kernel_size must be an integer of at least 3, got 1"),
        (lambda: PairFlow(4, 4), "kernel_size of a pair must be odd, got 4: use 5"),
        (lambda: PairFlow(4, rho=1.0), r"rho must lie in \(0, 1\), got 1.0"),
        (lambda: PairFlow(4, support="whole"), "support must be one of"),
        (lambda: MultiScaleFlow(mixing="3x3"), "mixing must be one of .*'dense', 'pair', '1x1'.*, got '3x3'"),  # type: ignore[arg-type]
        (lambda: Dequantize()(torch.rand(1, 3, 4, 4)), "integer levels.*uint8"),
        (lambda: Dequantize(4)(torch.full((1, 1, 2, 2), 4)), "0 to 3"),
        (lambda: Dequantize()(torch.full((1, 1, 2, 2), -1)), "got -1"),
        (lambda: Dequantize()(torch.zeros(1, 2, 2, dtype=torch.uint8)), "batch, channels"),
        (lambda: Dequantize(1), "bins"),
        (lambda: GaussianPrior(2, 3)(torch.rand(2, 2, 2, 2)), "needs labels"),
        (lambda: GaussianPrior(2)(torch.rand(2, 2, 2, 2), torch.zeros(2).long()), "num_classes is 0"),
        (lambda: GaussianPrior(2, 3)(torch.rand(2, 2, 2, 2), torch.tensor([0, 3])), "0 to 2, got 0 to 3"),
        (lambda: GaussianPrior(2, 3)(torch.rand(2, 2, 2, 2), torch.zeros(3).long()), "2 integer labels"),
        (lambda: MultiScaleFlow(image_size=12, scales=3), "multiple of 8"),
        (lambda: MultiScaleFlow(steps=0), "at least 1"),
    ],
)
def test_bad_input_is_named(call, text):
    with pytest.raises(InputError, match=text):
        call()


@pytest.mark.parametrize(
    ("shape", "text"), [((2, 1, 16, 16), "3 channels"), ((2, 3, 8, 16), "built for images of shape")]
)
def test_flow_names_images_of_another_shape(flow, shape, text):
    with pytest.raises(InputError, match=text):
        flow(torch.zeros(shape, dtype=torch.uint8))


def test_flow_wants_all_latents(flow):
    z, _ = flow(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(InputError, match="latents"):
        flow.inverse(z[1:])


@pytest.mark.parametrize("mixing", ["dense", "pair", "1x1"])
def test_samples_of_reversed_mixing_are_plain_convolutions(mixing, monkeypatch):
    solved = []
    whole = InvertibleConv2d.inverse
    monkeypatch.setattr(InvertibleConv2d, "inverse", lambda self, *a, **k: solved.append(self) or whole(self, *a, **k))
    torch.manual_seed(0)
    flow = MultiScaleFlow(1, 8, 1, 2, 8, mixing=mixing, reversed_mixing=True)
    flow.log_prob(torch.randint(256, (4, 1, 8, 8))).sum().backward()
    assert len(solved) == len(flow.convolutions) and all(p.grad is not None for p in flow.parameters())
    flow.sample(2)
    assert len(solved) == len(flow.convolutions)
    assert flow.reconstruction_error(torch.randint(256, (4, 1, 8, 8))).max() < 1e-5


@pytest.mark.parametrize("mixing", ["dense", "pair"])
def test_kernels_learn_at_a_rate_of_their_own(mixing):
    flow = MultiScaleFlow(image_size=8, scales=2, steps=1, hidden=8, mixing=mixing)
    networks, kernels = parameter_groups(flow, lr=1e-3, kernel_rate=4.0)
    in_kernels = {id(p) for conv in flow.convolutions for p in conv.parameters()}
    assert {id(p) for p in kernels["params"]} == in_kernels and kernels["lr"] == pytest.approx(4e-3)
    assert {id(p) for p in networks["params"]} == {id(p) for p in flow.parameters()} - in_kernels
    before = [p.detach().clone() for p in kernels["params"]]
    optimizer = torch.optim.Adam([networks, kernels])
    flow.bits_per_dim(torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)).mean().backward()
    optimizer.step()
    # The first step of Adam is the rate itself wherever there is a gradient.
    moved = max((p - b).abs().max().item() for p, b in zip(kernels["params"], before, strict=True))
    assert moved == pytest.approx(4e-3, rel=1e-3)
