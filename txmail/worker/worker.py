"""`Worker`: claims what is due, sends it, writes down what became of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Unpack, cast

from ..common.logs import quiet_logger
from ..common.per_process import this_process
from ..envelope import Envelope
from ..events import (
    Events,
    WorkerStarted,
    WorkerStopped,
)
from ..exceptions import ConfigurationError, SchemaError, TxmailError
from ..interfaces import ITransport
from ..outcome import Status
from ..queue.queue import Queue
from ..queue.retry import RetryPolicy
from ..queue.sql.claimed import ClaimedMessage
from ..submission import Priority
from ..transports.login_limit import close_idle
from ..transports.resend import send_all
from ..types import QueueUser, Transport
from . import at_exit
from .active import BATCH, LEASE, LeaseLost, Stopped
from .clock import boottime
from .dispatcher import Keeper
from .faults import Faults
from .lane import Lane
from .login_watch import LoginWatch, bar_refused
from .opening import Guard, Opener
from .options import RunOptions, WorkerOptions
from .reactions import Reactions
from .router import Circuit, Route

log = quiet_logger("txmail.worker")

#: Messages in one call of `send_all` to a server. A program or a folder takes a whole list at once.
STREAM = 10_000
#: Seconds between two tries of a queue that cannot be reached, at first and at most.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
#: The pause after which `run_once` gives up, and leaves it to the next run.
ONCE_PATIENCE = 4.0
#: Seconds that a worker that was told to stop waits for what is on the wire.
GRACE = 30.0
#: Seconds between two looks at an event that somebody else may set.
TICK = 0.05
#: Seconds that a worker in a thread has for that when its process ends.
LAST_CHANCE = 10.0
#: Seconds that a lane waits for work before it gives its connection back.
LINGER = 0.02
#: Seconds for which a lane waits for another message that may show whose fault a refusal is.
HEARS_WITHIN = 5.0


class Worker:
    """Sends what is in `queue`, by one or several routes, until it is told to stop.

    One thread writes to the queue; each route has two that send, one of them for mail of high
    priority only. Each has at most one connection, or as many as its transport was told to use.
    """

    def __init__(
        self,
        queue: Queue,
        transport: Transport | ITransport | Sequence[Route],
        *,
        policy: RetryPolicy | None = None,
        limit: int | None = None,
        reserve: bool = True,
        lease: float = LEASE,
        batch: int = BATCH,
        clock: Callable[[], float] = boottime,
        events: Events | None = None,
    ) -> None:
        """`transport` carries everything, or is a list of `Route` s, of which the first that fits
        is taken. `limit` is how many deliveries are tried, None for any number; `lease` is in
        seconds. Without `reserve`, no connection is kept free for high priority. `events` is told
        what happens; without it, there is but the log.
        """
        routes = (
            [Route.to("default", transport)]
            if ITransport.providedBy(transport)
            else list(cast("Sequence[Route]", transport))
        )
        lanes: list[Lane] = []
        for route in routes:
            lanes += _lanes_of(route, Circuit(clock), Faults(clock), reserve)
        self._queue = queue
        self._events = events if events is not None else Events()
        self._lanes = lanes
        self._ledger = Keeper(
            queue,
            lanes,
            policy if policy is not None else RetryPolicy(hold_doubt=queue.on_doubt == "hold"),
            clock=clock,
            batch=batch,
            lease=lease,
            limit=limit,
            events=self._events,
        )
        self._reactions = Reactions(self._ledger, self._events)
        self._logins = LoginWatch(lanes, self._ledger.hear)
        self._limited = limit is not None
        self._stopped = threading.Event()
        self._process = this_process()

    @property
    def written_count(self) -> int:
        """How many deliveries have been tried and written."""
        return self._ledger.written_count

    def stop(self) -> None:
        """Finish what is on the wire and give back the rest. Safe in a signal handler's thread.

        In a forked child, which has no worker, nothing happens.
        """
        if self._process != this_process():
            return
        self._stopped.set()
        self._ledger.stop()

    def run(self) -> int:
        """Work until `stop` is called; how many deliveries have been tried.

        Raises `SchemaError` once the tables are upgraded past this process.
        """
        return self._run(until_drained=False, seconds=None, stop=None)

    def run_once(self, seconds: float | None = None, *, stop: threading.Event | None = None) -> int:
        """Work until nothing is due any more, or `seconds` are over; how many were tried.

        It ends as `stop` would end it when the event `stop` is set, by any thread.

        Without `seconds` and without a limit, what becomes due after it has begun is left to the
        next run: it ends, however much others enqueue meanwhile.

        Raises `SchemaError`, and `QueueUnavailable` if the queue cannot be reached for some time.
        """
        if seconds is None and not self._limited:
            self._ledger.bound()
        return self._run(until_drained=True, seconds=seconds, stop=stop)

    def _run(
        self, *, until_drained: bool, seconds: float | None, stop: threading.Event | None
    ) -> int:
        end = None if seconds is None else time.monotonic() + seconds
        self._process = this_process()
        self._ledger.start()
        if not until_drained:
            self._ledger.go_on()
        self._recall_logins()
        threads = [
            threading.Thread(
                target=self._send_for, args=(lane,), name=f"txmail {lane.route.name}", daemon=True
            )
            for lane in self._lanes
        ]
        for thread in threads:
            thread.start()
        self._events.emit(WorkerStarted(self._queue.name))
        wake = self._ledger.wake
        if until_drained:
            self._queue.subscribe(wake, listen=False)  # it looks by itself, and ends soon
        else:
            self._queue.subscribe(wake)
        try:
            self._keep(until_drained, end, stop)
        finally:
            self._queue.unsubscribe(wake)
            self._logins.stop()
            self.stop()
            self._finish(threads)
            self._ledger.retire()
            self._events.emit(
                WorkerStopped(self._queue.name, self.written_count, self._ledger.finished)
            )
        return self.written_count

    def _recall_logins(self) -> None:
        """See which logins were refused before, also for a run that keeps other pauses."""
        if not self._logins.needed:
            return
        with suppress(TxmailError):  # whoever needs the queue says more
            self._ledger.recall()
        self._logins.start()

    def _keep(self, until_drained: bool, end: float | None, stop: threading.Event | None) -> None:
        """Be the keeper."""
        pause = FIRST_PAUSE
        while not (self._stopped.is_set() or (stop is not None and stop.is_set())):
            started = self._queue.attended = time.monotonic()
            if end is not None and started >= end:
                return
            try:
                self._ledger.cycle()
                pause = FIRST_PAUSE
            except Exception as error:
                if _is_outdated(error):
                    raise
                if until_drained and (isinstance(error, SchemaError) or pause > ONCE_PATIENCE):
                    raise
                if not isinstance(error, TxmailError):
                    log.exception("%s: unexpected", self._queue.name)
                log.warning("%s; trying again in %g s", error, pause)
                (stop or self._stopped).wait(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
                continue
            if until_drained and self._ledger.drained and self._ledger.finished:
                return
            self._stopped.wait(max(0.0, self._ledger.pause_until - time.monotonic()))
            self._ledger.wait(_sooner(end, stop), until_drained=until_drained)

    def _finish(self, threads: list[threading.Thread]) -> None:
        end = time.monotonic() + GRACE
        while time.monotonic() < end:
            for lane in self._lanes:
                if lane.abandoned or not lane.busy:
                    self._reactions.apply(lane, lane.faults.rest())
            try:
                self._ledger.cycle()
            except Exception as error:
                if self._ledger.finished or _is_outdated(error):
                    break  # there is nothing that would have to be written, or can be
                log.warning("%s", error, exc_info=not isinstance(error, TxmailError))
                time.sleep(FIRST_PAUSE)
                continue
            if self._ledger.finished:
                break
            self._ledger.wait(end)
        for thread, lane in zip(threads, self._lanes, strict=True):
            if not lane.abandoned:
                thread.join(max(0.0, end - time.monotonic()))

    # -- the lanes

    def _send_for(self, lane: Lane) -> None:
        while True:
            work = self._next_work(lane)
            if work is None:
                return
            try:
                self._send(lane, work)
            except Stopped as error:
                log.info("%s", error)
            except LeaseLost as error:
                log.error("%s: %s; what was on its way may be in doubt", lane.route.name, error)
            except Exception:
                log.exception("%s failed", lane.route.name)
                lane.circuit.failed("it failed unexpectedly")
                self._reactions.tell_failure(lane)
                self._ledger.route_failed(lane.route)
            finally:
                if lane.route.connections is not None:
                    close_idle(lane.route.transport)  # it counts as long as it is open
                self._ledger.idle(lane)

    def _next_work(self, lane: Lane) -> ClaimedMessage | None:
        """What `lane` sends next, None for nothing any more."""
        end = time.monotonic() + HEARS_WITHIN
        while lane.faults.undecided:
            work = self._ledger.take(lane, LINGER, first=True)
            if work is not None:
                return work
            late = self._stopped.is_set() or lane.circuit.open or time.monotonic() >= end
            if late or not self._ledger.may_hear_more(lane):
                self._reactions.apply(lane, lane.faults.rest())
        return self._ledger.take(lane, None, first=True)

    def _send(self, lane: Lane, first: ClaimedMessage) -> None:
        lane.sent.clear()
        try:
            self._send_all(lane, first)
        except BaseException:
            self._ledger.forget((work, missing) for work, missing, _ in lane.sent.values())
            raise
        bar_refused(lane.route)
        if lane.circuit.open:
            self._ledger.route_failed(lane.route)

    def _send_all(self, lane: Lane, first: ClaimedMessage) -> None:
        sent = lane.sent
        opener: Any = Opener(self._ledger, lane)
        for outcome in send_all(
            opener,
            self._feed(lane, first),
            window=lane.route.window,
            guard=Guard(self._ledger, lane),
        ):
            if lane.abandoned:
                continue  # all of it was given back
            work, missing, told = sent[outcome.position]
            recipients = work.envelope.recipients
            place = 0 if len(recipients) == 1 else recipients.index(outcome.recipient)
            result = work, place, outcome
            if missing == 1:
                self._ledger.landed(lane, work)
            self._reactions.apply(lane, lane.faults.tell(result, paused=lane.circuit.open))
            if missing == 1 and outcome.status is Status.ACCEPTED:
                lane.circuit.carried()
            if missing > 1:
                sent[outcome.position] = work, missing - 1, (*told, outcome.recipient)
            else:
                del sent[outcome.position]  # and with it the content

    def _feed(self, lane: Lane, first: ClaimedMessage) -> Iterator[Envelope]:
        """What `lane` has to send; each is among what it has `sent` then."""
        most = STREAM if getattr(lane.route.transport, "asks_server", False) else lane.ahead
        work: ClaimedMessage | None = first
        place = 0
        while work is not None:
            lane.sent[place] = work, len(work.ids), ()
            yield work.envelope
            place += 1
            if place >= most or lane.circuit.open:
                return
            # The last message leaves when it is known to be the last.
            work = self._ledger.take(lane, LINGER if self._ledger.expects(lane) else 0.0)


def _is_outdated(error: Exception) -> bool:
    """Whether the tables were upgraded past this process: only a newer one can go on."""
    return isinstance(error, SchemaError) and error.outdated


def _sooner(end: float | None, stop: threading.Event | None) -> float | None:
    """By the monotonic clock: no later than `end`, and soon enough to see that `stop` is set."""
    if stop is None:
        return end
    moment = time.monotonic() + TICK
    return moment if end is None else min(end, moment)


def _lanes_of(route: Route, circuit: Circuit, faults: Faults, reserve: bool) -> list[Lane]:
    """Those of `route`: one for what is urgent, if there are connections for two."""
    if not reserve or (route.connections is not None and route.connections < route.seats * 2):
        return [Lane(route, circuit, faults)]
    rest = tuple(p for p in Priority if p is not Priority.HIGH)
    return [
        Lane(route, circuit, faults, classes=rest),
        Lane(route, circuit, faults, high=True, classes=(Priority.HIGH,)),
    ]


def run_once(
    queue: Queue,
    transport: Transport | ITransport | Sequence[Route],
    *,
    limit: int | None = None,
    seconds: float | None = None,
    stop: threading.Event | None = None,
    **options: Unpack[RunOptions],
) -> int:
    """Send what is due and return: for cron, systemd or a task system. Runs may overlap.

    At most `limit` deliveries, or for `seconds`; without either, what was due when it began. When
    the event `stop` is set, what is on the wire is finished and the rest given back.
    Returns how many were tried; `options` are those of `Worker`. Raises `SchemaError`, and
    `QueueUnavailable` if the queue cannot be reached for some time.
    """
    return Worker(queue, transport, limit=limit, **options).run_once(seconds, stop=stop)


def _run(worker: Worker) -> None:
    try:
        worker.run()
    except SchemaError as error:
        log.critical("%s; the worker has stopped", error)


class RunningWorker:
    """A worker in a thread of this process; made by `start_worker`."""

    def __init__(self, worker: Worker | None) -> None:
        """Without a `worker` there is no mail that would need one."""
        self.worker = worker
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        if worker is not None:
            self._thread = threading.Thread(
                target=_run, args=(worker,), name="txmail worker", daemon=True
            )
            self._thread.start()
            at_exit.before(self._end)

    def stop(self, timeout: float | None = GRACE) -> None:
        """Finish what is on the wire, give back the rest; wait at most `timeout` seconds.

        When its process ends, it does so by itself, for at most `LAST_CHANCE` seconds.
        """
        at_exit.forget(self._end)
        self._stopped.set()
        if self.worker is not None:
            self.worker.stop()
        if self._thread is not None:
            self._thread.join(timeout)

    def _end(self) -> None:
        self.stop(LAST_CHANCE)

    @property
    def running(self) -> bool:
        """True while it works."""
        if self._thread is None:
            return not self._stopped.is_set()
        return self._thread.is_alive()


def start_worker(mailer: QueueUser, **options: Unpack[WorkerOptions]) -> RunningWorker:
    """A worker in a thread of this process, for the queue and the routes of `mailer`.

    Without routes, all mail takes its transport. A `DummyMailer` and a `DebugMailer` have no mail
    for a worker: theirs does nothing. It stops by itself when the process ends: at the end of the
    program, by ``sys.exit`` or an exception; not by ``os._exit``, nor by a signal that nobody
    handles.
    `options` are those of `Worker`. Raises `ConfigurationError` if the mailer has no queue.
    """
    if not getattr(mailer, "needs_worker", True):
        return RunningWorker(None)
    if mailer.queue is None:
        raise ConfigurationError(
            "the mailer has no queue: the setting queue_url is needed", field="queue"
        )
    options.setdefault("events", mailer.events)
    ways: Transport | ITransport | Sequence[Route] = mailer.routes or mailer.transport
    return RunningWorker(Worker(mailer.queue, ways, **options))
