"""What the layers of a flow want besides the images: labels, noise, and kernels and log-determinants in one call.

The log-determinant of a flow is a sum,  log |det df/dx| = sum_i log |det df_i/dx_i|,  in which the terms of the
convolutions depend on no image. So the outermost composite computes their kernels first, all together, lets them pass
their images on, and adds up their terms last, all together: this is cheaper, and a compiled flow is one graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from invconv.geometry import Size
from invconv.layers import diagonal
from invconv.layers.conv import InvertibleConv
from invconv.layers.eager import eager
from invconv.layers.together import LogDets, TakesTogether, kernels


class Context:
    """What a call of a flow hands to all of its layers.

    Args:
        y: (batch,) labels, for layers that depend on them.
        generator: of the noise.
        convolutions: those whose kernels are computed now, together, and whose log-determinants are only noted: who
            makes the context adds up what it has `noted`.

    Example:
        >>> from invconv.flows import Chain, ConvFlow, GaussianPrior
        >>> flow = Chain(ConvFlow(4), GaussianPrior(4, num_classes=10))
        >>> z, log_det = flow(torch.randn(2, 4, 8, 8), Context(y=torch.tensor([3, 9])))
        >>> log_det.shape
        torch.Size([2])
    """

    def __init__(
        self,
        y: Tensor | None = None,
        generator: torch.Generator | None = None,
        convolutions: Sequence[InvertibleConv] = (),
    ) -> None:
        self.y = y
        self.generator = generator
        self.gathers = len(convolutions) > 0  # then the log-determinants are somebody's to add up
        self._kernels = dict(zip(convolutions, kernels(convolutions), strict=True))
        self._sizes: dict[InvertibleConv, list[tuple[int, Size]]] = {conv: [] for conv in self._kernels}

    @classmethod
    def of(
        cls,
        context: Context | Tensor | torch.Generator | None,
        y: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Context:
        """The context of a call, made where there is none.

        Args:
            context: a context, which is taken as it is; or, in its place, labels or a generator.
            y: labels for a new context.
            generator: generator for a new context.
        """
        if isinstance(context, Context):
            return context
        if isinstance(context, Tensor):
            return cls(context, generator)
        return cls(y, generator if context is None else context)

    def kernel(self, conv: InvertibleConv) -> Tensor:
        """The effective weight of a convolution, computed with those of others or now."""
        return self._kernels[conv] if conv in self._kernels else conv.effective_weight()

    def log_abs_det(self, conv: InvertibleConv, weight: Tensor, size: Size, sign: int = 1) -> Tensor:
        """The log-determinant of a convolution, nats for one image; zero if it is noted, to be added up last.

        Args:
            conv: the convolution.
            weight: its `kernel`.
            size: spatial size of its image.
            sign: 1 for the convolution, -1 for its inverse.
        """
        if conv not in self._kernels:
            single = diagonal.is_diagonal(conv)
            log_det = diagonal.log_abs_det([(conv, weight, size)]) if single else conv.log_abs_det(size, weight=weight)
            return log_det if sign > 0 else -log_det
        self._sizes[conv].append((sign, size))
        return weight.new_zeros(())

    def noted(self, sign: int) -> list[tuple[InvertibleConv, Tensor, Size]]:
        """The convolutions, kernels and image sizes of the log-determinants that are to be added with this sign.

        They are in the order in which the composite named its convolutions, whichever way it was run: so the factors
        that are kept of one direction serve the other.
        """
        return [
            (conv, self._kernels[conv], size)
            for conv, sizes in self._sizes.items()
            for each, size in sizes
            if each == sign
        ]


class Composite(nn.Module, TakesTogether):
    """A module made of flow layers, which takes their convolutions together where no composite around it does."""

    def __init__(self) -> None:
        super().__init__()
        self._log_dets = LogDets()

    @eager
    def _log_abs_det(self, context: Context) -> Tensor | float:
        """The sum of what a context has noted, in nats; last, so that all layers are one graph when compiled."""
        total: Tensor | float = 0.0
        for sign in (1, -1):
            noted = context.noted(sign)
            if noted:
                log_det = self._log_dets.log_abs_det(*zip(*noted, strict=True))
                total = total + log_det if sign > 0 else total - log_det
        return total

    def refresh(self) -> list[InvertibleConv]:
        """Compute now what is stale, for the image sizes that were last seen; called by `invconv.keep_fresh`.

        Returns:
            the convolutions that were asked for at no other size.
        """
        return self._log_dets.refresh()
