"""Print the lower ends of the ranges that pyproject.toml declares, as constraints for pip."""

from __future__ import annotations

import re
from pathlib import Path


def oldest(project: str) -> list[str]:
    """One constraint for each requirement with a lower end: `numpy==1.26.*` for `numpy>=1.26`.

    Args:
        project: text of pyproject.toml.
    """
    found = re.findall(
        r'"([A-Za-z_-]+)(?:\[\w+\])?>=([\d.]+)"', project.partition("\ndependencies = ")[2].partition("dev = [")[0]
    )
    return [f"{name}=={version}.*" for name, version in found]


if __name__ == "__main__":
    print("\n".join(oldest((Path(__file__).parents[1] / "pyproject.toml").read_text())))
