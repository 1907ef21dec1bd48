"""Metrics for Prometheus: counters of this process's workers, and the state of the queue.

``txmail worker --metrics-port 9187`` serves both. An application with a worker of its own needs two
lines::

    metrics = Metrics(mailer.queue, mailer.events)
    server = serve(metrics, 9187)

=====================================  ============================================================
``txmail_deliveries_total``            tried recipients, by route and by the state after the try:
                                       ``sent``, ``deferred``, ``failed``, ``in_doubt``,
                                       ``ready`` (the route failed), ``expired``
``txmail_delivery_seconds``            seconds from ``enqueue`` to the server's reply, of sent mail
``txmail_results_refused_total``       results that came after another worker had the lease
``txmail_route_failures_total``        how often a route was paused, by route
``txmail_queue_deliveries``            deliveries in the queue that are not finished, by state
``txmail_queue_undecided``             transactions whose end is not known
``txmail_queue_oldest_due_seconds``    seconds for which the oldest due delivery has been due
``txmail_queue_workers``               live processes with a worker
``txmail_queue_up``                    0 if the queue cannot be read; the other ``txmail_queue_``
                                       and ``txmail_route_`` numbers are missing then
``txmail_route_open``                  1 if workers pause a route now, by route
``txmail_route_stopped``               1 if a route needs a person, by route
``txmail_route_rate``                  messages a second, by route; only for a route whose server
                                       asked for a lower rate
=====================================  ============================================================

The first four count what this process does; the others describe the queue, for all processes. No
label contains an address, a subject or a server's text.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
    make_wsgi_app,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..events import DeliverySettled, Event, Events, ResultsRefused, RouteFailed
from ..exceptions import TxmailError
from ..queue.inspect import MAX_AGE, Health, read_health
from ..queue.queue import Queue
from ..queue.sql import route_state
from .bounded_server import Application, BoundedServer

#: Seconds in which a worker looks at its queue at least once, even if that does not answer.
_STALLED = 120.0
#: Upper ends of the classes of `txmail_delivery_seconds`, in seconds: from at once to days.
BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400, 86400, 432000)


class Metrics:
    """Metrics of a queue and of the workers of this process."""

    def __init__(
        self, queue: Queue, events: Events, registry: CollectorRegistry | None = None
    ) -> None:
        """Count the `events` of the workers, or of the mailer that started them.

        The default `registry` is a new one. Raises ValueError if it has these metrics already.
        """
        self.registry = CollectorRegistry() if registry is None else registry
        self._queue = queue
        # To find a counter by its labels takes longer than to count.
        self._known: dict[tuple[str, str], Any] = {}
        self._deliveries = Counter(
            "txmail_deliveries",
            "Tried recipients",
            ["route", "state"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "txmail_delivery_seconds",
            "Seconds from enqueue to the server's reply",
            buckets=BUCKETS,
            registry=self.registry,
        )
        self._refused = Counter(
            "txmail_results_refused",
            "Results that came after another worker had the lease",
            registry=self.registry,
        )
        self._failures = Counter(
            "txmail_route_failures",
            "How often a route was paused",
            ["route"],
            registry=self.registry,
        )
        self.registry.register(_QueueCollector(queue))
        events.subscribe(self._heard)

    def _heard(self, event: Event) -> None:
        match event:
            case DeliverySettled(_, route, _, state, _, age):
                key = route, state
                counter = self._known.get(key)
                if counter is None:
                    counter = self._known[key] = self._deliveries.labels(*key)
                counter.inc()
                if state == "sent":
                    self._seconds.observe(age)
            case ResultsRefused(_, count):
                self._refused.inc(count)
            case RouteFailed(route):
                self._failures.labels(route).inc()

    def text(self) -> bytes:
        """All metrics in the format that Prometheus reads."""
        return generate_latest(self.registry)

    @property
    def is_live(self) -> bool:
        """False if this process has a worker that has stalled."""
        attended = self._queue.attended
        return attended is None or time.monotonic() - attended < _STALLED

    def health(self) -> Health:
        """The health of the queue. Raises `QueueUnavailable`."""
        return read_health(self._queue.database)


class _QueueCollector(Collector):
    """Reads the queue for each request for the metrics."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registering does not wait for a database."""
        return []

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily("txmail_queue_up", "1 if the queue can be read")
        try:
            health = read_health(self._queue.database)
        except TxmailError:
            up.add_metric([], 0)
            return [up]
        up.add_metric([], 1)
        return [up, *_gauges(health)]


def _gauges(health: Health) -> Iterable[Metric]:
    deliveries = GaugeMetricFamily(
        "txmail_queue_deliveries", "Deliveries that are not finished", labels=["state"]
    )
    for state, number in health.deliveries.items():
        deliveries.add_metric([state], number)
    yield deliveries
    for name, what, value in (
        ("undecided", "Transactions whose end is not known", health.undecided),
        (
            "oldest_due_seconds",
            "Seconds since the oldest due delivery became due",
            health.oldest_due,
        ),
        ("workers", "Live processes with a worker", health.workers),
    ):
        yield GaugeMetricFamily(f"txmail_queue_{name}", what, value)
    is_open = _by_route("open", "1 if workers pause the route")
    stopped = _by_route("stopped", "1 if the route needs a person")
    rate = _by_route("rate", "Messages a second, after the server asked for less")
    for route in health.routes:
        if route.rate is not None:
            rate.add_metric([route.name], route.rate)
        is_open.add_metric([route.name], route.state != route_state.CLOSED)
        stopped.add_metric([route.name], route.state == route_state.STOPPED)
    yield is_open
    yield stopped
    yield rate


def _by_route(name: str, what: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"txmail_route_{name}", what, labels=["route"])


def serve(
    metrics: Metrics,
    port: int,
    host: str = "127.0.0.1",
    *,
    max_age: float = MAX_AGE,
    hosts: Iterable[str] = (),
) -> BoundedServer:
    """Serve ``/metrics``, ``/health`` and ``/live`` at `host`. Raises OSError.

    Port 0 is any free port. ``/health`` is JSON: 200 if all is well, 503 if not, and ``problems``
    says why. `max_age` is for how many seconds mail may be due before that is a problem. ``/live``
    is 200 while the worker of this process runs, whatever the mail servers do, and 503 after it has
    stalled for two minutes: then start it again. A request has to name this machine, or one of
    `hosts`: see `BoundedServer`.
    """
    return BoundedServer(_application(metrics, max_age), host, port, hosts=hosts)


def _application(metrics: Metrics, max_age: float) -> Application:
    pages: dict[str, Application] = {
        "/metrics": make_wsgi_app(metrics.registry),
        "/health": partial(_health, metrics, max_age),
        "/live": partial(_live, metrics),
    }

    def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        page = pages.get(environ["PATH_INFO"])
        if page is not None:
            return page(environ, start)
        return _answer(
            start, "404 Not Found", "text/plain; charset=utf-8", b"/metrics, /health or /live\n"
        )

    return application


def _health(
    metrics: Metrics, max_age: float, environ: dict[str, Any], start: Callable[..., Any]
) -> list[bytes]:
    try:
        health = metrics.health()
    except TxmailError as error:
        found: dict[str, Any] = {"problems": [str(error)]}
    else:
        found = {"problems": health.problems(max_age), **asdict(health)}
    status = "503 Service Unavailable" if found["problems"] else "200 OK"
    return _answer(start, status, "application/json", json.dumps(found).encode() + b"\n")


def _live(metrics: Metrics, environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
    live = metrics.is_live
    status = "200 OK" if live else "503 Service Unavailable"
    said = "live" if live else f"the worker has done nothing for {_STALLED:.0f} seconds"
    return _answer(start, status, "text/plain; charset=utf-8", f"{said}\n".encode())


def _answer(start: Callable[..., Any], status: str, kind: str, body: bytes) -> list[bytes]:
    start(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body]
