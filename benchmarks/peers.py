"""The clients that txmail is compared with, each a small function.

Every one sends the same octets to the same addresses. Those that keep a connection open it before
the clock starts and end it after the clock has stopped; those that do not are timed with what they
do. Messages are made before the clock starts, in the form that each client takes.
"""

from __future__ import annotations

import email
import smtplib
import socket
import time
from collections.abc import Callable

from _harness import Skip, is_installed, timed

SENDER = "sender@example.com"
RECIPIENT = "recipient@example.com"

Run = Callable[[], tuple[int, float]]


def contents(count: int, octets: int = 1024) -> list[bytes]:
    """`count` messages of about `octets` octets each, with lines that begin with a dot in them."""
    line = b"The quick brown fox jumps over the lazy dog, and the dog sleeps on.\r\n"
    made = []
    for number in range(count):
        head = (
            b"From: <sender@example.com>\r\nTo: <recipient@example.com>\r\n"
            b"Subject: message %d\r\nMessage-ID: <%d@benchmark.example.com>\r\n"
            b"Date: Thu, 01 Jan 2026 00:00:00 +0000\r\nMIME-Version: 1.0\r\n"
            b'Content-Type: text/plain; charset="us-ascii"\r\n\r\n' % (number, number)
        )
        body = line * max(1, (octets - len(head) - 20) // len(line))
        made.append(head + b".a line that begins with a dot\r\n" + body)
    return made


def smtplib_one_connection(port: int, count: int) -> tuple[int, float]:
    """smtplib, all messages over one connection."""
    messages = contents(count)

    def send() -> None:
        for message in messages:
            client.sendmail(SENDER, [RECIPIENT], message)

    with smtplib.SMTP("127.0.0.1", port, local_hostname="benchmark", timeout=60) as client:
        client.ehlo()
        return timed(count, send)


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


def aiosmtplib_one_connection(port: int, count: int) -> tuple[int, float]:
    """aiosmtplib, all messages over one connection."""
    _need("aiosmtplib")
    import asyncio

    import aiosmtplib

    messages = contents(count)

    async def send() -> float:
        client = aiosmtplib.SMTP(
            hostname="127.0.0.1",
            port=port,
            local_hostname="benchmark",
            timeout=60,
            start_tls=False,
        )
        async with client:
            await client.ehlo()
            started = time.perf_counter()
            for message in messages:
                await client.sendmail(SENDER, [RECIPIENT], message)
            return time.perf_counter() - started

    return count, asyncio.run(send())


def bare_loop(port: int, count: int) -> tuple[int, float]:
    """The least a pipelining client can do: octets made beforehand, no reply looked at.

    Content and dot of one message go out with MAIL, RCPT and DATA of the next (RFC 2920 section
    3.1), and then four line ends are awaited. Nothing is checked, no error is seen.
    """
    commands = f"MAIL FROM:<{SENDER}>\r\nRCPT TO:<{RECIPIENT}>\r\nDATA\r\n".encode()
    bodies = [content.replace(b"\r\n.", b"\r\n..") + b".\r\n" for content in contents(count)]
    writes = [commands, *(body + commands for body in bodies[:-1]), bodies[-1]]
    replies = [3, *[4] * (count - 1), 1]

    def send() -> None:
        for octets, lines in zip(writes, replies, strict=True):
            connected.sendall(octets)
            while lines > 0:
                lines -= connected.recv(65536).count(b"\n")

    with socket.create_connection(("127.0.0.1", port), timeout=60) as connected:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.recv(65536)
        connected.sendall(b"EHLO benchmark\r\n")
        connected.recv(65536)
        run = timed(count, send)
        connected.sendall(b"QUIT\r\n")
        connected.recv(65536)
    return run


def _need(package: str) -> None:
    if not is_installed(package):
        raise Skip(f"{package} is not installed")
