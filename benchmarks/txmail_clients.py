"""txmail itself, in the same form as `peers`."""

from __future__ import annotations

import transaction
from _harness import timed
from peers import RECIPIENT, SENDER, contents

from txmail import Envelope, mailer_from_settings, transport_from_url


def envelopes(count: int) -> list[Envelope]:
    """Prepared envelopes, of the same octets that the peers send."""
    return [Envelope(SENDER, [RECIPIENT], content) for content in contents(count)]


def session(port: int, count: int, options: str = "") -> tuple[int, float]:
    """A session of the SMTP transport, outside any transaction: all over one connection.

    `options` is the query of the URL.
    """
    prepared = envelopes(count)
    transport = transport_from_url(f"smtp://127.0.0.1:{port}" + (options and "?" + options))
    opened = transport.open()

    def send() -> None:
        for outcome in opened.send(prepared):
            assert outcome.status == "accepted", outcome

    try:
        return timed(count, send)
    finally:
        opened.close()
        transport.close()


def transactions(port: int, count: int) -> tuple[int, float]:
    """A mailer: a transaction for every message, the connection kept from one to the next.

    The connection is opened within the clock, as every transaction of the peers opens its own.
    """
    prepared = envelopes(count)
    mailer = mailer_from_settings({"mail.url": f"smtp://127.0.0.1:{port}"})

    def send() -> None:
        for envelope in prepared:
            transaction.begin()
            mailer.send(envelope)
            transaction.commit()

    try:
        return timed(count, send)
    finally:
        mailer.close()


def one_transaction(port: int, count: int) -> tuple[int, float]:
    """A mailer: all messages in one transaction, asked about first and then sent."""
    prepared = envelopes(count)
    mailer = mailer_from_settings({"mail.url": f"smtp://127.0.0.1:{port}"})

    def send() -> None:
        transaction.begin()
        for envelope in prepared:
            mailer.send(envelope)
        transaction.commit()

    try:
        return timed(count, send)
    finally:
        mailer.close()
