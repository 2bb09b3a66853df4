"""What a layer holds besides its weight: options, once; and the abstract base that the three layers share."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from tables import LAYERS
from torch import nn

from invconv import InputError, InvertibleConv, InvertibleConv2d, Options
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
