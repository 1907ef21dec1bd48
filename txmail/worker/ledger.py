"""What a worker has of its queue: claimed work on one side, results on the other.

One thread, the keeper's, does all writing. Each of its transactions does all there is to do: it
settles results, commits ``begun`` for what is to be sent next, gives back and claims. The lanes
take work and record outcomes; while they send, the next work is claimed.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

from ..envelope import Outcome, Scope, Status
from ..events import DeliverySettled, Event, Events, ResultsRefused
from ..exceptions import TxmailError
from ..item import Priority
from ..queue import claims, routes
from ..queue.claims import Work
from ..queue.model import State, check_move
from ..queue.queue import Queue
from ..queue.retry import RetryPolicy, Settlement
from .routing import Circuit, Route, route_of

log = logging.getLogger("txmail.worker")

#: Deliveries in one claim.
BATCH = 64
#: Seconds of a lease, and how long before its end nothing is sent any more.
LEASE, MARGIN = 300.0, 10.0
#: Seconds between two looks for mail that nobody has told about.
POLL = 1.0
#: Seconds that results wait for others, so that they are written together.
GATHER = 0.05
#: Seconds between two rounds of what has to be done for all.
ROUND = 5.0
#: At least as long as a transaction took, and as many seconds, others get to write after it.
BREATH = 0.002
#: Seconds after which what a busy route could not take is offered again.
AGAIN = 5.0

_TOKEN_BITS = 63
_BUSY = "its route is busy"
#: States from which a delivery is tried again by itself.
_GOES_ON = (State.READY, State.DEFERRED, State.IN_DOUBT)


class LeaseLost(TxmailError):
    """The lease has ended before the queue could be told that it is still needed."""


@dataclass(eq=False)
class Lane:
    """One connection's worth of work on a route; `high` is kept free for what is urgent."""

    route: Route
    circuit: Circuit
    high: bool = False
    #: by the monotonic clock: before it, the route's rate allows nothing
    allowed: float = 0.0
    #: claimed, and begun
    pending: deque[Work] = field(default_factory=deque)
    ready: deque[Work] = field(default_factory=deque)
    busy: bool = False
    #: how often leases had been lost when what it is sending was taken
    losses: int = 0

    @property
    def waiting(self) -> int:
        """How many messages it has that are not on their way."""
        return len(self.pending) + len(self.ready)


@dataclass
class _Written:
    """What one transaction has come to."""

    claimed: list[Work] = field(default_factory=list)
    #: claimed, and not read yet
    rows: list[Any] = field(default_factory=list)
    token: int = 0
    begun: set[Work] = field(default_factory=set)
    #: True if there was less than there was room for, None if nobody looked
    drained: bool | None = None
    #: True if others have what was held here
    lost: bool = False


class Ledger:
    """See the module. Its methods may be called by any thread, `cycle` by the keeper only."""

    def __init__(
        self,
        queue: Queue,
        lanes: Sequence[Lane],
        policy: RetryPolicy,
        *,
        clock: Callable[[], float],
        batch: int = BATCH,
        lease: float = LEASE,
        limit: int | None = None,
        events: Events | None = None,
    ) -> None:
        self._queue = queue
        self._events = events if events is not None else Events()
        #: what is to be told once it is committed
        self._news: list[Event] = []
        self._lanes = lanes
        self._routes = list(dict.fromkeys(lane.route for lane in lanes))
        self._policy = policy
        self._clock = clock
        self._batch = batch
        self._lease = lease
        self._margin = min(MARGIN, lease / 10)
        self._pid = os.getpid()
        #: how many messages may still be claimed, None for any number
        self._left = limit
        self.changed = threading.Condition()
        self._results: list[tuple[Work, int, Outcome]] = []
        self._first_result = 0.0
        #: what goes back, and in how many seconds it is due
        self._back: list[tuple[Work, float, str]] = []
        #: claimed rows that are not read yet, and their token
        self._unread: tuple[list[Any], int] = [], 0
        #: what is settled without a try
        self._over: list[tuple[int, int, Settlement]] = []
        #: by the monotonic clock: before it, others get to write
        self.pause_until = 0.0
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
        #: when what a busy route could not take is due again; 0 if there is nothing
        self._again = 0.0
        #: True if the last look has found less than there was room for
        self.drained = False
        self.settled = 0

    # -- for the lanes

    def take(self, lane: Lane, timeout: float | None = 0.0) -> Work | None:
        """The next work of `lane`; None if there is none within `timeout`, or none any more."""
        with self.changed:
            if not lane.ready:
                lane.busy = timeout is not None
                self.changed.notify_all()
                self.changed.wait_for(lambda: lane.ready or self._stopping, timeout)
            if timeout is None:
                lane.losses = self._losses
            if not lane.ready or lane.losses != self._losses:
                return None
            lane.busy = True
            work = lane.ready.popleft()
            if len(lane.ready) <= self._batch // 2:
                self.changed.notify_all()
            return work

    def expects(self, lane: Lane) -> bool:
        """True if there is going to be more for `lane` in a moment."""
        return bool(lane.pending) or bool(self._unread[0]) or not self.drained

    def idle(self, lane: Lane) -> None:
        """`lane` has nothing on its way."""
        with self.changed:
            lane.busy = False
            self.changed.notify_all()

    def record(self, work: Work, outcome: Outcome) -> None:
        """What became of one recipient of `work`."""
        recipients = work.envelope.recipients
        place = 0 if len(recipients) == 1 else recipients.index(outcome.recipient)
        with self.changed:
            if not self._results:
                self._first_result = time.monotonic()
                self.changed.notify_all()  # the keeper may mean to wait for longer
            self._results.append((work, place, outcome))
            if len(self._results) >= self._batch:
                self.changed.notify_all()

    def guard(self, lane: Lane) -> None:
        """Raise `LeaseLost` if `lane` may send nothing any more. Called before each write."""
        if self._clock() >= self.deadline or lane.losses != self._losses:
            raise LeaseLost("the lease has ended")

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

    def wake(self) -> None:
        """There is mail: look for it now."""
        if os.getpid() != self._pid:
            return  # a forked child has no worker, and the lock may have been held
        with self.changed:
            self._woken = True
            self.changed.notify_all()

    # -- for the keeper

    def stop(self) -> None:
        """Claim nothing any more, and give back what is not on its way."""
        if os.getpid() != self._pid:
            return
        with self.changed:
            self._stopping = True
            self._return_waiting()
            self.changed.notify_all()

    def _return_waiting(self) -> None:
        for lane in self._lanes:
            for work in (*lane.ready, *lane.pending):
                self._back.append((work, 0.0, ""))
            lane.ready.clear()
            lane.pending.clear()

    def _lose(self) -> None:
        """Others may have what was held here: nothing of it is sent any more.

        What is still ours is given back; results are written if they still may be.
        """
        with self.changed:
            if self._held:
                log.error("%s: the lease has ended; others may have what is held", self._queue.name)
                self._losses += 1
            self._return_waiting()
            self._unread = [], 0
            self._over.clear()
            self._held.clear()
            self.changed.notify_all()

    def retire(self) -> None:
        """Say that this process has no worker any more, if it can be said."""
        with suppress(TxmailError), self._queue.database.write(durable=False) as connection:
            self._queue.store.retire(connection)

    @property
    def finished(self) -> bool:
        """True if nothing is on its way and everything is written."""
        with self.changed:
            return not (
                self._results
                or self._back
                or self._over
                or self._unread[0]
                or (self._again and not self._stopping)
                or any(lane.busy or lane.waiting for lane in self._lanes)
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
        moments = [self._next_round, *(lane.allowed for lane in self._lanes if lane.pending)]
        if not self._stopping:
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
        if lane.pending and time.monotonic() < lane.allowed:
            return False
        if len(lane.ready) > self._batch // 2:
            return False
        return bool(lane.pending) or (not self.drained and not self._stopping and not lane.high)

    def cycle(self) -> None:
        """Write what there is to write, and claim. Raises `QueueUnavailable`."""
        moment = time.monotonic()
        if self._clock() >= self.deadline:
            self._lose()
        self._read()
        with self.changed:
            results, self._results = self._results, []
            back, self._back = self._back, []
            begun = [work for lane in self._lanes for work in self._next(lane)]
            room = self._room()
            again = 0.0 < self._again <= moment
            looks = (
                not self._stopping
                and self._left != 0
                and (not self.drained or self._woken or again or moment >= self._next_look)
            )
            self._woken = False
        rounds = moment >= self._next_round or any(lane.circuit.news for lane in self._lanes)
        over = self._over
        if looks and not (results or back or over or begun or rounds or self._is_due()):
            looks = False
            self.drained = True
            self._again = 0.0 if again else self._again
            self._next_look = time.monotonic() + POLL
        if not (results or back or over or begun or rounds or looks):
            return
        started = self._clock()
        try:
            written = self._write(results, back, begun, room if looks else -1, rounds)
        except BaseException:
            with self.changed:
                self._results[:0] = results
                self._back[:0] = back
                for lane in self._lanes if rounds else ():
                    lane.circuit.news = True  # whatever there was to tell, nobody has heard it
            raise
        if looks and again:
            self._again = 0.0
        self._committed(results, back, written, started, rounds)
        for event in self._news:
            self._events.emit(event)
        self._read()
        if rounds:
            self._next_round = moment + min(ROUND, self._lease / 4)
        if looks:
            self._next_look = time.monotonic() + POLL

    def _read(self) -> None:
        """Read the messages of what was claimed while nobody is kept from writing."""
        rows, token = self._unread
        if not rows:
            return
        with self._queue.database.read() as connection:
            works, unreadable = claims.read(connection, rows, token)
        with self.changed:
            self._unread = [], 0
            self._over += unreadable
            for work in works:
                self._hand_out(work, False)
            self.changed.notify_all()

    def _is_due(self) -> bool:
        """True if there is something to claim: reading holds nobody up."""
        database = self._queue.database
        with database.read() as connection:
            due = claims.next_due(connection)
            return due is not None and due <= database.now(connection)

    def _next(self, lane: Lane) -> list[Work]:
        """What of `lane` is to be begun now. It stays pending until that is committed."""
        if time.monotonic() < lane.allowed:
            return []
        count = self._batch - len(lane.ready)
        return list(lane.pending)[:count] if len(lane.ready) <= self._batch // 2 else []

    def _room(self) -> int:
        """How many more deliveries may be claimed; a route that is busy keeps nobody waiting."""
        waiting = min(lane.waiting for lane in self._lanes if not lane.high)
        room = min(max(0, self._batch * 2 - waiting), self._batch)
        return room if self._left is None else min(room, self._left)

    def _write(
        self,
        results: list[tuple[Work, int, Outcome]],
        back: list[tuple[Work, float, str]],
        begun: list[Work],
        room: int,
        rounds: bool,
    ) -> _Written:
        database = self._queue.database
        token = secrets.randbits(_TOKEN_BITS)
        done = _Written()
        with database.write(durable=True) as connection:
            began = time.monotonic()
            now = database.now(connection)
            made = [self._made(result, now) for result in results]
            written = 0
            for route, some in self._by_route(results, made).items():
                written += claims.settle(connection, some, now, route)
            self._news = list(map(self._told, results, made, repeat(now)))
            if written < len(made):
                self._news.append(ResultsRefused(self._queue.name, len(made) - written))
            returned = [
                (id_, work.token, Settlement(State.READY, now + int(s * 1000), 0, False, None, why))
                for work, s, why in back
                for id_ in work.ids
            ]
            claims.settle(connection, returned + self._over, now)
            begun = self._allowed(connection, begun, now)
            done.begun.update(begun)
            done.lost = not claims.begin(connection, begun)
            if rounds:
                held = sum(self._held.values()) - len(made) - len(returned) - len(self._over)
                done.lost = self._round(connection, now) < held or done.lost
            lease = now + int(self._lease * 1000)
            if room > 0:
                self._claim(connection, done, token, now, lease, room)
            elif room == 0 and any(lane.high for lane in self._lanes):
                most = self._batch if self._left is None else min(self._batch, self._left)
                self._claim(connection, done, token, now, lease, most, (Priority.HIGH,))
                done.drained = None
        # Transactions back to back would leave nobody else a moment to write.
        ended = time.monotonic()
        self.pause_until = ended + (max(BREATH, ended - began) if database.is_sqlite else BREATH)
        return done

    def _by_route(
        self,
        results: list[tuple[Work, int, Outcome]],
        made: list[tuple[int, int, Settlement]],
    ) -> dict[str | None, list[tuple[int, int, Settlement]]]:
        if len(self._routes) == 1:
            return {self._routes[0].name: made} if made else {}
        found: dict[str | None, list[tuple[int, int, Settlement]]] = {}
        for (work, _, _), settled in zip(results, made, strict=True):
            lane = self._lane_of(work)
            found.setdefault(None if lane is None else lane.route.name, []).append(settled)
        return found

    def _allowed(self, connection: Any, works: list[Work], now: int) -> list[Work]:
        """Those of `works` that the rates of their routes allow now."""
        granted: dict[Route, int] = {}
        chosen: list[Work] = []
        for work in works:
            lane = self._lane_of(work)
            assert lane is not None  # it is waiting there
            route = lane.route
            if route.rate is not None:
                if route not in granted:
                    wanted = sum(1 for w in works if self._is_on(w, route))
                    granted[route] = routes.grant(connection, route.name, now, route.rate, wanted)
                granted[route] -= 1
                if granted[route] < 0:
                    lane.allowed = time.monotonic() + min(1.0, 1 / route.rate)
                    continue
            chosen.append(work)
        return chosen

    def _is_on(self, work: Work, route: Route) -> bool:
        lane = self._lane_of(work)
        return lane is not None and lane.route is route

    def _claim(
        self,
        connection: Any,
        done: _Written,
        token: int,
        now: int,
        lease: int,
        limit: int,
        priorities: Sequence[Priority] = tuple(Priority),
    ) -> None:
        rows = claims.take(
            connection,
            token=token,
            now=now,
            lease=lease,
            limit=limit,
            skip_locked=not self._queue.database.is_sqlite,
            priorities=priorities,
        )
        done.drained = len(rows) < limit
        done.token = token
        expired = [r.id for r in rows if isinstance(r.expires, int) and r.expires <= now]
        if expired:
            gone = Settlement(State.EXPIRED, None, 0, False, None, "its time was over")
            claims.settle(connection, [(id_, token, gone) for id_ in expired], now)
            rows = [r for r in rows if r.id not in expired]
        urgent = any(r.priority == Priority.HIGH for r in rows)
        busy = all(lane.waiting for lane in self._lanes if not lane.high)
        if not urgent and (busy or len(rows) > self._batch // 2):
            done.rows = rows  # there is much to do: nobody is to be kept from writing meanwhile
            return
        # A lane that has nothing to do need not wait for another transaction.
        done.claimed, unreadable = claims.read(connection, rows, token)
        claims.settle(connection, unreadable, now)
        at_once = self._at_once(done.claimed)
        claims.begin(connection, at_once)
        done.begun.update(at_once)

    def _at_once(self, works: list[Work]) -> list[Work]:
        chosen: list[Work] = []
        for work in works:
            lane = self._lane_of(work)
            if (
                lane is not None
                and not lane.waiting
                and not lane.circuit.open
                and lane.route.rate is None
            ):
                chosen.append(work)
        return chosen

    def _made(self, result: tuple[Work, int, Outcome], now: int) -> tuple[int, int, Settlement]:
        work, place, outcome = result
        made = self._settlement(work, place, outcome, now)
        if outcome.scope is Scope.ROUTE and outcome.status is Status.UNSENT:
            lane = self._lane_of(work)
            left = lane.circuit.left if lane is not None else 0.0
            made = Settlement(State.READY, now + int(left * 1000), 0, False, made.code, made.reply)
        return work.ids[place], work.token, made

    def _settlement(self, work: Work, place: int, outcome: Outcome, now: int) -> Settlement:
        """What the policy says; what ours says if it fails, or asks for what cannot be."""
        known: Any = {
            "attempts": work.attempts[place],
            "created": work.created,
            "expires": work.expires,
        }
        try:
            made = self._policy.settle(outcome, now, **known)
            check_move(State.SENDING, made.state)
        except Exception:
            log.exception("the retry policy failed; the usual one is used")
            return RetryPolicy(hold_doubt=self._holds_doubt).settle(outcome, now, **known)
        return made

    @property
    def _holds_doubt(self) -> bool:
        return bool(getattr(self._policy, "hold_doubt", self._queue.on_doubt == "hold"))

    def _told(
        self, result: tuple[Work, int, Outcome], made: tuple[int, int, Settlement], now: int
    ) -> Event:
        work, place, outcome = result
        settled = made[2]
        lane = self._lane_of(work)
        again = settled.due if settled.state in _GOES_ON else None
        return DeliverySettled(
            self._queue.name,
            "" if lane is None else lane.route.name,
            outcome,
            settled.state.value,
            work.attempts[place] + settled.attempts,
            max(0.0, (now - work.created) / 1000),
            None if again is None else max(0.0, (again - now) / 1000),
        )

    def _round(self, connection: Any, now: int) -> int:
        """What has to be done for all, by whoever is there. How many deliveries are held here."""
        # Ours first: the database's clock may have jumped.
        renewed = claims.renew(connection, list(self._held), now + int(self._lease * 1000))
        claims.wake(connection, now)
        claims.end_leases(connection, now, hold_doubt=self._holds_doubt)
        self._queue.store.beat(connection, now, "worker")
        self._share(connection, now)
        return renewed

    def _share(self, connection: Any, now: int) -> None:
        """Tell others which routes fail, and hear it from them."""
        known = routes.read(connection)
        for lane in self._lanes:
            if lane.high:
                continue  # the other of its route has the same circuit
            circuit, row = lane.circuit, known.get(lane.route.name)
            if circuit.news:
                circuit.news = False
                state = routes.STOPPED if circuit.stopped else routes.OPEN
                routes.write(
                    connection,
                    lane.route.name,
                    now,
                    state=state if circuit.open else routes.CLOSED,
                    until=now + int(circuit.left * 1000) if circuit.open else None,
                    failures=circuit.failures,
                    reason=circuit.reason,
                )
            elif row is not None and _is_news(row, now) and not circuit.open:
                circuit.adopt((row.until - now) / 1000, row.failures, row.reason or "")

    def _committed(
        self,
        results: list[tuple[Work, int, Outcome]],
        back: list[tuple[Work, float, str]],
        written: _Written,
        started: float,
        rounds: bool,
    ) -> None:
        if written.lost:
            self._lose()
        with self.changed:
            for work, _, _ in results:
                self._release(work.token, 1)
            for work, _, why in back:
                self._release(work.token, len(work.ids))
                if why is _BUSY:
                    self._again = time.monotonic() + AGAIN
            for lane in self._lanes:
                for work in [w for w in lane.pending if w in written.begun]:
                    lane.pending.remove(work)
                    lane.ready.append(work)
            if rounds:
                self.deadline = started + self._lease - self._margin
            for work in written.claimed:
                self._held[work.token] += len(work.ids)
                self._hand_out(work, work in written.begun)
            for _, token, _ in self._over:
                self._release(token, 1)
            self._over.clear()
            if written.rows:
                self._unread = written.rows, written.token
                self._held[written.token] += len(written.rows)
            if self._left is not None:
                count = sum(len(work.ids) for work in written.claimed) + len(written.rows)
                self._left -= min(self._left, count)
            if written.drained is not None:
                self.drained = written.drained
            self.drained = self.drained or self._left == 0
            self.settled += len(results)
            self.changed.notify_all()

    def _release(self, token: int, count: int) -> None:
        self._held[token] -= count
        if self._held[token] <= 0:
            del self._held[token]

    def _hand_out(self, work: Work, begun: bool) -> None:
        lane = self._lane_of(work)
        if self._stopping:
            self._back.append((work, 0.0, ""))
        elif lane is None:
            self._back.append((work, AGAIN * 60, "no route takes it"))
        elif lane.circuit.open:
            self._back.append((work, max(lane.circuit.left, 1.0), lane.circuit.reason))
        elif lane.waiting >= self._batch * 2:
            self._back.append((work, AGAIN, _BUSY))
        else:
            (lane.ready if begun else lane.pending).append(work)

    def _lane_of(self, work: Work) -> Lane | None:
        route = route_of(self._routes, work.envelope, work.priority)
        if route is None:
            return None
        lanes = [lane for lane in self._lanes if lane.route is route]
        if work.priority == Priority.HIGH:
            return max(lanes, key=lambda lane: lane.high)
        return min(lanes, key=lambda lane: lane.high)


def _is_news(row: Any, now: int) -> bool:
    """True if a route is left alone by those who wrote `row`."""
    return row.state != routes.CLOSED and (row.until or 0) > now
