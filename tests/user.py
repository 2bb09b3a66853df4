"""What a user writes, every public verb once: `test_types.py` has mypy look at it by its strictest rules."""

from pathlib import Path

import torch
from torch import Tensor, nn

import invconv
from invconv import ConvOperator, InvertibleConv1d, InvertibleConv2d, InvertibleConv3d, Plan, Report, arrays, functional
from invconv.autoencoder import PseudoInverseAutoencoder
from invconv.flows import MultiScaleFlow, PairFlow
from invconv.inversion import Inversion, Visualization, invert, plot, visualize
from invconv.parametrizations import bounded, causal, lipschitz, to_conv


def restored(conv: InvertibleConv2d, y: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    return conv.inverse(y), conv.proximal(y, v, damping=0.1), conv.back_project(y, v), conv.choose_damping(y, v)


def numbers(conv: InvertibleConv2d, size: tuple[int, int]) -> list[Tensor]:
    volumes = [conv.log_abs_det(size), conv.log_volume(size)]
    ends = [conv.spectral_norm(size), conv.smallest_singular_value(size), conv.norm_bound()]
    return [*volumes, *ends, conv.singular_values(size, k=3), conv.condition_number(size), conv.effective_weight()]


def told(conv: InvertibleConv2d, x: Tensor) -> tuple[Plan, Report, Tensor, Tensor]:
    conv.refresh(x.shape)
    A: ConvOperator = conv.operator(x.shape)
    inner = A.adjoint(A.forward(x)) + A.pseudo_inverse_adjoint(A.pseudo_inverse(A.forward(x)))
    return A.plan(), A.report(), inner, A.to_dense() + A.log_abs_det() + A.log_volume()


def by_weight(y: Tensor, v: Tensor, weight: Tensor) -> list[Tensor]:
    x = functional.conv_inverse(y, weight, padding=1, padding_mode="reflect", damping=0.1)
    more = functional.conv_proximal(y, v, weight, damping=0.1, padding=1) + functional.conv_back_project(y, v, weight)
    A = functional.conv_operator(weight, (8, 8), stride=1, solver="iterative", tol=1e-6)
    norms = functional.conv_spectral_norm(weight, (8, 8)) + functional.conv_norm_bound(weight)
    low = functional.conv_smallest_singular_value(weight, (8, 8)) + functional.conv_condition_number(weight, (8, 8))
    sizes = functional.conv_log_abs_det(weight, (8, 8)) + functional.conv_log_volume(weight, (8, 8))
    every = functional.conv_singular_values(weight, (8, 8))
    return [
        x,
        more,
        norms,
        low,
        sizes,
        every,
        functional.pseudo_inverse(y, weight, A),
        functional.log_volume(weight, A),
    ]


def kinds(line: nn.Conv1d, image: nn.Conv2d, volume: nn.Conv3d) -> tuple[nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Conv2d]:
    one, three = InvertibleConv1d.from_conv(line), InvertibleConv3d.from_conv(volume, damping=0.1)
    two: InvertibleConv2d = causal(bounded(InvertibleConv2d.from_conv(image), rho=0.5), "left-up")
    return one.to_conv(), two.to_conv(), three.to_conv(), to_conv(lipschitz(image, 1.0, (8, 8)))


def networks(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> tuple[nn.Module, str, list[str]]:
    conversion = invconv.convert(model, damping=1e-3)
    invconv.keep_fresh(optimizer, conversion.model)
    return invconv.revert(conversion.model), str(invconv.summary(model, x.shape)), conversion.converted


def flows(flow: MultiScaleFlow, pair: PairFlow, x: Tensor) -> tuple[list[Tensor], Tensor, Tensor, Tensor, Tensor]:
    z, log_det = flow(x)
    again, _ = flow.inverse(z)
    h, more = pair.forward(x)
    return z, log_det + more, again + pair.inverse(h)[0], flow.bits_per_dim(x), flow.sample(4, temperature=0.7)


def features(model: nn.Module, x: Tensor) -> tuple[Inversion, Visualization, Tensor, list[Path]]:
    found, excited = invert(model, "features.2", image=x, mean=0.5), visualize(model, "0[1]", input_size=(8, 8))
    plot([found], x, to="layers.png")
    return found, excited, found.psnr(x), found.save("found.png")


def code(model: PseudoInverseAutoencoder, x: Tensor) -> tuple[Tensor, Tensor]:
    x_hat, z = model(x)
    return x_hat + model.decode(model.encode(x)), z


def large(conv: InvertibleConv2d, y: Tensor, out: Tensor) -> arrays.Written:
    return arrays.inverse(conv, y.numpy(), out.numpy())
