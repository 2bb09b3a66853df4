r"""A network made ready to be run on image after image: what is the same for all of them is computed once.

A batch norm in eval mode scales and shifts each channel, which the convolution before it can do by its weights:

$$ \frac{\gamma}{\sigma} (W x + b - \mu) + \beta = \Big( \frac{\gamma}{\sigma} W \Big) x
   + \frac{\gamma}{\sigma} (b - \mu) + \beta $$

Activations work in place where nothing else needs what they are given, and the channels of a pixel lie side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_weights

from invconv.inversion.graph import Network
from invconv.inversion.registry import changed

Values = dict[fx.Node, Any]
Step = Callable[[Values], Any]
FUNCTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
}
NORMS = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d
IN_PLACE: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU: torch.relu_,
    nn.ReLU6: lambda x: F.hardtanh(x, 0.0, 6.0, inplace=True),
}
"""Activations whose derivative can be told from what they give."""
HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
FOLDED = {*FUNCTIONS, *NORMS, *IN_PLACE, nn.ZeroPad2d}
ARGUMENTS = {"input": None, "weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
"""Of the functions, with their defaults."""


@dataclass
class _Convolution:
    """A call of a convolution, as a module or as a function."""

    function: Any
    given: Any
    """The node that gives its input."""
    weight: Tensor
    bias: Tensor | None
    options: tuple[Any, ...]
    """Stride, padding, dilation and groups."""

    def run(self, values: Values) -> Tensor:
        """The output, by what the node before has given."""
        return self.function(values[self.given], self.weight, self.bias, *self.options)

    def scaled(self, norm: Any) -> _Convolution:
        """With a batch norm behind it."""
        moments = norm.running_mean, norm.running_var, norm.eps
        weight, bias = fuse_conv_bn_weights(self.weight, self.bias, *moments, norm.weight, norm.bias)
        return _Convolution(self.function, self.given, weight, bias, self.options)


class Prepared:
    """What a network gives for images, but for rounding; differentiable, with all parameters as they are now.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).eval().requires_grad_(False)
        >>> network, x = Network(model, "2"), torch.rand(1, 1, 8, 8)
        >>> _ = network.run(x)
        >>> torch.allclose(Prepared(network)(x), model(x), atol=1e-6)
        True
    """

    def __init__(self, network: Network) -> None:
        """Fold what can be folded.

        Args:
            network: in eval mode, run before.
        """
        self.network = network
        nodes = [n for n in network.nodes if n is not network.input and (n not in network.values or n in network.sized)]
        self._nodes = set(nodes)
        self._convolutions: dict[fx.Node, _Convolution] = {}
        self.steps: dict[fx.Node, Step] = {}
        with torch.no_grad():
            for node in nodes:
                self.steps[node] = self._folded(node) or self._plain(node)
        weights = [made.weight for made in self._convolutions.values()]
        # Side by side, channels suit the kernels of the processor, for images in single precision.
        self._beside = all(w.dim() == 4 and w.dtype == torch.float32 and w.device.type == "cpu" for w in weights)

    def __call__(self, x: Tensor) -> Tensor:
        """The features of images."""
        if self._beside and x.dim() == 4:
            try:
                return self._features(x.contiguous(memory_format=torch.channels_last))
            except RuntimeError:  # code that takes the order in memory for granted, as `view` does
                self._beside = False
        return self._features(x)

    def _features(self, x: Tensor) -> Tensor:
        """Run node by node."""
        values: Values = {**self.network.values, self.network.input: x}
        for node, step in self.steps.items():
            values[node] = step(values)
        return values[self.network.target]  # type: ignore[no-any-return]

    def _plain(self, node: fx.Node) -> Step:
        """A node run as it is."""
        if node.op == "call_module" and len(node.args) == 1 and not node.kwargs:
            module, given = self.network.model.get_submodule(str(node.target)), node.args[0]
            if isinstance(given, fx.Node) and not getattr(module, "inplace", False):
                return lambda values: module(values[given])
        return lambda values: self.network.call(node, values)

    def _folded(self, node: fx.Node) -> Step | None:
        """A convolution, a norm that the one before takes in, or an activation in place; None for other nodes."""
        module = self._module(node)
        convolution = self._convolution(node, module)
        if convolution is None and module is not None and self._only(node, node.args[0]):
            given: Any = node.args[0]
            before = self._convolutions.get(given)
            if type(module) in NORMS and before is not None and module.running_var is not None:
                convolution = before.scaled(module)
                del self.steps[given]
            elif type(module) in IN_PLACE and before is not None:
                function = IN_PLACE[type(module)]
                return lambda values: function(values[given])
        if convolution is None:
            return None
        self._pad(node, convolution)
        self._convolutions[node] = convolution
        return convolution.run

    def _pad(self, node: fx.Node, convolution: _Convolution) -> None:
        """Let a convolution add the zeros that the node before it adds, if it does so on both sides alike."""
        zeros, (stride, padding, *others) = self._module(convolution.given), convolution.options
        if type(zeros) is not nn.ZeroPad2d or padding not in (0, (0, 0)) or not self._only(node, convolution.given):
            return
        left, right, top, bottom = zeros.padding
        if left == right and top == bottom and min(zeros.padding) >= 0:
            del self.steps[convolution.given]
            convolution.given = convolution.given.args[0]
            convolution.options = (stride, (top, left), *others)

    def _only(self, node: fx.Node, given: Any) -> bool:
        """Whether no other node needs what this one is given."""
        return isinstance(given, fx.Node) and [user for user in given.users if user in self._nodes] == [node]

    def _module(self, node: Any) -> Any:
        """The module of a node, if it is one that can be folded, and nothing looks on as it is called."""
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            return None
        module = self.network.model.get_submodule(str(node.target))
        if type(module) not in FOLDED or changed(module, type(module)):
            return None
        return None if any(vars(module)[hooks] for hooks in HOOKS) else module

    def _convolution(self, node: fx.Node, module: Any) -> _Convolution | None:
        """What a node convolves with, if that is the same for all images."""
        if type(module) in FUNCTIONS and module.padding_mode == "zeros":
            options = module.stride, module.padding, module.dilation, module.groups
            return _Convolution(FUNCTIONS[type(module)], node.args[0], module.weight, module.bias, options)
        if node.op != "call_function" or node.target not in FUNCTIONS.values():
            return None
        arguments: dict[str, Any] = {**ARGUMENTS, **dict(zip(ARGUMENTS, node.args, strict=False)), **node.kwargs}
        given, weight, bias, *rest = arguments.values()
        fixed: dict[Any, Any] = {n: v for n, v in self.network.values.items() if n not in self.network.sized} | {
            None: None
        }
        if given not in self.network.shapes or weight not in fixed or bias not in fixed:
            return None
        if len(node.all_input_nodes) > (2 if bias is None else 3):  # options that are computed
            return None
        return _Convolution(node.target, given, fixed[weight], fixed[bias], tuple(rest))
