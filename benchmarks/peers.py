"""The clients that txmail is compared with, each a small function.

Every one sends the same octets to the same addresses. Those that keep a connection open it before
the clock starts and end it after the clock has stopped; those that do not are timed with what they
do. Messages are made before the clock starts, in the form that each client takes. A client with a
`limit` begins no further message when it has sent for that many seconds, and says how many it sent.
"""

from __future__ import annotations

import email
import math
import shutil
import smtplib
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from _harness import Skip, is_installed, timed

SENDER = "sender@example.com"
RECIPIENT = "recipient@example.com"
LOOPBACK = "127.0.0.1"

Run = Callable[[], tuple[int, float]]
T = TypeVar("T")


def content(number: int, octets: int = 1024) -> bytes:
    """A message of about `octets` octets, with a line that begins with a dot in it."""
    line = b"The quick brown fox jumps over the lazy dog, and the dog sleeps on.\r\n"
    head = (
        b"From: <sender@example.com>\r\nTo: <recipient@example.com>\r\n"
        b"Subject: message %d\r\nMessage-ID: <%d@benchmark.example.com>\r\n"
        b"Date: Thu, 01 Jan 2026 00:00:00 +0000\r\nMIME-Version: 1.0\r\n"
        b'Content-Type: text/plain; charset="us-ascii"\r\n\r\n' % (number, number)
    )
    body = line * max(1, (octets - len(head) - 20) // len(line))
    return head + b".a line that begins with a dot\r\n" + body


def contents(count: int, octets: int = 1024) -> list[bytes]:
    """`count` messages of about `octets` octets each."""
    return [content(number, octets) for number in range(count)]


def until(limit: float, items: Iterable[T]) -> Iterator[T]:
    """`items`, at least one and no further one `limit` seconds after the first was asked for."""
    deadline = time.perf_counter() + limit
    for item in items:
        yield item
        if time.perf_counter() >= deadline:
            return


def measured(send: Callable[[], int]) -> tuple[int, float]:
    """Call `send`; the number of messages that it says it sent, and the seconds it took."""
    started = time.perf_counter()
    sent = send()
    return sent, time.perf_counter() - started


def smtplib_one_connection(
    port: int, count: int, limit: float = math.inf, host: str = LOOPBACK
) -> tuple[int, float]:
    """smtplib, all messages over one connection."""
    messages = contents(count)

    def send() -> int:
        sent = 0
        for message in until(limit, messages):
            client.sendmail(SENDER, [RECIPIENT], message)
            sent += 1
        return sent

    with smtplib.SMTP(host, port, local_hostname="benchmark", timeout=60) as client:
        client.ehlo()
        return measured(send)


def smtplib_connection_each(port: int, count: int) -> tuple[int, float]:
    """smtplib, a connection for every message: what most applications do."""
    messages = contents(count)

    def send() -> None:
        for message in messages:
            with smtplib.SMTP("127.0.0.1", port, local_hostname="benchmark", timeout=60) as client:
                client.sendmail(SENDER, [RECIPIENT], message)

    return timed(count, send)


def repoze_sendmail(port: int, count: int) -> tuple[int, float]:
    """repoze.sendmail (what pyramid_mailer sends with): a transaction for every message."""
    _need("repoze.sendmail")
    import transaction
    from repoze.sendmail.delivery import DirectMailDelivery
    from repoze.sendmail.mailer import SMTPMailer

    delivery = DirectMailDelivery(SMTPMailer("127.0.0.1", port, no_tls=True))
    messages = [email.message_from_bytes(content) for content in contents(count)]

    def send() -> None:
        for message in messages:
            transaction.begin()
            delivery.send(SENDER, [RECIPIENT], message)
            transaction.commit()

    return timed(count, send)


def zope_sendmail(port: int, count: int) -> tuple[int, float]:
    """zope.sendmail: a transaction for every message."""
    _need("zope.sendmail")
    import transaction
    from zope.sendmail.delivery import DirectMailDelivery
    from zope.sendmail.mailer import SMTPMailer

    delivery = DirectMailDelivery(SMTPMailer("127.0.0.1", port, no_tls=True))
    messages = contents(count)

    def send() -> None:
        for message in messages:
            transaction.begin()
            delivery.send(SENDER, [RECIPIENT], message)
            transaction.commit()

    return timed(count, send)


def aiosmtplib_one_connection(
    port: int, count: int, limit: float = math.inf, host: str = LOOPBACK
) -> tuple[int, float]:
    """aiosmtplib, all messages over one connection."""
    _need("aiosmtplib")
    import asyncio

    import aiosmtplib

    messages = contents(count)

    async def send() -> tuple[int, float]:
        client = aiosmtplib.SMTP(
            hostname=host, port=port, local_hostname="benchmark", timeout=60, start_tls=False
        )
        async with client:
            await client.ehlo()
            sent, started = 0, time.perf_counter()
            for message in until(limit, messages):
                await client.sendmail(SENDER, [RECIPIENT], message)
                sent += 1
            return sent, time.perf_counter() - started

    return asyncio.run(send())


def slimta_one_connection(
    port: int, count: int, limit: float = math.inf, host: str = LOOPBACK
) -> tuple[int, float]:
    """python-slimta's client, used as its own relay does: two round trips for each message.

    Sender, recipient and DATA go out together, then the content, whose reply is awaited.
    """
    _need("slimta")
    _need("gevent")
    from gevent.socket import create_connection

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "pkg_resources")
        from slimta.smtp.client import Client

    messages = contents(count)

    def send() -> int:
        sent = 0
        for message in until(limit, messages):
            client.mailfrom(SENDER)
            client.rcptto(RECIPIENT)
            client.data()
            accepted = client.send_data(message)
            client._flush_pipeline()
            if accepted.code != "250":
                raise RuntimeError(f"slimta: {accepted}")
            sent += 1
        return sent

    with create_connection((host, port), timeout=60) as connected:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = Client(connected)
        client.get_banner()
        client.ehlo("benchmark")
        result = measured(send)
        client.quit()
    return result


def smtp_source(
    port: int, count: int, limit: float = math.inf, host: str = LOOPBACK, sessions: int = 1
) -> tuple[int, float]:
    """Postfix's ``smtp-source``, which is written in C, over `sessions` connections.

    It is a program, and cannot be timed from its greeting on. So it is run twice, once with one
    message a session and once with more; the difference is what the others took, without start
    and connecting. It is lockstep: each message takes what the one before it took.
    """
    program = shutil.which("smtp-source", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if program is None:
        raise Skip("smtp-source (of Postfix) is not installed")
    with tempfile.NamedTemporaryFile() as file:
        # It ends lines with CRLF, and stuffs dots, by itself.
        file.write(content(0).replace(b"\r\n", b"\n"))
        file.flush()
        command = [program, "-4", "-d", "-M", "benchmark", "-f", SENDER, "-t", RECIPIENT]
        command += ["-F", file.name, "-s", str(sessions)]

        def send(messages: int) -> float:
            to = f"inet:{host}:{port}"
            run = [*command, "-m", str(messages), to]
            # Without a timeout: with one, `subprocess` looks every 50 ms only if it has ended.
            return timed(1, lambda: subprocess.run(run, check=True))[1]

        first = send(sessions)
        most = max(1, count // sessions)
        each = min(most, max(1, int(limit / first))) if limit < math.inf else most
        took = send(sessions * (1 + each)) - first
        while took < limit / 4 and each < most:  # starting it takes longer than a few messages
            each = min(most, 4 * each)
            took = send(sessions * (1 + each)) - first
        return sessions * each, took


def bare_loop(
    port: int, count: int, limit: float = math.inf, host: str = LOOPBACK
) -> tuple[int, float]:
    """The least a pipelining client can do: octets made beforehand, no reply looked at.

    Content and dot of one message go out with MAIL, RCPT and DATA of the next (RFC 2920 section
    3.1), and then four line ends are awaited. Nothing is checked, no error is seen.
    """
    commands = f"MAIL FROM:<{SENDER}>\r\nRCPT TO:<{RECIPIENT}>\r\nDATA\r\n".encode()
    bodies = [content.replace(b"\r\n.", b"\r\n..") + b".\r\n" for content in contents(count)]
    writes = [body + commands for body in bodies[:-1]]

    def send() -> int:
        sent = 1
        exchange(commands, 3)
        for octets in until(limit, writes):
            exchange(octets, 4)
            sent += 1
        exchange(bodies[-1], 1)
        return sent

    def exchange(octets: bytes, lines: int) -> None:
        connected.sendall(octets)
        while lines > 0:
            lines -= connected.recv(65536).count(b"\n")

    with _greeted(port, host) as connected:
        result = measured(send)
        connected.sendall(b"QUIT\r\n")
        connected.recv(65536)
    return result


def raw_floor(
    port: int, count: int, limit: float = math.inf, host: str = LOOPBACK
) -> tuple[int, float]:
    """What TCP takes for the octets of a stream: one way, and one answer at the end.

    The server must be our sink, which has a command for it. It has no use for `limit`.
    """
    streamed = b"".join(
        b"RSET\r\nMAIL FROM:<%b> BODY=8BITMIME SIZE=%d\r\nRCPT TO:<%b>\r\nBDAT %d LAST\r\n%b"
        % (SENDER.encode(), len(octets), RECIPIENT.encode(), len(octets), octets)
        for octets in contents(count)
    )
    streamed = b"XBLAST %d\r\n" % len(streamed) + streamed

    def send() -> int:
        connected.sendall(streamed)
        if not connected.recv(65536).startswith(b"250"):
            raise Skip("the server does not know XBLAST")
        return count

    with _greeted(port, host) as connected:
        result = measured(send)
        connected.sendall(b"QUIT\r\n")
        connected.recv(65536)
    return result


def _greeted(port: int, host: str) -> socket.socket:
    """A connection after EHLO."""
    connected = socket.create_connection((host, port), timeout=60)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.recv(65536)
    connected.sendall(b"EHLO benchmark\r\n")
    connected.recv(65536)
    return connected


def _need(package: str) -> None:
    if not is_installed(package):
        raise Skip(f"{package} is not installed")
