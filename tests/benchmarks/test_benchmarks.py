"""Each question can be asked, reaches below the public API in one place alone, and is where the maps say."""

import ast
import importlib
import pkgutil
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.harness import command

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
QUESTIONS = {
    "speed": ["ratios", "updating", "plugs"],
    "accuracy": [],
    "borders": ["solvers", "scaling", "blurs", "damped", "step", "volumes", "large", "picture"],
    "scaling": [],
    "pairs": [],
    "norms": [],
    "arrays": [],
    "tiles": [],
    "plans": ["memory", "seconds"],
    "freshness": ["caches", "refresh", "processes", "shares", "threads", "busy"],
    "flows": [],
    "inversion": ["layers", "prior", "start", "sweep", "trained"],
    "autoencoder": [],
    "trust": [],
}
DOCS = ROOT / "docs"
MEASURED = ["understand/cost.md", "howto/compile.md", "howto/processes.md", "howto/plugs.md", "howto/lipschitz.md"]
PAGES = [ROOT / "README.md", *sorted((DOCS / "results").glob("*.md")), *(DOCS / name for name in MEASURED)]
"""Pages with figures in them."""


def trials(question):
    """The name of each trial, and its module."""
    for name in QUESTIONS[question] or [""]:
        place = FOLDER / question
        last = name or ("__main__" if place.is_dir() else "")
        yield name, importlib.import_module(f"benchmarks.{question}" + (f".{last}" if last else ""))


def test_these_are_all_questions():
    found = {name for _, name, _ in pkgutil.iter_modules([str(FOLDER)])} - {"harness", "rivals"}
    assert found == set(QUESTIONS)


@pytest.mark.parametrize("question", QUESTIONS)
def test_help(question, capsys):
    modules = dict(trials(question))
    for name, module in modules.items():
        words = [*([name] if name else []), "--help"]
        with pytest.raises(SystemExit) as end:
            command.ask(question, module.__doc__, *modules.values(), words=words)
        assert end.value.code == 0
        said = capsys.readouterr().out
        assert f"python -m benchmarks.{question}" in said
        assert "--quick" in said
        assert module.__doc__.splitlines()[0] in said


@pytest.mark.parametrize("question", QUESTIONS)
def test_quick_sets_options_that_exist(question, monkeypatch):
    modules = dict(trials(question))
    for name, module in modules.items():
        seen: list = []
        monkeypatch.setattr(module, "main", seen.append)
        first = [name] if name else []
        for words in ([], ["--quick"]):
            command.ask(question, "what", *modules.values(), words=first + words)
        usual, quick = map(vars, seen)
        assert set(usual) == set(quick)
        assert {key: quick[key] for key in module.QUICK} == module.QUICK


def test_what_is_given_wins_over_quick(monkeypatch):
    modules = dict(trials("borders"))
    seen: list = []
    monkeypatch.setattr(modules["step"], "main", seen.append)
    command.ask("borders", "what", *modules.values(), words=["step", "--quick", "--batch", "7"])
    assert (seen[0].batch, seen[0].rounds) == (7, modules["step"].QUICK["rounds"])


def imports(path):
    """What a file imports: pairs of a module and a name, None for the module itself."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: str(path.relative_to(FOLDER)))
def test_only_one_file_reaches_below_the_public_api(path):
    private = [
        (module, name)
        for module, name in imports(path)
        if module.startswith(("invconv.engine", "invconv.layers.")) or (name or "").startswith("_")
    ]
    ours = [pair for pair in private if pair[0].startswith("invconv")]
    assert not ours or path == FOLDER / "harness" / "engine.py"


def commands(text):
    return re.findall(r"python -m benchmarks\.([a-z]+)(?: ([a-z]+))?", text)


@pytest.mark.parametrize("page", [*PAGES, FOLDER / "README.md", ROOT / "Makefile"], ids=lambda page: page.name)
def test_commands_name_questions_and_trials(page):
    for question, trial in commands(page.read_text()):
        assert question in QUESTIONS
        assert trial in ("", *QUESTIONS[question]) or not QUESTIONS[question]


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: str(path.relative_to(FOLDER)))
def test_docstrings_name_their_own_commands(path):
    for question, trial in commands(ast.get_docstring(ast.parse(path.read_text())) or ""):
        if question in QUESTIONS:
            assert trial in ("", *QUESTIONS[question])


def test_the_map_names_files_that_exist():
    text = (FOLDER / "README.md").read_text()
    named = re.findall(r"`((?:[\w.-]+/)*[\w.-]+(?:\.(?:py|json|png|md)|/))`", text)
    assert len(named) > 20
    missing = [name for name in named if not (FOLDER / name).exists() and not (ROOT / name).exists()]
    assert not missing


def test_the_map_has_every_question_and_every_result():
    text = (FOLDER / "README.md").read_text()
    for question, names in QUESTIONS.items():
        for name in names or [""]:
            assert f"python -m benchmarks.{question} {name}".strip() in text
    for path in (FOLDER / "results").iterdir():
        assert f"results/{path.name}" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_images_exist(page):
    for image in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text()):
        assert (page.parent / image).exists(), image


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_map_has_every_table_and_image(page):
    name = page.relative_to(DOCS if page.is_relative_to(DOCS) else ROOT)
    rows = [row for row in (FOLDER / "README.md").read_text().splitlines() if row.startswith(f"| {name} |")]
    named = " ".join(row.split("|")[2] for row in rows)
    text = page.read_text()
    for heading in re.findall(r"^\|(.+)\|\n\|(?: --- \|)+$", text, flags=re.M):
        first = next(cell.strip() for cell in heading.split("|") if cell.strip())
        assert first.replace("`", "") in named
    for image in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        assert image.rpartition("benchmarks/")[2].removeprefix("../../") in named
