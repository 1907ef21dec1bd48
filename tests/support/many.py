"""Many messages over several connections, and whether what is said of them agrees with a server."""

from __future__ import annotations

import contextlib

from commits import Ended, check_held, note

from txmail import transport_from_url
from txmail.testing import CLOSE, RESET, then
from txmail.testing.server import EXTENSIONS

CHUNKING = (*EXTENSIONS, "CHUNKING")
#: With BDAT in a stream, with DATA in a pipeline, and with one command at a time.
TIERS = {"stream": "", "pipeline": "&chunking=no", "lockstep": "&chunking=no&pipelining=no"}
FAULTS = {
    "421": then("421 4.3.2 shutting down", CLOSE),
    "EOF": CLOSE,
    "reset": RESET,
    "malformed": b"what?\r\n",
}


@contextlib.contextmanager
def opened(server, connections, query=""):
    """A session of a transport with so many connections."""
    transport = transport_from_url(f"{server.url}?connections={connections}{query}")
    session = transport.open()
    try:
        yield session
    finally:
        session.close()
        assert not transport._pool._in_use
        transport.close()


def notes(count, size=0, name="n"):
    return [note(f"{name}{n}", body=b"x" * 76 * (size // 76) + b"\r\n") for n in range(count)]


def check(outcomes, envelopes, server):
    """One outcome for each recipient, about the right envelope, and the server agrees."""
    server.wait_closed()
    recipients = [(n, r) for n, envelope in enumerate(envelopes) for r in envelope.recipients]
    assert sorted((o.position, o.recipient) for o in outcomes) == recipients
    assert all(o.message_id == envelopes[o.position].message_id for o in outcomes)
    check_held(Ended(None, tuple(outcomes), ""), server.messages)


def count(outcomes, status):
    return sum(o.status == status for o in outcomes)


def collect(sending, outcomes):
    """Add to `outcomes` what `sending` hands out, also if it ends with an error."""
    for outcome in sending:
        outcomes.append(outcome)
