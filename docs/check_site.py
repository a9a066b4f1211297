"""Looks for what is broken in the built site: ``python docs/check_site.py docs/_build/html``.

It follows every link and image inside of the site, with its anchor, and finds what a page would
ask another server for, formulas and code that were not rendered, and objects without an entry.
"""

from __future__ import annotations

import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

SITE = "https://site/"
# Attributes that make a browser fetch something, and those that a reader may follow.
FETCHED = {
    ("script", "src"),
    ("img", "src"),
    ("link", "href"),
    ("source", "src"),
    ("iframe", "src"),
}
FOLLOWED = {("a", "href")}
UNSEEN = {"script", "style", "code", "pre", "template"}
UNRENDERED = ("```", "{class}`", "{func}`", "{meth}`", "{mod}`", ":class:`", ":func:`", "$$")


class Page(HTMLParser):
    """What one page holds: its anchors, its links, what it fetches, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: set[str] = set()
        self.fetched: set[str] = set()
        self.title = self.text = ""
        self.images_without_words: list[str] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag's anchor, links and images."""
        values = {name: value or "" for name, value in attrs}
        if "id" in values:
            self.ids.append(values["id"])
        for name, value in values.items():
            is_style = tag != "link" or values.get("rel", "") in ("stylesheet", "icon", "preload")
            if (tag, name) in FETCHED and is_style:
                self.fetched.add(value)
            if (tag, name) in FOLLOWED:
                self.links.add(value)
        if tag == "img" and not values.get("alt"):
            self.images_without_words.append(values.get("src", ""))
        if tag in UNSEEN or tag == "title" or "math" in values.get("class", "").split():
            self._open.append(tag)
            self._depth = 0
        elif self._open and tag == self._open[-1]:
            self._depth += 1

    def handle_endtag(self, tag: str) -> None:
        """Leave what is not read as prose."""
        if self._open and tag == self._open[-1]:
            if self._depth:
                self._depth -= 1
            else:
                self._open.pop()

    def handle_data(self, data: str) -> None:
        """Keep the prose."""
        if self._open[-1:] == ["title"]:
            self.title += data
        elif not self._open:
            self.text += data


def faults(folder: Path) -> list[str]:
    """Everything that is broken, in words."""
    pages = {
        path.relative_to(folder).as_posix(): Page(path) for path in sorted(folder.rglob("*.html"))
    }
    if "index.html" not in pages:
        return [f"{folder} has no index.html; build the site first"]
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    found = []
    for name, page in pages.items():
        found += [f"{name}: the anchor {i!r} is there twice" for i in repeated(page.ids)]
        for link in sorted(page.links | page.fetched):
            found += [f"{name}: {why}" for why in of_link(name, link, pages, files)]
        for link in sorted(page.fetched):
            if urlsplit(link).netloc:
                found.append(f"{name}: it asks another server for {link}")
        for mark in UNRENDERED:
            if mark in page.text:
                found.append(f"{name}: {mark!r} was not rendered")
        found += [f"{name}: {image} has no alt text" for image in page.images_without_words]
        if not page.title.strip():
            found.append(f"{name}: it has no title")
    return found


def repeated(ids: list[str]) -> list[str]:
    """The anchors that are there more than once."""
    return sorted(name for name, count in Counter(ids).items() if count > 1)


def of_link(name: str, link: str, pages: dict[str, Page], files: set[str]) -> list[str]:
    """What is wrong with a link of a page."""
    target = urlsplit(urljoin(SITE + name, link))
    if f"{target.scheme}://{target.netloc}/" != SITE:
        return []
    path = unquote(target.path).lstrip("/")
    path = path + "index.html" if path == "" or path.endswith("/") else path
    if path not in files:
        return [f"the link {link!r} leads nowhere"]
    anchor = unquote(target.fragment)
    if anchor and path in pages and anchor not in pages[path].ids:
        return [f"the link {link!r} leads to no place on that page"]
    return []


def main(folder: Path) -> int:
    """Print the faults; 1 where there are any."""
    found = faults(folder)
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{len(list(folder.rglob('*.html')))} pages, {len(found)} faults")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/_build/html")))
