"""What a layer holds besides its weight: options, once; and the abstract base that the three layers share."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from tables import LAYERS
from torch import nn

from invconv import InputError, InvertibleConv, InvertibleConv2d, Options, functional, keep_fresh
from invconv.engine.ways import WAYS
from invconv.geometry import Geometry
from invconv.operator import ConvOperator
from invconv.options import NAMES
from invconv.parametrizations import bounded

SIZE = (6, 8)
CHANGED: dict[str, Any] = {
    "rtol": 0.1,
    "damping": 0.2,
    "solver": "iterative",
    "tol": 1e-3,
    "max_iter": 7,
    "volume_tol": 0.01,
}
BAD = {"rtol": 2.0, "damping": -1.0, "solver": "fft", "tol": 0.0, "max_iter": 0, "volume_tol": 1.0}


def layer(**options):
    return InvertibleConv2d(3, 3, 3, padding=1, padding_mode="circular", dtype=torch.float64, **options)


# -- the abstract base ---------------------------------------------------------------------------------------------


def test_the_base_is_abstract():
    with pytest.raises(TypeError, match="InvertibleConv is abstract: use InvertibleConv1d"):
        InvertibleConv(3, 3, 3)
    with pytest.raises(TypeError, match="InvertibleConv is abstract"):
        InvertibleConv.from_conv(nn.Conv2d(3, 3, 3))


@pytest.mark.parametrize("dims", LAYERS)
def test_the_three_layers_are_of_the_base(dims):
    assert isinstance(LAYERS[dims](2, 2, 1), InvertibleConv)


def test_a_class_of_the_base_and_a_plain_convolution_is_a_layer():
    class Mine(InvertibleConv, nn.Conv2d):
        pass

    conv = Mine(3, 3, 3, padding=1)
    x = torch.randn(1, 3, *SIZE)
    assert torch.allclose(conv.inverse(conv(x)), x, atol=1e-5)


# -- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHANGED)
def test_an_option_is_read_and_set_through_the_layer(name):
    conv = layer()
    before = conv.options
    assert before == Options() and getattr(conv, name) == getattr(before, name)
    setattr(conv, name, CHANGED[name])
    assert conv.options == Options(**{name: CHANGED[name]})
    assert getattr(conv, name) == CHANGED[name] and name not in vars(conv)
    assert before == Options()  # who holds the options of before keeps them
    assert layer(**{name: CHANGED[name]}).options == conv.options
    conv.options = Options()
    assert getattr(conv, name) == getattr(Options(), name)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_option_is_refused_at_once(name):
    with pytest.raises(InputError, match=name):
        layer(**{name: BAD[name]})
    conv = layer()
    with pytest.raises(InputError, match=name):
        setattr(conv, name, BAD[name])
    assert conv.options == Options()


def test_an_option_that_is_set_changes_the_answer():
    conv = layer()
    y = torch.randn(1, 3, *SIZE, dtype=torch.float64)
    exact = conv.inverse(y)
    conv.damping = 0.2
    assert torch.equal(conv.inverse(y), layer_of(conv, damping=0.2).inverse(y)) and not torch.equal(
        conv.inverse(y), exact
    )
    conv.damping = 0.0
    assert torch.equal(conv.inverse(y), exact)


def layer_of(conv, **options):
    twin = layer(**options)
    twin.load_state_dict(conv.state_dict())
    return twin


# -- copies and pickles --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda conv: pickle.loads(pickle.dumps(conv))])
def test_copies_keep_the_options(duplicate):
    conv = layer(**CHANGED)
    twin = duplicate(conv)
    assert twin.options == Options(**CHANGED)
    twin.damping = 0.5
    assert conv.damping == CHANGED["damping"]


def test_a_copy_of_a_parametrized_layer_keeps_the_options():
    twin = copy.deepcopy(bounded(layer(damping=0.2)))
    assert twin.options == Options(damping=0.2)


@pytest.mark.parametrize("options", [CHANGED, {"rtol": None, "damping": 0.3}], ids=["all", "two"])
def test_a_pickle_that_has_each_option_by_itself_is_taken(options):
    conv = layer()
    state = {name: value for name, value in vars(conv).items() if name != "options"} | options
    twin = InvertibleConv2d.__new__(InvertibleConv2d)
    twin.__setstate__(copy.deepcopy(state))
    assert twin.options == Options(**options) and not vars(twin).keys() & set(options)
    again = pickle.loads(pickle.dumps(twin))
    assert again.options == Options(**options)
    x = torch.randn(1, 3, *SIZE, dtype=torch.float64)
    assert torch.equal(again(x), conv(x))


# -- a kernel that is at hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("dims", LAYERS)
def test_convolve_is_the_forward_with_another_kernel(dims, padding_mode):
    conv = LAYERS[dims](2, 4, 3, padding=1, padding_mode=padding_mode)
    conv.bias.data.normal_()
    x = torch.randn(2, 2, *(5, 6, 7)[:dims])
    assert torch.equal(conv.convolve(x, conv.weight, conv.bias), conv(x))
    assert torch.allclose(conv.convolve(x, conv.weight), conv.operator(x.shape).forward(x), atol=1e-6)
    more = torch.randn(5, *conv.weight.shape[1:])
    twin = LAYERS[dims](2, 5, 3, padding=1, padding_mode=padding_mode, bias=False)
    twin.weight.data.copy_(more)
    assert torch.equal(conv.convolve(x, more), twin(x))
    assert torch.equal(conv.convolve(x[0], more), twin(x[0]))


# -- what is refused, and what it is told ----------------------------------------------------------------------------

NO_NUMBERS: list[Any] = [True, "0.1", torch.tensor(0.1), torch.tensor([0.1, 0.2]), math.nan, 1j, [0.1], np.array(0.1)]
REFUSED: dict[str, list[Any]] = {
    "rtol": [*NO_NUMBERS, -1e-3, 1, math.inf],
    "damping": [*NO_NUMBERS, None, -1, math.inf, -math.inf],
    "tol": [*NO_NUMBERS, 0, 1, -1e-3],
    "max_iter": [*NO_NUMBERS, 0, -3, 1.0, np.bool_(True), torch.tensor(3), math.inf],
    "volume_tol": [*NO_NUMBERS, 0, 1],
    "solver": ["drect", "Direct", "lsmr", "", None, 3, b"auto", ("auto",)],
}
MAKERS: dict[str, Any] = {
    "options": lambda **options: Options(**options),
    "layer": lambda **options: layer(**options),
    "one made of a plain layer": lambda **options: InvertibleConv2d.from_conv(nn.Conv2d(3, 3, 1), **options),
    "function": lambda **options: functional.conv_operator(torch.eye(3).view(3, 3, 1, 1), SIZE, **options),
    "inverse": lambda **options: functional.conv_inverse(torch.ones(1, 2, 4), torch.ones(2, 2, 1), **options),
}


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(("name", "value"), [(name, v) for name, values in REFUSED.items() for v in values], ids=repr)
def test_a_value_that_is_none_is_refused_where_it_is_given(make, name, value):
    with pytest.raises(InputError, match=rf"^{name} must"):
        MAKERS[make](**{name: value})


@pytest.mark.parametrize(("name", "value"), [(name, v) for name, values in REFUSED.items() for v in values], ids=repr)
def test_a_layer_that_refused_a_value_is_as_it_was(name, value):
    conv = layer(**CHANGED)
    with pytest.raises(InputError, match=rf"^{name} must"):
        setattr(conv, name, value)
    assert conv.options == Options(**CHANGED) and name not in vars(conv)


@pytest.mark.parametrize("value", [{"damping": 0.1}, None, "direct", 0.1])
def test_options_are_replaced_by_options_only(value):
    conv = layer(**CHANGED)
    with pytest.raises(InputError, match=r"options must be invconv\.Options, as in Options\(damping=0\.1\)"):
        conv.options = value
    assert conv.options == Options(**CHANGED)
    with pytest.raises(InputError, match=r"options must be invconv\.Options"):
        ConvOperator(conv.weight, conv.geometry, SIZE, value)


def test_numbers_of_numpy_are_those_of_python():
    values: Any = np.float32(0.5), np.float64(0.25), "auto", np.float32(0.5), np.int32(7), np.float64(0.5)
    ours = Options(*values)
    python = Options(0.5, 0.25, "auto", 0.5, 7, 0.5)
    assert ours == python and hash(ours) == hash(python)
    assert [type(value) for value in vars(ours).values()] == [type(value) for value in vars(python).values()]
    assert type(Options(damping=1).damping) is float


@pytest.mark.parametrize("solver", [way.solver for way in WAYS], ids=lambda solver: solver.name)
def test_the_name_of_a_way_is_told_the_word_that_allows_it(solver):
    with pytest.raises(InputError, match=f"'{solver.name}' is the name of a way that solver='{NAMES[solver.name]}'"):
        Options(solver=solver.name)
    assert NAMES[solver.name] in solver.serves


def test_a_misspelt_solver_is_told_the_nearest():
    with pytest.raises(InputError, match="got 'iteratve': did you mean 'iterative'"):
        Options(solver="iteratve")


@pytest.mark.parametrize("dims", LAYERS)
def test_a_misspelt_keyword_is_named_with_what_was_called(dims):
    kind: Any = LAYERS[dims]
    with pytest.raises(TypeError, match=rf"^{kind.__name__}\(\) got an unexpected.*'dampng'; did you mean 'damping'\?"):
        kind(3, 3, 3, dampng=0.1)
    mine = type("Mine", (kind,), {})
    with pytest.raises(TypeError, match=r"^Mine\(\) got an unexpected keyword argument 'qqq'; it takes in_channels"):
        mine(3, 3, 3, qqq=0.1)
    assert inspect.signature(kind).parameters.keys() >= {"in_channels", *CHANGED}


@pytest.mark.parametrize("name", [name for name in functional.__all__ if name.startswith("conv_")])
def test_a_misspelt_keyword_of_a_function_is_named_with_it(name):
    function: Any = getattr(functional, name)
    parameters = inspect.signature(function).parameters.values()
    needed = sum(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    named = {"damping": 0.1} if "damping" in inspect.signature(function).parameters else {}
    with pytest.raises(TypeError, match=rf"^{name}\(\) got an unexpected keyword argument 'paddng'"):
        function(*needed * [torch.ones(1, 1, 4)], paddng=1, **named)


W, Y = torch.eye(4)[:, :, None, None], torch.ones(2, 4, 5, 5)


@pytest.mark.parametrize("y", [Y[:, :1], Y[:, :, :, :1].expand(2, 4, 5, 5).unsqueeze(0), Y[0], Y.long(), Y.tolist()])
def test_a_bias_makes_no_right_shape_of_a_wrong_one(y):
    with pytest.raises(InputError, match=r"^y (has shape|must be)"):
        functional.conv_inverse(y, W, torch.ones(4))


@pytest.mark.parametrize(
    "bias", [torch.ones(1), torch.ones(3), torch.ones(4, 1), torch.ones(2, 2), torch.ones(()), 1.0]
)
def test_a_bias_is_one_number_for_each_channel(bias):
    with pytest.raises(InputError, match=r"bias must be a tensor of shape \(4,\), one number for each channel, got"):
        functional.conv_inverse(Y, W, bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias", [torch.float32, torch.float64])
def test_an_answer_has_the_dtype_of_y_whatever_that_of_the_bias(dtype, bias):
    x = functional.conv_inverse(Y.to(dtype), W, torch.full((4,), 0.5, dtype=bias))
    assert torch.equal(x, (Y / 2).to(dtype))


@pytest.mark.parametrize(
    ("weight", "text"),
    [
        (W.to("meta"), "on the meta device: give it its values"),
        (W.to_sparse(), "stored as torch.sparse_coo"),
        (W.numpy(), "must be a tensor, got ndarray"),
        (W.to(torch.complex64), "must be real floating point, got torch.complex64"),
    ],
    ids=["meta", "sparse", "numpy", "complex"],
)
def test_a_weight_that_is_none_is_refused(weight, text):
    for call in (functional.conv_log_abs_det, functional.conv_operator):
        with pytest.raises(InputError, match=text):
            call(weight, (5, 5))
    with pytest.raises(InputError, match=text):
        functional.conv_inverse(Y, weight)


# -- image sizes -----------------------------------------------------------------------------------------------------

TENSORS = [torch.zeros(1, 3, 6, 8), torch.tensor([6, 8])]
NO_SIZES: list[Any] = [
    8.0,
    (6.0, 8),
    (0, 8),
    (6, -8),
    (True, 8),
    (6, None),
    "68",
    None,
    (6,),
    (1, 1, 3, 6, 8),
    *TENSORS,
]
VERBS = ["log_abs_det", "log_volume", "singular_values", "condition_number", "spectral_norm", "operator", "refresh"]


@pytest.mark.parametrize("size", NO_SIZES, ids=repr)
@pytest.mark.parametrize("verb", VERBS)
def test_what_is_no_size_is_refused(verb, size):
    if verb != "refresh" or size is not None:
        with pytest.raises(InputError, match=r"input_size must be (the )?2 "):
            getattr(layer(), verb)(size)


@pytest.mark.parametrize("verb", VERBS)
def test_the_shape_of_another_image_is_refused(verb):
    with pytest.raises(InputError, match=r"input_size \(1, 4, 6, 8\) has 4 channels, the layer takes 3"):
        getattr(layer(), verb)((1, 4, 6, 8))


@pytest.mark.parametrize(
    "size", [(6, 8), [6, 8], (3, 6, 8), torch.Size([2, 3, 6, 8]), np.array([6, 8]), (np.int64(6), 8)]
)
def test_a_size_may_be_written_in_many_ways(size):
    conv = layer()
    assert conv.log_abs_det(size) == conv.log_abs_det(SIZE) and len(conv.input_sizes()) == 1
    assert functional.conv_log_abs_det(conv.weight, size, padding=1) == functional.conv_log_abs_det(
        conv.weight, SIZE, padding=1
    )


@pytest.mark.parametrize("size", [(6.5, 8), (0, 8), (6,), (1, 4, 6, 8), {"0": (6.5, 8)}], ids=repr)
def test_a_size_to_be_kept_fresh_is_refused_before_the_first_step(size):
    model = nn.Sequential(layer(), layer())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(InputError, match="input_size"):
        keep_fresh(optimizer, model, size)
    keep_fresh(optimizer, model, SIZE).remove()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (dict(stride=1.0), r"stride must be 2 integers of at least 1, got 1\.0"),
        (dict(stride=True), "stride must be 2 integers of at least 1, got True"),
        (dict(dilation="ab"), "dilation must be 2 integers"),
        (dict(padding=-1), "padding must be 2 integers of at least 0, got -1"),
        (dict(padding=1.0), r"padding must be 2 integers of at least 0, got 1\.0"),
        (dict(padding=None), "padding must be 2 integers of at least 0, got None"),
        (dict(groups=True), "groups must be an integer of at least 1, got True"),
        (dict(groups=0), "groups must be an integer of at least 1, got 0"),
    ],
    ids=repr,
)
def test_a_geometry_that_is_none_is_refused(arguments, text):
    with pytest.raises(InputError, match=text):
        functional.conv_operator(torch.ones(2, 2, 3, 3), SIZE, **arguments)


def test_a_geometry_takes_integers_of_numpy():
    two: Any = np.int64(2)
    dilation: Any = np.array([1, 2])
    ours = Geometry.of((3, 3), two, (two, (1, two)), dilation, two)
    python = Geometry.of((3, 3), 2, (2, (1, 2)), (1, 2), 2)
    assert ours == python and hash(ours) == hash(python) and type(ours.groups) is int


def test_a_geometry_that_was_read_before_is_no_excuse():
    """What is equal to integers and is none is refused, also once the integers were asked for; lists are read anew."""
    known = Geometry.of((3, 3), (1, 1), (1, 1), (1, 1), 1)
    assert Geometry.of((3, 3), (1, 1), (1, 1), (1, 1), 1) is known
    for wrong in ((1.0, 1.0), (True, True), (1, 1.0)):
        with pytest.raises(InputError, match="stride must be 2 integers"):
            Geometry.of((3, 3), wrong, (1, 1), (1, 1), 1)  # type: ignore[arg-type]
    padding = [1, 1]
    assert Geometry.of((3, 3), (1, 1), padding) == known
    padding[0] = 0
    assert Geometry.of((3, 3), (1, 1), padding).padding == ((0, 0), (1, 1))
    assert pickle.loads(pickle.dumps(known)) == known and known.extent == (3, 3)
