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
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

from ..envelope import Outcome, Scope, Status
from ..events import DeliverySettled, Event, Events, ResultsRefused, RouteSlowed
from ..exceptions import TxmailError
from ..item import Priority
from ..queue import claims, routes
from ..queue.model import State, check_move
from ..queue.queue import Queue
from ..queue.retry import RetryPolicy, Settlement
from ..queue.work import Work, load, read
from ..reply import printable
from .lane import Lane
from .routing import Circuit, Route, route_of
from .seats import Seats

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
#: Seconds after which mail that no route takes is looked at again.
NOWHERE = 300.0

_TOKEN_BITS = 63
#: In place of the seconds until it is due again: its route, whose name is said, has no room for it.
_PARK = -1.0
#: States from which a delivery is tried again by itself.
_GOES_ON = (State.READY, State.DEFERRED, State.IN_DOUBT)


class LeaseLost(TxmailError):
    """The lease has ended before the queue could be told that it is still needed."""


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
        #: what goes back, in how many seconds it is due, and why
        self._back: list[tuple[Work, float, str]] = []
        #: claimed rows that are not read yet, and their token
        self._unread: tuple[list[Any], int] = [], 0
        #: tokens of which nobody knows whether anything was claimed by them
        self._unsure: list[int] = []
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
        #: of which it was written in this round that their servers want less
        self._slowed: list[Circuit] = []
        self._seats = Seats(lanes)
        self._next_search = 0.0
        #: True if nothing is claimed that becomes due later than the first look; that moment
        self._bounded = False
        self._bound: int | None = None
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
            lane.flying += work.size
            if len(lane.ready) <= self._batch // 2:
                self.changed.notify_all()
            return work

    def expects(self, lane: Lane) -> bool:
        """True if there is going to be more for `lane` in a moment."""
        return bool(lane.pending or lane.parked or self._unread[0]) or not self.drained

    def idle(self, lane: Lane) -> None:
        """`lane` has nothing on its way."""
        with self.changed:
            lane.busy = False
            lane.flying = 0
            self.changed.notify_all()

    def record(self, work: Work, outcome: Outcome, landed: Lane | None = None) -> None:
        """What became of one recipient of `work`; of the last one, if there is a lane it `landed`
        from: its content is not needed any more.
        """
        recipients = work.envelope.recipients
        place = 0 if len(recipients) == 1 else recipients.index(outcome.recipient)
        with self.changed:
            if landed is not None:
                landed.flying -= work.size
                work.unload()
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
            self._seats.leave(connection)

    def bound(self) -> None:
        """Leave what becomes due from now on to others."""
        self._bounded = True

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
                    lane.busy or lane.waiting or (lane.parked and self._serves(lane))
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
        if lane.unseated or (lane.pending and time.monotonic() < lane.allowed):
            return False
        if lane.pending:
            return bool(lane.next(self._batch) or lane.lacking(self._batch))
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
            more = any(lane.parked and self._has_room(lane) for lane in self._lanes)
            looks = (
                not self._stopping
                and self._left != 0
                and (not self.drained or self._woken or more or moment >= self._next_look)
            )
            self._woken = False
        rounds = moment >= self._next_round or any(lane.circuit.news for lane in self._lanes)
        over = self._over
        if looks and not (
            results or back or over or begun or rounds or more or self._unsure or self._is_due()
        ):
            looks = False
            self.drained = True
            self._next_look = time.monotonic() + POLL
        if not (results or back or over or begun or rounds or looks or self._unsure):
            return
        started = self._clock()
        try:
            written = self._write(results, back, begun, room if looks else -1, rounds)
        except BaseException:
            self._seats.failed()
            with self.changed:
                self._results[:0] = results
                self._back[:0] = back
                for lane in self._lanes if rounds else ():
                    lane.circuit.news = True  # whatever there was to tell, nobody has heard it
            raise
        self._committed(results, back, written, started, rounds)
        for event in self._news:
            self._events.emit(event)
        self._read()
        if rounds:
            self._next_round = moment + min(ROUND, self._lease / 4)
        if looks:
            self._next_look = time.monotonic() + POLL

    def _read(self) -> None:
        """Read what was claimed, and the contents of what comes next.

        Meanwhile nobody is kept from writing.
        """
        rows, token = self._unread
        with self.changed:
            if not rows and not any(lane.lacking(self._batch) for lane in self._lanes):
                return
        with self._queue.database.read() as connection:
            works, unreadable = read(connection, rows, token)
            with self.changed:
                self._unread = [], 0
                self._over += unreadable
                for work in works:
                    self._hand_out(work, False)
                lacking = [w for lane in self._lanes for w in lane.lacking(self._batch)]
            self._load(connection, lacking)

    def _load(self, connection: Any, works: list[Work]) -> None:
        """Read the contents of `works`, which are pending."""
        unreadable = load(connection, works)
        with self.changed:
            for lane in self._lanes if unreadable else ():
                for work in [w for w in lane.pending if w in works and not w.loaded]:
                    lane.pending.remove(work)
                    self._over += [row for row in unreadable if row[0] in work.ids]
            self.changed.notify_all()

    def _is_due(self) -> bool:
        """True if there is something to claim: reading holds nobody up."""
        with self._queue.database.read() as connection:
            return self._finds(connection)

    def _finds(self, connection: Any) -> bool:
        due = claims.next_due(connection)
        if due is not None and due <= self._latest(self._queue.database.now(connection)):
            return True
        return any(
            claims.is_parked(connection, lane.route.name)
            for lane in self._lanes
            if not lane.high and self._has_room(lane)
        )

    def _latest(self, now: int) -> int:
        """When what is claimed has to be due."""
        if not self._bounded:
            return now
        if self._bound is None:
            self._bound = now
        return min(now, self._bound)

    def _next(self, lane: Lane) -> list[Work]:
        """What of `lane` is to be begun now. It stays pending until that is committed."""
        return [] if time.monotonic() < lane.allowed else lane.next(self._batch)

    def _room(self) -> int:
        """How many more deliveries may be claimed; a route that is busy keeps nobody waiting."""
        waiting = min(
            (lane.waiting for lane in self._lanes if not lane.high and not lane.unseated),
            default=self._batch * 2,
        )
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
            now, lease_now = database.now(connection), database.lease_now(connection)
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
                if s != _PARK
                for id_ in work.ids
            ]
            claims.settle(connection, returned + self._over, now)
            claims.park(connection, [(work, route) for work, s, route in back if s == _PARK], now)
            lease = lease_now + int(self._lease * 1000)
            room = self._seat(connection, begun, room, lease_now, lease)
            begun = self._allowed(connection, begun, now)
            done.begun.update(begun)
            done.lost = not claims.begin(connection, begun)
            if rounds:
                gone = len(made) + sum(len(work.ids) for work, _, _ in back) + len(self._over)
                held = sum(self._held.values()) - gone
                done.lost = self._round(connection, now, lease_now) < held or done.lost
                done.lost = not self._seats.renew(connection, lease) or done.lost
            claims.unclaim(connection, self._unsure, now)
            self._unsure.append(token)
            if room > 0:
                self._claim(connection, done, token, now, lease, room)
            elif room == 0:
                most = self._batch if self._left is None else min(self._batch, self._left)
                self._claim(connection, done, token, now, lease, most, (Priority.HIGH,))
                seatless = all(lane.unseated for lane in self._lanes if not lane.high)
                done.drained = True if seatless else None
        self._unsure.clear()
        # Transactions back to back would leave nobody else a moment to write.
        ended = time.monotonic()
        self.pause_until = ended + (max(BREATH, ended - began) if database.is_sqlite else BREATH)
        return done

    def _seat(self, connection: Any, begun: list[Work], room: int, now: int, lease: int) -> int:
        """See to it that lanes may connect that want to; for how many there is `room` then."""
        wanted = {lane for lane in map(self._lane_of, begun) if lane is not None}
        some = {lane for lane in self._lanes if not (lane.high or self._seats.has(lane))}
        if room >= 0 and some and self._finds(connection):
            # Before something is claimed that cannot be sent.
            wanted |= {lane for lane in some if not lane.circuit.open}
        self._seats.take(connection, wanted, now, lease, POLL)
        begun[:] = [work for work in begun if self._may_connect(work)]
        return room if room < 0 else min(room, self._room())

    def _may_connect(self, work: Work) -> bool:
        lane = self._lane_of(work)
        return lane is not None and self._seats.has(lane)

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
        """Those of `works` that the rates of their routes allow now, the most urgent first."""
        rates: dict[Route, float] = {}
        wanted: Counter[Route] = Counter()
        ways = {work: lane for work in works if (lane := self._lane_of(work)) is not None}
        for lane in ways.values():
            rate = _rate(lane, now)
            if rate is not None:
                rates[lane.route] = rate
                wanted[lane.route] += 1
        # In one order: each row is locked, and two hosts must not wait for each other.
        granted = {
            route: routes.grant(connection, route.name, now, rates[route], wanted[route])
            for route in sorted(rates, key=lambda route: route.name)
        }
        chosen: list[Work] = []
        for work in sorted(ways, key=lambda work: work.priority):
            route = ways[work].route
            if route in granted:
                granted[route] -= 1
                if granted[route] < 0:
                    self._hold(route, min(1.0, 1 / rates[route]))
                    continue
            chosen.append(work)
        return chosen

    def _hold(self, route: Route, seconds: float) -> None:
        """Begin nothing on `route` meanwhile, so that then the most urgent comes first again."""
        for lane in self._lanes:
            if lane.route is route:
                lane.allowed = time.monotonic() + seconds

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
        rows = self._come_back(connection, token, now, lease, limit)
        limit -= len(rows)
        some = self._take(connection, token, now, lease, limit, priorities)
        rows += some
        done.drained = len(some) < limit
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
        done.claimed, unreadable = read(connection, rows, token)
        claims.settle(connection, unreadable, now)
        at_once = self._at_once(done.claimed, now)
        claims.settle(connection, load(connection, at_once), now)
        done.claimed = [w for w in done.claimed if w.loaded or w not in at_once]
        at_once = [w for w in at_once if w.loaded]
        claims.begin(connection, at_once)
        done.begun.update(at_once)

    def _take(
        self,
        connection: Any,
        token: int,
        now: int,
        lease: int,
        limit: int,
        priorities: Sequence[Priority],
        route: str | None = None,
    ) -> list[Any]:
        return claims.take(
            connection,
            token=token,
            now=now,
            latest=self._latest(now),
            lease=lease,
            limit=limit,
            skip_locked=not self._queue.database.is_sqlite,
            priorities=priorities,
            route=route,
        )

    def _come_back(
        self, connection: Any, token: int, now: int, lease: int, limit: int
    ) -> list[Any]:
        """Claim what was parked, by whomever, for routes that have room by now."""
        moment = time.monotonic()
        search = moment >= self._next_search
        rows: list[Any] = []
        for lane in self._lanes:
            most = min(self._batch, limit - len(rows))
            if most > 0 and (lane.parked or search) and self._has_room(lane):
                name = lane.route.name
                some = self._take(connection, token, now, lease, most, lane.classes, name)
                lane.parked = len(some) == most
                rows += some
        if search:
            self._next_search = moment + POLL
        return rows

    def _at_once(self, works: list[Work], now: int) -> list[Work]:
        chosen: list[Work] = []
        for work in works:
            lane = self._lane_of(work)
            if (
                lane is not None
                and not lane.waiting
                and not lane.circuit.open
                and _rate(lane, now) is None
                and self._seats.has(lane)
            ):
                # Nothing is waiting there, so that all it has is on its way.
                octets = lane.flying + sum(w.size for w in chosen if self._lane_of(w) is lane)
                if lane.fits(work, octets):
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

    def _round(self, connection: Any, now: int, lease_now: int) -> int:
        """What has to be done for all, by whoever is there. How many deliveries are held here."""
        # Ours first: the database's clock may have jumped.
        renewed = claims.renew(connection, list(self._held), lease_now + int(self._lease * 1000))
        claims.wake(connection, now)
        claims.unpark(connection, {route.name for route in self._routes}, now)
        claims.end_leases(connection, now, lease_now, hold_doubt=self._holds_doubt)
        self._queue.store.beat(connection, now, "worker")
        self._share(connection, now)
        return renewed

    def _share(self, connection: Any, now: int) -> None:
        """Tell others which routes fail, and hear it from them."""
        known = routes.read(connection)
        self._slowed.clear()
        for lane in self._lanes:
            if lane.high:
                continue  # the other of its route has the same circuit
            circuit, row = lane.circuit, known.get(lane.route.name)
            if circuit.too_fast:
                self._slow(connection, lane, now)
            elif row is not None:
                circuit.learned, circuit.slowed = row.rate, row.slowed
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
            elif row is not None and row.state != routes.CLOSED and not circuit.open:
                # Also if it may be tried again: how that ends matters to all.
                left = ((row.until or now) - now) / 1000
                circuit.adopt(left, row.failures, row.reason or "")

    def _slow(self, connection: Any, lane: Lane, now: int) -> None:
        """Have the route of `lane` carry less, on all hosts."""
        circuit, name = lane.circuit, lane.route.name
        halved = routes.slow(
            connection, name, now, rate=lane.route.rate, pace=circuit.pace, pause=circuit.left
        )
        self._slowed.append(circuit)
        if halved is not None:
            self._news.append(RouteSlowed(name, printable(circuit.reason), halved))
        row = routes.read(connection)[name]
        circuit.learned, circuit.slowed = row.rate, row.slowed

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
            for work, _, _ in back:
                self._release(work.token, len(work.ids))
            self._seats.committed()
            for lane in self._lanes:
                for work in [w for w in lane.pending if w in written.begun]:
                    lane.pending.remove(work)
                    lane.put(work, begun=True)
                while lane.unseated and lane.pending:
                    self._park(lane, lane.pending.popleft())
            if rounds:
                self.deadline = started + self._lease - self._margin
                for circuit in self._slowed:
                    circuit.too_fast = False
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
            self._back.append((work, NOWHERE, "no route takes it"))
        elif lane.circuit.open:
            self._back.append((work, max(lane.circuit.left, 1.0), lane.circuit.reason))
        elif lane.unseated or lane.waiting >= self._most(work):
            self._park(lane, work)
        else:
            lane.put(work, begun=begun)

    def _park(self, lane: Lane, work: Work) -> None:
        """Leave `work` in the queue until `lane`, or another of its route, has room."""
        self._back.append((work, _PARK, lane.route.name))
        lane.parked = True

    def _most(self, work: Work) -> int:
        """How much may be waiting before it; there is always some room for what is urgent."""
        return self._batch * (3 if work.priority == Priority.HIGH else 2)

    def _lane_of(self, work: Work) -> Lane | None:
        route = route_of(self._routes, work.envelope, work.priority)
        if route is None:
            return None
        lanes = [lane for lane in self._lanes if lane.route is route]
        if work.priority == Priority.HIGH:
            return max(lanes, key=lambda lane: lane.high)
        return min(lanes, key=lambda lane: lane.high)


def _rate(lane: Lane, now: int) -> float | None:
    """Messages a second that the route of `lane` may carry; None for any number."""
    return routes.limit(lane.route.rate, lane.circuit.learned, lane.circuit.slowed, now)
