"""The built site in a real browser: every page loads at two widths, nothing complains, menus and search lead somewhere.

    python docs/tools/browse.py [FOLDER OF SCREENSHOTS]

It takes the browser that `CHROMIUM` names, else Debian's, else the one that playwright has installed.
"""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import sys
import threading
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

SITE = Path(__file__).parents[2] / "build" / "site"
WIDTHS = {"desktop": (1280, 800), "phone": (390, 844)}
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
ARGUMENTS += ["--disable-sync", "--no-first-run"]
SHOWN = ["index.html", "learn/borders.html", "learn/network.html", "reference/layers.html", "understand/theory.html"]
SHOWN += ["results/flows.html", "howto/choose.html", "learn/deblur.html", "learn/flow.html", "learn/fresh.html"]
SHOWN += ["howto/convert.html", "howto/upsample.html", "howto/lipschitz.html", "howto/own_images.html"]
SHOWN += ["results/borders.html", "results/index.html", "results/speed.html"]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a word."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def serve() -> tuple[http.server.ThreadingHTTPServer, str]:
    """The site on a free port of this machine."""
    handler = functools.partial(Quiet, directory=str(SITE))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"


def watch(page: Page, home: str, wrong: list[str]) -> None:
    """Note what the console, the network and scripts complain of, and every request that leaves this machine."""
    page.on("console", lambda said: said.type == "error" and wrong.append(f"{page.url}: {said.text}"))
    page.on("pageerror", lambda error: wrong.append(f"{page.url}: {error}"))
    page.on("response", lambda got: got.status >= 400 and wrong.append(f"{page.url}: {got.status} {got.url}"))
    page.on("request", lambda asked: asked.url.startswith(("http:", "https:", "ws")) and not asked.url.startswith(home)
            and wrong.append(f"{page.url}: asks for {asked.url}"))  # fmt: skip


def check_page(page: Page, name: str, width: int) -> list[str]:
    """What is wrong with a page that is open: no title, broken pictures, wider than the screen."""
    wrong = []
    if not page.locator("h1").count():
        wrong.append(f"{name}: no heading")
    broken = page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
    wrong += [f"{name}: broken picture {source}" for source in broken]
    wide = page.evaluate("document.documentElement.scrollWidth")
    if wide > width + 1:
        wrong.append(f"{name}: {wide} pixels wide at {width}")
    return wrong


def check_navigation(page: Page, home: str) -> None:
    """Tabs, search and the menu of a phone."""
    page.set_viewport_size({"width": 1280, "height": 800})
    page.goto(f"{home}/index.html")
    page.locator(".md-tabs__link", has_text="Learn").click()
    page.wait_for_url("**/learn/index.html")
    page.locator("input.md-search__input").click()
    page.keyboard.type("pseudo-inverse")
    page.locator(".md-search-result__link").first.wait_for(state="visible", timeout=20_000)
    page.locator(".md-search-result__link").first.click()
    page.wait_for_url(lambda url: "learn/index.html" not in url)
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{home}/index.html")
    page.locator(".md-header__button[for=__drawer]").click()
    page.locator(".md-nav__link", has_text="How to").first.wait_for(state="visible", timeout=5_000)


def main(shots: Path) -> None:
    """Open all pages; print what is wrong and fail if there is anything."""
    shots.mkdir(parents=True, exist_ok=True)
    names = sorted(str(path.relative_to(SITE)) for path in SITE.rglob("*.html") if path.name != "404.html")
    server, home = serve()
    wrong: list[str] = []
    with sync_playwright() as playwright:
        found = os.environ.get("CHROMIUM") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        page = browser.new_page()
        watch(page, home, wrong)
        for kind, (width, height) in WIDTHS.items():
            page.set_viewport_size({"width": width, "height": height})
            for name in names:
                page.goto(f"{home}/{name}", wait_until="load")
                wrong += check_page(page, f"{name} ({kind})", width)
                if name in SHOWN:
                    file = shots / f"{name.replace('/', '-').removesuffix('.html')}-{kind}.png"
                    page.screenshot(path=file, full_page=not name.startswith("reference"))
        check_navigation(page, home)
        browser.close()
    server.shutdown()
    print("\n".join(wrong))
    print(f"{len(names)} pages at {len(WIDTHS)} widths, navigation and search; {len(wrong)} complaints; {shots}/")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else SITE.parent / "screenshots")
