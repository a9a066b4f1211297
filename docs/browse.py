"""Looks at every page of the built site in a browser: ``python docs/browse.py SITE [PICTURES]``.

Each page is opened at a desktop's and a phone's width, light and dark. What a machine can see is
printed: errors in the console, requests that fail, formulas that are not rendered, images that
are missing or drawn larger than they are, and anything that makes the whole page scroll sideways.
Pictures of all pages go to a folder, for the eye. The browser is the Chromium that the machine
has, or the one that ``CHROMIUM`` names.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

WIDTHS = {"desktop": 1280, "phone": 390}
SCHEMES = ("light", "dark")
LOOK = """() => {
  const found = [], wide = document.documentElement.scrollWidth - window.innerWidth;
  if (wide > 1) found.push(`it scrolls sideways by ${wide} pixels`);
  for (const formula of document.querySelectorAll("main .math, article .math"))
    if (!formula.querySelector("mjx-container"))
      found.push(`not rendered: ${formula.textContent.slice(0, 40)}`);
  for (const error of document.querySelectorAll("mjx-merror"))
    found.push(`a formula with an error: ${error.textContent.slice(0, 40)}`);
  for (const image of document.querySelectorAll("article img")) {
    const name = image.src.split("/").pop().slice(0, 40);
    if (!image.complete || image.naturalWidth === 0) found.push(`no image: ${name}`);
    else if (!name.includes(".svg") && image.width > 1.05 * image.naturalWidth)
      found.push(`blurred, ${image.naturalWidth} pixels on ${image.width}: ${name}`);
  }
  return found;
}"""
SETTLED = "() => !window.MathJax || !MathJax.startup || MathJax.startup.promise.then(() => true)"


def looks(page: Page, url: str) -> list[str]:
    """What a machine sees of one page."""
    found: list[str] = []
    note = found.append
    page.on("console", lambda said: note(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: note(str(error)))
    page.on("requestfailed", lambda request: note(f"not loaded: {request.url}"))
    page.goto(url, wait_until="load")
    page.wait_for_function(SETTLED)
    return found + page.evaluate(LOOK)


def browse(browser: Browser, site: Path, pictures: Path | None) -> Iterator[str]:
    """All faults, in words."""
    pages = sorted(path for path in site.rglob("*.html") if "_static" not in path.parts)
    for device, width in WIDTHS.items():
        for scheme in SCHEMES:
            window = {"width": width, "height": 900}
            context = browser.new_context(viewport=window, color_scheme=scheme)
            for path in pages:
                page = context.new_page()
                name = path.relative_to(site).as_posix()
                for fault in looks(page, path.resolve().as_uri()):
                    yield f"{name}, {device}, {scheme}: {fault}"
                if pictures:
                    picture = pictures / f"{device}-{scheme}" / f"{name.replace('/', '-')}.png"
                    page.screenshot(path=picture, full_page=True)
                page.close()
            context.close()


def main(site: Path, pictures: Path | None = None) -> int:
    """Print the faults; 1 where there are any."""
    program = (
        os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        found = list(browse(browser, site, pictures))
        browser.close()
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{len(WIDTHS) * len(SCHEMES)} looks at each page, {len(found)} faults")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
