"""Remembers what a server was asked on one connection. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..envelope import Envelope
from ..outcome import Outcome
from .extensions import Extensions
from .preflight import ASKED_ENOUGH, NO_RESET, PROBES_LIMIT, Preflight
from .protocol import Protocol
from .server_memory import ServerMemory
from .transactions import ConnectionEnded, MailTransaction


@dataclass(frozen=True, slots=True)
class Questions:
    """One preflight that is going to be asked."""

    preflight: Preflight
    #: positions of its envelopes among those of the call
    places: list[int]
    #: True if it sends RSET where one is due
    resets: bool


class PreflightRecord:
    """The preflights of one connection, and the mail transaction that the last one left open."""

    def __init__(self, protocol: Protocol, memory: ServerMemory) -> None:
        self._protocol = protocol
        self._memory = memory
        #: by id, envelopes that a preflight has dealt with here, and whether the server takes them
        self._envelopes: dict[int, tuple[Envelope, bool]] = {}
        #: probes since the server last accepted a message, and those of earlier users among them
        self._probes = self._inherited = 0
        #: the mail transaction of the next envelope: its MAIL and RCPTs have their answers
        self.open_transaction: MailTransaction | None = None
        #: True if the next mail transaction has to begin with RSET
        self.dirty = False

    @property
    def exhausted(self) -> bool:
        """True if the server may not be asked any more before it gets a message."""
        return self._probes >= PROBES_LIMIT

    def passed(self, envelope: Envelope) -> bool:
        """True if the server was asked about `envelope` on this connection, and takes it."""
        return self._envelopes.get(id(envelope), (envelope, False))[1]

    def give_up_open_transaction(self) -> None:
        """Have the next mail transaction begin with RSET if one is open."""
        if self.open_transaction is not None:
            self.open_transaction, self.dirty = None, True

    def forget(self, *, dirty: bool) -> None:
        """Forget the last user, who may have left a mail transaction open if `dirty`."""
        if dirty or self.open_transaction is not None:
            self.dirty = True
            self._probes += 1
        self._inherited = self._probes
        self.open_transaction = None
        self._envelopes.clear()

    def note_accepted(self) -> None:
        """Begin to count anew: the server has accepted a message."""
        self._probes = self._inherited = 0

    def plan(
        self,
        extensions: Extensions,
        envelopes: Sequence[Envelope],
        *,
        always: bool,
        keep_open: bool,
        pipelining: bool,
    ) -> Questions | None:
        """The questions about `envelopes`, None if all were asked before. See `ISession.preflight`.

        Raises `ConnectionEnded` if earlier users of the connection have asked too much.
        """
        unasked = [place for place, e in enumerate(envelopes) if id(e) not in self._envelopes]
        if not unasked:
            return None
        no_reset = self._memory.no_reset
        # A server that may not be asked any more gets no RSET either: the transaction stays open.
        resets = not (self.exhausted or (no_reset and self.open_transaction is not None))
        if resets and self.open_transaction is not None:
            self.give_up_open_transaction()
            self._probes += 1
        if keep_open and resets and unasked[0] != 0:
            unasked.insert(0, 0)
        left = PROBES_LIMIT - self._probes
        preflight = Preflight(
            self._protocol,
            extensions,
            [envelopes[place] for place in unasked],
            always=always,
            keep_open=keep_open and resets,
            pipelining=pipelining,
            dirty=self.dirty,
            allowed=0 if no_reset else left,
            limit=NO_RESET if no_reset else ASKED_ENOUGH,
        )
        if self._inherited and preflight.probe_count > left:
            raise ConnectionEnded(
                "too much was asked on this connection to ask all of this as well"
            )
        return Questions(preflight, unasked, resets)

    def note(self, questions: Questions) -> list[Outcome]:
        """Remember the answers to `questions`; an outcome for each recipient that was refused."""
        preflight, places = questions.preflight, questions.places
        if questions.resets:
            self.open_transaction, self.dirty = preflight.open_transaction, preflight.dirty
        self._probes += preflight.probes
        refusals = [replace(o, position=places[o.position]) for o in preflight.refusals()]
        if not refusals:
            self._envelopes.update((id(e), (e, preflight.passed(e))) for e in preflight.envelopes)
        return refusals
