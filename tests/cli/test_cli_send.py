"""``txmail send``: what arrives, what is said, and the exit codes that scripts live by."""

from __future__ import annotations

import email
import email.policy
import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from letters import letter

import txmail
from txmail import transport_from_url
from txmail.cli import main
from txmail.cli.sysexits import SysExit, code_of
from txmail.outcome import Action, Outcome, Scope, Status
from txmail.testing import CLOSE, HANG, RESET, Callback, then

ROOT = Path(txmail.__file__).parents[1]
EML = (
    b"From: Ann <ann@example.com>\nTo: bob@example.com\nCc: cy@example.com\n"
    b"Bcc: dora@example.com\nSubject: Saved\nDate: Mon, 6 Jan 2025 10:00:00 +0000\n"
    b"Message-ID: <saved@example.com>\n\nThe text.\n"
)


@pytest.fixture
def send(server, command):
    """Run ``txmail send`` with `server`'s URL; what it returned and said."""

    def run(*arguments, url=None):
        return command("send", "--url", url or server.url, *arguments)

    return run


@pytest.fixture
def stdin(monkeypatch):
    def put(octets):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(octets)))

    return put


def usage_error(*arguments):
    with pytest.raises(SystemExit) as caught:
        main(["send", *arguments])
    return caught.value.code


MADE = ("--from", "app@example.com", "--to", "ann@example.com", "--subject", "Hi", "--body", "x")


def parsed(server, number=-1):
    return email.message_from_bytes(server.messages[number].content, policy=email.policy.default)


# -- messages made of options


def test_a_message_is_made_of_options(send, server, tmp_path):
    attached = tmp_path / "report.csv"
    attached.write_bytes(b"a,b\r\n")
    html = tmp_path / "text.html"
    html.write_text("<p>Gr\xfc\xdfe</p>", encoding="utf-8")
    code, out, error = send(
        *(
            "--from",
            "App <app@example.com>",
            "--to",
            "ann@example.com",
            "--to",
            "Bob <bob@example.com>",
        ),
        *("--cc", "cy@example.com", "--bcc", "dora@example.com", "--subject", "Gr\xfc\xdfe"),
        *("--body", "See {{ it }}.", "--html", str(html), "--attach", str(attached)),
    )
    assert (code, error) == (0, "")
    names = ["ann", "bob", "cy", "dora"]
    assert out.splitlines() == [f"{n}@example.com accepted (250 2.0.0 Ok: queued)" for n in names]
    (received,) = server.messages
    assert received.sender == "app@example.com"
    assert received.recipients == tuple(f"{name}@example.com" for name in names)
    message = parsed(server)
    assert message["Subject"] == "Gr\xfc\xdfe"
    assert message["Bcc"] is None
    assert message.get_body(["plain"]).get_content().strip() == "See {{ it }}."
    assert "Gr\xfc\xdfe" in message.get_body(["html"]).get_content()
    (attachment,) = message.iter_attachments()
    assert (attachment.get_filename(), attachment.get_content_type()) == ("report.csv", "text/csv")


def test_the_text_may_be_a_file_or_come_through_a_pipe(send, server, stdin, tmp_path):
    path = tmp_path / "text"
    path.write_text("from a file")
    send(*MADE[:-2], "--body-file", str(path))
    stdin("Gr\xfc\xdfe from a pipe".encode())
    send(*MADE[:-2], "--body-file", "-")
    assert parsed(server, 0).get_content().strip() == "from a file"
    assert parsed(server, 1).get_content().strip() == "Gr\xfc\xdfe from a pipe"


def test_quiet_says_nothing_about_success(send):
    assert send(*MADE, "--quiet") == (0, "", "")


# -- saved messages


def test_a_file_goes_to_those_its_headers_name(send, server, tmp_path):
    path = tmp_path / "saved.eml"
    path.write_bytes(EML)
    assert send(str(path))[0] == 0
    (received,) = server.messages
    assert received.sender == "ann@example.com"
    assert set(received.recipients) == {f"{n}@example.com" for n in ("bob", "cy", "dora")}
    assert b"dora" not in received.content
    assert b"Message-ID: <saved@example.com>\r\n" in received.content
    assert received.content.endswith(b"\r\n\r\nThe text.\r\n")


def test_to_and_from_replace_its_envelope_and_not_its_headers(send, server, stdin):
    stdin(EML)
    send("-", "--to", "eve@example.com", "--from", "bounces@example.com")
    (received,) = server.messages
    assert (received.sender, received.recipients) == ("bounces@example.com", ("eve@example.com",))
    assert parsed(server)["To"] == "bob@example.com"
    assert parsed(server)["From"] == "Ann <ann@example.com>"


def test_what_the_file_transport_kept_is_sent_without_what_it_added(send, server, tmp_path):
    transport = transport_from_url(f"file://{tmp_path}/kept")
    list(transport.open().send([letter("one", "ann@example.com").to_envelope()]))
    (name,) = os.listdir(tmp_path / "kept")
    assert send(str(tmp_path / "kept" / name))[0] == 0
    (received,) = server.messages
    assert received.recipients == ("ann@example.com",)
    assert b"X-Envelope-To" not in received.content
    assert b"Return-Path" not in received.content


# -- what went wrong


@pytest.mark.parametrize(
    ("verb", "reply", "code"),
    [
        ("RCPT", "550 5.1.1 no such user", SysExit.NOUSER),
        ("RCPT", "450 4.2.0 greylisted", SysExit.TEMPFAIL),
        ("MAIL", "550 5.7.1 not from you", SysExit.UNAVAILABLE),
        ("MAIL", "530 5.7.0 log in first", SysExit.UNAVAILABLE),
        (".", "554 5.6.0 we do not like it", SysExit.UNAVAILABLE),
        (".", "451 4.3.0 later", SysExit.TEMPFAIL),
        (".", CLOSE, SysExit.IOERR),
        ("connect", "421 4.3.2 not now", SysExit.TEMPFAIL),
        ("connect", "554 5.7.1 go away", SysExit.UNAVAILABLE),
        ("connect", RESET, SysExit.TEMPFAIL),
    ],
)
def test_the_exit_code_says_what_a_script_has_to_know(send, server, verb, reply, code):
    server.on(verb, reply, times=None)
    result, out, error = send(*MADE)
    assert (result, out) == (code, "")
    assert error.startswith("ann@example.com ")
    assert "Traceback" not in error
    assert len(error.splitlines()) == 1


def test_one_refused_recipient_means_that_nobody_gets_it(send, server):
    server.refuse("bob@example.com")
    code, out, error = send(*MADE, "--to", "bob@example.com", "--quiet")
    assert (code, out) == (67, "")
    assert "bob@example.com failed (550 5.1.1 no such user)" in error
    assert server.messages == []


def test_a_hostile_reply_does_not_reach_the_terminal_raw(send, server):
    server.on("RCPT", b"550 5.1.1 \x1b[2Jgone\r\n", times=None)
    _, _, error = send(*MADE)
    assert "\x1b" not in error


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--to", "no address", *MADE], 65),
        (["--subject", "a\nBcc: x@example.com", *MADE[:4], "--body", "x"], 65),
        (["--to", "ann@example.com", "--body", "no sender"], 65),
        (["/no/such/file"], 66),
        (["/"], 66),
        ([*MADE, "--attach", "/no/such/file"], 66),
        ([*MADE[:-2], "--body-file", "/no/such/file"], 66),
    ],
)
def test_what_cannot_be_sent_says_so_in_one_line(send, server, arguments, code):
    result, out, error = send(*arguments)
    assert (result, out) == (code, "")
    assert error.startswith("txmail send: ")
    assert len(error.splitlines()) == 1
    assert server.connections == []


def test_a_text_that_is_no_text_is_refused(send, stdin):
    stdin(b"\xff\xfe")
    assert send(*MADE[:-2], "--body-file", "-")[::2] == (
        66,
        "txmail send: -: it is not UTF-8 text\n",
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--to", "ann@example.com"],
        ["--body", "x"],
        [*MADE, "saved.eml"],
        ["saved.eml", "--subject", "x"],
        ["saved.eml", "--cc", "cy@example.com"],
        [*MADE, "--body-file", "-"],
        [*MADE, "--loud"],
        [*MADE, "--url"],
        ["a.eml", "b.eml"],
    ],
)
def test_wrong_arguments_have_the_code_of_sysexits(arguments, capsys):
    assert usage_error(*arguments) == 64
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("usage: txmail send")


# -- where it goes


def test_the_environment_names_the_server(server, monkeypatch, capsys):
    monkeypatch.setenv("TXMAIL_URL", server.url)
    assert main(["send", *MADE]) == 0
    assert len(server.messages) == 1


def test_without_a_server_it_does_not_guess(capsys):
    assert main(["send", *MADE]) == 78
    assert "--url, -c app.ini or the variable TXMAIL_URL" in capsys.readouterr().err


def ini(tmp_path, text):
    path = tmp_path / "app.ini"
    path.write_text(text)
    return str(path)


def test_an_ini_file_has_the_settings(server, tmp_path, capsys):
    path = ini(
        tmp_path,
        f"[DEFAULT]\nmail.url = {server.url}\n"
        "[app:main]\nuse = egg:app\nget mail.url = mail.url\n"
        "mail.default_sender = shop@example.com\n"
        "[app:other]\npyramid_mailer.prefix = post.\n"
        f"post.url = file://%(here)s/mails\npost.default_sender = other@example.com\n",
    )
    assert main(["send", "-c", path, *MADE[2:]]) == 0
    assert server.messages[0].sender == "shop@example.com"
    assert main(["send", "-c", path, "--section", "app:other", *MADE[2:]]) == 0
    (name,) = os.listdir(tmp_path / "mails")
    kept = (tmp_path / "mails" / name).read_bytes()
    assert kept.startswith(b"Return-Path: <other@example.com>\r\n")


def test_what_cannot_be_sent_goes_into_the_queue_of_the_settings(tmp_path, capsys):
    queue = f"sqlite:///{tmp_path}/mail.db"
    path = ini(tmp_path, f"[app:main]\nmail.url = smtp://127.0.0.1:1\nmail.queue_url = {queue}\n")
    assert main(["send", "-c", path, *MADE]) == 0
    assert "in the queue" in capsys.readouterr().err
    assert main(["db", "status", "-c", path]) == 0
    assert capsys.readouterr().out.splitlines()[2].split() == ["ready", "1"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[app:main]\nmail.url = smtp://u:secret%40x@localhost\n", "mail.url: a % has to be"),
        ("[app:main]\nmail.url = smtp://%(secret)s\n", "mail.url: a % has to be"),
        ("mail.url = secret\n", "line 1: it is not an ini file"),
        ("[app:main]\nmail.url = x\nmail.url = secret\n", "line 3: it is not an ini file"),
        ("[app]\nmail.password = secret\n", "there is no section [app:main]"),
        ("[app:main]\nmail.hots = secret\n", "mail.hots: there is no such setting"),
        ("[app:main]\nmail.url = smtp://u:secret @localhost\n", "mail.url: "),
    ],
)
def test_an_ini_file_that_is_wrong_is_told_without_its_secrets(tmp_path, capsys, text, problem):
    assert main(["send", "-c", ini(tmp_path, text), *MADE]) == 78
    out, error = capsys.readouterr()
    assert out == ""
    assert problem in error
    assert "secret" not in error
    assert len(error.splitlines()) == 1


def test_an_ini_file_that_is_not_there_is_told(capsys):
    assert main(["send", "-c", "/no/such/file.ini", *MADE]) == 78
    assert "No such file" in capsys.readouterr().err


def test_several_routes_may_be_named(send, server):
    assert send(*MADE, url=f"smtp://127.0.0.1:1 {server.url}")[0] == 0
    assert len(server.messages) == 1


# -- as a process


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "txmail", "send", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
        check=False,
        **options,
    )


def test_no_log_line_says_it_twice(server):
    server.refuse("ann@example.com")
    done = run("--url", server.url, *MADE, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (67, "")
    assert done.stderr == "ann@example.com failed (550 5.1.1 no such user)\n"


def test_a_reader_that_goes_away_does_not_make_it_a_failure(server):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = run("--url", server.url, *MADE, stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(server.messages) == 1


def test_colours_are_for_terminals():
    # `server` is not needed: what is shown about a host that is down is shown in colour too.
    leader, follower = pty.openpty()
    try:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
        command = [sys.executable, "-m", "txmail", "send", "--url", "smtp://127.0.0.1:1", *MADE]
        done = subprocess.run(command, stderr=follower, env=environment, timeout=60, check=False)
        said = os.read(leader, 10_000).decode()
    finally:
        os.close(leader)
        os.close(follower)
    assert done.returncode == 75
    assert "ann@example.com \x1b[" in said
    assert "unsent" in said


def test_an_interruption_is_no_traceback(server, keyboard):
    process = subprocess.Popen(
        [sys.executable, "-m", "txmail", "send", "--url", server.url, *MADE],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    server.on("MAIL", then(Callback(lambda: process.send_signal(2)), HANG))
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in error


def test_the_help_has_the_exit_codes_and_examples(capsys):
    with pytest.raises(SystemExit):
        main(["send", "--help"])
    out = capsys.readouterr().out
    assert "examples:" in out
    listed = {int(line.split()[0]) for line in out.splitlines() if line[2:4].strip().isdigit()}
    assert listed >= {int(code) for code in SysExit}


# -- the table


def outcome(status, scope=Scope.MESSAGE, action=Action.DEFER, queued=False):
    return Outcome("a@example.com", status, scope, action=action, queued=queued)


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([outcome(Status.ACCEPTED)], SysExit.OK),
        ([outcome(Status.ACCEPTED), outcome(Status.UNSENT)], SysExit.UNAVAILABLE),
        ([outcome(Status.ACCEPTED), outcome(Status.DEFERRED)], SysExit.UNAVAILABLE),
        ([outcome(Status.FAILED, Scope.RECIPIENT), outcome(Status.UNSENT)], SysExit.NOUSER),
        ([outcome(Status.FAILED, Scope.RECIPIENT), outcome(Status.FAILED)], SysExit.UNAVAILABLE),
        ([outcome(Status.IN_DOUBT), outcome(Status.FAILED)], SysExit.IOERR),
        ([outcome(Status.DEFERRED)], SysExit.TEMPFAIL),
        ([outcome(Status.UNSENT, Scope.ROUTE, Action.STOP_ROUTE)], SysExit.UNAVAILABLE),
        ([outcome(Status.ACCEPTED), outcome(Status.UNSENT, queued=True)], SysExit.OK),
        ([outcome(Status.DEFERRED, queued=True)], SysExit.OK),
        ([outcome(Status.ACCEPTED), outcome(Status.FAILED, queued=True)], SysExit.UNAVAILABLE),
        ([outcome(Status.IN_DOUBT, queued=True)], SysExit.IOERR),
    ],
)
def test_try_again_is_said_only_if_nothing_can_arrive_twice(outcomes, code):
    assert code_of(outcomes) is code
