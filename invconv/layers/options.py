"""The options of a layer, held once: `layer.damping` is `layer.options.damping`."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from invconv.checks import check_options
from invconv.layers.pickles import parametrizations_of, parametrize_again, reduced
from invconv.options import Options


def _option(name: str) -> Any:
    """A property that reads and replaces one field of `options`."""
    return property(
        lambda module: getattr(module.options, name),
        lambda module, value: setattr(module, "options", replace(module.options, **{name: value})),
        doc=f"`{name}` of `options`, which is replaced when this is set.",
    )


class HoldsOptions(nn.Module):
    """A module with `invconv.Options`, whose fields can be read and set as if they were attributes of the module.

    Raises:
        InputError: where a value is set that is out of range.
    """

    __jit_unused_properties__ = ("geometry", "options", *(field.name for field in fields(Options)))
    __jit_ignored_attributes__ = __jit_unused_properties__
    """What TorchScript leaves out of a layer that it compiles: forward does not ask for it."""

    options: Options = property(  # type: ignore[assignment]
        lambda module: vars(module)["options"],
        lambda module, value: vars(module).update(options=check_options(value)),
        doc="How the inverse is computed: `invconv.Options`, which are replaced as a whole.",
    )
    rtol: float | None = _option("rtol")
    damping: float = _option("damping")
    solver: str = _option("solver")
    tol: float | None = _option("tol")
    max_iter: int | None = _option("max_iter")
    volume_tol: float | None = _option("volume_tol")
    answers: int = _option("answers")

    def extra_repr(self) -> str:
        """What PyTorch prints of a convolution, and the options that are not those by default."""
        set_by_hand = [field for field in fields(Options) if getattr(self.options, field.name) != field.default]
        words = [f"{field.name}={getattr(self.options, field.name)!r}" for field in set_by_hand]
        return ", ".join([super().extra_repr(), *words])

    def __reduce_ex__(self, protocol: Any) -> Any:
        """The pickle of a layer, parametrized or not: `torch.nn.utils.parametrize` refuses that of its own classes."""
        return reduced(self) if parametrize.is_parametrized(self) else super().__reduce_ex__(protocol)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a pickle, also of an earlier one, which has each option by itself."""
        functions, state = parametrizations_of(state)
        if "options" not in state:
            names = [field.name for field in fields(Options) if field.name in state]
            options = Options(**{name: state[name] for name in names})
            state = {name: value for name, value in state.items() if name not in names} | {"options": options}
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        parametrize_again(self, functions)
