"""Prometheus: what workers do, counted, and how the queue is, read when somebody asks.

``txmail worker --metrics-port 9187`` serves both; an application that has a worker of its own does
it with two lines::

    metrics = Metrics(mailer.queue, mailer.events)
    server = serve(metrics, 9187)

=====================================  ============================================================
``txmail_deliveries_total``            recipients that were tried, by route and the state they came
                                       into: ``sent``, ``deferred``, ``failed``, ``in_doubt``,
                                       ``ready`` (the route failed), ``expired``
``txmail_delivery_seconds``            from ``enqueue`` to the server's reply, of what was sent
``txmail_results_refused_total``       results that came after the lease had gone to others
``txmail_route_failures_total``        how often a route was left alone, by route
``txmail_queue_deliveries``            what is in the queue and not finished, by state
``txmail_queue_undecided``             transactions of which nobody knows how they ended
``txmail_queue_oldest_due_seconds``    for how long the oldest due delivery has been due
``txmail_queue_workers``               processes with a worker that live
``txmail_queue_up``                    0 if the queue cannot be read; then it has no other numbers
``txmail_route_open``                  1 if a route is left alone at the moment, by route
``txmail_route_stopped``               1 if it needs a person
``txmail_route_rate``                  messages a second that are left to it because its server
                                       wanted less; only of such routes
=====================================  ============================================================

The first four count what this process did; the others are of the queue, whoever works on it. No
label has an address, a subject or a text of a server in it.
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
    """What is to be known about a queue and the workers of this process."""

    def __init__(
        self, queue: Queue, events: Events, registry: CollectorRegistry | None = None
    ) -> None:
        """`events` are those of the workers or of the mailer that they were started for.

        `registry` is, by default, one of its own. A ValueError if it has these metrics already.
        """
        self.registry = CollectorRegistry() if registry is None else registry
        self._queue = queue
        # By state and route; finding a counter by its labels takes longer than counting.
        self._known: dict[tuple[str, str], Any] = {}
        self._deliveries = Counter(
            "txmail_deliveries",
            "Recipients that were tried",
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
            "Results that came after the lease had gone to others",
            registry=self.registry,
        )
        self._failures = Counter(
            "txmail_route_failures",
            "How often a route was left alone",
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
        """All of them as Prometheus reads them."""
        return generate_latest(self.registry)

    @property
    def is_live(self) -> bool:
        """False if there is a worker in this process, and it does not go on."""
        attended = self._queue.attended
        return attended is None or time.monotonic() - attended < _STALLED

    def health(self) -> Health:
        """How the queue is. Raises `QueueUnavailable`."""
        return read_health(self._queue.database)


class _QueueCollector(Collector):
    """Reads the queue whenever the metrics are asked for."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def describe(self) -> Iterable[Metric]:
        """Nothing: who registers it does not have to wait for a database."""
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
        ("undecided", "Transactions of which nobody knows how they ended", health.undecided),
        ("oldest_due_seconds", "Seconds since the oldest due was due", health.oldest_due),
        ("workers", "Processes with a worker that live", health.workers),
    ):
        yield GaugeMetricFamily(f"txmail_queue_{name}", what, value)
    is_open = GaugeMetricFamily("txmail_route_open", "1 if it is left alone", labels=["route"])
    stopped = GaugeMetricFamily("txmail_route_stopped", "1 if it needs a person", labels=["route"])
    rate = GaugeMetricFamily("txmail_route_rate", "Messages a second left to it", labels=["route"])
    for route in health.routes:
        if route.rate is not None:
            rate.add_metric([route.name], route.rate)
        is_open.add_metric([route.name], route.state != route_state.CLOSED)
        stopped.add_metric([route.name], route.state == route_state.STOPPED)
    yield is_open
    yield stopped
    yield rate


def serve(
    metrics: Metrics,
    port: int,
    host: str = "127.0.0.1",
    *,
    max_age: float = MAX_AGE,
    hosts: Iterable[str] = (),
) -> BoundedServer:
    """Serve ``/metrics``, ``/health`` and ``/live`` at `host`. Raises OSError.

    Port 0 is any free one. ``/health`` is JSON: 200 if all is well and 503 if not, and its
    ``problems`` say what. ``/live`` is 200 while the worker of this process goes on, whatever the
    mail servers do, and 503 once it has not for two minutes: then it helps to start it again.
    `max_age` is how many seconds mail may have been due. Requests have to be for a name of this
    machine, or for one of `hosts`: see `BoundedServer`.
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
