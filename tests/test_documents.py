"""What holds for README, CHANGES and all pages, whatever they are about."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import txmail
from txmail.testing import ScriptedServer

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


def test_the_readme_opens_with_two_commands_each_on_a_line_of_its_own():
    opening = (ROOT / "README.rst").read_text("utf-8").splitlines()[:30]
    demo, tests = (number for number, line in enumerate(opening) if line.startswith("    python3"))
    venv = "    python3 -m venv .venv && .venv/bin/pip install"
    assert opening[demo] == f"{venv} '.[demo]' && .venv/bin/txmail demo"
    assert opening[tests] == f"{venv} -e '.[test]' && .venv/bin/pytest"


def test_the_pages_are_found():
    assert len(DOCUMENTS) > 15


#: names in pages, such as ``txmail.worker`` or ``txmail/queue/states.py``
_NAME = re.compile(r"(?<![\w/\"'-])txmail(?:\.[A-Za-z_]\w*)+")
_FILE = re.compile(r"(?<![\w/.])(?:txmail|benchmarks|docs)/[\w/.]*\w")
_LINK = re.compile(r"<([\w./-]+\.(?:rst|cf))>`_")
PAGES = [path for path in DOCUMENTS if path.suffix == ".rst"]


def exists(name):
    """True if `name` can be imported, or is an attribute of what can be."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        module = ".".join(parts[:count])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("path", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_what_a_page_names_is_there(path):
    """Kind: a module that has moved, a page that has another name."""
    text = path.read_text("utf-8")
    names = set(_NAME.findall(text)) - {"txmail.db"}  # a file of pyramid_mailer's `queue_path`
    assert sorted(name for name in names if not exists(name)) == []
    assert sorted(file for file in set(_FILE.findall(text)) if not (ROOT / file).exists()) == []
    links = set(_LINK.findall(text))
    assert sorted(link for link in links if not (path.parent / link).exists()) == []


#: in the page about the house, a file of the package and perhaps what is in it
_STEP = re.compile(r"``([a-z_/]+\.py)``(?:, ``([A-Za-z_.]+)``)?")


def test_the_page_about_the_house_names_what_is_there():
    """Kind: a map of streets that have other names by now."""
    page = " ".join((ROOT / "docs" / "architecture.rst").read_text("utf-8").split())
    steps = _STEP.findall(page)
    assert len(steps) > 30
    wrong = []
    for file, name in steps:
        if file.startswith("tests/"):
            found = (ROOT / file).exists()
        else:
            module = "txmail." + file.removesuffix(".py").replace("/", ".")
            found = exists(f"{module}.{name}" if name else module)
        if not found:
            wrong.append((file, name))
    assert wrong == []
    packages = {path.parent.name for path in (ROOT / "txmail").glob("*/__init__.py")}
    assert sorted(package for package in packages if f"``{package}/``" not in page) == []


def test_the_first_try_of_the_queue_works_in_an_empty_folder(tmp_path):
    """Kind: an example that needs what the reader does not see."""
    page = (ROOT / "docs" / "queue.rst").read_text("utf-8")
    section = page.partition("\nA first try\n")[2].partition("\nIn a transaction\n")[0]
    script = section.partition(".. code-block:: python\n\n")[2].partition("\nThe mail is now")[0]
    commands = [line.strip() for line in section.splitlines() if line.startswith("    txmail ")]
    assert commands[0] == "txmail catch"
    status, worker = commands[1:]
    with ScriptedServer() as server:

        def run(*words):
            done = subprocess.run(
                [
                    sys.executable,
                    *(word.replace("smtp://localhost:2525", server.url) for word in words),
                ],
                cwd=tmp_path,
                env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        said = run("-W", "error", "-c", textwrap.dedent(script))
        assert said == "ann@example.com unsent (in the queue)\n"
        assert re.search(r"^ +ready +1$", run("-m", *status.split()), re.MULTILINE)
        run("-m", *worker.split())
        assert [message.recipients for message in server.messages] == [("ann@example.com",)]
