"""What holds for README, CHANGES and all pages, whatever they are about."""

from __future__ import annotations

from pathlib import Path

import pytest

import txmail

ROOT = Path(txmail.__file__).parents[1]
#: characters of a line, tables and code included
LONGEST = 100
#: what people write; Sphinx builds into a folder with an underscore
SUFFIXES = {".rst", ".cf", ".svg", ".py"}
DOCUMENTS = [
    ROOT / "README.rst",
    ROOT / "CHANGES.rst",
    *sorted(
        path
        for path in (ROOT / "docs").rglob("*")
        if path.suffix in SUFFIXES
        and not any(part.startswith("_build") for part in path.relative_to(ROOT).parts)
    ),
]


@pytest.mark.parametrize("path", DOCUMENTS, ids=[str(p.relative_to(ROOT)) for p in DOCUMENTS])
def test_no_line_is_longer_than_a_screen(path):
    lines = path.read_text("utf-8").splitlines()
    too_long = [f"{path}:{n}" for n, line in enumerate(lines, 1) if len(line) > LONGEST]
    assert too_long == []


def test_the_pages_are_found():
    assert len(DOCUMENTS) > 15
