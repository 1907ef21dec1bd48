"""What programs that are called sendmail say with their exit codes, by a real one: msmtp."""

from __future__ import annotations

import shutil
import socket
import stat

import pytest
from commits import commit, note

from txmail import mailer_from_settings
from txmail.testing import ScriptedServer

MSMTP = shutil.which("msmtp")
needs_msmtp = pytest.mark.skipif(MSMTP is None, reason="there is no msmtp on this machine")

RC = """\
defaults
tls off
account default
host {host}
port {port}
{login}
"""


@pytest.fixture
def msmtp(tmp_path, tm):
    """Make mailers over msmtp, which has this host and port as its smarthost."""
    made = []

    def make(host, port, login="auth off"):
        rc = tmp_path / "msmtprc"
        rc.write_text(RC.format(host=host, port=port, login=login))
        rc.chmod(stat.S_IRUSR | stat.S_IWUSR)
        mailer = mailer_from_settings(
            {
                "mail.url": "sendmail:",
                "mail.sendmail_app": MSMTP,
                "mail.sendmail_template": f"{{sendmail_app}} -C {rc} -i -f {{sender}}",
            }
        ).bind(transaction_manager=tm)
        made.append(mailer)
        return mailer

    yield make
    for mailer in made:
        mailer.close()


def judged(tm, mailer, **options):
    """What became of one message: status, scope, action, and the exit code in the reason."""
    ended = commit(tm, mailer, note("one", **options))
    (found,) = {(str(o.status), str(o.scope), str(o.action), o.reason) for o in ended.outcomes}
    return found


@needs_msmtp
def test_a14_a_smarthost_that_is_unknown_is_temporary(tm, msmtp):
    """Exit codes about the program's own troubles, taken for a verdict about a message."""
    *found, reason = judged(tm, msmtp("nowhere.invalid", 25))
    assert found == ["deferred", "message", "defer"]
    assert "exit 68" in reason


@pytest.mark.representative(every=4)
@needs_msmtp
@pytest.mark.parametrize("reply", ["421 4.3.2 bye", "450 4.2.0 busy", "451 4.7.1 greylisted"])
@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA", "."])
def test_a14_a_4xx_of_the_smarthost_is_temporary(tm, msmtp, stage, reply):
    """The same: 69 is what msmtp makes of each of them."""
    with ScriptedServer() as server:
        server.on(stage, reply, times=None)
        *found, reason = judged(tm, msmtp("127.0.0.1", server.port))
        assert found == ["deferred", "message", "defer"]
        assert "exit 69" in reason
        assert server.messages == []


@needs_msmtp
@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA"])
def test_a14_a_5xx_stays_a_refusal(tm, msmtp, stage):
    """The other half: what the smarthost will never take fails, with what it said."""
    with ScriptedServer() as server:
        server.on(stage, "550 5.7.1 never", times=None)
        *found, reason = judged(tm, msmtp("127.0.0.1", server.port))
        assert found == ["failed", "message", "fail"]
        assert "exit 65" in reason
        assert "550 5.7.1 never" in reason


@needs_msmtp
def test_a14_a_smarthost_that_is_down_is_temporary(tm, msmtp):
    """Exit 75, as ever."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        *found, reason = judged(tm, msmtp("127.0.0.1", closed.getsockname()[1]))
    assert found == ["deferred", "message", "defer"]
    assert "exit 75" in reason


@needs_msmtp
def test_a14_a_login_that_is_refused_needs_a_person(tm, msmtp):
    """Exit 77: neither temporary nor about the message."""
    with ScriptedServer(credentials={"ann": "right"}, login_required=True) as server:
        login = "auth plain\nuser ann\npassword wrong"
        *found, reason = judged(tm, msmtp("127.0.0.1", server.port, login))
    assert found == ["deferred", "route", "stop_route"]
    assert "exit 77" in reason


@needs_msmtp
def test_a14_what_it_takes_is_accepted(tm, msmtp):
    """All of that would prove nothing with a program that never sends."""
    with ScriptedServer() as server:
        status, *_ = judged(tm, msmtp("127.0.0.1", server.port))
        assert status == "accepted"
        (message,) = server.messages
        assert message.recipients == ("one@example.net",)


@pytest.mark.representative(every=4)
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (64, ("failed", "message", "fail")),
        (65, ("failed", "message", "fail")),
        (67, ("failed", "recipient", "fail")),
        (68, ("deferred", "message", "defer")),
        (69, ("deferred", "message", "defer")),
        (75, ("deferred", "message", "defer")),
        (66, ("deferred", "route", "stop_route")),
        (70, ("deferred", "route", "stop_route")),
        (73, ("deferred", "route", "stop_route")),
        (74, ("deferred", "route", "stop_route")),
        (76, ("deferred", "route", "stop_route")),
        (78, ("deferred", "route", "stop_route")),
    ],
)
def test_a14_each_exit_code_of_any_program(tm, make_mailer, tmp_path, code, expected, several):
    """The whole of sysexits.h, for one recipient and for two, of whom it does not say which."""
    program = tmp_path / "sendmail"
    program.write_text(f"#!/bin/sh\ncat > /dev/null\nexit {code}\n")
    program.chmod(stat.S_IRWXU)
    recipients = ["one@example.net", "two@example.net"] if several else ["one@example.net"]
    found = judged(tm, make_mailer(f"sendmail://{program}"), recipients=recipients)
    if several and code == 67:
        expected = ("failed", "message", "fail")
    assert found[:3] == expected
