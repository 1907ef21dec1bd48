"""The console transport: shows each message on a terminal or in a log, for development.

It decodes headers and text for a reader, and escapes everything that could control a terminal. It
writes to a stream: by default to the standard error of that moment.
"""

from __future__ import annotations

import email
import email.policy
import sys
import threading
from collections.abc import Iterator, Sequence
from email.message import EmailMessage
from typing import Any, TextIO

from zope.interface import implementer

from ...common.per_process import PerProcess
from ...common.shown import printable
from ...envelope import Envelope
from ...interfaces import ITransport
from ...message.stdlib.costs import ParseQuota
from ...outcome import Action, Status
from .session import LocalSession, Result, deferred, in_doubt

#: Characters shown of one message, and of one line of it: as much as a person reads.
LIMIT = 20_000
LINE_LIMIT = 1_000
#: Recipients that are shown by name.
_NAMED = 10
_RULE = "-" * 8
_INDENT = "  "


def shown(sender: str, recipients: Sequence[str], content: bytes) -> str:
    """The lines to show: envelope, headers, text, and the names of all other parts.

    Lines of the message are indented, so that none of them can look like a line of the transport.
    """
    try:
        lines = list(_of_message(content))
    except Exception:
        # The standard library's parser raises any error on odd input. Then show the octets.
        lines = [_INDENT + line for line in content.decode("utf-8", "replace").split("\n")]
    names = ", ".join(recipients[:_NAMED])
    if len(recipients) > _NAMED:
        names += f" and {len(recipients) - _NAMED} more"
    title = f"{_RULE} mail from <{sender}> to {names}"
    return "".join(f"{line}\n" for line in [*_bounded([title, *lines]), _RULE])


def _bounded(lines: list[str]) -> Iterator[str]:
    """`lines`, escaped. Beyond the limits, the number of lines or characters."""
    left = LIMIT
    for index, line in enumerate(lines):
        if left <= 0:
            yield f"{_RULE} and {len(lines) - index} more lines"
            return
        text = line.rstrip("\r").expandtabs()
        more = len(text) - LINE_LIMIT
        text = printable(text[:LINE_LIMIT]) + (f" [{more} more]" if more > 0 else "")
        left -= len(text) + 1
        yield text.rstrip(" ")


def _of_message(content: bytes) -> Iterator[str]:
    quota = ParseQuota()
    for part in email.message_from_bytes(content).walk():
        quota.charge(part, all_headers=True)
    message = email.message_from_bytes(content, policy=email.policy.default)
    for name, value in message.items():
        yield f"{_INDENT}{name}: {' '.join(str(value).split())}"
    yield ""
    parts = [part for part in message.walk() if not part.is_multipart()]
    texts = [p for kind in ("text/plain", "text/html") for p in parts if _is_text(p, kind)]
    text = texts[0] if texts else None
    if text is not None:
        body = str(text.get_content()).rstrip("\n")
        yield from (_INDENT + line for line in body.split("\n"))
    for part in parts:
        if part is not text:
            yield _described(part)


def _is_text(part: EmailMessage, kind: str) -> bool:
    return part.get_content_type() == kind and not part.is_attachment()


def _described(part: EmailMessage) -> str:
    payload = part.get_payload(decode=True)
    size = len(payload) if isinstance(payload, bytes) else 0
    name = part.get_filename()
    return f"{_RULE} {f'{name}, ' if name else ''}{part.get_content_type()}, {size} octets"


@implementer(ITransport)
class ConsoleTransport:
    """Shows envelopes, and accepts them with that. See `ITransport`."""

    name = "console:"
    #: there is no server to ask: showing is the delivery
    asks_server = False

    def __init__(self, stream: TextIO | None = None) -> None:
        """`stream` is the text stream to write to; None is `sys.stderr` at the time of writing."""
        self._stream = stream
        self._lock = PerProcess(threading.Lock)

    def open(
        self,
        *,
        timeout: float | None = None,
        wait: bool = True,
        fresh: bool = False,
        verify: bool = True,
    ) -> ConsoleSession:
        """See `ITransport`."""
        return ConsoleSession(self)

    def close(self) -> None:
        """See `ITransport`."""

    def write(self, text: str) -> None:
        """Write `text` as a whole. Raises OSError or ValueError, as streams do."""
        stream = sys.stderr if self._stream is None else self._stream
        encoding = getattr(stream, "encoding", None) or "utf-8"
        text = text.encode(encoding, "backslashreplace").decode(encoding)
        with self._lock.get():
            stream.write(text)
            stream.flush()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._stream,)


class ConsoleSession(LocalSession):
    """See `ISession`."""

    def __init__(self, transport: ConsoleTransport) -> None:
        super().__init__(transport.name)
        self._transport = transport

    def hand_over(self, envelope: Envelope, seconds: float | None) -> None:
        """See `LocalSession`."""
        text = shown(envelope.sender, envelope.recipients, envelope.content)
        self.result = in_doubt("interrupted while it was shown")
        try:
            self._transport.write(text)
        except (OSError, ValueError) as error:
            self.result = deferred(f"{self.host} {type(error).__name__}", Action.STOP_ROUTE)
        else:
            self.result = Result(Status.ACCEPTED, reason="shown")
