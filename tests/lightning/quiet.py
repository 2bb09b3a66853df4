"""A Trainer that says nothing, on one CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

SILENT: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}


def quiet_trainer(folder: Path, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    """Without a log and a first look at the validation, unless the options say so."""
    settings = {"accelerator": "cpu", "devices": 1, "logger": False, "default_root_dir": folder, **SILENT, **options}
    return L.Trainer(**settings, callbacks=list(callbacks))
