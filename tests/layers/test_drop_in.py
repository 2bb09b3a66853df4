"""The table of what PyTorch does with a layer: each feature works for every border as it does for `nn.Conv2d`.

Derivatives and transforms of the verbs are held against those of the dense matrix, in float64.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.export import Dim
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.torch_version import TorchVersion

from invconv import InputError, InvertibleConv1d, InvertibleConv2d, InvertibleConv3d, functional, keep_fresh
from invconv.flows import MultiScaleFlow
from invconv.layers import FrozenInverse

TORCH = TorchVersion(torch.__version__)
BORDERS = ["circular", "zeros", "reflect", "replicate"]
DOUBLE = torch.float64


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


X = images(2, 4, 9, 8)
OTHERS = [images(3, 4, 9, 8), images(5, 4, 12, 11)]


def same(candidate: Any, layer: Any, *others: Tensor) -> None:
    for x in (X, *(others or OTHERS)):
        assert torch.allclose(candidate(x), layer(x), atol=1e-6)


# -- forward: our layer and PyTorch's, side by side ----------------------------------------------------------------


def exported(layer: Any) -> None:
    sizes = {0: Dim("batch"), 2: Dim("height", min=4, max=64), 3: Dim("width", min=4, max=64)}
    same(torch.export.export(layer, (X,), dynamic_shapes=(sizes,)).module(), layer)


def traced(layer: Any) -> None:
    same(torch.jit.trace(layer, X), layer)


def scripted(layer: Any) -> None:
    program = torch.jit.script(layer)
    same(program, layer)
    stream = io.BytesIO()
    torch.jit.save(program, stream)
    stream.seek(0)
    same(torch.jit.load(stream), layer)


def scripted_in_a_model(layer: Any) -> None:
    model = nn.Sequential(layer, nn.ReLU())
    same(torch.jit.script(model), model)
    assert model[0] is layer


def symbolically_traced(layer: Any) -> None:
    graph = torch.fx.symbolic_trace(layer)
    same(graph, layer)
    placeholders = [node.target for node in graph.graph.nodes if node.op == "placeholder"]
    assert placeholders == ["input"]


def extracted(layer: Any) -> None:
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    model = nn.Sequential(layer, nn.ReLU(), nn.Flatten())
    features = extraction.create_feature_extractor(model, {"0": "features"})
    same(lambda x: features(x)["features"], layer)


def compiled(layer: Any) -> None:
    torch._dynamo.reset()
    same(torch.compile(layer, backend="eager", dynamic=True, fullgraph=True), layer)


def to_onnx(dynamo: bool, layer: Any) -> None:
    same(onnx_program(layer, X, dynamo), layer, OTHERS[0])


def changed_in_place(layer: Any) -> None:
    y = layer(X)
    wanted = torch.autograd.grad((2 * y).square().sum(), layer.weight)[0]
    y = layer(X)
    y.mul_(2)
    y.square().sum().backward()
    assert torch.allclose(layer.weight.grad, wanted)
    nn.ReLU(inplace=True)(layer(X)).sum().backward()


def vmapped(layer: Any) -> None:
    x = images(3, 2, 4, 9, 8)
    assert torch.allclose(vmap(layer)(x), torch.stack([layer(each) for each in x]), atol=1e-6)


def an_ensemble(layer: Any) -> None:
    many = {name: torch.stack([p.detach(), 2 * p.detach()]) for name, p in layer.named_parameters()}
    y = vmap(lambda parameters: functional_call(layer, parameters, (X,)))(many)
    assert torch.allclose(y, torch.stack([layer(X), 2 * layer(X)]), atol=1e-5)


def jacobians(layer: Any) -> None:
    x = X[:1]
    assert torch.allclose(jacrev(layer)(x), jacfwd(layer)(x), atol=1e-6)
    assert torch.allclose(jvp(layer, (x,), (x,))[1], layer(x) - layer(0 * x), atol=1e-5)


def a_hessian(layer: Any) -> None:
    matrix = hessian(lambda x: layer(x).square().sum())(X[:1]).view(288, 288)
    assert torch.allclose(matrix, matrix.T, atol=1e-5) and matrix.norm() > 1


def channels_last(layer: Any) -> None:
    wanted = layer(X)
    y = layer.to(memory_format=torch.channels_last)(X.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(y, wanted, atol=1e-6)


def autocast(layer: Any) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(X).dtype == torch.bfloat16


def on_the_meta_device(layer: Any) -> None:
    assert layer.to("meta")(X.to("meta")).shape == (2, 6, 9, 8)


def called_by_keyword(layer: Any) -> None:
    assert torch.equal(layer(input=X), layer(X))
    assert torch.equal(layer(X[0]), layer(X[:1])[0])


def checkpointed(layer: Any) -> None:
    x = X.clone().requires_grad_()
    torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False).sum().backward()
    assert x.grad is not None


def twice_backward(layer: Any) -> None:
    x = X.clone().requires_grad_()
    (first,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
    first.square().sum().backward()
    assert x.grad is not None and x.grad.norm() > 0


PRECISIONS = ["32-true", "64-true", "bf16-true", "16-true", "bf16-mixed"]


def in_a_precision_of_lightning(precision: str, layer: Any) -> None:
    """A step of training, as each kind of border does it in this precision; what inverses do, `test_precision` asks."""
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    wanted = layer(X).detach()
    model, optimizer = fabric.setup(nn.Sequential(layer), optimizer)
    before = layer.weight.detach().clone()
    y = model(X)
    assert torch.allclose(y.detach().float(), wanted, atol=0.05)
    fabric.backward(y.float().square().mean())
    optimizer.step()
    assert not torch.equal(layer.weight, before)


FORWARD: dict[str, Callable[[Any], None]] = {
    "export, sizes and batch dynamic": exported,
    "jit.trace": traced,
    "jit.script": scripted,
    "jit.script of a model": scripted_in_a_model,
    "fx.symbolic_trace": symbolically_traced,
    "feature extraction": extracted,
    "compile, one graph": compiled,
    "ONNX": partial(to_onnx, True),
    "ONNX by TorchScript": partial(to_onnx, False),
    "output changed in place": changed_in_place,
    "vmap": vmapped,
    "vmap over weights": an_ensemble,
    "jacrev, jacfwd, jvp": jacobians,
    "hessian": a_hessian,
    "channels_last": channels_last,
    "autocast": autocast,
    "meta": on_the_meta_device,
    "keyword, unbatched": called_by_keyword,
    "checkpoint": checkpointed,
    "second derivative": twice_backward,
    **{f"Lightning, {name}": partial(in_a_precision_of_lightning, name) for name in PRECISIONS},
}


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")
@pytest.mark.parametrize("kind", [nn.Conv2d, InvertibleConv2d])
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("feature", FORWARD)
def test_forward_goes_wherever_that_of_pytorch_goes(feature: str, border: str, kind: Any) -> None:
    FORWARD[feature](kind(4, 6, 3, padding=1, padding_mode=border))


@pytest.mark.parametrize("kind", [InvertibleConv1d, InvertibleConv3d])
@pytest.mark.parametrize("border", ["circular", "zeros"])
def test_lines_and_volumes_are_traced_scripted_and_exported(kind: Any, border: str) -> None:
    layer = kind(2, 3, 3, padding=1, stride=2, padding_mode=border)
    dims = layer.geometry.dims
    x, other = images(2, 2, *(6,) * dims), images(3, 2, *(8,) * dims)
    sizes = {axis: Dim(f"n{axis}", min=3, max=64) for axis in range(2, 2 + dims)} | {0: Dim("batch")}
    for program in (
        torch.export.export(layer, (x,), dynamic_shapes=(sizes,)).module(),
        torch.jit.trace(layer, x),
        torch.jit.script(layer),
        torch.fx.symbolic_trace(layer),
    ):
        assert torch.allclose(program(other), layer(other), atol=1e-6)


def onnx_program(module: nn.Module, x: Tensor, dynamo: bool) -> Callable[[Tensor], Tensor]:
    """The module as ONNX Runtime runs it, with a batch of any size."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    stream: Any = io.BytesIO()
    batch: Any = dict(dynamic_shapes=({0: Dim("batch")},)) if dynamo else dict(dynamic_axes={"x": {0: "batch"}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), stream, dynamo=dynamo, input_names=["x"], **batch)
    session = runtime.InferenceSession(stream.getvalue())
    return lambda image: torch.from_numpy(session.run(None, {"x": image.numpy()})[0])


# -- sizes, norms, the argument `weight` ---------------------------------------------------------------------------

SIZES: dict[str, dict[str, Any]] = {
    "one": dict(kernel_size=np.int64(3), padding=np.int32(1)),
    "pairs": dict(kernel_size=(np.int64(3), 3), padding=[np.int64(1)] * 2, dilation=np.int64(1), groups=np.int64(2)),
    "arrays": dict(kernel_size=np.array([3, 3]), padding=np.array([1, 1]), stride=np.array([1, 1])),
}


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("sizes", SIZES)
def test_integers_of_numpy_are_taken_as_pythons_own(sizes: str, border: str) -> None:
    channels: Any = np.int64(4)
    layer: Any = InvertibleConv2d(channels, channels, padding_mode=border, **SIZES[sizes])
    for feature in ("jit.script", "fx.symbolic_trace", "export, sizes and batch dynamic"):
        FORWARD[feature](layer)
    assert torch.allclose(layer.inverse(layer(X), (np.int64(9), np.int64(8))), X, atol=1e-4)
    assert torch.equal(layer.log_abs_det(np.array([9, 8])), layer.log_abs_det((9, 8)))


NORMS: dict[str, Callable[[Any], Any]] = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "older weight norm": nn.utils.weight_norm,
    "older spectral norm": nn.utils.spectral_norm,
    "pruned": lambda conv: prune.l1_unstructured(conv, "weight", 0.3),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("norm", NORMS)
def test_normed_and_pruned_convolutions_become_layers_that_go_there_too(norm: str, border: Any) -> None:
    plain = NORMS[norm](nn.Conv2d(4, 4, 3, padding=1, padding_mode=border)).eval()
    layer = InvertibleConv2d.from_conv(plain, damping=0.1)
    if norm not in ("older weight norm", "pruned"):  # which PyTorch cannot copy
        copy.deepcopy(layer)
    for feature in ("export, sizes and batch dynamic", "jit.trace", "fx.symbolic_trace"):
        FORWARD[feature](layer)
    assert torch.equal(layer(X), plain(X))
    x = layer.inverse(plain(X))
    assert torch.allclose(layer.operator((9, 8)).pseudo_inverse(plain(X) - plain.bias.view(-1, 1, 1)), x, atol=1e-5)


def test_every_verb_takes_the_weight_by_place_and_by_keyword() -> None:
    layer = InvertibleConv2d(2, 2, 3, padding=1)
    weight = 2 * layer.weight.detach()
    twin = copy.deepcopy(layer)
    twin.weight.data = weight
    y = images(1, 2, 4, 4)
    verbs: dict[str, tuple[Any, ...]] = {
        "forward": (y,),
        "inverse": (y, None),
        "log_abs_det": ((4, 4),),
        "log_volume": ((4, 4),),
        "singular_values": ((4, 4), None),
        "condition_number": ((4, 4),),
        "spectral_norm": ((4, 4),),
        "smallest_singular_value": ((4, 4),),
    }
    for name, arguments in verbs.items():
        verb, wanted = getattr(layer, name), getattr(twin, name)(*arguments)
        assert torch.allclose(verb(*arguments, weight), wanted, atol=1e-5)
        assert torch.allclose(verb(*arguments, weight=weight), wanted, atol=1e-5)
    assert torch.equal(layer.operator((4, 4), weight).source, weight)


# -- derivatives and transforms of the verbs -----------------------------------------------------------------------

SIDE = (4, 4)
SHAPES = [(2, 2), (1, 3), (3, 1)]


def dense(weight: Tensor, border: str) -> Tensor:
    """The explicit matrix, differentiable in the weight by PyTorch alone."""
    units = torch.eye(weight.shape[1] * 16, dtype=DOUBLE).view(-1, weight.shape[1], *SIDE)
    mode = {"zeros": "constant"}.get(border, border)
    return F.conv2d(F.pad(units, (1, 1, 1, 1), mode=mode), weight).flatten(1).T


def dense_inverse(border: str, damping: float, y: Tensor, weight: Tensor) -> Tensor:
    """(A'A + d^2)^-1 A' y, or A'(AA')^-1 y of a wide A."""
    a = dense(weight, border)
    if damping or a.shape[0] >= a.shape[1]:
        gram = a.T @ a + damping**2 * torch.eye(a.shape[1], dtype=DOUBLE)
        x = torch.linalg.solve(gram, a.T @ y.flatten(1).T)
    else:
        x = a.T @ torch.linalg.solve(a @ a.T, y.flatten(1).T)
    return x.T.view(-1, weight.shape[1], *SIDE)


def second(function: Callable[..., Tensor], *leaves: Tensor) -> Tensor:
    """First derivatives with a graph, and the gradient of their squares."""
    leaves = tuple(leaf.detach().requires_grad_() for leaf in leaves)
    first = torch.autograd.grad(function(*leaves).pow(3).sum(), leaves, create_graph=True)
    further = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)  # type: ignore[arg-type]
    return torch.cat([g.detach().flatten() for g in (*first, *further)])


def of_all(transform: Any, function: Callable[..., Tensor], *leaves: Tensor) -> Tensor:
    parts = [transform(function, i)(*leaves).flatten() for i in range(len(leaves))]
    return torch.cat(parts)


def along(function: Callable[..., Tensor], *leaves: Tensor) -> Tensor:
    return jvp(function, leaves, tuple(leaf.cos() for leaf in leaves))[1]


def in_batches(function: Callable[..., Tensor], *leaves: Tensor) -> Tensor:
    many = [torch.stack([leaf, 1.1 * leaf, leaf + 0.01]) for leaf in leaves]
    results = [vmap(function)(*many)]
    for i in range(len(leaves)):
        one = [many[j] if j == i else leaf for j, leaf in enumerate(leaves)]
        results.append(vmap(function, tuple(0 if j == i else None for j in range(len(leaves))))(*one))
    return torch.cat([result.flatten() for result in results])


def of_a_cube(function: Callable[..., Tensor], *leaves: Tensor) -> Tensor:
    last = len(leaves) - 1
    return hessian(lambda *values: function(*values).pow(3).sum(), last)(*leaves)


TRANSFORMS: dict[str, Callable[..., Tensor]] = {
    "second derivatives": second,
    "jacrev": partial(of_all, jacrev),
    "jacfwd": partial(of_all, jacfwd),
    "jvp": along,
    "vmap": in_batches,
    "hessian": of_a_cube,
}
OPTIONS: dict[str, dict[str, Any]] = {"auto": {}, "damped": {"damping": 0.3}, "lsmr": {"solver": "iterative"}}


def layer_of(shape: tuple[int, int], border: str, **options: Any) -> tuple[Any, Tensor]:
    layer = InvertibleConv2d(*shape, 3, padding=1, padding_mode=border, bias=False, dtype=DOUBLE, **options)
    return layer, layer.weight.detach() + 0.1 * images(*layer.weight.shape).double()


def close(found: Tensor, wanted: Tensor, tolerance: float = 1e-7) -> None:
    assert (found - wanted).abs().max() < tolerance * wanted.abs().max()


@pytest.mark.parametrize("border", ["circular", "zeros", "reflect"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_inverse_has_derivatives_of_all_kinds(
    transform: str, options: str, shape: tuple[int, int], border: str
) -> None:
    if transform == "hessian" and options != "auto":
        pytest.skip("as second derivatives, and slow")
    layer, weight = layer_of(shape, border, **OPTIONS[options])
    y = images(1, shape[1], *SIDE).double()
    reference = partial(dense_inverse, border, layer.damping)
    found = TRANSFORMS[transform](lambda y, weight: layer.inverse(y, None, weight), y, weight)
    close(found, TRANSFORMS[transform](reference, y, weight))
    close(layer.inverse(y), reference(y, layer.weight.detach()))  # no stand-in is left in its cache


def log_volume(border: str, weight: Tensor) -> Tensor:
    a = dense(weight, border)
    a = a if a.shape[0] >= a.shape[1] else a.T
    return 0.5 * torch.linalg.slogdet(a.T @ a).logabsdet


def spread(border: str, weight: Tensor) -> Tensor:
    """The sum of the squares of all squared singular values: of A'A, which has no vectors to tell apart."""
    a = dense(weight, border)
    return (a.T @ a).square().sum()


@pytest.mark.parametrize("border", ["circular", "zeros", "reflect"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_log_volumes_and_singular_values_have_derivatives_of_all_kinds(
    transform: str, shape: tuple[int, int], border: str
) -> None:
    layer, weight = layer_of(shape, border)
    take = TRANSFORMS[transform]
    close(take(lambda weight: layer.log_volume(SIDE, weight), weight), take(partial(log_volume, border), weight))
    if shape[0] == shape[1]:
        found = take(lambda weight: layer.log_abs_det(SIDE, weight), weight)
        close(found, take(partial(log_volume, border), weight))
    found = take(lambda weight: layer.singular_values(SIDE, None, weight).pow(4).sum(), weight)
    close(found, take(partial(spread, border), weight))


@pytest.mark.parametrize("border", ["circular", "zeros"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_numerical_derivatives_agree(shape: tuple[int, int], border: str) -> None:
    layer, weight = layer_of(shape, border)
    weight.requires_grad_()
    y = images(1, shape[1], *SIDE).double().requires_grad_()
    questions: list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = [
        (lambda y, weight: layer.inverse(y, None, weight).square().sum(), (y, weight)),
        (lambda weight: layer.log_volume(SIDE, weight), (weight,)),
        (lambda weight: layer.condition_number(SIDE, weight), (weight,)),
    ]
    for function, leaves in questions:
        assert torch.autograd.gradcheck(function, leaves)
        assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("border", ["circular", "zeros"])
def test_functions_of_a_weight_are_transformed_as_well(border: str) -> None:
    _, weight = layer_of((2, 2), border)
    y = images(1, 2, *SIDE).double()
    arguments: Any = dict(padding=1, padding_mode=border)
    for name in ("second derivatives", "jacrev", "jvp", "vmap"):
        take = TRANSFORMS[name]
        found = take(lambda y, weight: functional.conv_inverse(y, weight, **arguments), y, weight)
        close(found, take(partial(dense_inverse, border, 0.0), y, weight))
        found = take(lambda weight: functional.conv_log_abs_det(weight, SIDE, **arguments), weight)
        close(found, take(partial(log_volume, border), weight))


@pytest.mark.parametrize("solver", ["auto", "iterative"])
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_operator_of_every_solver_is_linear_to_autograd(shape: tuple[int, int], border: str, solver: str) -> None:
    operator = layer_of(shape, border, solver=solver)[0].operator(SIDE)
    y = images(2, shape[1], *SIDE).double().requires_grad_()
    x = images(2, shape[0], *SIDE).double().requires_grad_()
    (found,) = torch.autograd.grad(operator.pseudo_inverse(y), y, x, create_graph=True)
    close(found, operator.pseudo_inverse_adjoint(x.detach()))
    (back,) = torch.autograd.grad(found, x, y)
    close(back, operator.pseudo_inverse(y.detach()))
    many = torch.stack([y.detach(), 2 * y.detach()])
    close(vmap(operator.pseudo_inverse)(many)[1], 2 * operator.pseudo_inverse(y.detach()))
    close(jvp(operator.pseudo_inverse, (y.detach(),), (y.detach(),))[1], operator.pseudo_inverse(y.detach()))


def test_what_has_no_derivatives_is_refused_with_the_reason() -> None:
    layer, weight = layer_of((2, 2), "zeros")
    y = images(1, 2, *SIDE).double()
    with pytest.raises(InputError, match=r"torch\.func hides: inside of its transforms ask the layer"):
        grad(lambda weight: layer.operator(SIDE, weight).forward(y).sum())(weight)
    operator = layer.operator(SIDE)
    with pytest.raises(InputError, match=r"is of one weight, torch\.func\.vmap gives several"):
        vmap(lambda weight: functional.pseudo_inverse(y, weight, operator))(torch.stack([weight, weight]))
    large = InvertibleConv2d(3, 3, 3, padding=1)
    (first,) = torch.autograd.grad(large.log_abs_det((32, 32)), large.weight, create_graph=True)
    with pytest.raises(InputError, match="3072 x 3072 matrix, which is too large"):
        first.sum().backward()


@pytest.mark.parametrize("border", ["circular", "zeros"])
def test_a_whole_flow_is_transformed(border: str) -> None:
    flow = MultiScaleFlow(image_size=8, scales=2, steps=1, hidden=4, padding_mode=border)
    x = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    flow(x)  # ActNorm looks at its first batch
    parameters: dict[str, Tensor] = dict(flow.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        torch.manual_seed(1)  # dequantisation
        z, log_det = functional_call(flow, parameters, (x,))[:2]
        return log_det.sum() + sum(part.square().sum() for part in (z if isinstance(z, (list, tuple)) else [z]))

    found = grad(loss)(parameters)
    loss(parameters).backward()
    for name, parameter in parameters.items():
        if parameter.grad is not None:
            assert torch.allclose(found[name], parameter.grad, rtol=1e-4, atol=1e-5)


# -- answers that the caller changes in place ----------------------------------------------------------------------


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_answers_may_be_changed_in_place(shape: tuple[int, int], border: str) -> None:
    layer, _ = layer_of(shape, border)
    gradients = []
    changes: list[Callable[[Tensor], Tensor]] = [lambda x: 2 * x, lambda x: x.mul_(2), partial(F.relu, inplace=True)]
    for change in changes:
        layer.zero_grad()
        change(layer.inverse(images(1, shape[1], *SIDE).double())).square().sum().backward()
        gradients.append(layer.weight.grad.clone())
    close(gradients[1], gradients[0])
    layer.zero_grad()
    F.relu(layer.inverse(images(1, shape[1], *SIDE).double())).square().sum().backward()
    close(gradients[2], layer.weight.grad)


@pytest.mark.parametrize("border", BORDERS)
def test_memory_formats_go_through_the_inverse(border: str) -> None:
    layer = InvertibleConv2d(4, 4, 3, padding=1, padding_mode=border).to(memory_format=torch.channels_last)
    y = layer(X.to(memory_format=torch.channels_last))
    assert torch.allclose(layer.inverse(y), X, atol=1e-4)


# -- inverses that are exported ------------------------------------------------------------------------------------

EXPORTED = [((3, 3), 1), ((3, 6), 1), ((6, 3), 1), ((3, 12), 2)]


@pytest.mark.parametrize("matrix", [False, True], ids=["factors", "matrix"])
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize(("shape", "stride"), EXPORTED, ids=str)
def test_a_frozen_inverse_takes_any_batch(shape: tuple[int, int], stride: int, border: str, matrix: bool) -> None:
    layer = InvertibleConv2d(*shape, 3, stride=stride, padding=1, padding_mode=border)
    side = (12, 14)
    y = layer(images(5, shape[0], *side)).detach()
    wanted = layer.inverse(y, side).detach()
    if not matrix and not layer.operator(side).solver.exports:
        with pytest.raises(InputError, match=r"whose steps depend on values.*use matrix=True"):
            FrozenInverse(layer, side)
        return
    module = FrozenInverse(layer, side, matrix=matrix)
    if not matrix and TORCH < "2.7":
        pytest.skip("PyTorch 2.6 does not export complex constants")
    # Older versions cannot prove min(n, 12 n) = n of a size with a name.
    size = Dim.AUTO if TORCH < "2.14" else Dim("batch")
    program = torch.export.export(module, (y[:2],), dynamic_shapes=({0: size},), strict=False).module()
    layer.weight.data.mul_(2)  # it is frozen
    for batch in (y, y[:3], y[:2]):
        assert torch.allclose(program(batch), wanted[: len(batch)], atol=1e-4)
    if matrix:
        for candidate in (torch.jit.trace(module, y[:2]), torch.fx.symbolic_trace(module)):
            assert torch.allclose(candidate(y), wanted, atol=1e-4)


@pytest.mark.skipif(TORCH < "2.14", reason="older versions cannot prove min(n, 12 n) = n of a size with a name")
def test_blocks_of_a_masked_kernel_are_exported_for_any_batch() -> None:
    layer = InvertibleConv2d(12, 12, 3, padding=1)
    with torch.no_grad():
        layer.weight[:, :, 0], layer.weight[:, :, 1, 0], layer.weight[:, :, 2, 0] = 0, 0, 0
    y = layer(images(24, 12, 16, 16)).detach()
    module = FrozenInverse(layer, (16, 16))
    program = torch.export.export(module, (y[:2],), dynamic_shapes=({0: Dim("batch")},), strict=False).module()
    for batch in (y, y[:3]):
        assert torch.allclose(program(batch), layer.inverse(batch), atol=1e-4)


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("border", BORDERS)
def test_an_inverse_runs_in_onnx(border: str, dynamo: bool) -> None:
    layer = InvertibleConv2d(3, 3, 3, padding=1, padding_mode=border)
    y = layer(images(5, 3, 8, 8)).detach()
    program = onnx_program(FrozenInverse(layer, (8, 8), matrix=True), y[:2], dynamo)
    assert torch.allclose(program(y), layer.inverse(y), atol=1e-4)


def test_a_matrix_that_is_too_large_is_refused() -> None:
    with pytest.raises(InputError, match="37748736 entries, above the 16777216"):
        FrozenInverse(InvertibleConv2d(6, 6, 3, padding=1), (32, 32), matrix=True)


# -- sharded weights -----------------------------------------------------------------------------------------------


@pytest.fixture
def mesh(tmp_path: Any) -> Any:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield DeviceMesh("cpu", [0])
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("registered", [False, True], ids=["by itself", "register_fsdp_forward_method"])
@pytest.mark.parametrize("border", BORDERS)
def test_sharded_layers_answer_and_stay_fresh(border: str, registered: bool, mesh: Any) -> None:
    layer: Any = InvertibleConv2d(4, 4, 3, padding=1, padding_mode=border)
    twin = copy.deepcopy(layer)
    fully_shard(layer, mesh=mesh)
    if registered:
        if TORCH < "2.7":
            pytest.skip("PyTorch 2.6 registers verbs on GPUs only")
        for verb in ("inverse", "log_abs_det"):
            register_fsdp_forward_method(layer, verb)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.01) for each in (layer, twin)]
    with keep_fresh(optimizers[0], layer) as kept:
        for _ in range(2):
            y = twin(X).detach()
            answers = []
            for each, optimizer in zip((layer, twin), optimizers, strict=True):
                optimizer.zero_grad()
                each.reshard() if each is layer else None
                x = each.inverse(y)
                (x.square().mean() - each.log_abs_det((9, 8))).backward()
                optimizer.step()
                answers.append(x.detach())
            assert torch.allclose(*answers, atol=1e-5)
            layer.reshard()
            assert torch.allclose(layer.weight.full_tensor(), twin.weight, atol=1e-5)
    assert kept.steps == 2 and layer.prepared_sizes() == [(9, 8)]
    with pytest.raises(InputError, match=r"sharded over processes: give weight\.full_tensor\(\)"):
        functional.conv_log_abs_det(layer.weight, (9, 8), padding=1)
