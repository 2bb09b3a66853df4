"""README is short, and its code runs."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_code_in_readme_runs():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, str(README), "exec"), {})


def test_readme_is_read_in_two_minutes():
    assert len(README.read_text().splitlines()) <= 100
