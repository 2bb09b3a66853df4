"""Formulas between dollars as MathML, which browsers draw by themselves: no script and no font is fetched."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.blockprocessors import BlockProcessor
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor

INLINE = r"(?<![\\$\w])\$(?=[^\s$])([^$\n]+(?:\n[^$\n]+)?)(?<=[^\s$])\$(?!\w)"

LONG = 60
"""Characters from which on a formula may be wider than a phone, and is moved under one's finger."""


class Inline(InlineProcessor):
    """A formula within a line."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:  # type: ignore[override]
        formula = convert(m.group(1))
        if len(m.group(1)) > LONG:
            formula = f'<span class="formula">{formula}</span>'
        return self.md.htmlStash.store(formula), m.start(0), m.end(0)


class Block(BlockProcessor):
    """A formula that stands by itself, between lines of two dollars."""

    def test(self, parent: ElementTree.Element, block: str) -> bool:
        return block.startswith("$$") and block.rstrip().endswith("$$")

    def run(self, parent: ElementTree.Element, blocks: list[str]) -> None:
        formula = convert(blocks.pop(0).strip().strip("$").strip(), display="block")
        place = ElementTree.SubElement(parent, "div", {"class": "formula"})
        place.text = self.parser.md.htmlStash.store(formula)


class MathML(Extension):
    """Formulas between dollars."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.inlinePatterns.register(Inline(INLINE, md), "mathml", 186)
        md.parser.blockprocessors.register(Block(md.parser), "mathml", 100)
