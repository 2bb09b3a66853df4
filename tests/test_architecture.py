"""The plan of the house, held: floors, no circle, no room too large, nobody reaching into another's drawers."""

from __future__ import annotations

import ast
import graphlib
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import grimp
import mutants
import pytest
import tables

import invconv
from invconv.engine import choice
from invconv.engine.choice import VOLUMES
from invconv.engine.solvers.base import Solver
from invconv.engine.ways import WAYS
from invconv.options import SOLVERS
from invconv.report import Plan

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "invconv").rglob("*.py"))
NAMES = json.loads((ROOT / "tests" / "data" / "public_names.json").read_text())
"""Those of version 0.1.0, by module: none of them may go."""
MOST_LINES = 300


def relative_path(value: object) -> str | None:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else None


every_file = pytest.mark.parametrize("file", FILES, ids=relative_path)


def test_the_import_contracts_hold():
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kept, 0 broken" in done.stdout


def test_imports_have_no_circle():
    graph = grimp.build_graph("invconv", cache_dir=None, exclude_type_checking_imports=False)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    # A package's own page lists what is in its rooms; that is no dependency of theirs.
    order = list(graphlib.TopologicalSorter(imports).static_order())
    assert len(order) > 70


@every_file
def test_no_room_is_too_large(file):
    assert len(file.read_text().splitlines()) <= MOST_LINES


@every_file
def test_no_private_name_is_imported(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("invconv"):
            assert not [alias.name for alias in node.names if alias.name.startswith("_")]


def test_lint_forbids_private_access_and_long_functions():
    config = (ROOT / "pyproject.toml").read_text()
    assert '"SLF"' in config and '"C90"' in config and "max-complexity = 10" in config
    exceptions = [file for file in FILES if "noqa: SLF001" in file.read_text()]
    # The version of a tensor, the caller's frame, hooks of a module, and the freeing of a lock have no public names.
    assert [file.name for file in exceptions] == ["autograd.py", "errors.py", "kernel.py", "threads.py"]


@every_file
def test_what_threads_share_is_in_one_room(file):
    """Locks of a class, and settings of the process that one thread would set back for all."""
    if file.name != "threads.py":
        words = ("from functools import cached_property", "functools.cached_property", "Lock(", "threadpoolctl")
        assert [word for word in words if word in file.read_text()] == []


@pytest.mark.parametrize("module", NAMES)
def test_public_names_stay(module):
    present = importlib.import_module(module)
    assert [name for name in NAMES[module] if not hasattr(present, name)] == []
    assert set(getattr(present, "__all__", NAMES[module])) >= set(NAMES[module])


def test_all_says_what_there_is():
    for module in (
        invconv,
        *(importlib.import_module(f"invconv.{name}") for name in ("flows", "inversion", "lightning")),
    ):
        assert [name for name in module.__all__ if not hasattr(module, name)] == []


# -- tables --------------------------------------------------------------------------------------------------------


def solvers() -> set[type[Solver]]:
    folder = ROOT / "invconv" / "engine" / "solvers"
    modules = [importlib.import_module(f"invconv.engine.solvers.{file.stem}") for file in folder.glob("*.py")]
    members = {member for module in modules for member in vars(module).values() if inspect.isclass(member)}
    return {m for m in members if issubclass(m, Solver) and not inspect.isabstract(m) and m is not Solver}


def test_every_solver_has_a_way_and_rows_of_tests():
    assert solvers() == {way.solver for way in WAYS}
    assert solvers() <= {row.kind for row in tables.SOLVERS}
    assert len({solver.__module__ for solver in solvers()}) == len(solvers())  # one a file
    names = {solver.name for solver in solvers()}
    assert len(names) == len(solvers())
    assert names - {"fft"} == {hard.solver for hard in tables.HARD}


def test_every_name_of_a_solver_is_explained():
    source = inspect.getsource(Plan)
    assert [solver.name for solver in solvers() if f'"{solver.name}"' not in source] == []
    assert {value for solver in solvers() for value in solver.serves} == set(SOLVERS)


def test_the_last_way_takes_everything():
    last = WAYS[-1].solver
    for case in tables.CASES[::20] + tables.BORDERS[::20]:
        assert isinstance(last.plan(case.layer().operator(case.size).conv, invconv.Options()), Plan)
    assert len(VOLUMES) == 2 and choice.volume.__doc__


# -- constants -----------------------------------------------------------------------------------------------------


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, (int, float))


def constants(file: Path) -> list[tuple[str, str]]:
    """Numbers with a name, at the head of a file, and what is said of them."""
    body = ast.parse(file.read_text()).body
    named = []
    for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        if not isinstance(node, ast.Assign) or not any(isinstance(n, ast.Constant) for n in ast.walk(node.value)):
            continue
        if isinstance(node.value, (ast.Call, ast.Dict, ast.Constant)) and not _is_number(node.value):
            continue
        targets = node.targets[0].elts if isinstance(node.targets[0], ast.Tuple) else node.targets
        said = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
        named += [(t.id, str(said)) for t in targets if isinstance(t, ast.Name) and t.id.isupper()]
    return named


TUNED = [*(ROOT / "invconv" / "engine").rglob("*.py"), ROOT / "invconv" / "checks.py"]
TUNED += [ROOT / "invconv" / "layers" / name for name in ("cache.py", "together.py")]


@pytest.mark.parametrize("file", [file for file in TUNED if constants(file)], ids=relative_path)
def test_every_tuned_constant_is_pinned(file):
    """By a mutant that has to be killed (`make mutants`), or it says that it decides nothing but the time."""
    name = str(file.relative_to(ROOT))
    moved = [mutant.before for mutant in mutants.MUTANTS if mutant.file == name]
    for constant, said in constants(file):
        assert said, f"{constant} of {name} says nothing of itself"
        pinned = any(constant in before for before in moved)
        values = ast.unparse(next(n for n in ast.parse(file.read_text()).body if _assigns(n, constant)).value)
        assert pinned or "speed only" in said.lower() or any(values in before for before in moved), constant


def _assigns(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.Assign) and name in ast.unparse(node.targets[0])


def test_every_mutant_still_finds_its_line():
    for mutant in mutants.MUTANTS:
        assert (ROOT / mutant.file).read_text().count(mutant.before) == 1, mutant.name
        assert all((ROOT / test.partition("::")[0]).exists() for test in mutant.tests)
