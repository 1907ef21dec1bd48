"""``txmail catch``: a process that applications are pointed at while they are developed."""

from __future__ import annotations

import os
import re
import signal
import smtplib
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from letters import letter

import txmail
from txmail import Mailer, transport_from_url
from txmail.cli import main

ROOT = Path(txmail.__file__).parents[1]


@pytest.fixture
def catch(tmp_path):
    """Start ``txmail catch`` on a free port; the process and its URL."""
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "txmail", "catch", "--port", "0", *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        first = process.stdout.readline()
        return process, re.fullmatch(r"listening on (smtp://127\.0\.0\.1:\d+)\n", first)[1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def send(url, *subjects):
    mailer = Mailer(transport_from_url(url))
    for subject in subjects:
        mailer.send_immediately(letter(subject))
    mailer.close()


def test_it_shows_what_it_gets_and_ends_after_so_many(catch):
    process, url = catch("--count", "2")
    send(url, "one", "two")
    out, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, "")
    assert out.count("-------- mail from <app@example.com> to ann@example.com\n") == 2
    assert out.index("  Subject: one\n") < out.index("  Subject: two\n")
    assert "  Hello.\n" in out


def test_it_keeps_what_it_gets(catch, tmp_path):
    process, url = catch("--count", "1", "--keep", "mails", "--quiet")
    send(url, "one")
    out, _ = process.communicate(timeout=60)
    (name,) = os.listdir(tmp_path / "mails")
    kept = tmp_path / "mails" / name
    assert kept.read_bytes().startswith(
        b"Return-Path: <app@example.com>\r\nX-Envelope-To: ann@example.com\r\n"
    )
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert re.fullmatch(r"<app@example\.com> to ann@example\.com, \d+ octets\n", out)


def test_the_file_is_named_where_the_message_is_shown(catch, tmp_path):
    process, url = catch("--count", "1", "--keep", "mails")
    send(url, "one")
    out, _ = process.communicate(timeout=60)
    (name,) = os.listdir(tmp_path / "mails")
    assert out.endswith(f"kept as mails/{name}\n")


def test_the_keyboard_ends_it_cleanly(keyboard, catch):
    process, url = catch()
    send(url, "one")
    while process.stdout.readline() != "  Subject: one\n":
        pass
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, "")
    assert out.endswith("\n1 message caught\n")


def test_only_this_machine_can_reach_it(catch):
    _, url = catch()
    port = int(url.rpartition(":")[2])
    listening = {
        line.split()[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{port:04X}")
    }
    assert listening == {f"0100007F:{port:04X}"}


def test_any_client_may_send_to_it_and_nothing_steers_the_terminal(catch):
    process, url = catch("--count", "1")
    with smtplib.SMTP("127.0.0.1", int(url.rpartition(":")[2]), timeout=10) as client:
        client.sendmail("", ["root@localhost"], b"Subject: \x1b[2J\r\n\r\n\x1b]0;x\x07\r\n")
    out, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, "")
    assert "-------- mail from <> to root@localhost\n" in out
    assert "\x1b" not in out
    assert "\\x1b[2J" in out


def test_a_folder_that_fails_later_is_told_and_the_message_shown(catch, tmp_path):
    process, url = catch("--count", "1", "--keep", "mails")
    (tmp_path / "mails").rmdir()
    send(url, "one")
    out, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert error == "txmail catch: mails: No such file or directory\n"
    assert "  Subject: one\n" in out


def test_a_port_that_is_taken_is_told(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["catch", "--port", str(port)]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error == f"txmail catch: port {port}: Address already in use\n"


def test_a_folder_that_cannot_be_used_is_told(tmp_path, capsys):
    (tmp_path / "mails").write_text("")
    assert main(["catch", "--port", "0", "--keep", str(tmp_path / "mails")]) == 2
    assert capsys.readouterr().err.endswith("mails: Not a directory\n")


@pytest.mark.parametrize(
    "arguments",
    [["--port", "x"], ["--port", "65536"], ["--port", "-1"], ["--count", "0"], ["--count", "x"]],
)
def test_wrong_arguments_are_a_usage_error(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["catch", *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: txmail catch")


def test_the_help_has_the_exit_codes_and_examples(capsys):
    with pytest.raises(SystemExit):
        main(["catch", "--help"])
    out = capsys.readouterr().out
    assert "examples:" in out
    assert "exit codes:" in out
