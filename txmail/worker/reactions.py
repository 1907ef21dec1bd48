"""What a worker does about outcomes: it records them, and pauses or slows routes and domains."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..common.logs import quiet_logger
from ..common.shown import printable
from ..events import Events, RouteFailed, RouteRecovered, RouteStopped
from ..outcome import Action, Outcome, Scope, Status
from ..smtp.evidence import Fault, Ruling
from ..smtp.shared_evidence import of_route
from .active import Ledger
from .faults import Result
from .lane import Lane
from .login_watch import bar_refused, is_barred
from .router import wants_less

log = quiet_logger("txmail.worker")


class Reactions:
    """Of one worker. Its methods may be called by any thread."""

    def __init__(self, ledger: Ledger, events: Events) -> None:
        self._ledger = ledger
        self._events = events

    def apply(self, lane: Lane, rulings: Sequence[Ruling[Result]]) -> None:
        """Record what is decided, and do about it what has to be done."""
        for ruling in rulings:
            results = [answer.about for answer in ruling.answers]
            if ruling.fault is Fault.OWN:
                for _, _, outcome in results:
                    self._learn(lane, outcome)
            else:
                results = [(work, place, of_route(outcome)) for work, place, outcome in results]
                self._blame(lane, ruling)
            self._ledger.record(results)

    def _blame(self, lane: Lane, ruling: Ruling[Result]) -> None:
        if ruling.fault is Fault.DOMAIN:
            name, reason = ruling.domain, printable(ruling.reason)
            log.warning("%s waits for the domain %s: %s", lane.route.name, name, reason)
            self._ledger.domain_failed(lane.route)
            return
        if ruling.pauses and not lane.circuit.open:
            lane.circuit.suspect(ruling.reason, times=ruling.times, stop=ruling.stop)
            self.tell_failure(lane)
        if ruling.slow:
            lane.circuit.slow(ruling.reason)

    def _learn(self, lane: Lane, outcome: Outcome) -> None:
        """Make of `outcome` what it says about the route."""
        circuit = lane.circuit
        if outcome.scope is Scope.ROUTE and outcome.status is not Status.ACCEPTED:
            if not circuit.open:
                self._open(lane, outcome)
        elif outcome.status not in (Status.UNSENT, Status.IN_DOUBT):
            # What had been on its way when it failed says nothing of how it is now.
            shown = outcome.status is Status.ACCEPTED or not circuit.on_trial
            if circuit.failures and not circuit.open and shown:
                circuit.succeeded()
                self._events.emit(RouteRecovered(lane.route.name))

    def _open(self, lane: Lane, outcome: Outcome) -> None:
        bar_refused(lane.route)
        stop = outcome.action is Action.STOP_ROUTE
        # A name that does not resolve may be back at any moment.
        within = getattr(lane.route.transport, "retry_within", None)
        lane.circuit.failed(str(outcome.reply or outcome.reason), stop=stop, within=within)
        if wants_less(outcome):
            lane.circuit.slow(str(outcome.reply))
        self.tell_failure(lane)

    def tell_failure(self, lane: Lane) -> None:
        """Say that the route of `lane` is paused."""
        circuit = lane.circuit
        kind = RouteStopped if circuit.stopped else RouteFailed
        left = math.inf if is_barred(lane.route) else circuit.left
        self._events.emit(kind(lane.route.name, printable(circuit.reason), left))
