"""What tests of SMTP need: certificates, a clock, and servers that do not answer."""

from __future__ import annotations

import contextlib
import socket

import pytest
from smtp_helpers import Dialogue, certificates

from txmail import transport_from_url
from txmail.transports.smtp import SmtpTransport


@pytest.fixture
def dialogue():
    return Dialogue()


@pytest.fixture
def make_timed(clock):
    """Make transports from URLs; they count failed logins by `clock`."""
    made = []

    def make(url):
        made.append(SmtpTransport(transport_from_url(url).options, clock=clock))
        return made[-1]

    yield make
    for transport in made:
        transport.close()


@pytest.fixture(scope="session")
def context(tmp_path_factory):
    """A server's TLS context; nobody has signed its certificate."""
    return certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def silent():
    """The address of a listener whose queue is full: what is sent there gets no answer."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()
