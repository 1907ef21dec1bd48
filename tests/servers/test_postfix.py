"""A real Postfix: it takes the mail of committed transactions and delivers it into files."""

from __future__ import annotations

from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from email.header import decode_header, make_header

import pytest
from databases import SQLITE, ZODB_KIND
from letters import letter, statuses
from postfix import AVAILABLE, MAILBOXES_CF, NEEDS, running_postfix, within

from txmail import Envelope, Message, transport_from_url
from txmail.exceptions import DeliveryRefused

pytestmark = pytest.mark.skipif(not AVAILABLE, reason=NEEDS)


@pytest.fixture(scope="module")
def postfix():
    with running_postfix(MAILBOXES_CF) as instance:
        yield instance


@pytest.fixture
def postfix_mailer(postfix, make_mailer):
    return make_mailer(postfix.url)


def delivered(postfix, user, subject):
    return [m for m in postfix.mail_of(user) if m["Subject"] == subject]


def test_postfix_delivers_the_mail_of_a_committed_transaction(
    tm, postfix, postfix_mailer, make_database
):
    database = make_database(ZODB_KIND)
    message = Message(
        "Grüße",
        ["ann@example.com"],
        body=".\n..two dots\nGrüße\n.",
        sender="app@example.com",
        bcc=["bob@example.com"],
    )
    with tm:
        database.write("order")
        message_id = postfix_mailer.send(message)
    assert database.values() == ["order"]
    assert statuses(postfix_mailer.last_outcomes) == ["accepted"] * 2
    within(20, lambda: postfix.mail_of("ann") and postfix.mail_of("bob"))
    for user in ("ann", "bob"):
        (received,) = [m for m in postfix.mail_of(user) if m["Message-ID"] == message_id]
        assert str(make_header(decode_header(received["Subject"]))) == "Grüße"
        assert received["Return-Path"] == "<app@example.com>"
        assert received["Bcc"] is None
        text = received.get_payload(decode=True).decode()
        assert text.splitlines() == [".", "..two dots", "Grüße", "."]


def test_postfix_gets_nothing_of_an_aborted_transaction(tm, postfix, postfix_mailer):
    tm.begin()
    postfix_mailer.send(letter("aborted"))
    tm.abort()
    with tm:
        postfix_mailer.send(letter("after the abort"))
    within(20, lambda: delivered(postfix, "ann", "after the abort"))
    assert delivered(postfix, "ann", "aborted") == []


def test_a_recipient_that_postfix_refuses_aborts_everything(
    tm, postfix, postfix_mailer, make_database
):
    database = make_database(SQLITE)
    tm.begin()
    database.write("order")
    for number in range(10):
        name = "nobody" if number == 4 else "ann"
        postfix_mailer.send(letter("refused together", f"{name}@example.com"))
    with pytest.raises(DeliveryRefused) as caught:
        tm.commit()
    tm.abort()
    assert statuses(caught.value.outcomes) == ["unsent"] * 4 + ["failed"] + ["unsent"] * 5
    assert caught.value.outcomes[4].reply.code == 550
    assert database.values() == []
    with tm:
        postfix_mailer.send(letter("after the refusal"))
    within(20, lambda: delivered(postfix, "ann", "after the refusal"))
    assert delivered(postfix, "ann", "refused together") == []


def test_fifty_mails_in_one_transaction_and_in_fifty_take_one_connection(
    tm, postfix, postfix_mailer
):
    before = postfix.connections()
    with tm:
        for _ in range(50):
            postfix_mailer.send(letter("bulk"))
    for _ in range(50):
        with tm:
            postfix_mailer.send(letter("one by one"))
    within(30, lambda: len(delivered(postfix, "ann", "bulk")) == 50)
    within(30, lambda: len(delivered(postfix, "ann", "one by one")) == 50)
    assert postfix.connections() == before + 1


# Streams, as workers send them


def numbered(kind, number, recipient):
    name = f"<{kind}-{number}@mx.test>"
    head = f"From: app@example.com\r\nMessage-ID: {name}\r\n"
    head += f"Date: Thu, 1 Jan 2026 00:00:00 +0000\r\nSubject: {kind}\r\n\r\n"
    return Envelope(f"{kind}{number % 7}@example.com", [recipient], head.encode() + b".\r\n")


class Worker:
    """Sends a list as the workers of a queue do, until each message has an outcome that stays.

    It takes some at a time, as a worker claims them, and what is unsent or in doubt once more on
    another connection; right behind a connection with refusals one at a time.
    """

    def __init__(self, transport, envelopes, window):
        self._transport = transport
        self._window = window
        self._left = deque(envelopes)
        self.final = {}
        self.connections = 0

    def work(self):
        session, window = None, self._window
        while self._left:
            if session is None or session.closed or not session.reusable:
                session = self._transport.open(wait=False)
                self.connections += 1
                assert self.connections < 50
            claimed = [self._left.popleft() for _ in range(min(64, len(self._left)))]
            rest = iter(claimed)
            outcomes = list(session.send(rest, keep_untaken=True, window=window))
            settled = [o for o in outcomes if o.status in ("accepted", "failed")]
            for outcome in settled:
                assert self.final.setdefault(outcome.message_id, outcome) is outcome
            self._left.extendleft(reversed([e for e in claimed if e.message_id not in self.final]))
            refused = any(o.status != "accepted" for o in outcomes)
            window = 1 if refused else self._window
        session.close()


@pytest.mark.sweep
def test_all_good_ones_of_a_long_list_are_delivered_once_and_all_bad_ones_reported(postfix):
    """With windows of two sizes at a time: Postfix slows down all its replies after ten errors."""
    transport = transport_from_url(postfix.url)
    before = postfix.connections()
    workers, lists = {}, {}
    for window in (16, 64):
        good = [numbered(f"good{window}", n, "ann@example.com") for n in range(2050)]
        bad = [numbered(f"bad{window}", n, f"nobody{n}@example.com") for n in range(60)]
        lists[window] = good, bad
        workers[window] = Worker(transport, [*good[:50], *bad, *good[50:]], window)
    with ThreadPoolExecutor() as threads:
        list(threads.map(Worker.work, workers.values()))
    transport.close()
    within(60, lambda: not postfix.queue())
    ids = Counter(str(m["Message-ID"]) for m in postfix.mail_of("ann"))
    for window, (good, bad) in lists.items():
        final = workers[window].final
        assert {str(final[e.message_id].status) for e in good} == {"accepted"}
        assert {str(final[e.message_id].status) for e in bad} == {"failed"}
        assert {final[e.message_id].reply.code for e in bad} == {550}
        assert [e for e in good if ids[e.message_id] != 1] == []
        assert [e for e in bad if ids[e.message_id]] == []
    assert postfix.connections() - before == sum(w.connections for w in workers.values())
