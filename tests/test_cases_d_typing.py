"""The public face is typed: what is right passes type checkers, and what is not does not."""

from __future__ import annotations

import importlib.util
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import txmail
from txmail.worker import Worker
from txmail.worker.options import WorkerOptions

TYPED = Path(__file__).with_name("typed")
DOCS = Path(__file__).parents[1] / "docs"
NAMES = ("example.py", "mistakes.py")
MARK = "# mistake"


def mypy(folder):
    return [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(folder / "cache")]


def pyright(folder):
    return [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]


#: how it is run, and what its errors look like
TOOLS = {
    "mypy": (mypy, re.compile(r"^(?P<file>\w+\.py):(?P<line>\d+): error")),
    "pyright": (pyright, re.compile(r"/(?P<file>\w+\.py):(?P<line>\d+):\d+ - error")),
}


def settings_of_the_documentation():
    """What the page says goes into ``mypy.ini``."""
    text = (DOCS / "types.rst").read_text()
    lines = text.partition("``mypy.ini``::\n\n")[2].partition("\n\n")[0]
    return re.sub("^    ", "", lines, flags=re.MULTILINE) + "\n"


@pytest.mark.sweep
@pytest.mark.parametrize("tool", TOOLS)
def test_d7_the_example_passes_and_each_mistake_is_found(tool, tmp_path):
    """Kind: a public function whose arguments or result are Any, or narrower than what is taken."""
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed: it is in the extra lint")
    command, error = TOOLS[tool]
    (tmp_path / "mypy.ini").write_text(settings_of_the_documentation())
    for name in NAMES:
        shutil.copy(TYPED / name, tmp_path)
    done = subprocess.run(
        [*command(tmp_path), *NAMES],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    if tool == "pyright" and done.returncode not in (0, 1):  # without Node.js, and no network
        pytest.skip(f"{tool} does not run here: {(done.stdout + done.stderr)[-200:]}")
    lines = (TYPED / "mistakes.py").read_text().splitlines()
    wanted = {number for number, line in enumerate(lines, 1) if line.endswith(MARK)}
    said = [error.search(line) for line in done.stdout.splitlines()]
    assert [m.string for m in said if m and m["file"] == "example.py"] == []
    found = {int(m["line"]) for m in said if m and m["file"] == "mistakes.py"}
    assert {n: lines[n - 1] for n in wanted - found} == {}
    assert {n: lines[n - 1] for n in found - wanted} == {}
    assert len(wanted) > 50


def test_d7_nothing_that_an_application_calls_takes_or_returns_any():
    """Kind: the same, as far as it can be seen without a type checker."""
    mailer = [getattr(txmail.Mailer, name) for name in ("send", "enqueue", "send_immediately")]
    mailer += [txmail.Mailer.bind, txmail.Mailer.__init__, txmail.DummyMailer.refuse]
    public = [txmail.get_mailer, txmail.mailer_from_settings, txmail.start_worker, *mailer]
    for function in public:
        for name, annotation in function.__annotations__.items():
            assert annotation != "Any", f"{function.__qualname__}: {name}"
            assert not annotation.startswith("Any "), f"{function.__qualname__}: {name}"
    properties = ("transport", "queue", "last_outcomes", "events")
    lists = ("outbox", "queue", "pending", "envelopes")
    for kind, names in ((txmail.Mailer, properties), (txmail.DummyMailer, lists)):
        for name in names:
            assert "Any" not in getattr(kind, name).fget.__annotations__["return"]


def test_d7_options_that_are_handed_on_are_those_of_a_worker():
    """Kind: a list of options that is kept in two places."""
    parameters = inspect.signature(Worker.__init__).parameters.values()
    named = {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert set(WorkerOptions.__annotations__) == named


def test_d7_the_example_runs():
    """Kind: an example that only looks right."""
    spec = importlib.util.spec_from_file_location("example", TYPED / "example.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.tested() == "x0a@example.com"
