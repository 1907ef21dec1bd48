"""Another real server: aiosmtpd."""

from __future__ import annotations

import socket
import threading

import pytest
from aiosmtpd.controller import Controller
from databases import SQLITE, ZODB_KIND
from letters import letter, statuses

from txmail.exceptions import DeliveryRefused


class Handler:
    """Keeps what it is given, and refuses nobody@example.com."""

    def __init__(self):
        self.received = []
        self.greeted = 0
        self.lock = threading.Lock()

    async def handle_EHLO(self, server, session, envelope, hostname, responses):
        with self.lock:
            self.greeted += 1
        session.host_name = hostname
        return responses

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address == "nobody@example.com":
            return "550 5.1.1 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        with self.lock:
            self.received.append((envelope.mail_from, envelope.rcpt_tos, envelope.content))
        return "250 2.0.0 taken"


@pytest.fixture
def handler():
    return Handler()


@pytest.fixture
def aiosmtpd_mailer(handler, make_mailer):
    controller = Controller(handler, hostname="127.0.0.1", port=free_port())
    controller.start()
    mailer = make_mailer(f"smtp://127.0.0.1:{controller.port}")
    yield mailer
    mailer.close()
    controller.stop()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_mail_of_a_committed_transaction_arrives_as_it_was_rendered(
    tm, aiosmtpd_mailer, handler, make_database
):
    database = make_database(ZODB_KIND)
    message = letter("one", "ann@example.com", "bob@example.com")
    message.body = ".\r\n..dots\r\n\r\nGrüße\r\n."
    with tm:
        database.write("order")
        aiosmtpd_mailer.send(message)
        aiosmtpd_mailer.send(letter("two"))
        (content, _) = [
            e.submission.envelope.content for e in tm.get()._resources[-1]._report.buffered
        ]
    assert database.values() == ["order"]
    assert handler.received[0] == (
        "app@example.com",
        ["ann@example.com", "bob@example.com"],
        content,
    )
    assert len(handler.received) == 2
    assert handler.greeted == 1
    assert statuses(aiosmtpd_mailer.last_outcomes) == ["accepted"] * 3


def test_mail_of_an_aborted_transaction_does_not_arrive(tm, aiosmtpd_mailer, handler):
    tm.begin()
    aiosmtpd_mailer.send(letter("one"))
    tm.abort()
    assert handler.received == []
    assert handler.greeted == 0


def test_a_refused_recipient_aborts(tm, aiosmtpd_mailer, handler, make_database):
    database = make_database(SQLITE)
    tm.begin()
    database.write("order")
    aiosmtpd_mailer.send(letter("one"))
    aiosmtpd_mailer.send(letter("two", "nobody@example.com"))
    with pytest.raises(DeliveryRefused, match="no such user"):
        tm.commit()
    tm.abort()
    assert database.values() == []
    assert handler.received == []
    with tm:
        aiosmtpd_mailer.send(letter("three"))
    assert len(handler.received) == 1


def test_a_hundred_transactions_share_a_connection(tm, aiosmtpd_mailer, handler):
    for number in range(100):
        with tm:
            aiosmtpd_mailer.send(letter(number))
    assert len(handler.received) == 100
    assert handler.greeted == 1
