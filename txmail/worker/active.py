"""What a worker has of its queue: claimed work on one side, results on the other.

The lanes take work and record outcomes. While they send, the `dispatcher.Keeper` claims the next
work and writes down what became of the last.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..common.per_process import this_process
from ..exceptions import TxmailError
from ..queue.retry import Settlement
from ..queue.sql.claimed import ClaimedMessage
from .faults import Result
from .lane import Lane
from .router import Route

#: Deliveries in one claim.
BATCH = 64
#: Seconds of a lease, and how long before its end nothing is sent any more.
LEASE, MARGIN = 300.0, 10.0
#: Seconds that results wait for others, so that they are written together.
GATHER = 0.05


_ledgers: weakref.WeakSet[Ledger] = weakref.WeakSet()


def held_here() -> set[int]:
    """The tokens by which workers of this process hold something."""
    return {token for ledger in list(_ledgers) for token in (*ledger._held, *ledger._unsure)}


class Stopped(TxmailError):
    """The worker has been told to stop, and nothing is lost by hanging up here."""


class LeaseLost(TxmailError):
    """The lease has ended before the queue could be told that it is still needed."""


class Ledger:
    """What the lanes and the keeper share. Its methods may be called by any thread."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        *,
        clock: Callable[[], float],
        batch: int = BATCH,
        lease: float = LEASE,
        limit: int | None = None,
    ) -> None:
        self._lanes = lanes
        self._clock = clock
        self._batch = batch
        self._lease = lease
        self._margin = min(MARGIN, lease / 10)
        self._process = this_process()
        #: how many messages may still be claimed, None for any number
        self._left = limit
        lock = threading.RLock()
        #: told when there may be something to do for the keeper, and for the lanes
        self.changed = threading.Condition(lock)
        self.begun = threading.Condition(lock)
        self._results: list[Result] = []
        self._first_result = 0.0
        #: what goes back, in how many seconds it is due, and why
        self._back: list[tuple[ClaimedMessage, float, str]] = []
        #: claimed rows that are not read yet, and their token
        self._unread: tuple[list[Any], int] = [], 0
        #: what is settled without a try
        self._over: list[tuple[int, int, Settlement]] = []
        #: by token, how many deliveries are still to be settled
        self._held: Counter[int] = Counter()
        #: by the clock: no lease of ours ends before
        self.deadline = clock() + lease - self._margin
        #: how often leases were lost
        self._losses = 0
        self._next_round = 0.0
        self._next_look = 0.0
        self._stopping = False
        self._woken = False
        #: True if the last look has found less than there was room for
        self.drained = False
        self.written_count = 0
        #: tokens of which nobody knows whether anything was claimed by them
        self._unsure: list[int] = []
        _ledgers.add(self)

    # -- for the lanes

    def take(
        self, lane: Lane, timeout: float | None = 0.0, *, first: bool = False
    ) -> ClaimedMessage | None:
        """The next work of `lane`; None if there is none within `timeout`, or none any more.

        With `first`, nothing is being sent.
        """
        with self.changed:
            if not lane.ready:
                lane.busy = timeout is not None
                self.changed.notify_all()
                self.begun.wait_for(lambda: lane.ready or self._stopping, timeout)
            if first:
                lane.losses = self._losses
            if not lane.ready or lane.losses != self._losses:
                return None
            lane.busy = True
            work = lane.ready.popleft()
            lane.flying += work.size
            if lane.pending or not lane.ready:
                self.changed.notify_all()
            return work

    def may_hear_more(self, lane: Lane) -> bool:
        """True if `lane`, or another of its route, is going to send more in a moment."""
        if self.expects(lane):
            return True
        others = [other for other in self._lanes if other.route is lane.route and other is not lane]
        return any(other.waiting or other.parked or (other.busy and other.sent) for other in others)

    def expects(self, lane: Lane) -> bool:
        """True if there is going to be more for `lane` in a moment."""
        return bool(lane.pending or lane.parked or self._unread[0]) or not self.drained

    def idle(self, lane: Lane) -> None:
        """`lane` has nothing on its way."""
        with self.changed:
            lane.busy = False
            lane.flying = 0
            self.changed.notify_all()

    def landed(self, lane: Lane, work: ClaimedMessage) -> None:
        """All is said of `work`: its content is not needed any more."""
        with self.changed:
            lane.flying -= work.size
            work.unload()

    def record(self, results: Iterable[Result]) -> None:
        """What became of recipients."""
        some = list(results)
        with self.changed:
            if not self._results:
                self._first_result = time.monotonic()
                self.changed.notify_all()  # the keeper may mean to wait for longer
            before = len(self._results)
            self._results += some
            if before < self._batch <= len(self._results):
                self.changed.notify_all()

    def forget(self, works: Iterable[tuple[ClaimedMessage, int]]) -> None:
        """Nobody will tell what became of so many recipients of each: their leases are to end."""
        with self.changed:
            for work, recipients in works:
                self._release(work.token, recipients)

    def _release(self, token: int, count: int) -> None:
        self._held[token] -= count
        if self._held[token] <= 0:
            del self._held[token]

    def guard(self, lane: Lane) -> None:
        """Raise `LeaseLost` if `lane` may send nothing any more. Called before each write."""
        lost = lane.abandoned or lane.losses != self._losses
        if lost or self._clock() >= self.deadline:
            raise LeaseLost("the lease has ended")

    def rest(self, lane: Lane) -> None:
        """Raise `Stopped` if `lane`, to whom a server says nothing, need not wait for it."""
        if self._stopping:
            raise Stopped(f"{lane.route.name}: told to stop while the server said nothing")

    def opening(self, lane: Lane) -> None:
        """`lane` begins to open a connection, which may take its time. Raises `Stopped`."""
        with self.changed:
            self.rest(lane)
            lane.opening = True

    def opened(self, lane: Lane) -> bool:
        """It has, or cannot; False if nobody waits for it any more."""
        with self.changed:
            lane.opening = False
            return not lane.abandoned

    def route_failed(self, route: Route) -> None:
        """Give back what waits for `route`: its circuit is open."""
        with self.changed:
            for lane in self._lanes:
                if lane.route is route:
                    left = max(lane.circuit.left, 1.0)
                    for work in (*lane.ready, *lane.pending):
                        self._back.append((work, left, lane.circuit.reason))
                    lane.ready.clear()
                    lane.pending.clear()
            self.changed.notify_all()

    def domain_failed(self, route: Route) -> None:
        """Give back what waits for `route` and is to domains that wait."""
        with self.changed:
            for lane in self._lanes:
                if lane.route is route:
                    for some in (lane.ready, lane.pending):
                        self._give_back_held(lane, some)
            self.changed.notify_all()

    def _give_back_held(self, lane: Lane, some: deque[ClaimedMessage]) -> None:
        for work in [work for work in some if len(work.ids) == 1]:
            (recipient,) = work.envelope.recipients
            left = lane.faults.left(recipient)
            if left > 0:
                some.remove(work)
                self._back.append((work, left, lane.faults.reason(recipient)))

    def wake(self) -> None:
        """There is mail: look for it now."""
        if self._process != this_process():
            return  # a forked child has no worker, and the lock may have been held
        with self.changed:
            self._woken = True
            self.changed.notify_all()

    def hear(self) -> None:
        """There is something to tell about a route: let there be a round now."""
        with self.changed:
            self._next_round = 0.0
            self.changed.notify_all()

    # -- for whoever runs it

    def stop(self) -> None:
        """Claim nothing any more, and give back what is not on its way."""
        if self._process != this_process():
            return
        with self.changed:
            self._stopping = True
            self._return_waiting()
            for lane in self._lanes:
                if lane.opening:
                    self._abandon(lane)
            self.changed.notify_all()
            self.begun.notify_all()

    def _abandon(self, lane: Lane) -> None:
        """Give back what `lane` has: it hangs where nothing of it can have left, nor ever will."""
        for work, _, told in lane.sent.values():
            places = [n for n, r in enumerate(work.envelope.recipients) if r not in told]
            part = work if len(places) == len(work.ids) else work.only(places)
            self._back.append((part, 0.0, ""))
        lane.sent.clear()
        lane.abandoned, lane.busy, lane.flying = True, False, 0

    def _return_waiting(self) -> None:
        for lane in self._lanes:
            for work in (*lane.ready, *lane.pending):
                self._back.append((work, 0.0, ""))
            lane.ready.clear()
            lane.pending.clear()

    @property
    def finished(self) -> bool:
        """True if nothing is on its way and everything is written."""
        with self.changed:
            return not (
                self._results
                or self._back
                or self._over
                or self._unread[0]
                or any(
                    lane.busy
                    or lane.waiting
                    or lane.faults.undecided
                    or (lane.parked and self._serves(lane))
                    for lane in self._lanes
                )
            )

    def wait(self, end: float | None = None, *, until_drained: bool = False) -> None:
        """Until there is something to do, or it is time to look; not beyond `end`.

        With `until_drained`, also until nothing is to be done any more.
        """

        def over() -> bool:
            done = self._stopping or (until_drained and self.drained)
            return self._is_urgent() or (done and self.finished)

        with self.changed:
            while not over():
                left = self._next_time(end) - time.monotonic()
                if left <= 0:
                    return
                self.changed.wait(left)

    def _next_time(self, end: float | None) -> float:
        """By the monotonic clock: when there will be something to do."""
        now = time.monotonic()
        waiting = (lane.allowed for lane in self._lanes if lane.pending)
        moments = [self._next_round, *(allowed for allowed in waiting if allowed > now)]
        if not self._stopping and self._left != 0:
            moments.append(self._next_look)
        if self._results:
            moments.append(self._first_result + GATHER)
        return min(moments if end is None else [*moments, end])

    def _is_urgent(self) -> bool:
        if self._stopping and (self._results or self._back):
            return True
        if self._over or self._unread[0]:
            return True
        if len(self._results) >= self._batch or self._back or self._woken:
            return True
        return any(self._is_low(lane) for lane in self._lanes)

    def _is_low(self, lane: Lane) -> bool:
        """True if `lane` will soon have nothing to send, and there may be more."""
        if lane.unseated or (lane.pending and time.monotonic() < lane.allowed):
            return False
        if lane.pending:
            return bool(lane.next() or lane.lacking())
        if len(lane.ready) > self._batch // 2:
            return False
        if lane.parked and self._serves(lane):
            return True
        return not self.drained and not self._stopping and not lane.high

    def _serves(self, lane: Lane) -> bool:
        """True if `lane` can take what is parked for it, now or when it has less to do."""
        may = not self._stopping and self._left != 0
        return may and not lane.circuit.open and not lane.unseated

    def _has_room(self, lane: Lane) -> bool:
        """True if `lane` can take what is parked for it now."""
        return lane.waiting <= self._batch // 2 and self._serves(lane)
