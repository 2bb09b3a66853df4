"""Notebooks, kept as scripts with cells (`# %%`), executed and written out as pages with their pictures."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import blocks
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
        printed = "".join(output.text for output in cell.outputs if output.output_type == "stream").rstrip()
        if printed:
            parts.append(blocks.shown(printed))
        for output in cell.outputs:
            if drawn := output.get("data", {}).get("image/svg+xml"):
                file = f"{name}-{len(pictures) + 1}.svg"
                pictures[file] = drawn.encode()
                parts.append(f"![{cell.metadata.get('alt', 'what the cell draws')}]({file})")
    first, _, rest = "\n\n".join(parts).partition("\n")
    download = f'<a class="notebook" href="{name}.ipynb" download>This page is a notebook: download it</a>'
    return f"{first}\n\n{download}\n{rest}\n", pictures
