"""Mutants of the engine: each tuned constant moved far, each guard taken away, and the tests that notice.

    python tests/mutants.py [NAME ...]

Each mutant is a copy of the package with one line changed, on which a few tests are run until the first fails.  It
prints which mutants were killed and ends with 1 if one survived.  Constants that change nothing but the time are not
here: their documentation says "speed only", which `test_architecture.py` holds them to.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
HARD = "tests/engine/test_hard_layers.py"
CHOSEN = f"{HARD}::test_what_is_chosen"
SOLVERS = "tests/engine/test_solvers.py"
TILES = "tests/engine/test_tiles.py"
STRIPS = "tests/engine/test_strips.py"
CHOLESKY = "tests/engine/test_cholesky.py"
ESTIMATES = "tests/engine/test_estimates.py"
DAMPED = ("tests/engine/test_damping.py::test_the_estimate_of_a_gradient_is_near_its_error",)
KRONECKER = ("tests/engine/test_kronecker.py",)
BLURS = ("tests/engine/test_blurs.py",)
BLURS_DAMPED = ("tests/engine/test_damping.py::test_random_kernels_of_few_channels_take_a_little_damping",)
MEMORY = ("tests/engine/test_memory.py",)
EXTRAPOLATED = "tests/engine/test_extrapolated.py"
SUPREMUM = ("tests/engine/test_supremum.py",)
ARRAYS = ("tests/test_arrays.py",)
SEAMS = ("tests/test_arrays.py::test_the_inverse_is_that_of_the_whole_image[line-float32]",)
SHARES = ("tests/flows/test_shares.py",)
VOLUMES = ("tests/engine/test_volumes.py",)


@dataclass(frozen=True)
class Mutant:
    """One line of one file, changed."""

    file: str
    before: str
    after: str
    tests: tuple[str, ...] = (CHOSEN,)

    @property
    def name(self) -> str:
        return f"{Path(self.file).stem}: {self.before.strip()} -> {self.after.strip()}"


def _solver(name: str, before: str, after: str, *tests: str) -> Mutant:
    return Mutant(f"invconv/engine/solvers/{name}.py", before, after, tests or (CHOSEN,))


def _volume(name: str, before: str, after: str, *tests: str) -> Mutant:
    return Mutant(f"invconv/engine/volumes/{name}.py", before, after, tests)


MUTANTS = (
    # The choice.
    Mutant("invconv/engine/way.py", "HOPELESS = 1e-3", "HOPELESS = 1e-5"),
    Mutant("invconv/engine/way.py", "HOPELESS = 1e-3", "HOPELESS = 0.5"),
    Mutant("invconv/engine/ways.py", "Way(Ring, double=False, error=None)", "Way(Ring, double=False, error=1.0)"),
    Mutant("invconv/engine/choice.py", "if way.last or solver.keeps(way.limit(conv, options)):", "if True:"),
    Mutant(
        "invconv/engine/choice.py",
        "lost = max(lost, solver.growth)",
        "lost = 0.0",
        (CHOSEN, "tests/engine/test_borders.py::test_the_classroom_kernel_loses_its_inverse_and_says_so"),
    ),
    Mutant("invconv/engine/ways.py", "    Way(SparseLU),", "    #"),
    Mutant("invconv/engine/choice.py", "LONGEST = 1.6e12", "LONGEST = 1e16", BLURS),
    Mutant("invconv/engine/choice.py", "PIVOTING = 4", "PIVOTING = 1", BLURS),
    Mutant("invconv/engine/solvers/gram.py", "REFINED = 1e-9", "REFINED = 0.0", BLURS_DAMPED),
    Mutant("invconv/engine/mirror.py", "ROUNDINGS = 4", "ROUNDINGS = 0.1", BLURS),
    Mutant("invconv/engine/mirror.py", "ROUNDINGS = 4", "ROUNDINGS = 1e3", BLURS),
    _solver("cosine", "MOST_STEPS = 100", "MOST_STEPS = 8", f"{SOLVERS}::test_damped"),
    Mutant("invconv/engine/mirror.py", "STEEP = 1e10", "STEEP = 1e40", BLURS),
    # Volumes.
    Mutant("invconv/engine/choice.py", "LOSSY = 1e7", "LOSSY = 1e5"),
    Mutant("invconv/engine/choice.py", "LOSSY = 1e7", "LOSSY = 1e14"),
    Mutant("invconv/engine/volumes/tilted.py", "LOSSY = 1e7", "LOSSY = 1.0"),
    Mutant("invconv/engine/elimination.py", "max(LEAST_CONSTANT, math.sqrt(columns))", "1e-4", VOLUMES),
    Mutant("invconv/engine/elimination.py", "DOUBTFUL, LOST = 1e-2, 0.5", "DOUBTFUL, LOST = 1e-2, 1e9", VOLUMES),
    Mutant("invconv/engine/elimination.py", "DOUBTFUL, LOST = 1e-2, 0.5", "DOUBTFUL, LOST = 1e-14, 0.5", VOLUMES),
    Mutant("invconv/engine/elimination.py", "MOST_EXPONENT = 1000", "MOST_EXPONENT = 0", VOLUMES),
    Mutant("invconv/engine/solvers/circulant.py", "TAP_CONSTANT = 4", "TAP_CONSTANT = 0.01", VOLUMES),
    Mutant("invconv/engine/volumes/coarse.py", "SAFETY = 4", "SAFETY = 1e6", ("tests/engine/test_coarse.py",)),
    Mutant("invconv/engine/volumes/coarse.py", "if candidate.variation < 1 and ", "if ", VOLUMES),
    Mutant("invconv/engine/solvers/gram.py", "scale = 1.0 if", "scale = 0.0 if", VOLUMES),
    Mutant("invconv/engine/volumes/tilted.py", "(1.0, 0.5, 2.0, 0.25, 4.0)", "(1.0, 0.5, 0.25, 4.0)"),
    Mutant("invconv/engine/volumes/tilted.py", "(1.0, 0.5, 2.0, 0.25, 4.0)", "(1.0, 0.5, 2.0, 4.0)"),
    Mutant("invconv/engine/volumes/coarse.py", "LEAST = 4", "LEAST = 8", (HARD,)),
    Mutant(
        "invconv/engine/volumes/coarse.py",
        "and candidate.disagreement < tol / SAFETY:",
        "and True:",
        VOLUMES,
    ),
    _volume("cylinder", "LOSSY = 1e7", "LOSSY = 1e30", "tests/engine/test_cylinder.py"),
    _volume("extrapolated", "ROUNDING = 2.0**12", "ROUNDING = 2.0**24", EXTRAPOLATED),
    _volume("extrapolated", "ROUNDING = 2.0**12", "ROUNDING = 2.0**-2", EXTRAPOLATED),
    _volume("extrapolated", "SAFETY = 4", "SAFETY = 1e-6", EXTRAPOLATED),
    _volume("extrapolated", "SAFETY = 4", "SAFETY = 1e12", EXTRAPOLATED),
    _volume("extrapolated", "STEEP = 1e4", "STEEP = 1e9", EXTRAPOLATED),
    _volume("extrapolated", "w + max(r + 1, w // 2)", "w + 1", EXTRAPOLATED),
    _volume("extrapolated", "and steps[1] < near ** (2 / 3)", "", EXTRAPOLATED),
    # Tiles.
    _solver("tile_size", "FALLS = 0.1", "FALLS = 1e9", TILES),
    _solver("tiles", "STEPS = 12", "STEPS = 0", TILES),
    _solver("tiles", "SHORT = 1e3", "SHORT = 1e12", TILES),
    _solver("tiles", "(left < 0.5 * before).any()", "False", TILES),
    Mutant("invconv/engine/cover.py", "(a + self.length + b) // 2", "a + self.length", (TILES,)),
    # The border.
    Mutant("invconv/engine/border.py", "MOST_DIGITS_LOST = 0.35", "MOST_DIGITS_LOST = 1.0"),
    Mutant("invconv/engine/border.py", "MOST_DIGITS_LOST = 0.35", "MOST_DIGITS_LOST = 0.0"),
    Mutant("invconv/engine/ring_size.py", "MOST_UNKNOWNS = 20_000", "MOST_UNKNOWNS = 40_000", (HARD,)),
    Mutant("invconv/engine/memory.py", "if needed <= share * free:", "if True:", ("tests/engine/test_borders.py",)),
    Mutant("invconv/engine/ring_size.py", "if conv.blind_spots and not options.damping:", "if False:", (HARD,)),
    # Solvers.
    _solver("ring", "TORI = 3", "TORI = 2"),
    _solver("ring", "BENIGN = 1e4", "BENIGN = 1e8"),
    _solver("ring", "BENIGN = 1e4", "BENIGN = 5.0"),
    _solver("ring", "REFINE_ABOVE = 8", "REFINE_ABOVE = 1e6"),
    _solver("ring", "REFINE_ABOVE = 8", "REFINE_ABOVE = 0", CHOSEN, "tests/engine/test_borders.py"),
    _solver("ring", "MILD_TILTS = (2.0, 0.5)", "MILD_TILTS = (1.0, 1.0)"),
    _solver("ring", "< 0.5 * residual.norm())", "< 1e9 * residual.norm())", HARD),
    _solver("gram", "REFINEMENTS = 4", "REFINEMENTS = 0", HARD),
    _solver("gram", "conv.geometry.links_borders and", "False and", CHOSEN, SOLVERS),
    Mutant("invconv/engine/strips.py", "REFINEMENTS = 4", "REFINEMENTS = 0", (STRIPS,)),
    _solver("strips", "REFINED = 1e-6", "REFINED = 1e9", STRIPS),
    _solver("strips", "REFINED = 1e-6", "REFINED = 1e-9", STRIPS),
    _solver("dense", "MOST_ENTRIES = 2**22", "MOST_ENTRIES = 2**21", HARD),
    _solver("dense", "MOST_ENTRIES = 2**22", "MOST_ENTRIES = 2**23", HARD),
    _solver("cholesky", "MOST_ENTRIES = 2**24", "MOST_ENTRIES = 2**22", CHOLESKY),
    _solver("cholesky", "CONTRACTION = 1e-3", "CONTRACTION = 1e9", CHOLESKY),
    _solver("cholesky", "CONTRACTION = 1e-3", "CONTRACTION = 1e-12", CHOLESKY),
    _solver("cholesky", "REFINEMENTS = 2", "REFINEMENTS = 0", CHOLESKY),
    Mutant("invconv/engine/separable.py", "ROUNDINGS = 16", "ROUNDINGS = 0.5", KRONECKER),
    Mutant("invconv/engine/separable.py", "ROUNDINGS = 16", "ROUNDINGS = 1e5", KRONECKER),
    Mutant("invconv/engine/separable.py", "factors[index] = (kernel", "others = (kernel", KRONECKER),
    _solver("kronecker", "(gains * self.map.rest).norm().item()", "0.0", *KRONECKER),
    _solver("kronecker", "if self._is_full else math.inf", "", SOLVERS),
    _solver("sparse", "MOST_FILL = 160_000_000", "MOST_FILL = 320_000_000", HARD),
    _solver("sparse", "ENTRY = 24", "ENTRY = 12", HARD),
    _solver("sparse", "VOLUME_UP_TO = 1e-3", "VOLUME_UP_TO = 1e9", "tests/engine/test_damping.py"),
    _solver("sparse", "has_dependent_channels(self.conv):", "False:", HARD),
    Mutant("invconv/engine/banded.py", "MOST_DEFECT = 1e-6", "MOST_DEFECT = 1e9", ("tests/engine/test_volumes.py",)),
    Mutant("invconv/engine/preconditioner.py", "WORTH = 1e3", "WORTH = 1e9", (HARD,)),
    Mutant("invconv/engine/preconditioner.py", "WORTH = 1e3", "WORTH = 1e-3", (HARD,)),
    _solver("runs", "STEPS_AN_UNKNOWN = 20", "STEPS_AN_UNKNOWN = 1", ESTIMATES),
    _solver("krylov", "STEEPEST = 1e8", "STEEPEST = 1.0", ESTIMATES),
    _solver("krylov", "SHARE = 0.01", "SHARE = 100.0", ESTIMATES),
    Mutant("invconv/engine/known.py", "PASSING, WAITING = 8, 4", "PASSING, WAITING = 0, 0", MEMORY),
    Mutant("invconv/engine/known.py", "PASSING, WAITING = 8, 4", "PASSING, WAITING = 80, 40", MEMORY),
    Mutant("invconv/engine/known.py", "\nKNOWN = 4", "\nKNOWN = 1", (ESTIMATES,)),
    Mutant("invconv/engine/blocks.py", "SQUARINGS = 4", "SQUARINGS = 0", (ESTIMATES,)),
    Mutant("invconv/engine/power.py", "STEPS = 12", "STEPS = 1", (ESTIMATES,)),
    Mutant("invconv/engine/supremum.py", "ROUNDING = 64", "ROUNDING = -1e12", SUPREMUM),
    Mutant("invconv/engine/supremum.py", "HALVINGS = 2", "HALVINGS = 0", SUPREMUM),
    Mutant("invconv/choosing.py", "ROUNDING = 8", "ROUNDING = 0", ("tests/layers/test_restoring.py",)),
    Mutant("invconv/engine/extremes.py", "AGREEMENT = 1e-2", "AGREEMENT = 1e99", (ESTIMATES,)),
    Mutant("invconv/engine/extremes.py", "RESTARTS = 300", "RESTARTS = 1", ("tests/engine/test_norms.py",)),
    _solver("runs", "MOST_ITERATIONS = 2_000", "MOST_ITERATIONS = 200", HARD),
    # What an operator says, and when.
    Mutant("invconv/engine/precision.py", "DOUBTFUL, HOPELESS = 1e-2, 0.5", "DOUBTFUL, HOPELESS = 0.4, 0.5"),
    Mutant("invconv/engine/precision.py", "DOUBTFUL, HOPELESS = 1e-2, 0.5", "DOUBTFUL, HOPELESS = 1e-2, 1e9"),
    Mutant("invconv/engine/inverse_gradient.py", "ROUNDINGS = 2.0", "ROUNDINGS = 0.02", DAMPED),
    Mutant("invconv/engine/inverse_gradient.py", "ROUNDINGS = 2.0", "ROUNDINGS = 200.0", DAMPED),
    Mutant(
        "invconv/engine/extremes.py", "TOLERANCE = 1e-6", "TOLERANCE = 1e-1", ("tests/engine/test_norms.py",)
    ),
    Mutant(
        "invconv/engine/blocks.py",
        "BATCH_UP_TO_ROWS = 128",
        "BATCH_UP_TO_ROWS = 4096",
        ("tests/engine/test_blocks.py",),
    ),
    Mutant("invconv/layers/cache.py", "MOST = 4", "MOST = 1", ("tests/layers/test_layers.py",)),
    # Arrays on disk.
    Mutant("invconv/arrays/halo.py", "AGREE = 0.25", "AGREE = 1e4", SEAMS),
    Mutant("invconv/arrays/halo.py", "DIGITS = 16.0", "DIGITS = 1e6", ARRAYS),
    Mutant("invconv/arrays/journal.py", "self.checksums[window] == checksum(parts)", "True", ARRAYS),
    Mutant("invconv/arrays/passes.py", "self.record.add(index, parts)", "pass", ARRAYS),
    # Processes that share log-determinants.
    Mutant("invconv/layers/shares.py", "sharing.processes * (own", "(own", SHARES),
    Mutant("invconv/layers/shares.py", "if owner == sharing.rank", "", SHARES),
    Mutant("invconv/layers/shares.py", "    except Exception as caught:", "    except ImportError as caught:", SHARES),
)  # fmt: skip


def survives(mutant: Mutant) -> bool:
    """Whether all tests pass on a copy of the package with this change."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("invconv", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        source = copy / mutant.file
        text = source.read_text()
        assert text.count(mutant.before) == 1, f"{mutant.file} has {text.count(mutant.before)} times {mutant.before!r}"
        source.write_text(text.replace(mutant.before, mutant.after))
        paths = os.pathsep.join([str(copy), str(copy / "tests")])
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests]
        done = subprocess.run(command, cwd=copy, env={**os.environ, "PYTHONPATH": paths}, capture_output=True)
        assert done.returncode in (0, 1, 2), done.stdout.decode()[-2000:] + done.stderr.decode()[-2000:]
        return done.returncode == 0


def main() -> None:
    chosen = [m for m in MUTANTS if not sys.argv[1:] or any(word in m.name for word in sys.argv[1:])]
    alive = 0
    for mutant in chosen:
        start = time.perf_counter()
        survived = survives(mutant)
        alive += survived
        print(
            f"{'SURVIVED' if survived else 'killed':9}{mutant.name}  ({time.perf_counter() - start:.0f} s)", flush=True
        )
    print(f"{len(chosen) - alive} of {len(chosen)} killed")
    sys.exit(alive > 0)


if __name__ == "__main__":
    main()
