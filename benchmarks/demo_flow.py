"""The flow of the demo, as its configuration says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from invconv.flows import MultiScaleFlow

CONFIG = Path(__file__).parents[1] / "examples" / "flow" / "demo.yaml"


def demo_flow(**changes: Any) -> MultiScaleFlow:
    torch.manual_seed(0)
    options = yaml.safe_load(CONFIG.read_text())["model"]["flow"]["init_args"]
    return MultiScaleFlow(**{**options, **changes})
