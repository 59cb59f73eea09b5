"""The documentation site builds without a warning, offline, and holds what it promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import spectail as st
from spectail.cli import COMMANDS

ROOT = Path(__file__).parent.parent
pytest.importorskip("mkdocs")


class _Loaded(HTMLParser):
    """Collects what a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: Any, attrs: Any) -> None:
        named = dict(attrs)
        if tag in {"script", "img", "iframe"}:
            self.addresses.append(named.get("src") or "")
        if tag == "link" and named.get("rel") in {"stylesheet", "preload", "preconnect"}:
            self.addresses.append(named.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("site")
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--quiet",
        "--strict",
        "--site-dir",
        str(folder),
    ]
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_command_and_public_name_has_a_section(site: Any) -> None:
    commands = (site / "reference" / "commands.html").read_text()
    assert [name for name in COMMANDS if f"spectail {name}" not in commands] == []
    pages = {page: page.read_text() for page in (site / "reference").glob("*.html")}
    for name in st.__all__:
        link = rf'href="(\w+\.html)#([\w.]+)"><code>st\.{name}</code>'
        found = re.search(link, pages[site / "reference" / "python.html"])
        assert found is not None
        page, anchor = found.groups()
        assert f'id="{anchor}"' in pages[site / "reference" / page]


def test_no_page_loads_anything_from_the_network(site: Any) -> None:
    for page in site.rglob("*.html"):
        parser = _Loaded()
        parser.feed(page.read_text())
        assert [a for a in parser.addresses if re.match(r"(?:https?:)?//", a)] == [], page.name


def test_search_finds_a_word_on_pages_opened_from_disk(site: Any, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto((site / "index.html").as_uri())
    page.click("input.md-search__input")
    page.keyboard.type("jackknife", delay=20)
    found = page.wait_for_selector(".md-search-result__item")
    assert "jackknife" in found.inner_text().lower()
    page.close()
