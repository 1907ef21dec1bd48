"""``txmail db``: what it makes and says, and its exit codes."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

import txmail
from txmail.cli import main

sa = pytest.importorskip("sqlalchemy")
pytest.importorskip("alembic")

from txmail.queue.database.database import Database  # noqa: E402
from txmail.queue.schema import VERSION, batch, delivery, version  # noqa: E402

ROOT = Path(txmail.__file__).parents[1]
PASSWORD = "hunter2"


@pytest.fixture
def db(command):
    """Run ``txmail db``; what it returned and said."""
    return functools.partial(command, "db")


def test_init_makes_the_tables_once(db, url):
    code, out, error = db("init", "--queue-url", url)
    assert (code, error) == (0, "")
    assert "made" in out
    code, out, _ = db("init", "--queue-url", url)
    assert code == 0
    assert "already" in out


def test_status_of_an_empty_queue(db, url):
    db("init", "--queue-url", url)
    code, out, error = db("status", "--queue-url", url)
    assert (code, error) == (0, "")
    assert out.splitlines()[1:] == ["deliveries: none", "open batches: none"]
    assert f"version {VERSION}" in out


def test_status_counts_deliveries_and_open_batches(db, url):
    db("init", "--queue-url", url)
    database = Database.from_url(url)
    columns = ("id", "message", "recipient", "state", "priority", "attempts", "begun")
    states = ["ready", "ready", "sent", "failed"]
    with database.write() as connection:
        rows = [(n, 1, "a@x", state, 1, 0, 0, 0, 1) for n, state in enumerate(states, 1)]
        database.insert(connection, delivery, (*columns, "duplicate", "changed"), rows)
        rows = [(1, "staged", 1, 1, "{}"), (2, "published", 1, 1, "{}")]
        database.insert(connection, batch, ("id", "state", "created", "changed", "witnesses"), rows)
    database.close()
    _, out, _ = db("status", "--queue-url", url)
    assert [line.split() for line in out.splitlines()[1:]] == [
        ["deliveries:"],
        ["failed", "1"],
        ["ready", "2"],
        ["sent", "1"],
        ["open", "batches:"],
        ["staged", "1"],
    ]


@pytest.mark.parametrize("action", ["status", "upgrade"])
def test_missing_tables_are_a_failure_that_says_what_to_do(db, url, action, tmp_path):
    if action == "status" and url.startswith("sqlite"):
        pytest.skip("they are made on first use: see test_cases_d_store.py")
    code, out, error = db(action, "--queue-url", url)
    assert (code, out) == (1, "")
    assert "run txmail db init" in error


def test_status_makes_no_file(db, tmp_path):
    code, _, _ = db("status", "--queue-url", f"sqlite:///{tmp_path}/mail.db")
    assert code == 0
    assert list(tmp_path.iterdir()) == []


def test_upgrade_has_nothing_to_do_for_tables_of_this_version(db, url):
    db("init", "--queue-url", url)
    code, out, _ = db("upgrade", "--queue-url", url)
    assert code == 0
    assert "up to date" in out


@pytest.mark.parametrize(("found", "said"), [("0000", "txmail db upgrade"), ("9999", "none after")])
def test_status_says_what_tables_of_another_version_need(db, url, found, said):
    db("init", "--queue-url", url)
    database = Database.from_url(url)
    with database.write() as connection:
        connection.execute(version.update().values(version_num=found))
    database.close()
    code, _, error = db("status", "--queue-url", url)
    assert code == 1
    assert found in error
    assert said in error


def test_the_url_is_read_from_the_environment(db, tmp_path, monkeypatch):
    monkeypatch.setenv("TXMAIL_QUEUE_URL", f"sqlite:///{tmp_path}/mail.db")
    assert db("init")[0] == 0
    assert (tmp_path / "mail.db").is_file()


def test_the_url_is_read_from_an_ini_file(db, tmp_path):
    ini = tmp_path / "app.ini"
    ini.write_text("[app:main]\nmail.url = memory:\nmail.queue_url = sqlite:///%(here)s/mail.db\n")
    assert db("init", "-c", str(ini))[0] == 0
    assert (tmp_path / "mail.db").is_file()


def test_the_folder_of_pyramid_mailer_is_read_from_an_ini_file(db, tmp_path):
    ini = tmp_path / "app.ini"
    ini.write_text(
        "[app:x]\npyramid_mailer.prefix = post.\npost.queue_path = %(here)s/a queue\n"
        "post.host = nowhere.example.com\n"
    )
    assert db("init", "-c", str(ini), "--section", "app:x")[0] == 0
    assert (tmp_path / "a queue" / "txmail.db").is_file()


def test_an_ini_file_without_a_queue_says_what_is_missing(db, tmp_path):
    ini = tmp_path / "app.ini"
    ini.write_text("[app:main]\nmail.url = memory:\n")
    code, _, error = db("status", "-c", str(ini))
    assert code == 2
    assert "mail.queue_url" in error


def test_without_a_url_it_says_where_one_can_be_given(db):
    code, _, error = db("status")
    assert code == 2
    for way in ("--queue-url", "-c", "TXMAIL_QUEUE_URL"):
        assert way in error


@pytest.mark.parametrize(
    "url", [f"mysql://user:{PASSWORD}@localhost/x", "sqlite://", f"nonsense {PASSWORD}"]
)
def test_a_url_that_is_not_supported_is_a_wrong_argument_and_not_shown(db, url):
    code, out, error = db("status", "--queue-url", url)
    assert code == 2
    assert "queue_url" in error
    assert PASSWORD not in out + error


def test_a_server_that_is_not_there_is_a_failure(db):
    code, _, error = db("init", "--queue-url", f"postgresql://user:{PASSWORD}@127.0.0.1:1/mail")
    assert code == 1
    assert "127.0.0.1:1" in error
    assert PASSWORD not in error


@pytest.mark.parametrize("arguments", [[], ["nonsense"]])
def test_an_action_is_needed(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["db", *arguments])
    assert caught.value.code == 2
    assert "init" in capsys.readouterr().err


@pytest.mark.representative(every=2)
@pytest.mark.parametrize("missing", ["sqlalchemy", "alembic"])
def test_without_its_extra_it_says_what_to_install(missing, tmp_path):
    program = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name: None if name == {missing!r} else find(name)\n"
        f"sys.modules[{missing!r}] = None\n"
        "from txmail.cli import main\n"
        f"sys.exit(main(['db', 'init', '--queue-url', 'sqlite:///{tmp_path}/mail.db']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "pip install 'txmail[queue]'" in done.stderr
    assert missing in done.stderr
