"""Whose fault it is that mail of a route is not taken: the evidence of one worker, and what waits.

A worker tells each outcome (`Faults.tell`), and learns which outcomes are decided by then and whose
fault they are. Before it sends a message it asks whether its recipient domain waits
(`Faults.admit`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from ..outcome import Outcome, Status
from ..queue.sql.claimed import ClaimedMessage
from ..smtp.evidence import Answer, Evidence, Fault, Ruling
from ..smtp.shared_evidence import domain_of
from .domain_waits import DomainWaits

#: Whose message it is, the recipient's place in it, and the outcome.
Result = tuple[ClaimedMessage, int, Outcome]


class Faults:
    """Of one route. Its methods may be called by any thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._lock = threading.Lock()
        self._evidence: Evidence[Result] = Evidence(clock)
        self._domains = DomainWaits(clock)
        #: milliseconds since 1970, by the queue's clock, as of the last transaction
        self.queue_now = 0

    @property
    def undecided(self) -> bool:
        """True if there are outcomes that another one may show in another light."""
        return self._evidence.undecided > 0

    def tell(self, result: Result, *, paused: bool) -> list[Ruling[Result]]:
        """What is decided now that `result` is known; `paused` if its route has failed since."""
        work, place, outcome = result
        evidence = self._evidence
        if outcome.status is Status.ACCEPTED and evidence.quiet and not self._domains:
            evidence.works = True
            return [Ruling(Fault.OWN, (Answer("", "", "", outcome, result),))]
        domain = domain_of(outcome.recipient)
        since, before = work.since[place], work.before[place]
        waited = 0.0 if since is None else (self.queue_now - since) / 1000
        answer = Answer(
            str(work.message),
            *(work.envelope.sender, domain, outcome, result),
            before=before if since is not None else "",
            waited=waited,
        )
        with self._lock:
            if outcome.status is Status.ACCEPTED and not paused:
                self._domains.accepted(domain)
            rulings = evidence.hear(answer, paused=paused)
            for ruling in rulings:
                if ruling.fault is Fault.DOMAIN:
                    self._hold(ruling)
        return rulings

    def _hold(self, ruling: Ruling[Result]) -> None:
        if ruling.answers:
            self._domains.failed(ruling.domain, ruling.reason)
        if ruling.slow:
            self._domains.slow(ruling.domain, ruling.reason)

    def rest(self) -> list[Ruling[Result]]:
        """What is decided as there is nothing more to compare with."""
        with self._lock:
            return self._evidence.rest()

    def likeness(self, work: ClaimedMessage) -> int:
        """How much `work` is like what was refused: of the smallest, the route is tried with."""
        envelope = work.envelope
        with self._lock:
            domains = {domain_of(recipient) for recipient in envelope.recipients}
            return max(self._evidence.likeness(envelope.sender, domain) for domain in domains)

    def left(self, recipient: str) -> float:
        """Seconds for which the domain of `recipient` waits."""
        return self._domains.left(domain_of(recipient)) if self._domains else 0.0

    def reason(self, recipient: str) -> str:
        """Why it does."""
        return self._domains.reason(domain_of(recipient))

    def admit(self, work: ClaimedMessage) -> list[tuple[ClaimedMessage, float, str]]:
        """The parts of `work`, the seconds for which each waits, and why: 0 is for now.

        What may go now has to go: a domain that has waited is tried with one message.
        """
        if not self._domains:
            return [(work, 0.0, "")]
        with self._lock:
            domains = [domain_of(recipient) for recipient in work.envelope.recipients]
            waits = {domain: self._domains.admit(domain) for domain in dict.fromkeys(domains)}
            reasons = {domain: self._domains.reason(domain) for domain in waits}
        places: dict[float, list[int]] = {}
        for place, domain in enumerate(domains):
            places.setdefault(waits[domain], []).append(place)
        return [
            (_part(work, some), seconds, reasons[domains[some[0]]] if seconds else "")
            for seconds, some in places.items()
        ]


def _part(work: ClaimedMessage, places: Sequence[int]) -> ClaimedMessage:
    if len(places) == len(work.ids):
        return work
    part = work.only(places)
    part.lane = work.lane
    return part
