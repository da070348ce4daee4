"""Every link of the built pages that stays among them leads to a file, and to a place in it. Run by ``poe site``."""

import os
import re
from collections import defaultdict
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

SITE = Path(__file__).parents[2] / "docs" / "_build" / "html"
LINK = re.compile(r'\b(?:href|src)="([^"]+)"')
PLACE = re.compile(r'\b(?:id|name)="([^"]+)"')


class Page:
    """Links of a page and the places in it that others may point to."""

    def __init__(self, text: str):
        self.links = {unescape(link) for link in LINK.findall(text)}
        self.places = {unescape(place) for place in PLACE.findall(text)}
        self.text = text


@pytest.fixture(scope="module")
def pages() -> dict[Path, Page]:
    files = [file for file in sorted(SITE.rglob("*.html")) if "_static" not in file.parts]
    found = {file: Page(file.read_text(encoding="utf-8")) for file in files}
    assert SITE / "index.html" in found, f"{SITE} has no pages: build them with `poe docs`"
    return found


def broken(file: Path, link: str, pages: dict[Path, Page]) -> str | None:
    """Why a link from a file leads nowhere, or None."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    target = Path(os.path.normpath(file.parent / unquote(parts.path))) if parts.path else file
    if target not in pages and not target.is_file():
        return "there is no such file"
    if parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].places:
        return "the file has no such place"
    return None


def test_every_local_link_leads_somewhere(pages):
    faults = defaultdict(list)
    for file, page in pages.items():
        for link in page.links:
            if reason := broken(file, link, pages):
                faults[f"{link}: {reason}"].append(str(file.relative_to(SITE)))
    assert not faults, "\n".join(f"{fault} (in {', '.join(files[:3])})" for fault, files in faults.items())


def test_a_link_that_leads_nowhere_is_found(pages):
    index = SITE / "index.html"
    assert len(pages[index].links) > 20
    assert broken(index, "no_such_page.html", pages) == "there is no such file"
    assert broken(index, "install.html#no-such-place", pages) == "the file has no such place"


def test_no_page_loads_anything_from_a_network(pages):
    sources = r'<(?:script|img|iframe|source)\b[^>]*\bsrc="(?:https?:)?//[^>]*>'
    loading = re.compile(sources + r'|<link\b[^>]*stylesheet[^>]*="https?://[^>]*>')
    assert loading.search('<script defer src="https://cdn.example/x.js">')
    found = {str(file.relative_to(SITE)): tag for file, page in pages.items() for tag in loading.findall(page.text)}
    assert not found, found
