"""The README's examples run as they stand, for somebody who has nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import txmail

ROOT = Path(txmail.__file__).parents[1]
_BLOCK = r"((?:(?:    [^\n]*)?\n)+)"
_EXAMPLE = re.compile(rf"\.\. code-block:: python\n\n{_BLOCK}.*?::\n\n{_BLOCK}", re.DOTALL)


def examples():
    """Each block of Python in the section, and what is shown below it."""
    section = (ROOT / "README.rst").read_text().partition("Ten lines\n=")[2].partition("\n====")[0]
    return [tuple(map(textwrap.dedent, found)) for found in _EXAMPLE.findall(section)]


@pytest.mark.parametrize("number", range(2))
def test_d6_an_example_of_the_readme_runs_as_it_stands(number, tmp_path):
    """Kind: an example that needs what the reader does not see."""
    code, shown = examples()[number]
    (tmp_path / "example.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-W", "error", "example.py"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, shown.strip() + "\n"), done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["example.py"]


def test_d6_nothing_of_the_examples_is_hidden():
    """Kind: the same; a comment of reStructuredText that sets up what the reader lacks."""
    section = (ROOT / "README.rst").read_text().partition("Ten lines\n=")[2].partition("\n====")[0]
    assert not re.search(r"^\.\.\n    >>>", section, re.MULTILINE)
    assert len(examples()) == 2


def test_d6_the_first_example_has_ten_lines():
    """Kind: a title that is not so."""
    code, _ = examples()[0]
    assert 10 <= len([line for line in code.splitlines() if line.strip()]) <= 11


@pytest.mark.parametrize("url", ["memory:", "file:{folder}/mails"])
@pytest.mark.sweep
def test_d6_the_first_example_runs_with_other_urls(url, tmp_path):
    """Kind: an example that works with the one thing that it was tried with."""
    code, _ = examples()[0]
    assert '"console:"' in code
    code = code.replace("console:", url.format(folder=tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ann@example.com accepted")
