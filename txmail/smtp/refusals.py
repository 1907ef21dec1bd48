"""Counts the messages that a server refused on one connection, and stops or slows down. No I/O."""

from __future__ import annotations

#: Messages refused on one connection after which another is better: Exim hangs up after ten
#: commands that lead to no message, Postfix sleeps a second for each error after the tenth.
REFUSALS_LIMIT = 8


class Refusals:
    """The refused messages of one connection, and their effect on the rest of a call."""

    def __init__(
        self, count: int, *, strict: bool, limited: bool, streams: bool, cautious: bool
    ) -> None:
        """`count` is how many messages were refused on the connection before this call.

        With `strict` the first refusal stops sending; if `limited`, `REFUSALS_LIMIT` does. If the
        connection `streams`, a refusal makes the client `careful`; `cautious` has it begin so.
        """
        self.count = count
        self._strict = strict
        self._limited = limited
        self._streams = streams
        #: True if nothing more may be begun
        self.stopped = False
        #: True if the server refused so many that another connection is better
        self.too_many = False
        #: True from a refusal until a message is accepted. Then one message is sent at a time, and
        #: its content after the replies to its recipients
        self.careful = cautious and streams

    def add(self) -> None:
        """Count a message that was not accepted."""
        self.count += 1
        self.too_many = self._limited and self.count >= REFUSALS_LIMIT
        self.stopped = self._strict or self.too_many
        self.careful = self._streams

    def end_stream(self) -> None:
        """Stop being careful: nothing is streamed on this connection any more."""
        self._streams = self.careful = False
