"""The keeper: the one thread of a worker that writes to its queue.

Each of its transactions does all there is to do: it settles results, commits ``begun`` for what is
to be sent next, gives back and claims.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ..common.logs import quiet_logger
from ..common.per_process import this_process
from ..events import Event, Events, ResultsRefused
from ..exceptions import TxmailError
from ..queue.queue import Queue
from ..queue.retry import RetryPolicy, Settlement
from ..queue.sql import claim, connection_slots, impossible, leases, parked, schedule, settlements
from ..queue.sql.claimed import ClaimedMessage, load, read
from ..queue.sql.dead import dead_holders
from ..queue.sql.round_robin import RoundRobin
from ..queue.sql.times import Mender
from ..queue.states import State
from ..submission import Priority
from .active import BATCH, LEASE, Ledger, held_here
from .connection_slots import Seats
from .faults import Result
from .lane import Lane, Ways
from .policy import Judge
from .rate_limit import Traffic, rate_of

log = quiet_logger("txmail.worker")

#: Seconds between two looks for mail that nobody has told about.
POLL = 1.0
#: Seconds between two rounds of what has to be done for all.
ROUND = 5.0
#: At least as long as a transaction took, and as many seconds, others get to write after it.
BREATH = 0.002
#: Seconds after which mail that no route takes is looked at again.
NOWHERE = 300.0

#: Milliseconds: what is so much later than now was written by a clock that was ahead.
SLACK = 10_000
#: Milliseconds in which a worker that cannot be looked at has to renew what it leased by such one.
UNSEEN = 30_000

_TOKEN_BITS = 63
#: In place of the seconds until it is due again: its route, whose name is said, has no room for it.
_PARK = -1.0


#: A delivery, the token it is held by, and what it comes to.
Settled = tuple[int, int, Settlement]


@dataclass
class _Written:
    """What one transaction has come to."""

    claimed: list[ClaimedMessage] = field(default_factory=list)
    #: claimed, and not read yet
    rows: list[Any] = field(default_factory=list)
    token: int = 0
    begun: set[ClaimedMessage] = field(default_factory=set)
    #: True if there was less than there was room for, None if nobody looked
    drained: bool | None = None
    #: True if others have what was held here
    lost: bool = False


class Keeper(Ledger):
    """A ledger that is written to the queue. `cycle` is for one thread only."""

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
        super().__init__(lanes, clock=clock, batch=batch, lease=lease, limit=limit)
        self._queue = queue
        self._events = events if events is not None else Events()
        #: what is to be told once it is committed
        self._news: list[Event] = []
        self._judge = Judge(queue, policy)
        self._ways = Ways(lanes)
        self._traffic = Traffic(lanes)
        self._seats = Seats(lanes)
        #: by the monotonic clock: before it, others get to write
        self.pause_until = 0.0
        self._turn = RoundRobin()
        self._mender = Mender()
        self._next_search = 0.0
        #: True if nothing is claimed that becomes due later than the first look; that moment
        self._bounded = False
        self._bound: int | None = None

    def retire(self) -> None:
        """Say that this process has no worker any more, if it can be said."""
        with suppress(TxmailError), self._queue.database.write(durable=False) as connection:
            self._queue.store.retire(connection)
            self._seats.release_all(connection)

    def start(self) -> None:
        """From now on it is this process's, which may be a child of that which has made it."""
        self._process = this_process()
        self._seats = Seats(self._lanes)

    def go_on(self) -> None:
        """It is not over when nothing is due: routes that are paused are tried once at first."""
        self._traffic.begin()

    def recall(self) -> None:
        """Read what is known of the routes. Raises `QueueUnavailable`, `SchemaError`."""
        with self._queue.database.read() as connection:
            self._traffic.recall(connection)

    def bound(self) -> None:
        """Leave what becomes due from now on to others."""
        self._bounded = True

    def cycle(self) -> None:
        """Write what there is to write, and claim. Raises `QueueUnavailable`."""
        moment = time.monotonic()
        lost = self._clock() >= self.deadline
        if lost:
            self._lose()
        self._read()
        with self.changed:
            results, self._results = self._results, []
            back, self._back = self._back, []
            begun = [work for lane in self._lanes for work in self._next(lane)]
            room = self._room()
            more = any(lane.parked and self._has_room(lane) for lane in self._lanes)
            looks = (
                not (self._stopping or lost)
                and self._left != 0
                and (not self.drained or self._woken or more or moment >= self._next_look)
            )
            self._woken = False
        rounds = lost or moment >= self._next_round or self._traffic.has_news
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
        if rounds:
            self._queue.database.look_again()
        try:
            written = self._write(results, back, begun, room if looks else -1, rounds)
        except BaseException:
            self._seats.failed()
            with self.changed:
                self._results[:0] = results
                self._back[:0] = back
            if rounds:
                self._traffic.failed()
            raise
        self._committed(results, back, written, started, rounds)
        for event in self._news:
            self._events.emit(event)
        self._read()
        if rounds:
            self._next_round = moment + min(ROUND, self._lease / 4)
            self._queue.resolve_soon()
        if looks:
            self._next_look = time.monotonic() + POLL

    def _lose(self) -> None:
        """Others may have what was held here: nothing of it is sent any more.

        What is still ours is given back; results are written if they still may be.
        """
        with self.changed:
            if self._held:
                log.error("%s: the lease has ended; others may have what is held", self._queue.name)
                self._losses += 1
            self._return_waiting()
            if self._unread[0]:
                self._unsure.append(self._unread[1])
                self._unread = [], 0
            self._held.clear()
            self.changed.notify_all()

    def _read(self) -> None:
        """Read what was claimed, and the contents of what comes next.

        Meanwhile nobody is kept from writing.
        """
        rows, token = self._unread
        with self.changed:
            if not rows and not any(lane.lacking() for lane in self._lanes):
                return
        with self._queue.database.read() as connection:
            works, unreadable = read(connection, rows, token)
            with self.changed:
                self._unread = [], 0
                self._over += unreadable
                for work in self._ways.assign(works):
                    self._hand_out(work, False)
                lacking = [w for lane in self._lanes for w in lane.lacking()]
            self._load(connection, lacking)

    def _load(self, connection: Any, works: list[ClaimedMessage]) -> None:
        """Read the contents of `works`, which are pending."""
        unreadable = load(connection, works)
        with self.changed:
            for lane in self._lanes if unreadable else ():
                for work in [w for w in lane.pending if w in works and not w.loaded]:
                    lane.pending.remove(work)
                    self._over += [row for row in unreadable if row[0] in work.ids]

    def _is_due(self) -> bool:
        """True if there is something to claim: reading holds nobody up."""
        with self._queue.database.read() as connection:
            return self._finds(connection)

    def _finds(self, connection: Any) -> bool:
        due = schedule.next_due(connection)
        now = self._latest(self._queue.database.now_ms(connection))
        if due is not None and due <= now:
            return True
        return any(
            parked.is_parked(connection, lane.route.name, now)
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

    def _next(self, lane: Lane) -> list[ClaimedMessage]:
        """What of `lane` is to be begun now. It stays pending until that is committed."""
        return [] if time.monotonic() < lane.allowed else lane.next()

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
        results: list[Result],
        back: list[tuple[ClaimedMessage, float, str]],
        begun: list[ClaimedMessage],
        room: int,
        rounds: bool,
    ) -> _Written:
        database = self._queue.database
        token = secrets.randbits(_TOKEN_BITS)
        done = _Written()
        with database.write(durable=True) as connection:
            began = time.monotonic()
            now, lease_now = database.now_ms(connection), database.lease_now_ms(connection)
            for lane in self._lanes:
                lane.faults.queue_now = now
            made = [self._judge.settle(result, now) for result in results]
            made = settlements.hold_repeated(connection, made, self._queue.doubt_retries)
            written = 0
            delayed, others = self._delayed(results, made)
            for route, some in _by_route(others).items():
                written += settlements.settle(connection, some, now, route)
            written += parked.delay(connection, delayed, now)
            self._news = [
                self._judge.tell(result, settled, now)
                for result, (_, _, settled) in zip(results, made, strict=True)
            ]
            if written < len(made):
                self._news.append(ResultsRefused(self._queue.name, len(made) - written))
            settlements.settle(connection, self._over, now)
            self._give_back(connection, back, now)
            lease = lease_now + int(self._lease * 1000)
            gone = len(made) + sum(len(work.ids) for work, _, _ in back) + len(self._over)
            held = sum(self._held.values()) - gone
            lost = rounds and self._round(connection, now, lease_now) < held
            room = self._seat(connection, begun, room, lease_now, lease)
            begun = self._traffic.allowed(connection, begun, now)
            done.begun.update(begun)
            done.lost = not claim.begin(connection, begun) or lost
            if rounds:
                done.lost = not self._seats.renew(connection, lease) or done.lost
            claim.unclaim(connection, self._unsure, now)
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
        self.pause_until = ended + (max(BREATH, ended - began) if database.one_writer else BREATH)
        return done

    def _delayed(
        self, results: list[Result], made: list[Settled]
    ) -> tuple[list[tuple[int, int, Settlement, str | None]], list[tuple[Result, Settled]]]:
        """What waits for routes that do not work now, and what was settled otherwise."""
        delayed: list[tuple[int, int, Settlement, str | None]] = []
        others: list[tuple[Result, Settled]] = []
        for result, (id_, token, settled) in zip(results, made, strict=True):
            route = self._judge.delays(result, settled)
            if route is None:
                others.append((result, (id_, token, settled)))
            else:
                delayed.append((id_, token, settled, route))
        return delayed, others

    def _give_back(
        self, connection: Any, back: list[tuple[ClaimedMessage, float, str]], now: int
    ) -> None:
        """Give back what was claimed: until its route has room, works again, or at once."""
        parked.park(
            connection,
            [(work, why if s == _PARK else None) for work, s, why in back if s <= 0],
            now,
        )
        later = [
            (
                *(id_, work.token),
                Settlement(State.READY, now + int(s * 1000), 0, False, None, why),
                work.lane.route.name if work.lane is not None else None,
            )
            for work, s, why in back
            if s > 0
            for id_ in work.ids
        ]
        parked.delay(connection, later, now)

    def _seat(
        self, connection: Any, begun: list[ClaimedMessage], room: int, now: int, lease: int
    ) -> int:
        """See to it that lanes may connect that want to; for how many there is `room` then."""
        wanted = {work.lane for work in begun}
        some = {lane for lane in self._lanes if not (lane.high or self._seats.has(lane))}
        if room >= 0 and some and self._finds(connection):
            # Before something is claimed that cannot be sent.
            wanted |= {lane for lane in some if not lane.circuit.open}
        self._seats.take(connection, wanted, now, lease, POLL)
        begun[:] = [work for work in begun if self._seats.has(work.lane)]
        return room if room < 0 else min(room, self._room())

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
            settlements.settle(connection, [(id_, token, gone) for id_ in expired], now)
            rows = [r for r in rows if r.id not in expired]
        urgent = any(r.priority == Priority.HIGH for r in rows)
        busy = all(lane.waiting for lane in self._lanes if not lane.high)
        if not urgent and (busy or len(rows) > self._batch // 2):
            done.rows = rows  # there is much to do: nobody is to be kept from writing meanwhile
            return
        # A lane that has nothing to do need not wait for another transaction.
        works, unreadable = read(connection, rows, token)
        done.claimed = self._ways.assign(works)
        settlements.settle(connection, unreadable, now)
        at_once = self._at_once(done.claimed, now)
        settlements.settle(connection, load(connection, at_once), now)
        done.claimed = [w for w in done.claimed if w.loaded or w not in at_once]
        at_once = [w for w in at_once if w.loaded]
        claim.begin(connection, at_once)
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
        return claim.take(
            connection,
            token=token,
            now_ms=now,
            latest_ms=self._latest(now),
            lease_ms=lease,
            limit=limit,
            priorities=priorities,
            route=route,
            round_robin=self._turn if route is None else None,
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

    def _at_once(self, works: list[ClaimedMessage], now: int) -> list[ClaimedMessage]:
        """Those of `works` that can be begun in the transaction that claims them."""
        chosen: list[ClaimedMessage] = []
        #: by lane, the octets that it has; nothing is waiting there, so that all is on its way
        octets: dict[Lane, int] = {}
        #: by lane, how many more may be begun
        counts: dict[Lane, int] = {}
        for work in works:
            lane = work.lane
            if lane not in octets and self._is_idle(lane, now):
                octets[lane] = lane.flying
                counts[lane] = lane.ahead
            if lane in octets and counts[lane] and lane.fits(work, octets[lane]):
                octets[lane] += work.size
                counts[lane] -= 1
                chosen.append(work)
        return chosen

    def _is_idle(self, lane: Lane | None, now: int) -> bool:
        """True if `lane` could send something at once."""
        return (
            lane is not None
            and not lane.waiting
            and not (lane.circuit.open or lane.circuit.on_trial)
            and rate_of(lane, now) is None
            and self._seats.has(lane)
        )

    def _round(self, connection: Any, now: int, lease_now: int) -> int:
        """What has to be done for all, by whoever is there. How many deliveries are held here."""
        # Ours first: the database's clock may have jumped.
        renewed = leases.renew(connection, list(self._held), lease_now + int(self._lease * 1000))
        self._queue.store.beat(connection, now, "worker")
        self._take_over(connection, now, lease_now)
        impossible.fail(connection, now)
        self._mender.step(connection, now, SLACK)
        schedule.wake(connection, now)
        parked.unpark(connection, self._ways.names, now)
        self._news += self._traffic.share(connection, now)
        return renewed

    def _take_over(self, connection: Any, now: int, lease_now: int) -> None:
        """Take back what workers had that are gone, and what a wrong clock has left."""
        dead = dead_holders(connection)
        longest = int(max(self._lease, LEASE) * 1000) + SLACK
        far, soon = lease_now + longest, lease_now + UNSEEN
        connection_slots.free(connection, dead)
        connection_slots.end_far_off(connection, far, soon)
        leases.end_leases(
            connection,
            now,
            lease_now,
            dead=dead,
            nobodys=leases.far_off(connection, far, soon, held_here()),
            hold_doubt=self._judge.holds_doubt,
            retries=self._queue.doubt_retries,
        )

    def _committed(
        self,
        results: list[Result],
        back: list[tuple[ClaimedMessage, float, str]],
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
                self._traffic.committed()
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
            self.written_count += len(results)
            self.begun.notify_all()

    def _hand_out(self, work: ClaimedMessage, begun: bool) -> None:
        lane: Lane | None = work.lane
        if lane is None or self._stopping or lane.circuit.open:
            self._hand_to(lane, work, begun)
            return
        for part, seconds, why in lane.faults.admit(work):
            if seconds > 0:
                self._back.append((part, seconds, why))
            else:
                self._hand_to(lane, part, begun)

    def _hand_to(self, lane: Lane | None, work: ClaimedMessage, begun: bool) -> None:
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

    def _park(self, lane: Lane, work: ClaimedMessage) -> None:
        """Leave `work` in the queue until `lane`, or another of its route, has room."""
        self._back.append((work, _PARK, lane.route.name))
        lane.parked = True

    def _most(self, work: ClaimedMessage) -> int:
        """How much may be waiting before it; there is always some room for what is urgent."""
        return self._batch * (3 if work.priority == Priority.HIGH else 2)


def _by_route(made: list[tuple[Result, Settled]]) -> dict[str, list[Settled]]:
    found: dict[str, list[Settled]] = {}
    for (work, _, _), settled in made:
        found.setdefault(work.lane.route.name, []).append(settled)
    return found
