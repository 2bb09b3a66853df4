"""Types, as those see them who install the package."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from installed import ROOT, Environment, alone, build


@pytest.mark.slow
def test_a_user_who_is_strict_finds_types(tmp_path: Path) -> None:
    """Every public verb passes `mypy --strict` against the installed wheel, and none of them gives `Any`."""
    (tmp_path / "dist").mkdir()
    environment = Environment(tmp_path / "environment", build(tmp_path / "dist")[0], [])
    shutil.copy(ROOT / "tests" / "user.py", tmp_path)
    command = [sys.executable, "-m", "mypy", "--strict", "--disallow-any-expr", "--python-executable"]
    command += [str(environment.python), "--config-file=", "user.py"]
    done = subprocess.run(command, cwd=tmp_path, env=alone(), capture_output=True, text=True, timeout=500)
    errors = [line for line in done.stdout.splitlines() if "error:" in line]
    hidden = [line for line in errors if 'has type "Any"' in line]
    wrong = [line for line in errors if "Expression type contains" not in line and line not in hidden]
    assert done.returncode in (0, 1) and wrong == [] and hidden == [], done.stdout + done.stderr
