"""The evidence of direct delivery: what the commits of one process have heard of one server.

A commit cannot wait to learn whose fault a refusal is. So each refusal is decided at once: two
messages fail for their own sake, and from the third that gets the same reply the route is at fault,
until the server accepts a message.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from ..common.ascii_text import ascii_lower
from ..common.locks import hold
from ..common.per_process import PerProcess
from ..outcome import Action, Outcome, Scope, Status
from .evidence import Answer, Evidence, Fault, Ruling
from .reply_hints import alike


def domain_of(recipient: str) -> str:
    """The domain of an address, in lower case."""
    return ascii_lower(recipient.rpartition("@")[2])


class SharedEvidence:
    """Shared by the threads of a process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._own: PerProcess[tuple[threading.Condition, Evidence[Outcome]]] = PerProcess(
            lambda: (threading.Condition(), Evidence(clock))
        )

    def judge(self, sender: str, outcome: Outcome, message: str = "") -> Outcome:
        """`outcome` of a message of `sender`; one that is the route's fault says so.

        Outcomes with the same `message` count as one; that is their Message-ID if it is not given.
        """
        condition, evidence = self._own.get()
        if outcome.status is Status.ACCEPTED:
            if evidence.quiet:
                return outcome
        elif outcome.status is not Status.FAILED:
            return outcome
        message = message or outcome.message_id or str(outcome.position)
        answer = Answer(message, sender, domain_of(outcome.recipient), outcome, outcome)

        def told() -> list[Ruling[Outcome]]:
            return [*evidence.hear(answer), *evidence.rest()]

        for ruling in hold(condition, told):
            if ruling.fault is not Fault.OWN and answer in ruling.answers:
                return of_route(outcome, stop=ruling.stop)
        return outcome


def of_route(outcome: Outcome, *, stop: bool = False) -> Outcome:
    """`outcome` of a message that is not at fault."""
    action = Action.STOP_ROUTE if stop else Action.DEFER_ROUTE
    return replace(outcome, status=Status.UNSENT, scope=Scope.ROUTE, action=action)


class JudgedOutcomes:
    """The outcomes of one sending, as the evidence judges them."""

    def __init__(self, evidence: SharedEvidence, senders: Sequence[str], *, holds: bool) -> None:
        """`senders` are those of the messages, by position.

        If it `holds` refusals, they come last, for a later one may show that the route is at fault.
        As long as nothing is accepted, all of them count as one message: the transaction can still
        fail as a whole.
        """
        self._evidence = evidence
        self._senders = senders
        self._holds = holds
        #: the Message-ID for which all count
        self._one = ""
        self._accepted = False
        #: refusals that are known and were not handed out
        self.held: list[Outcome] = []

    def of(self, outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
        """`outcomes`, judged."""
        try:
            for outcome in outcomes:
                judged = self._judge(outcome)
                if outcome.status is not Status.FAILED or not self._holds:
                    yield judged
                    continue
                if judged.scope is Scope.ROUTE:
                    self._give_back(judged)
                self.held.append(judged)
        finally:
            # At once, so that nothing more leaves.
            close = getattr(outcomes, "close", None)
            if close is not None:
                close()
        while self.held:
            yield self.held[0]
            self.held.pop(0)

    def _judge(self, outcome: Outcome) -> Outcome:
        self._accepted = self._accepted or outcome.status is Status.ACCEPTED
        self._one = self._one or outcome.message_id
        message = "" if self._accepted else self._one
        return self._evidence.judge(self._senders[outcome.position], outcome, message)

    def _give_back(self, judged: Outcome) -> None:
        """What got the same reply before, and was held back since, is the route's fault as well."""
        key = self._key(judged)
        self.held = [
            of_route(outcome, stop=judged.action is Action.STOP_ROUTE)
            if self._key(outcome) == key
            else outcome
            for outcome in self.held
        ]

    def _key(self, outcome: Outcome) -> str:
        return alike(str(outcome.reply), self._senders[outcome.position], outcome.recipient)
