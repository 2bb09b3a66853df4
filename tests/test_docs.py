"""The site is whole before it is built: its menu, its links, and the names that it documents."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import names
import pytest
import torch
import yaml

from invconv.lightning import AutoencoderModule, FlowModule

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *(DOCS / "learn").glob("*.py")])
GENERATED = {f"reference/{page}.md" for page in names.PAGES}
DRAWN = {f"understand/{name}.svg" for name in ("windows", "locality", "sections")}
"""By `docs/tools/figures.py`."""
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))


def address(page: Path) -> str:
    """The page's place in the site; a notebook is kept as a script."""
    return str(page.relative_to(DOCS).with_suffix(".md"))


def menu(entries) -> list[str]:
    """All pages of a menu, in their order."""
    found = []
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            found += [value] if isinstance(value, str) else menu(value)
    return found


def text_of(page: Path) -> str:
    """The words of a page, code left out."""
    text = page.read_text()
    if page.suffix == ".py":
        return "\n".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("#"))
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """What a page's headings are called in links."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), flags=re.M)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_the_menu_has_every_page_once():
    config = (ROOT / "mkdocs.yml").read_text()
    listed = menu(yaml.safe_load(config)["nav"])
    assert sorted(listed) == sorted({address(page) for page in PAGES} | GENERATED)


def test_every_public_name_is_documented():
    assert names.undocumented() == []
    documented = [path for paths in names.reference().values() for path in paths.values()]
    assert len(documented) == len(set(documented)) > 100


@pytest.mark.parametrize("page", names.PAGES)
def test_documented_names_are_where_they_are_said_to_be(page):
    for path in names.reference()[page].values():
        module, _, name = path.rpartition(".")
        defined = [getattr(node, "name", None) for node in names.tree(module).body]
        assert name in defined or f"\n{name} = " in names.source(module).read_text()


@every_page
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", text_of(page))
    for link in (link for link in links if not link.startswith(("http", "#"))):
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve()
        if target.is_relative_to(DOCS) and str(target.relative_to(DOCS)) in GENERATED | DRAWN:
            continue
        script = target.with_suffix(".py")
        target = target if target.exists() else script
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_nothing_is_fetched_from_elsewhere():
    theme = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert theme["theme"]["font"] is False
    sheets = [*theme["extra_css"], *theme.get("extra_javascript", [])]
    assert all((DOCS / sheet).exists() for sheet in sheets)
    assert not re.search(r"url\(|@import", (DOCS / "assets" / "site.css").read_text())


@every_page
def test_code_in_pages_is_code(page):
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), flags=re.M | re.S)
    for block in [page.read_text()] if page.suffix == ".py" else blocks:
        compile(block, str(page), "exec")


@pytest.mark.parametrize("name", ["flow", "autoencoder"])
def test_networks_beside_the_pages_load_and_run(name):
    path = DOCS / "assets" / f"{name}.ckpt"
    assert path.stat().st_size < 1e6, "a download, and a file in every clone"
    with torch.no_grad():
        if name == "flow":
            flow = FlowModule.load_from_checkpoint(path).eval().flow
            x = flow.sample(64, generator=torch.Generator().manual_seed(0))
            assert flow.reconstruction_error(x).max() < 1e-4
            assert flow.bits_per_dim(x).mean() < 5, "of its own samples; 8 without training"
        else:
            model: Any = AutoencoderModule.load_from_checkpoint(path).eval().model
            z = model.encode(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
            assert z.numel() == 3 * 32 * 32 // 16
            assert torch.allclose(model.encode(model.decode(z)), z, atol=1e-4)


def test_every_way_and_every_error_is_explained():
    (ways,) = (
        ast.literal_eval(node.value)
        for node in names.tree("invconv.options").body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NAMES"
    )
    choices = (DOCS / "howto" / "choose.md").read_text()
    assert [way for way in ways if f"`{way}`" not in choices] == []
    stability = (DOCS / "understand" / "numerics.md").read_text()
    errors = set(names.public("invconv.errors")) - {"InvconvError", "warn_cut_off"}
    assert [name for name in errors if f"`{name}`" not in stability] == []
