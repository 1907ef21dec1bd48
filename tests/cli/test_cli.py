"""The command `txmail`, run as users run it: as a process."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import txmail.cli

ROOT = Path(txmail.cli.__file__).parents[2]


def python(*arguments, path=(), **options):
    """Run the interpreter; `path` comes before the sources on its path."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*map(str, path), str(ROOT)]),
        **options.pop("environment", {}),
    }
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
        **options,
    )


def txmail_command(*arguments, **options):
    return python("-m", "txmail", *arguments, **options)


def test_the_help_names_the_commands_there_are():
    done = txmail_command("--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: txmail [-h]")
    _, _, commands = done.stdout.partition("commands:\n")
    named = [line.split()[0] for line in commands.partition("\n\n")[0].splitlines()]
    assert named == ["COMMAND", "demo", "send", "catch", "worker", "db", "doctor"]


def test_the_help_of_demo_names_its_option():
    done = txmail_command("demo", "--help")
    assert done.returncode == 0
    assert "--plain" in done.stdout


def test_the_version_is_that_of_the_installed_distribution(tmp_path):
    folder = tmp_path / "txmail-9.8.7.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: txmail\nVersion: 9.8.7\n")
    done = txmail_command("--version", path=[tmp_path])
    assert (done.returncode, done.stdout) == (0, "txmail 9.8.7\n")


def test_without_a_command_the_help_says_what_to_do():
    done = txmail_command()
    assert (done.returncode, done.stdout) == (2, "")
    assert "demo" in done.stderr


@pytest.mark.representative(every=4)
@pytest.mark.parametrize("arguments", [("mend",), ("demo", "--loud"), ("demo", "now"), ("--loud",)])
def test_wrong_arguments_are_a_usage_error(arguments):
    done = txmail_command(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: txmail")


def test_the_console_script_is_this_command():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    script = EntryPoint("txmail", project["scripts"]["txmail"], "console_scripts")
    assert script.load() is txmail.cli.main


def test_the_command_needs_no_extra_before_it_runs():
    done = python(
        "-c",
        "import sys, txmail.cli\n"
        "extras = {'ZODB', 'sqlalchemy', 'rich', 'zope.sqlalchemy', 'persistent'}\n"
        "print(sorted(extras & set(sys.modules)))",
    )
    assert (done.returncode, done.stdout) == (0, "[]\n")


@pytest.mark.parametrize("missing", ["ZODB", "sqlalchemy", "zope.sqlalchemy", "rich"])
def test_a_missing_extra_is_named_with_the_command_that_installs_it(missing):
    done = python(
        "-c",
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from txmail.cli import main; sys.exit(main(['demo', '--plain']))",
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"txmail demo: {missing} cannot be imported. Install what it needs with\n"
        "    pip install 'txmail[demo]'\n"
    )


def test_all_missing_modules_are_named_at_once():
    done = python(
        "-c",
        "import sys; sys.modules['ZODB'] = sys.modules['sqlalchemy'] = None\n"
        "from txmail.cli import main; sys.exit(main(['demo']))",
    )
    assert done.returncode == 2
    assert done.stderr.startswith("txmail demo: ZODB and sqlalchemy cannot be imported.")


def test_a_reader_that_goes_away_is_no_traceback():
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "txmail", "demo", "--plain"],
            stdout=writing,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")
