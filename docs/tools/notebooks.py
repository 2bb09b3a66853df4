"""Notebooks, kept as scripts with cells (`# %%`), executed and written out as pages with their pictures."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build" / "notebooks"
SECONDS = 240
"""For one notebook, on a busy machine."""

STYLE = f"""
%matplotlib inline
%config InlineBackend.figure_formats = ["svg"]
import matplotlib
path = {str(ROOT / "docs" / "tools" / "matplotlibrc")!r}
matplotlib.rcParams.update(matplotlib.rc_params_from_file(path, False, False))
"""


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs; kept until the notebook or the library changes."""
    sources = [path, *sorted((ROOT / "invconv").rglob("*.py"))]
    mark = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    kept = KEPT / f"{path.stem}-{mark}.ipynb"
    if not kept.exists():
        notebook = jupytext.read(path)
        notebook.cells.insert(0, nbformat.v4.new_code_cell(STYLE))
        before = os.environ.get("PYTHONPATH", "")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
        NotebookClient(
            notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": ROOT}}
        ).execute()
        del notebook.cells[0]
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        KEPT.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, kept)
    return nbformat.read(kept, as_version=4)


def page(notebook: nbformat.NotebookNode, name: str) -> tuple[str, dict[str, bytes]]:
    """The notebook as markdown, and its pictures by file name."""
    parts, pictures = [], {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```{{.py .cell}}\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/svg+xml" in data or "image/png" in data:
                kind = "svg" if "image/svg+xml" in data else "png"
                file = f"{name}-{len(pictures) + 1}.{kind}"
                pictures[file] = (
                    data["image/svg+xml"].encode() if kind == "svg" else base64.b64decode(data["image/png"])
                )
                parts.append(f"![{cell.metadata.get('alt', 'what the cell draws')}]({file})")
            else:
                text = output.get("text") or data.get("text/plain", "")
                if text.strip():
                    parts.append(f"```{{.text .output}}\n{text.rstrip()}\n```")
    first, _, rest = "\n\n".join(parts).partition("\n")
    download = f'<a class="notebook" href="{name}.ipynb" download>This page is a notebook: download it</a>'
    return f"{first}\n\n{download}\n{rest}\n", pictures
