"""What became of an answer: right, warned of, refused; or one of the faults that this question is asked for.

With E the relative error, the root mean square of a few images, S what `report().relative_error` states, and U what a
rounding of the caller's inputs does to the dense answer (see `reference`):

    right                  nothing was said, E <= 10 S, or 10 U for gradients and right sides of no image, and E <= 0.03
    warned, refused        an `IllConditionedWarning`, an error of the library
    wrong                  nothing was said, and E > 0.03 (0.01 and a margin); a NaN; another's exception
    steep                  as wrong, but a rounding of the inputs does as much, 10 U: gradients, right sides of no image
    beyond                 nothing was said, E <= 0.03, but E > 10 S
    needless               warned of, though half of the digits are there, E <= sqrt(eps), and nothing is cut off
    denied                 refused, though half of the digits are there in the dense answer
    false                  refused with words that are not true: "minus infinity" where the determinant is not zero
    open                   what float64 cannot tell
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from benchmarks.trust.cases import Case
from benchmarks.trust.exact import exact_log_det
from benchmarks.trust.reference import EPS, Factors, Reference, convolve, relative, rms, times_two_to
from invconv import IllConditionedWarning, InvconvError, Options
from invconv.functional import conv_operator, log_volume, pseudo_inverse
from invconv.operator import ConvOperator
from invconv.report import Report

DOUBTFUL = 1e-2
"""Error from which an answer is wrong if nothing is said."""
MARGIN = 3.0
"""How far it may be passed by an estimate that is about as large."""
WITHIN = 10.0
"""How far a stated error may be off."""
ROUNDINGS = 50.0
"""Roundings of its dtype that an answer may always be off."""
IMAGES = 4

RIGHT, WARNED, REFUSED = "right", "warned", "refused"
WRONG, BEYOND, NEEDLESS, DENIED, FALSE, OPEN = "wrong", "beyond", "needless", "denied", "false", "open"
STEEP = "steep"
OUTCOMES = (RIGHT, WARNED, REFUSED, OPEN, WRONG, STEEP, BEYOND, NEEDLESS, DENIED, FALSE)
FAULTS = (WRONG, STEEP, BEYOND, NEEDLESS, DENIED, FALSE)


@dataclass
class Finding:
    """What became of one verb."""

    verb: str
    outcome: str
    error: float = math.nan
    stated: float = math.nan
    moved: float = math.nan
    """What a rounding of the inputs does to the dense answer."""
    note: str = ""
    way: str = ""
    """The solver that was taken, where it is known."""


@dataclass
class Words:
    """What was said while something was asked."""

    warnings: list[str] = field(default_factory=list)
    error: str = ""
    crash: str = ""

    @property
    def refused(self) -> bool:
        return bool(self.error or self.crash)


@contextmanager
def listening(words: Words) -> Iterator[None]:
    """Note warnings and errors."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except InvconvError as error:
            words.error = f"{type(error).__name__}: {error}"
        except Exception as error:
            words.crash = f"{type(error).__name__}: {error}"
    words.warnings += [str(w.message) for w in caught if issubclass(w.category, IllConditionedWarning)]


class Judge:
    """A case, asked."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.reference = Reference(case)
        self.half = math.sqrt(self.reference.eps)
        generator = torch.Generator().manual_seed(3)
        rows, columns = self.reference.matrix.shape
        self.x = torch.randn(IMAGES, columns, generator=generator, dtype=torch.float64)
        self.generic = torch.randn(IMAGES, rows, generator=generator, dtype=torch.float64)
        self.c = torch.randn(1, columns, generator=generator, dtype=torch.float64).to(case.torch_dtype).double()
        self.report: Report | None = None

    def operator(self) -> ConvOperator:
        case = self.case
        damping = math.ldexp(case.damping * self.reference.unit, self.reference.exponent)
        return conv_operator(
            self.reference.weight,
            case.size,
            stride=case.stride,
            padding=case.padding,
            dilation=case.dilation,
            groups=case.groups,
            padding_mode=case.mode,
            damping=damping,
            solver=case.solver,
            rtol=case.rtol,
            volume_tol=case.volume_tol,
        )

    def findings(self, verbs: tuple[str, ...]) -> list[Finding]:
        """One for each part of the verbs."""
        found: list[Finding] = []
        if "inverse" in verbs or "gradients" in verbs or "report" in verbs:
            found += self.inverse("gradients" in verbs)
        if "log_dets" in verbs:
            found += self.log_dets()
        if "values" in verbs:
            found += self.values()
        for finding in found:
            finding.way = self.report.solver if self.report is not None else ""
        return found

    # -- the inverse and its gradients ---------------------------------------------------------------------------------

    def inverse(self, gradients: bool) -> list[Finding]:
        """The inverse of outputs of an image and of any others, what the report states, and the gradients."""
        ref, words = self.reference, Words()
        most = max(ref.ranks(said=True))
        factors = ref.factors.cut(most)
        self.x = self.x if ref.case.damping else (self.x @ factors.v) @ factors.v.T
        ours, y = ref.stored(self.x @ ref.matrix.T)
        theirs, z = ref.stored(ref.largest * self.generic)
        answers: list[Tensor] = []
        operator = None
        with listening(words):
            operator = self.operator()
            answers += [operator.pseudo_inverse(images).flatten(1).double() for images in (ours, theirs)]
        stated = self._stated(operator, words)
        if not torch.isfinite(ours).all() or not torch.isfinite(theirs).all() or (ref.largest and not ours.any()):
            return [Finding("inverse", OPEN, note="outputs that are no numbers of the dtype")]
        attainable = rms(relative(factors.inverse(y), self._truth(most)))
        if words.refused:  # rtol is not applied to iterations, which is said
            clear = len(ref.ranks(said=True)) == 1 and (ref.case.rtol is None or ref.case.solver != "iterative")
            return [self._refused("inverse", words, attainable if clear else math.inf)]
        said = bool(words.warnings)
        errors = {r: self._errors(answers, z, r) for r in ref.ranks(said)}
        rank = min(errors, key=lambda r: max(errors[r]))
        from_image, from_any = errors[rank]
        moved = ref.unavoidable(lambda f, right: f.inverse(right), z, rank)
        found = [
            self._judged("inverse", from_image, said, stated, 0.0, words),
            self._judged("any y", from_any, said, stated, moved, words),
        ]
        if self.report is not None and operator is not None:
            found += self._report(operator, rank, answers[0], stated)
        if gradients and operator is not None:
            found += self._gradients(operator, (ours[:1], theirs[:1]), (y[:1], z[:1]), rank, stated, said)
        cut_off = rank < len(ref.factors.s)
        # That rtol is not applied has to be said.
        if said and (
            cut_off or self.case.rtol is not None or any(f.error > self.half for f in found if f.verb != "report")
        ):
            for f in found:  # the warning was needed for one of them
                f.outcome = WARNED if f.outcome == NEEDLESS else f.outcome
        return found

    def _truth(self, rank: int) -> Tensor:
        """What comes back of the images: themselves, their part in the range of A^+, or what damping leaves of them."""
        ref = self.reference
        rows, columns = ref.matrix.shape
        if ref.case.damping or (rank == rows < columns and ref.full):
            return ref.answer(ref.outputs(self.x), rank)
        v = ref.factors.cut(rank).v
        return self.x if rank == columns else (self.x @ v) @ v.T

    def _errors(self, answers: list[Tensor], z: Tensor, rank: int) -> tuple[float, float]:
        truth = self.reference.answer(z.numpy().astype(np.longdouble), rank)
        return rms(relative(answers[0], self._truth(rank))), rms(relative(answers[1], truth))

    def _stated(self, operator: ConvOperator | None, words: Words) -> float:
        """The error that the report states."""
        if operator is None or words.refused:
            return math.nan
        more = Words()
        with listening(more):
            self.report = operator.report()
        return math.nan if self.report is None else self.report.relative_error

    def _stated_error(self) -> float:
        """The error that the report states, of an operator of its own where no inverse has been asked for."""
        if self.report is None:
            with listening(Words()):
                self.report = self.operator().report()
        return math.nan if self.report is None else self.report.relative_error

    @property
    def _floor(self) -> float:
        """Errors below it are alike: the rounding, or the tolerance of iterations."""
        iterative = self.report is not None and self.report.solver == "lsmr"
        return Options().tolerance(self.case.torch_dtype) if iterative else self.reference.eps

    @property
    def _slack(self) -> float:
        """What an answer may always be off: some roundings, or the tolerance of iterations."""
        return max(ROUNDINGS * self.reference.eps, self._floor)

    def _report(self, operator: ConvOperator, rank: int, answer: Tensor, stated: float) -> list[Finding]:
        """The stated error over the true one: with outputs that are rounded once, or that PyTorch computes."""
        ref, floor, truth = self.reference, self._floor, self._truth(rank)
        true = [rms(relative(answer, truth))]
        bias = [rms(relative(truth, self.x))] if ref.case.damping else []
        if bias:  # of any image, or of one that has been there and back
            bias.append(rms(relative(ref.answer(ref.outputs(truth), rank), truth)))
        stated_bias: float | None = getattr(self.report, "bias", None)
        if stated_bias is None:
            true += bias  # it was part of the error
        ratio = _nearest(stated, true, floor)
        if not 1 / WITHIN <= ratio <= WITHIN:
            x = self.x.to(self.case.torch_dtype)
            with listening(Words()):
                y = convolve(x.view(-1, *ref.x_shape), ref.weight, ref.geometry)
                true.append(rms(relative(operator.pseudo_inverse(y).flatten(1).double(), truth)))
            ratio = _nearest(stated, true, floor)
        found = [self._ratio("report", ratio, true[0], stated)]
        if stated_bias is not None and bias:
            found.append(self._ratio("bias", _nearest(stated_bias, bias, 0.1 * self.half), bias[0], stated_bias))
        return found

    def _ratio(self, verb: str, ratio: float, true: float, stated: float) -> Finding:
        near = 1 / WITHIN <= ratio <= WITHIN
        return Finding(verb, RIGHT if near else BEYOND, true, stated, note=f"{ratio:.3g}")

    def _gradients(
        self,
        operator: ConvOperator,
        images: tuple[Tensor, Tensor],
        rows: tuple[Tensor, Tensor],
        rank: int,
        stated: float,
        said: bool,
    ) -> list[Finding]:
        """The gradients of <c, A^+ y> by y, and by the weight for outputs of an image and for any others."""
        ref = self.reference
        factors, c = ref.factors.cut(rank), self.c
        found = []
        for index, (image, row) in enumerate(zip(images, rows, strict=True)):
            words = Words()
            y, weight = image.clone().requires_grad_(), ref.weight.clone().requires_grad_()
            with listening(words):
                x = pseudo_inverse(y, weight, operator)
                (x.flatten() @ c.flatten().to(x)).backward()
            warned = said or bool(words.warnings)
            if index == 0:
                moved = ref.unavoidable(lambda f, right: f.adjoint(right), c, rank)
                found.append(self._gradient("by y", words, y.grad, factors.adjoint(c), 0.0, (warned, stated, moved)))
            truth = ref.by_weight(factors.cotangent(row[0], c[0]))
            # Of terms that cancel, no more than half of the digits are asked for.
            least = self.half * ref.by_weight(factors.cotangent_size(row[0], c[0])).norm().item()
            moved = ref.unavoidable(lambda f, right: ref.by_weight(f.cotangent(right[0], c[0])), row, rank, least)
            verb = "by weight" if index == 0 else "by w, any y"
            found.append(self._gradient(verb, words, weight.grad, truth, least, (warned, stated, moved)))
        return found

    def _gradient(
        self,
        verb: str,
        words: Words,
        found: Tensor | None,
        truth: Tensor,
        least: float,
        judged: tuple[bool, float, float],
    ) -> Finding:
        """One gradient; those that the dtype cannot hold are left open."""
        said, stated, moved = judged
        in_place, limits = times_two_to(truth, -self.reference.exponent), torch.finfo(self.case.torch_dtype)
        size = in_place.norm().item()
        if size and not limits.tiny < size < limits.max / 8:
            return Finding(verb, OPEN, note="a gradient that is no number of the dtype")
        if words.refused or found is None:
            return self._refused(verb, words, moved)
        scaled = times_two_to(found.flatten().double(), self.reference.exponent)
        return self._judged(verb, rms(relative(scaled, truth.flatten(), least)), said, stated, moved, words)

    # -- log-determinants ----------------------------------------------------------------------------------------------

    def log_dets(self) -> list[Finding]:
        """The log-volume, and its gradient by the weight."""
        ref, words = self.reference, Words()
        weight = ref.weight.clone().requires_grad_()
        value = math.nan
        with listening(words):
            volume = log_volume(weight, self.operator())
            value = volume.item()
            volume.backward()
        count = min(ref.matrix.shape)
        doubt = not ref.full
        if words.refused:
            by_design = self.case.solver == "iterative"
            moved = math.inf if doubt or by_design else self._volume_moved(count)
            finding = self._refused("log-det", words, moved)
            claimed = "minus infinity" in words.error and "cannot be told" not in words.error
            if claimed and self._finite():
                finding = Finding("log-det", FALSE, note=words.error[:120])
            return [finding]
        if doubt:
            exact = exact_log_det(ref.matrix) if ref.exact else math.nan
            if math.isnan(exact):
                return [Finding("log-det", OPEN, note="singular or nearly so")]
        else:
            exact = ref.factors.s.log().sum().item()
        exact += count * ref.exponent * math.log(2)
        error = abs(value - exact) / max(abs(exact), count) if exact > -math.inf else math.inf
        moved = self._volume_moved(count)
        if self.case.volume_tol is not None:
            moved = max(moved, 0.1 * self.case.volume_tol)
        said = bool(words.warnings)
        stated = self._stated_error()
        found = self._judged("log-det", error, said, stated, moved, words)
        found.note = found.note or f"{value:.6g}, exact {exact:.6g}"
        return [found, self._volume_gradient(weight, (said, stated), words)]

    def _volume_gradient(self, weight: Tensor, judged: tuple[bool, float], words: Words) -> Finding:
        """That of A itself, damped or not."""
        ref = self.reference
        if not ref.full:
            return Finding("gradient", OPEN, note="nearly singular")
        cotangents = [Factors(f.u, f.s, f.v).volume_cotangent() for f in (ref.factors, *ref.changed)]
        truth, *others = (ref.by_weight(cotangent) for cotangent in cotangents)
        least = self.half * ref.by_weight(cotangents[0].abs()).norm().item()
        moved = max(rms(relative(other, truth, least)) for other in others)
        if self.case.volume_tol is not None:
            moved = max(moved, self.case.volume_tol)
        return self._gradient("gradient", words, weight.grad, truth, least, (*judged, moved))

    def _volume_moved(self, count: int) -> float:
        truth = self.reference.factors.s.log().sum().item()
        moved = [abs(f.s.log().sum().item() - truth) for f in self.reference.changed]
        return max(moved) / max(abs(truth), count) if math.isfinite(truth) else math.inf

    def _finite(self) -> bool:
        """Whether the log-volume is finite: float64 can tell, or an elimination keeps its digits all the same."""
        ref = self.reference
        if ref.full or not ref.exact or ref.matrix.shape[0] != ref.matrix.shape[1]:
            return ref.full
        exact, found = exact_log_det(ref.matrix), torch.linalg.slogdet(ref.matrix).logabsdet.item()
        return abs(found - exact) < 1e-6 * max(abs(exact), len(ref.matrix))

    # -- singular values -----------------------------------------------------------------------------------------------

    def values(self) -> list[Finding]:
        """All singular values relative to the largest; the condition number."""
        ref, words, more = self.reference, Words(), Words()
        answer, condition = torch.empty(0), math.nan
        with listening(words):
            answer = self.operator().singular_values()
        with listening(more):
            condition = self.operator().condition_number().item()
        if more.refused:
            judged = [self._refused("condition", more, math.inf if ref.condition > 0.1 / ref.noise else 0.0)]
        else:
            judged = [self._condition(condition, bool(more.warnings))]
        if words.refused:  # of large layers, it is said that there are too many
            return [self._refused("values", words, math.inf if ref.matrix.numel() > 2**22 else 0.0), *judged]
        truth = ref.factors.s
        least = -149 if self.case.dtype == "float32" else -1074  # the exponent of the smallest number
        step = math.ldexp(1 / ref.unit, least - ref.exponent)
        off = (times_two_to(answer.double().cpu(), -ref.exponent) - truth).abs().max().item()
        error = off / ref.largest if ref.largest else off
        said = bool(words.warnings)
        return [self._judged("values", max(0.0, error - step), said, 0.0, ref.eps, words), *judged]

    def _condition(self, found: float, said: bool) -> Finding:
        """The condition number within a factor of two; where it cannot be told from infinite, any that is as large."""
        ref = self.reference
        true, limit = ref.condition, 0.1 / ref.noise
        note = f"{found:.2e}, exact {true:.2e}"
        if true > limit:
            right = found > 0.1 * limit or (math.isnan(found) and ref.largest == 0)
        else:
            right = 0.5 < found / true < 2
        return Finding("condition", RIGHT if right else WARNED if said else WRONG, note=note)

    # -- verdicts ------------------------------------------------------------------------------------------------------

    def _refused(self, verb: str, words: Words, attainable: float) -> Finding:
        if words.crash:
            return Finding(verb, WRONG, note=words.crash[:120])
        needless = attainable <= 0.3 * self.half
        return Finding(verb, DENIED if needless else REFUSED, attainable, note=words.error[:120])

    def _judged(self, verb: str, error: float, said: bool, stated: float, moved: float, words: Words) -> Finding:
        """The verdict on an answer.

        Args:
            verb: what was asked.
            error: of the answer.
            said: whether a warning was given.
            stated: the error that the report states.
            moved: what a rounding of the inputs does to the dense answer.
            words: the warnings.
        """
        ref = self.reference
        note = words.warnings[0][:120] if words.warnings else ""
        unsure = WITHIN * moved * EPS / ref.eps
        if not math.isfinite(error):
            outcome = OPEN if not math.isfinite(unsure) else WRONG
        elif said:
            outcome = NEEDLESS if error <= self.half and ref.full and unsure < self.half else WARNED
        elif error > MARGIN * DOUBTFUL:
            outcome = OPEN if error <= unsure else STEEP if error <= WITHIN * moved else WRONG
        else:
            allowed = max(moved, stated if math.isfinite(stated) else 0.0)
            outcome = RIGHT if error <= WITHIN * allowed + self._slack else BEYOND
        return Finding(verb, outcome, error, stated, moved, note)


def _nearest(stated: float, true: list[float], floor: float) -> float:
    """The ratio that is nearest to 1; errors below `floor` are alike, and so are those above 1."""
    ratios = [min(max(stated, floor), 1.0) / min(max(t, floor), 1.0) for t in true if t == t]
    return min(ratios, key=lambda r: abs(math.log(r)), default=math.inf) if stated == stated else math.inf
