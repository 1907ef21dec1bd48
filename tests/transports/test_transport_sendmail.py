"""The sendmail transport, with programs of our own that note what they are given."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from pathlib import Path

import pytest
from letters import SENDER, letter, statuses
from postfix import AVAILABLE, MAILBOXES_CF, NEEDS, running_postfix, within
from thin import one_in
from zope.interface.verify import verifyObject

from txmail import Envelope, Mailer, Message, mailer_from_settings, transport_from_url
from txmail.exceptions import (
    ConfigurationError,
    DeliveryRefused,
    DeliveryUnavailable,
    PartialDelivery,
    TransportError,
)
from txmail.interfaces import ISession, ITransport
from txmail.transports.local.sendmail import Command, SendmailTransport

CONTENT = b"From: a@example.com\r\nDate: x\r\nMessage-ID: <1@example.com>\r\n\r\n.\r\nbody\r\n"
#: More than a pipe holds.
LARGE = CONTENT + b"x" * 78 * 10 + b"\r\n" + (b"y" * 78 + b"\r\n") * 4000
#: Seconds that are as good as for ever.
LONG = 100.0

#: Notes its arguments and its input, each call in a file of its own.
NOTING = """\
calls=$(ls "$0".*.args 2>/dev/null | wc -l)
for argument; do printf '%s\\n' "$argument"; done > "$0.$calls.args"
cat > "$0.$calls.input"
"""


@pytest.fixture
def program(tmp_path):
    """Make the program that does `script`."""

    def make(script=NOTING):
        path = tmp_path / "send mail"
        path.write_text(f"#!/bin/sh\n{script}")
        path.chmod(0o700)
        return path

    return make


def transport_of(path, timeout=LONG):
    return SendmailTransport(Command(str(path)), timeout)


def envelope(*recipients, sender=SENDER, content=CONTENT):
    return Envelope(sender, recipients or ("ann@example.com",), content)


def send(path, *envelopes, timeout=LONG, strict=False):
    session = transport_of(path, timeout).open()
    return list(session.send(envelopes or [envelope()], strict=strict))


def arguments_of(path, call=0):
    return Path(f"{path}.{call}.args").read_text().splitlines()


@pytest.fixture
def lifeline(tmp_path):
    """A named pipe that programs hold open: `wait()` returns their words when all are dead."""
    path = tmp_path / "lifeline"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)

    class Lifeline:
        def __str__(self):
            return str(path)

        def wait_for_word(self):
            select.select([reader], [], [])  # until somebody writes, not until somebody opens it
            return os.read(reader, 100)

        def wait_for_death(self):
            while os.read(reader, 100):
                pass

    yield Lifeline()
    os.close(reader)


# -- what the program gets


def test_the_program_gets_an_argument_list_and_local_line_ends(program):
    path = program()
    (outcome,) = send(path)
    assert outcome.status == "accepted"
    assert arguments_of(path) == ["-i", "-f", SENDER, "--", "ann@example.com"]
    assert Path(f"{path}.0.input").read_bytes() == CONTENT.replace(b"\r\n", b"\n")


def test_the_null_sender_is_an_argument_of_its_own(program):
    path = program()
    send(path, envelope(sender="<>"))
    assert arguments_of(path) == ["-i", "-f", "<>", "--", "ann@example.com"]


def test_domains_go_out_as_they_would_in_smtp(program):
    path = program()
    send(path, envelope("ann@b\xfccher.example"))
    assert arguments_of(path)[-1] == "ann@xn--bcher-kva.example"


def test_what_a_shell_would_read_is_data(program):
    path = program()
    hostile = ["$PWD${IFS}x@example.com", "`id`&|@example.com"]
    send(path, envelope(*hostile))
    assert arguments_of(path)[4:] == hostile


def test_it_knows_little_of_our_environment(program, monkeypatch):
    monkeypatch.setenv("TXMAIL_URL", "smtp://user:secret@mx.example.com")
    monkeypatch.setenv("LD_PRELOAD", "")
    path = program('env > "$0.env"; cat > /dev/null')
    assert statuses(send(path)) == ["accepted"]
    names = {line.partition("=")[0] for line in Path(f"{path}.env").read_text().splitlines()}
    # What a shell sets by itself comes on top.
    assert names <= {
        "HOME",
        "LOGNAME",
        "USER",
        "TZ",
        "PATH",
        "LC_ALL",
        "PWD",
        "OLDPWD",
        "SHLVL",
        "_",
    }


def test_more_than_a_hundred_recipients_are_split(program):
    path = program()
    recipients = [f"r{number}@example.com" for number in range(250)]
    outcomes = send(path, envelope(*recipients))
    assert [o.recipient for o in outcomes] == recipients
    assert statuses(outcomes) == ["accepted"] * 250
    called = [arguments_of(path, call)[4:] for call in range(3)]
    assert [len(some) for some in called] == [100, 100, 50]
    assert [*called[0], *called[1], *called[2]] == recipients


def test_a_large_message_goes_through_a_pipe_that_is_smaller(program):
    path = program()
    assert statuses(send(path, envelope(content=LARGE))) == ["accepted"]
    assert Path(f"{path}.0.input").read_bytes() == LARGE.replace(b"\r\n", b"\n")


# -- addresses that could be options


@pytest.mark.parametrize("strict", [True, False])
def test_a_sender_that_begins_with_a_hyphen_is_refused(program, strict):
    path = program()
    (outcome,) = send(path, envelope(sender="-oQ/tmp@example.com"), strict=strict)
    assert (outcome.status, outcome.scope, outcome.action) == ("failed", "message", "fail")
    assert "-oQ/tmp@example.com" in outcome.reason
    assert not Path(f"{path}.0.args").exists()


def test_a_recipient_that_begins_with_a_hyphen_is_refused_and_the_others_are_not(program):
    path = program()
    outcomes = send(path, envelope("ann@example.com", "-t@example.com", "bob@example.com"))
    assert statuses(outcomes) == ["accepted", "failed", "accepted"]
    assert (outcomes[1].scope, outcomes[1].recipient) == ("recipient", "-t@example.com")
    assert arguments_of(path)[4:] == ["ann@example.com", "bob@example.com"]


def test_a_commit_with_such_a_recipient_sends_nothing_at_all(program, tm):
    path = program()
    mailer = Mailer(transport_of(path), transaction_manager=tm)
    tm.begin()
    mailer.send(letter("one"))
    mailer.send(letter("two", "-t@example.com"))
    with pytest.raises(DeliveryRefused) as caught:
        tm.commit()
    assert statuses(caught.value.outcomes) == ["unsent", "failed"]
    assert not Path(f"{path}.0.args").exists()


# -- exit codes


@pytest.mark.parametrize(
    ("code", "status", "scope", "action"),
    [
        (0, "accepted", "message", "done"),
        (75, "deferred", "message", "defer"),
        (64, "failed", "message", "fail"),
        (65, "failed", "message", "fail"),
        (67, "failed", "recipient", "fail"),
        (68, "deferred", "message", "defer"),
        (1, "deferred", "route", "stop_route"),
        (69, "deferred", "message", "defer"),
        (70, "deferred", "route", "stop_route"),
        (78, "deferred", "route", "stop_route"),
        (127, "deferred", "route", "stop_route"),
    ],
)
def test_the_exit_code_is_the_answer(program, code, status, scope, action):
    path = program(f"cat > /dev/null; echo 'because of this' >&2; exit {code}")
    (outcome,) = send(path)
    assert (outcome.status, outcome.scope, outcome.action) == (status, scope, action)
    assert outcome.message_id == "<1@example.com>"
    assert outcome.preflighted is False
    if code:
        assert f"exit {code}: because of this" in outcome.reason


def test_a_refused_user_among_several_is_not_known_by_name(program):
    outcomes = send(program("exit 67"), envelope("ann@example.com", "bob@example.com"))
    assert [(o.status, o.scope) for o in outcomes] == [("failed", "message")] * 2


def test_an_early_exit_without_reading_tells_by_its_code(program):
    (outcome,) = send(program("exit 67"), envelope(content=LARGE))
    assert outcome.status == "failed"


def test_success_without_reading_the_message_is_no_success(program):
    (outcome,) = send(program("exit 0"), envelope(content=LARGE))
    assert (outcome.status, outcome.action) == ("deferred", "stop_route")
    assert "without reading the message" in outcome.reason


def test_what_it_says_is_bounded_and_escaped(program):
    path = program(
        "cat > /dev/null; printf '\\033[2Jno\\n' >&2\n"
        "head -c 200000 /dev/zero | tr '\\0' x >&2; exit 70\n"
    )
    (outcome,) = send(path)
    assert outcome.action == "stop_route"
    assert "\\x1b[2Jno xxx" in outcome.reason
    assert str(outcome).isprintable()
    assert len(outcome.reason) < 1500


def test_a_failed_message_does_not_stop_the_others_unless_asked_to(program):
    path = program("cat > /dev/null; for last; do :; done; case $last in bob*) exit 67; esac")
    three = [envelope(f"{name}@example.com") for name in ("ann", "bob", "cy")]
    assert statuses(send(path, *three)) == ["accepted", "failed", "accepted"]
    assert statuses(send(path, *three, strict=True)) == ["accepted", "failed", "unsent"]


def test_a_route_that_needs_a_person_ends_sending(program):
    outcomes = send(program("exit 78"), envelope(), envelope("bob@example.com"))
    assert statuses(outcomes) == ["deferred", "unsent"]


# -- when it cannot be run


@pytest.mark.parametrize("kind", ["missing", "folder", "not executable"])
def test_a_program_that_cannot_be_run_is_found_out_at_open(tmp_path, tm, kind):
    path = tmp_path / "sendmail"
    if kind == "folder":
        path.mkdir()
    elif kind == "not executable":
        path.write_text("#!/bin/sh\n")
    with pytest.raises(TransportError) as caught:
        transport_of(path).open()
    assert caught.value.temporary is False
    mailer = Mailer(transport_of(path), transaction_manager=tm)
    tm.begin()
    mailer.send(letter("one"))
    with pytest.raises(DeliveryUnavailable) as failed:
        tm.commit()
    assert failed.value.outcomes[0].action == "stop_route"


def test_a_program_that_cannot_be_started_needs_a_person(program):
    path = program()
    session = transport_of(path).open()
    path.write_text("#!/no/such/interpreter\n")
    (outcome,) = session.send([envelope()])
    assert (outcome.status, outcome.action) == ("unsent", "stop_route")


# -- time


def test_a_program_that_does_not_read_is_killed_and_nothing_was_sent(program, lifeline):
    path = program(f"exec 9> '{lifeline}'; sleep 1000 & sleep 1000")
    started = time.monotonic()
    (outcome,) = send(path, envelope(content=LARGE), timeout=0.5)
    assert (outcome.status, outcome.action) == ("deferred", "defer_route")
    assert "took more than 0.5 seconds" in outcome.reason
    lifeline.wait_for_death()
    assert time.monotonic() - started < 30


def test_a_program_that_has_read_all_and_takes_too_long_leaves_a_doubt(program, lifeline):
    path = program(f"exec 9> '{lifeline}'; cat > /dev/null; sleep 1000")
    (outcome,) = send(path, timeout=0.5)
    assert (outcome.status, outcome.action) == ("in_doubt", "in_doubt")
    lifeline.wait_for_death()


@pytest.mark.sweep
def test_a_part_of_a_message_never_ends_like_a_whole_one(program, tmp_path, lifeline):
    # A grandchild that has left the process group survives, and reads what it can.
    path = program(
        f"exec 9> '{lifeline}'\n"
        "exec 8<&0\n"
        f'setsid sh -c \'echo here >&9; read go < "$0.go"; cat <&8 > /dev/null\' "$0" &\n'
        "sleep 1000\n"
    )
    os.mkfifo(f"{path}.go")
    (outcome,) = send(path, envelope(content=LARGE), timeout=0.5)
    assert outcome.status == "in_doubt"  # somebody may yet take the part for the whole
    with open(f"{path}.go", "w") as go:
        go.write("go\n")
    lifeline.wait_for_death()


def test_a_program_killed_by_somebody_else_is_judged_by_what_it_had(program):
    assert statuses(send(program("cat > /dev/null; kill -9 $$"))) == ["in_doubt"]
    assert statuses(send(program("kill -9 $$"), envelope(content=LARGE))) == ["deferred"]


def test_a_delivery_in_the_background_is_not_waited_for(program, tmp_path):
    path = program('cat > /dev/null; (read go < "$0.go") & exit 0')
    os.mkfifo(f"{path}.go")
    started = time.monotonic()
    assert statuses(send(path)) == ["accepted"]
    assert time.monotonic() - started < 30
    with open(f"{path}.go", "w") as go:
        go.write("go\n")


def test_the_time_of_the_transaction_bounds_all_calls(program, tm, lifeline):
    path = program(f"exec 9> '{lifeline}'; cat > /dev/null; sleep 1000")
    mailer = Mailer(transport_of(path), transaction_manager=tm, commit_timeout=0.5)
    tm.begin()
    mailer.send(letter("one"))
    mailer.send(letter("two"))
    with pytest.raises(PartialDelivery) as caught:
        tm.commit()
    assert statuses(caught.value.outcomes) == ["in_doubt", "unsent"]
    lifeline.wait_for_death()


def test_an_exit_code_that_somebody_else_took_is_no_success(program):
    previous = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert statuses(send(program())) == ["in_doubt"]
    finally:
        signal.signal(signal.SIGCHLD, previous)


# -- interruptions


@pytest.mark.parametrize(
    ("script", "content", "status"),
    [
        ("cat > /dev/null; echo here >&9", CONTENT, "in_doubt"),
        ("echo here >&9", LARGE, "deferred"),
    ],
    ids=["all read", "not read"],
)
def test_an_interruption_ends_the_program_and_tells_what_became_of_it(
    program, lifeline, keyboard, script, content, status
):
    path = program(f"exec 9> '{lifeline}'; {script}; sleep 1000")

    def interrupt():
        lifeline.wait_for_word()
        os.kill(os.getpid(), signal.SIGINT)

    session = transport_of(path).open()
    sending = session.send([envelope(content=content), envelope("bob@example.com")])
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        list(sending)
    thread.join()
    assert statuses(session.unsettled()) == [status, "unsent"]
    lifeline.wait_for_death()


@pytest.mark.parametrize("content", [CONTENT, LARGE], ids=["small", "large"])
def test_whenever_it_is_interrupted_nobody_takes_a_part_for_the_whole(program, keyboard, content):
    path = program('octets=$(wc -c); echo "$octets" >> "$0.taken"')
    taken = Path(f"{path}.taken")
    whole = str(len(content.replace(b"\r\n", b"\n")))
    session = transport_of(path).open()
    seen = set()
    for step in range(0, 60, one_in(3)):
        taken.write_text("")
        sending = session.send([envelope(content=content)])
        timer = threading.Timer(step * 0.0005, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            list(sending)
            timer.join()
        except KeyboardInterrupt:
            timer.join()
        session.unsettled()
        (status,) = statuses(session._outcomes)
        seen.add(status)
        lines = taken.read_text().split()
        assert lines in ([], [whole])
        assert status != "accepted" or lines == [whole]
        assert status in ("accepted", "in_doubt") or lines == []
    assert len(seen) > 1


def test_closing_the_iterator_leaves_the_rest_unsent(program):
    path = program()
    session = transport_of(path).open()
    sending = session.send([envelope(), envelope("bob@example.com")])
    assert next(sending).status == "accepted"
    sending.close()
    assert statuses(session.unsettled()) == ["accepted", "unsent"]
    assert not Path(f"{path}.1.args").exists()


def test_no_descriptor_is_left_open(program, tmp_path):
    scripts = ["cat > /dev/null", "exit 0", "sleep 1000", "exec 0<&-; exit 3"]
    before = sorted(os.listdir("/proc/self/fd"))
    for script in scripts:
        send(program(script), envelope(content=LARGE), timeout=0.3)
    assert sorted(os.listdir("/proc/self/fd")) == before


# -- contract and settings


def test_it_keeps_the_contracts(program):
    transport = transport_of(program())
    assert verifyObject(ITransport, transport)
    assert verifyObject(ISession, transport.open())
    assert transport.asks_server is False
    assert transport.open().preflight([envelope()]) == []


def test_mail_goes_out_with_the_commit_and_not_with_an_abort(program, tm):
    path = program()
    mailer = Mailer(transport_of(path), transaction_manager=tm)
    with tm:
        mailer.send(letter("one", "ann@example.com", "bob@example.com"))
        assert not Path(f"{path}.0.args").exists()
    assert arguments_of(path)[4:] == ["ann@example.com", "bob@example.com"]
    tm.begin()
    mailer.send(letter("two"))
    tm.abort()
    assert not Path(f"{path}.1.args").exists()


@pytest.mark.parametrize(
    ("url", "path", "timeout"),
    [
        ("sendmail:", "/usr/sbin/sendmail", 60.0),
        ("sendmail:///usr/lib/sendmail", "/usr/lib/sendmail", 60.0),
        ("sendmail:/usr/lib/sendmail", "/usr/lib/sendmail", 60.0),
        ("sendmail:///opt/send%20mail?timeout=1.5", "/opt/send mail", 1.5),
        ("SENDMAIL://localhost/usr/lib/sendmail", "/usr/lib/sendmail", 60.0),
    ],
)
def test_a_url_says_which_program_and_how_long(url, path, timeout):
    transport = transport_from_url(url)
    assert transport.command == Command(path)
    assert transport.timeout == timeout


@pytest.mark.parametrize(
    "url",
    [
        "sendmail:usr/sbin/sendmail",
        "sendmail://usr/sbin/sendmail",
        "sendmail:///usr/sbin/sendmail?timeout=0",
        "sendmail:///usr/sbin/sendmail?timeout=1&timeout=2",
        "sendmail:///usr/sbin/sendmail?shell=yes",
        "sendmail:///usr/sbin/sendmail?-t",
        "sendmail:///usr/sbin/sendmail#-t",
        "sendmail:///usr/sbin/send%00mail",
    ],
)
def test_a_url_that_says_something_else_is_refused(url):
    with pytest.raises(ConfigurationError, match=r"^url"):
        transport_from_url(url)


def command_of(**settings):
    mailer = mailer_from_settings({f"mail.{k}": v for k, v in settings.items()})
    return mailer._direct.transport.command


def test_the_settings_of_pyramid_mailer_say_what_is_run():
    assert command_of(url="sendmail:") == Command()
    assert command_of(url="sendmail:", sendmail_app="/opt/sm") == Command("/opt/sm")
    assert command_of(
        url="sendmail:",
        sendmail_app="/opt/sm",
        sendmail_template="{sendmail_app} -oi -odb -f{sender}",
    ) == Command("/opt/sm", ("-oi", "-odb", "-f{sender}"))
    assert command_of(url="sendmail:///usr/lib/sendmail", sendmail_app="/opt/sm") == Command(
        "/usr/lib/sendmail"
    )


def test_a_template_keeps_the_recipients_behind_two_hyphens(program):
    path = program()
    command = Command(str(path), ("-oi", "-f{sender}"))
    list(SendmailTransport(command).open().send([envelope()]))
    assert arguments_of(path) == ["-oi", f"-f{SENDER}", "--", "ann@example.com"]


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("sendmail_template", "{sendmail_app} -t -i -f {sender}", "-t is not supported"),
        ("sendmail_template", "{sendmail_app} -ti -f {sender}", "-t is not supported"),
        ("sendmail_template", "{sendmail_app} -it -f {sender}", "-t is not supported"),
        ("sendmail_template", "{sendmail_app} -bs -i -f {sender}", "-bs is not supported"),
        ("sendmail_template", "{sendmail_app} -i -f {sender} --", "-- is not supported"),
        ("sendmail_template", "{sendmail_app} -i -f {sender} {to}", "placeholders"),
        ("sendmail_template", "{sendmail_app} -i", "it needs -f"),
        ("sendmail_template", "{sendmail_app} -f {sender}", "it needs -i"),
        ("sendmail_template", "sh -c {sendmail_app}", "it has to begin with"),
        ("sendmail_app", "sendmail", "absolute path"),
    ],
)
def test_a_setting_that_cannot_be_honoured_is_named(name, value, problem):
    with pytest.raises(ConfigurationError, match=rf"^mail\.{name}.*{problem}"):
        command_of(url="sendmail:", **{name: value})


# -- the real one


@pytest.fixture(scope="module")
def postfix():
    if not AVAILABLE:
        pytest.skip(NEEDS)
    with running_postfix(MAILBOXES_CF) as instance:
        yield instance


def test_the_sendmail_of_postfix_delivers_the_mail_of_a_committed_transaction(postfix, tm):
    options = ("-C", str(postfix.conf), "-i", "-f", "{sender}")
    mailer = Mailer(SendmailTransport(Command(options=options)), transaction_manager=tm)
    message = Message(
        "Gr\xfc\xdfe",
        ["ann@example.com"],
        body=".\nFrom here\n.",
        sender=SENDER,
        bcc=["bob@example.com"],
    )
    with tm:
        message_id = mailer.send(message)
    assert statuses(mailer.last_outcomes) == ["accepted"] * 2
    within(20, lambda: postfix.mail_of("ann") and postfix.mail_of("bob"))
    for user in ("ann", "bob"):
        (received,) = postfix.mail_of(user)
        assert received["Message-ID"] == message_id
        assert received["Return-Path"] == f"<{SENDER}>"
        assert received["Bcc"] is None
        text = received.get_payload(decode=True).decode()
        assert text.splitlines() == [".", "From here", "."]


def test_the_sendmail_of_postfix_that_cannot_queue_is_believed(postfix, tmp_path):
    options = ("-C", str(tmp_path), "-i", "-f", "{sender}")
    (outcome,) = SendmailTransport(Command(options=options)).open().send([envelope()])
    assert (outcome.status, outcome.action) == ("deferred", "defer")  # it says 75
    assert "main.cf" in outcome.reason
