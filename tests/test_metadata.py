"""What the package says of itself, in several places, is said alike."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from oldest import oldest
from packaging.requirements import Requirement

import invconv

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text()


def test_version_and_address_are_those_of_the_citation() -> None:
    citation: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == invconv.__version__ and citation["license"] == "MIT"
    assert f'Homepage = "{citation["repository-code"]}"' in PROJECT


def test_every_python_that_is_promised_is_tested() -> None:
    workflow: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    promised = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == promised
    first = re.search(r'requires-python = ">=(3\.\d+)"', PROJECT)
    assert first and first[1] == promised[0]
    assert {"lint", "test", "oldest", "wheel", "docs"} == set(workflow["jobs"])


@pytest.mark.parametrize("file", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda file: file.name)
def test_what_the_host_reads_can_be_read(file: Path) -> None:
    assert yaml.safe_load(file.read_text())


def test_what_make_is_asked_for_exists() -> None:
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"make ([a-z]+)", workflow)) - {"docs"} <= targets  # docs come with the site


def test_the_oldest_versions_are_the_lower_ends() -> None:
    declared = PROJECT.partition("\ndependencies = ")[2].partition("dev = [")[0]
    constraints = {Requirement(line).name: Requirement(line) for line in oldest(PROJECT)}
    lower = {Requirement(text).name: Requirement(text) for text in re.findall(r'"([^"\s]+>=[^"]+)"', declared)}
    assert constraints.keys() == lower.keys() >= {"torch", "numpy", "scipy", "lightning", "zuko"}
    for name, constraint in constraints.items():
        version = next(iter(lower[name].specifier)).version
        assert constraint.specifier.contains(version) and lower[name].specifier.contains(version)


def test_the_code_in_llms_runs() -> None:
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "llms.txt").read_text(), flags=re.S):
        exec(compile(block, "llms.txt", "exec"), {})
