"""What mkdocs is told to do beside its usual work: run notebooks and code, write the reference, draw figures."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

TOOLS = Path(__file__).parent
ROOT = TOOLS.parents[1]
sys.path[:0] = [str(TOOLS), str(ROOT)]

import blocks  # noqa: E402
import figures  # noqa: E402
import names  # noqa: E402
import notebooks  # noqa: E402
from mathml import MathML  # noqa: E402

FIGURES = ("benchmarks/results", "examples")
"""Folders whose pictures pages may show, by the path that they have in the repository."""
PROBLEMS: list[str] = []
"""Code of pages that does not run; the build goes on to find all, and fails."""
INHERITED = {"invconv.InvertibleConv1d", "invconv.InvertibleConv3d", "invconv.InvertibleConv"}
"""Layers whose verbs are listed with `InvertibleConv2d`."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Formulas are drawn in pages and docstrings."""
    if not any(isinstance(extension, MathML) for extension in config.markdown_extensions):
        config.markdown_extensions.append(MathML())  # type: ignore[arg-type]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add notebooks as pages, the reference, and the pictures of benchmarks and examples."""
    for path in sorted((ROOT / "docs" / "learn").glob("*.py")):
        start = time.perf_counter()
        notebook = notebooks.executed(path)
        text, pictures = notebooks.page(notebook, path.stem)
        print(f"notebook {path.stem}: {time.perf_counter() - start:.0f} s", flush=True)
        generated = {f"{path.stem}.md": text, f"{path.stem}.ipynb": nbformat.writes(notebook), **pictures}
        for name, content in generated.items():
            files.append(File.generated(config, f"learn/{name}", content=content))
    for page, documented in names.reference().items():
        files.append(File.generated(config, f"reference/{page}.md", content=_reference(page, documented)))
    for name, drawn in figures.all_figures().items():
        files.append(File.generated(config, f"understand/{name}", content=drawn))
    for folder in FIGURES:
        for path in sorted((ROOT / folder).rglob("*.png")):
            place = str(path.relative_to(ROOT))
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def _reference(page: str, documented: dict[str, str]) -> str:
    """A page of the reference: what its modules say of themselves, and each public name."""
    parts = [f"# {names.PAGES[page][0]}"]
    for module in names.modules(page):
        mine = {name: path for name, path in documented.items() if name.rpartition(".")[0] == module}
        if mine:
            parts.append(f"::: {module}\n    options: {{members: false, heading_level: 2}}")
        for name, path in mine.items():
            # A function that bears its module's name hides it, and one may be imported only when it is asked for.
            hidden = names.source(name).exists() or name == "invconv.inversion.plot"
            inherited = "false" if name in INHERITED else "true"
            options = f"{{heading_level: 3, heading: {name}, toc_label: {name.rpartition('.')[2]}, "
            options += f"inherited_members: {inherited}}}"
            parts.append(f"::: {path if hidden else name}\n    options: {options}")
    return "\n\n".join(parts) + "\n"


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Run the code of a page, and find the pictures of benchmarks and examples where they are put."""
    depth = page.file.src_uri.count("/")
    text = re.sub(r"\]\((?:\.\./)+((?:benchmarks|examples)/[^)]+\.png)\)", rf"]({'../' * depth}\1)", markdown)
    if page.file.src_uri.startswith(("learn/", "reference/")):
        return text
    try:
        return blocks.run(page.file.src_uri, text)
    except RuntimeError as error:
        PROBLEMS.append(str(error))
        return text


def on_post_build(config: MkDocsConfig, **_: Any) -> None:
    """Fail if the code of a page did, and say what was built."""
    if PROBLEMS:
        raise PluginError("\n".join(PROBLEMS))
    count = sum(map(len, names.reference().values()))
    pages = len(list(Path(config.site_dir).rglob("*.html")))
    books = len(list((ROOT / "docs" / "learn").glob("*.py")))
    print(f"{pages} pages, of them {books} executed notebooks; {count} public names documented")
