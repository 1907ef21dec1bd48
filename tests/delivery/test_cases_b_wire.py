"""Cases at commit that the wire has: replies too many, names that do not resolve, endings."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time

import pytest
from commits import note
from queues import OWN_SQLITE
from smtp_helpers import (
    GO_AHEAD,
    LOCKSTEP,
    OK,
    PIPELINING,
    STREAMING,
    Dialogue,
    make_envelope,
    statuses,
)

from txmail import Mailer, transport_from_url
from txmail.exceptions import (
    DeliveryError,
    DeliveryRefused,
    DeliveryUnavailable,
    TransportError,
)
from txmail.smtp import happy_eyeballs
from txmail.smtp import resolver as names
from txmail.testing import ScriptedServer
from txmail.transports.failover import FailoverTransport

ONE, TWO, THREE = (make_envelope(n, [f"r{n}@b.example"]) for n in (1, 2, 3))
GOODBYE = b"421 4.4.2 closing\r\n"
SPAM = b"554 5.7.1 spam\r\n"

#: what may lie behind the last reply that is due
SURPLUS = {
    "550": b"550 5.7.1 no\r\n",
    "451": b"451 4.3.0 later\r\n",
    "250": OK,
    "354": GO_AHEAD,
    "two": OK + SPAM,
    "several lines": b"250-one\r\n250 two\r\n",
    "the beginning of a line": b"5",
    "the beginning of a reply": b"550-no\r\n",
    "no reply at all": b"hello\r\n",
    "421 and more": GOODBYE + SPAM,
    "more and 421": OK + GOODBYE,
}
#: what is no surplus: the server says goodbye
GOODBYES = (
    b"",
    GOODBYE,
    GOODBYE * 2,
    b"421-4.4.2\r\n421 closing\r\n",
    b"4",
    b"421 4.4.",
    b"421-x\r\n",
)

#: by the way a message is sent: the extensions, the window, and what comes before its final reply
WAYS = {
    "stream": (STREAMING, 4, (OK, OK)),
    "pipeline": (PIPELINING, 0, (OK, OK, GO_AHEAD)),
    "lockstep": (LOCKSTEP, 0, (OK, OK, GO_AHEAD)),
}


def sent(way, *, strict=True):
    """One message on its way, with its final reply to come: the dialogue, the sending, the rest."""
    extensions, window, before = WAYS[way]
    dialogue = Dialogue(extensions)
    sending = dialogue.sending(ONE, strict=strict, window=window, dirty=False)
    if way == "stream":
        dialogue.write()
        return dialogue, sending, b"".join(before)
    for reply in before if way == "lockstep" else [b"".join(before)]:
        dialogue.answer(reply)
    dialogue.write()
    return dialogue, sending, b""


@pytest.mark.parametrize("surplus", SURPLUS.values(), ids=SURPLUS)
@pytest.mark.parametrize("way", WAYS)
def test_b6_what_has_a_reply_too_many_behind_its_final_reply_is_in_doubt(way, surplus):
    """Kind: a reply is believed to be about a message although another may be."""
    dialogue, sending, before = sent(way)
    dialogue.feed(before + OK + surplus)
    assert statuses(sending.ready) == ["in_doubt"]
    assert not dialogue.protocol.idle or dialogue.error


@pytest.mark.parametrize("goodbye", GOODBYES)
@pytest.mark.parametrize("way", WAYS)
def test_b6_a_421_behind_the_final_reply_is_no_surplus(way, goodbye):
    """Kind: a message that the server has taken is doubted because the server says goodbye."""
    dialogue, sending, before = sent(way)
    dialogue.feed(before + OK + goodbye)
    assert statuses(sending.ready) == ["accepted"]


@pytest.mark.parametrize("way", WAYS)
def test_b6_a_refusal_with_a_reply_too_many_is_in_doubt_as_well(way):
    """Kind: a refusal is believed to be about a message although another reply may be."""
    dialogue, sending, before = sent(way)
    dialogue.feed(before + SPAM + OK)
    assert statuses(sending.ready) == ["in_doubt"]


def test_b6_in_a_stream_nothing_is_certain_that_is_judged_together():
    """Kind: one surplus reply moves all that come behind it to the next message."""
    dialogue = Dialogue(STREAMING)
    sending = dialogue.sending(ONE, TWO, THREE, strict=False, window=3, dirty=False)
    dialogue.answer(*[OK] * 11, SPAM)
    assert statuses(sending.ready) == ["in_doubt"] * 3


def test_b6_in_a_pipeline_the_replies_to_the_next_message_are_no_surplus():
    """Kind: replies that are due are taken for surplus ones."""
    dialogue = Dialogue(PIPELINING)
    sending = dialogue.sending(ONE, TWO, strict=False)
    dialogue.answer(OK, OK, GO_AHEAD)
    dialogue.answer(OK, OK, OK, GO_AHEAD)
    dialogue.answer(OK)
    assert statuses(sending.ready) == ["accepted"] * 2
    assert dialogue.error is None


def test_b6_one_more_than_these_is():
    dialogue = Dialogue(PIPELINING)
    sending = dialogue.sending(ONE, TWO, strict=False)
    dialogue.answer(OK, OK, GO_AHEAD)
    dialogue.answer(OK, SPAM, OK, OK, GO_AHEAD)
    assert statuses(sending.ready) == ["in_doubt", "unsent"]


# B4: DNS that does not answer


@pytest.fixture
def hanging(monkeypatch):
    """A resolver that does not answer until the test is over."""
    over = threading.Event()
    asked = []
    plain = socket.getaddrinfo

    def getaddrinfo(host, *rest, **options):
        if not host.endswith(".example"):
            return plain(host, *rest, **options)
        asked.append(host)
        over.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield asked
    over.set()
    for thread in [t for t in threading.enumerate() if t.name == "txmail-resolver"]:
        thread.join(30)


@pytest.fixture
def resolver(monkeypatch):
    """A resolver of the test's own, which transports use as well."""
    made = names.Resolver()
    monkeypatch.setattr(happy_eyeballs.Connector.__init__, "__defaults__", (time.monotonic, made))
    return made


def test_b4_a_commit_ends_in_time_and_says_that_dns_did_not_answer(tm, hanging, resolver):
    """Kind: something that nobody can interrupt takes all the time that there is."""
    mailer = Mailer(
        transport_from_url("smtp://mx.example"), transaction_manager=tm, commit_timeout=0.3
    )
    mailer.send(note("one"))
    with pytest.raises(DeliveryUnavailable, match=r"mx\.example: DNS did not answer"):
        tm.commit()
    tm.abort()
    assert statuses(mailer.last_outcomes) == ["unsent"]


def test_b4_the_second_route_gets_its_time(tm, hanging, resolver):
    with ScriptedServer() as server:
        first = transport_from_url("smtp://mx.example")
        transport = FailoverTransport([first, transport_from_url(server.url)])
        mailer = Mailer(transport, transaction_manager=tm, commit_timeout=2.0)
        mailer.send(note("one"))
        tm.commit()
        mailer.close()
        assert len(server.messages) == 1


def test_b4_the_queue_gets_its_share(tm, hanging, resolver, make_queue):
    app = make_queue(OWN_SQLITE)
    mailer = Mailer(
        transport_from_url("smtp://mx.example"),
        transaction_manager=tm,
        commit_timeout=2.0,
        queue=app.queue,
    )
    mailer.send(note("one"))
    tm.commit()
    (outcome,) = mailer.last_outcomes
    assert outcome.queued
    assert "DNS did not answer" in outcome.reason
    assert [row.state for row in app.deliveries().values()] == ["ready"]
    mailer.close()


def test_b4_threads_that_are_left_behind_are_bounded(hanging, resolver):
    """All who ask for one name wait for one thread, and there are so many names and no more."""
    for _ in range(5):
        with pytest.raises(TransportError, match="DNS did not answer"):
            resolver.resolve("mx.example", 25, 0.01)
    assert hanging == ["mx.example"]
    for number in range(names.THREADS_LIMIT - 1):
        with pytest.raises(TransportError, match="DNS did not answer"):
            resolver.resolve(f"mx{number}.example", 25, 0.01)
    with pytest.raises(TransportError, match="16 lookups hang"):
        resolver.resolve("one-more.example", 25, 0.01)
    assert len(hanging) == names.THREADS_LIMIT
    # What needs no lookup does not care.
    assert resolver.resolve("127.0.0.1", 25, 0.01)
    assert resolver.resolve("::1", 25, 0.01)


def test_b4_one_that_hangs_for_long_is_asked_again(hanging, resolver, monkeypatch):
    monkeypatch.setattr(names, "HOPELESS_AFTER", 0.0)
    for _ in range(3):
        with pytest.raises(TransportError, match="DNS did not answer"):
            resolver.resolve("mx.example", 25, 0.01)
    assert hanging == ["mx.example"] * 3


def test_b4_lookups_that_are_answered_leave_nothing_behind(resolver):
    for _ in range(50):
        assert resolver.resolve("localhost", 25, 30)
    assert len(resolver._lookups) <= 1


def test_b4_a_forked_child_has_lookups_of_its_own(hanging, resolver):
    with pytest.raises(TransportError):
        resolver.resolve("mx.example", 25, 0.01)
    resolver._process = (0, 0)  # as it is in a child
    assert resolver.resolve("127.0.0.1", 25, 1)
    assert resolver._lookups == []


# B5: at the end of a process


ENDINGS = {
    "atexit": "atexit.register(work)",
    "a thread that outlives the main one": (
        "def later():\n"
        "    threading.main_thread().join()\n"
        "    work()\n"
        "threading.Thread(target=later).start()"
    ),
    "atexit, after other threads": (
        "threading.Thread(target=time.sleep, args=(0.05,)).start()\natexit.register(work)"
    ),
    "the main thread": "work()",
    "a daemon thread": "t = threading.Thread(target=work, daemon=True); t.start(); t.join()",
}

PROGRAM = """
import atexit, sys, threading, time
from txmail import transport_from_url
from txmail.envelope import Envelope
from txmail.transports.resend import send_all

def work():
    transport = transport_from_url(sys.argv[1])
    some = [Envelope("a@b.example", ["c@d.example"], b"X: %d\\r\\n\\r\\n" % n) for n in range(9)]
    print(*{str(o.status) for o in send_all(transport, some)}, flush=True)
    transport.close()

"""


@pytest.mark.parametrize(
    ("ending", "host"),
    [
        ("atexit", "localhost"),
        ("a thread that outlives the main one", "localhost"),
        *(
            pytest.param(ending, host, marks=pytest.mark.sweep)
            for ending in ENDINGS
            for host in ("127.0.0.1", "localhost")
        ),
    ],
)
def test_b5_several_connections_are_opened_whenever_it_is(ending, host):
    """Kind: a pool of threads takes no work any more while there is mail to send."""
    with ScriptedServer() as server:
        url = f"smtp://{host}:{server.port}?connections=3&tls=off"
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM + ENDINGS[ending], url],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.stdout, done.stderr, done.returncode) == ("accepted\n", "", 0)
        assert len(server.messages) == 9


# B19: more questions than a server bears


@pytest.mark.parametrize(
    ("groups", "queue"), [(9, True), (9, False), (10, False), (12, True), (20, False)]
)
def test_b19_what_could_not_be_asked_about_is_unsent_and_the_limit_is_named(
    tm, make_queue, groups, queue
):
    """Kind: a message is said to have failed that no server has refused."""
    options = {"queue": make_queue(OWN_SQLITE).queue} if queue else {}
    with ScriptedServer() as server:
        mailer = Mailer(
            transport_from_url(server.url), transaction_manager=tm, preflight="always", **options
        )
        for number in range(groups + 1):
            mailer.send(note(f"m{number}"))
        with pytest.raises(DeliveryRefused, match="no more than 8 groups") as raised:
            tm.commit()
        tm.abort()
        mailer.close()
        assert {str(o.status) for o in raised.value.outcomes} == {"unsent"}
        assert not any(o.reply for o in raised.value.outcomes)
        assert server.messages == []


@pytest.mark.parametrize("refusal", ["550 5.1.1 no such user", "450 4.2.0 later"])
def test_b19_a_refusal_is_told_before_that(tm, refusal):
    with ScriptedServer() as server:
        server.on("RCPT", refusal, matching="m3@")
        mailer = Mailer(transport_from_url(server.url), transaction_manager=tm, preflight="always")
        for number in range(12):
            mailer.send(note(f"m{number}"))
        with pytest.raises(DeliveryError) as raised:
            tm.commit()
        tm.abort()
        mailer.close()
        assert [str(o.reply) for o in raised.value.outcomes if o.reply] == [refusal]


def test_b19_eight_are_asked_about_and_sent(tm):
    with ScriptedServer() as server:
        mailer = Mailer(transport_from_url(server.url), transaction_manager=tm, preflight="always")
        for number in range(9):  # the first is staged
            mailer.send(note(f"m{number}"))
        tm.commit()
        mailer.close()
        assert len(server.messages) == 9
