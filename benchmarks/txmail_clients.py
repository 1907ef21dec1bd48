"""txmail itself, in the same form as `peers`."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import transaction
from _harness import timed
from peers import LOOPBACK, RECIPIENT, SENDER, content, contents, measured, until

from txmail import Envelope, mailer_from_settings, transport_from_url

#: Messages after which all that is made once has been made, so that memory is measured from there.
WARM = 1000
#: Kilobytes by which a stream of any length may grow after that.
GROWTH = 4 * 1024


def envelopes(count: int) -> list[Envelope]:
    """Prepared envelopes, of the same octets that the peers send."""
    return [Envelope(SENDER, [RECIPIENT], content) for content in contents(count)]


def session(
    port: int,
    count: int,
    limit: float = math.inf,
    host: str = LOOPBACK,
    options: str = "",
    connections: int = 1,
) -> tuple[int, float]:
    """A session of the SMTP transport, outside any transaction.

    `options` is the query of the URL. With several `connections`, which are one session, all are
    opened before the clock starts. No message is begun after `limit` seconds.
    """
    prepared = envelopes(count)
    url = f"smtp://{host}:{port}?tls=off&connections={connections}"
    transport = transport_from_url(url + (options and "&" + options))
    if connections > 1:
        with ThreadPoolExecutor(connections) as threads:
            warm = list(threads.map(lambda _: transport.open(wait=False), range(connections)))
        for kept in warm:
            kept.close()
    opened = transport.open()

    def send() -> int:
        sent = 0
        for outcome in opened.send(until(limit, prepared)):
            assert outcome.status == "accepted", outcome
            sent += 1
        return sent

    try:
        return measured(send)
    finally:
        opened.close()
        transport.close()


def streamed(port: int, count: int, options: str) -> tuple[float, int]:
    """Stream `count` messages from a generator; the seconds, and kilobytes of memory it took.

    That is by how much the most that the process ever had grew after the first `WARM` messages.
    """
    transport = transport_from_url(f"smtp://{LOOPBACK}:{port}?{options}")
    opened = transport.open()
    made = (Envelope(SENDER, [RECIPIENT], content(number)) for number in range(count))
    started, first, accepted = time.perf_counter(), 0, 0
    for outcome in opened.send(made):
        assert outcome.status == "accepted", outcome
        accepted += 1
        if accepted == WARM:
            first = _peak()
    assert accepted == count
    seconds = time.perf_counter() - started
    opened.close()
    transport.close()
    return seconds, _peak() - first


def _peak() -> int:
    """Kilobytes: the most memory that this program ever had, which `resource` does not know.

    It would count what the program had that started this one.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


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
