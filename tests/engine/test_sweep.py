"""No wrong answer without a word: random layers, every verb, judged by the dense matrix in float64."""

import sys
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.trust.__main__ import described, examine
from benchmarks.trust.cases import NAMED, Case, draw
from benchmarks.trust.judge import DENIED, NEEDLESS, WRONG
from benchmarks.trust.reference import Reference, relative, rms

SEED = 20
LARGE = {"box47", "box47-circular", "box38", "box40", "deblur40", "alias"}
"""Named layers of a thousand unknowns and more."""


FOUND = [(20, 234), (102, 302), (102, 314), (102, 324)]
"""Seeds and numbers of layers that were wrong without a word: LSMR, small dampings, an image of one pixel."""


def faults(case):
    """What is wrong without a word, and words that were not needed; the benchmark counts finer faults as well."""
    found = (finding for finding in examine(case) if finding.outcome in (WRONG, NEEDLESS, DENIED))
    return [f"{case} {described(finding)}" for finding in found]


@pytest.mark.parametrize("index", range(60))
def test_right_or_warned_or_refused(index):
    assert not faults(draw(SEED, index))


@pytest.mark.slow
@pytest.mark.parametrize("index", range(60, 1060))
def test_right_or_warned_or_refused_at_length(index):
    assert not faults(draw(SEED, index))


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in LARGE else ()) for n in NAMED])
def test_known_to_be_hard(name):
    assert not faults(NAMED[name])


@pytest.mark.parametrize(("seed", "index"), FOUND)
def test_what_was_wrong(seed, index):
    assert not faults(draw(seed, index))


def test_a_case_is_made_again_from_its_text():
    for index in range(20):
        case = draw(SEED, index)
        again = Case.of(str(case))
        assert again == case
        assert torch.equal(again.weight(), case.weight())


def test_the_judge_is_right():
    """Its answers against sixty digits: square, tall and wide, damped or not."""
    checked = 0
    with mpmath.workdps(60):
        for index in range(200):
            case = draw(SEED, index)
            reference = Reference(case)
            small = max(reference.matrix.shape) <= 12 and reference.largest > 0
            if not small or not (reference.condition < 1e6 or case.damping > 1e-4):
                continue
            checked += 1
            y = torch.randn(1, len(reference.matrix), generator=torch.Generator().manual_seed(index)).double()
            found = reference.answer(y.numpy().astype(np.longdouble), len(reference.factors.s))
            condition = min(reference.condition, 1 / case.damping if case.damping else np.inf)
            # Of a least squares problem whose right side is in no range.
            bound = 4 * np.finfo(float).eps + 50 * float(np.finfo(np.longdouble).eps) * condition**2
            assert rms(relative(found, exact(reference, y))) < bound
    assert checked >= 10


def exact(reference, y):
    a, right = mpmath.matrix(reference.matrix.tolist()), mpmath.matrix(y[0].tolist())
    square = mpmath.mpf(reference.factors.damping) ** 2
    if reference.case.damping or a.rows >= a.cols:
        x = mpmath.lu_solve(a.T * a + square * mpmath.eye(a.cols), a.T * right)
    else:
        x = a.T * mpmath.lu_solve(a * a.T, right)
    return torch.tensor([[float(v) for v in x]], dtype=torch.float64)
