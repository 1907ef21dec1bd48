"""Prometheus: what is counted, what is read, and what is told over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

pytest.importorskip("sqlalchemy")
pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry

from txmail import transport_from_url
from txmail.events import Events, ResultsRefused
from txmail.integrations.prometheus import Metrics, serve
from txmail.worker import run_once

BODY = "what only Ann may read"


@pytest.fixture
def watched():
    return Events()


@pytest.fixture
def metrics(queue, watched):
    return Metrics(queue, watched)


@pytest.fixture
def work(queue, server, watched):
    """Send what is due to the server, or to another one."""

    def once(url=None):
        transport = transport_from_url(url or server.url)
        run_once(queue, transport, events=watched)
        transport.close()

    return once


@pytest.fixture
def get(metrics):
    """What is served at a path: the code, its headers, and the text."""
    running = serve(metrics, 0)

    def ask(path, **options):
        request = urllib.request.Request(f"http://127.0.0.1:{running.port}{path}", **options)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.headers, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read().decode()

    yield ask
    running.stop()


def values(metrics):
    """All values, by name and labels as they are written."""
    lines = metrics.text().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def of(metrics, name, **labels):
    words = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    return values(metrics).get(f"{name}{{{words}}}" if words else name)


def test_what_became_of_each_recipient_is_counted(metrics, enqueue, work, server):
    enqueue("a@example.com", "b@example.com", "c@example.com", "d@example.com")
    server.refuse("b@example.com")
    server.refuse("c@example.com", "450 4.2.0 greylisted")
    work()
    for state, number in (("sent", 2), ("failed", 1), ("deferred", 1)):
        assert of(metrics, "txmail_deliveries_total", route="default", state=state) == number
    assert of(metrics, "txmail_delivery_seconds_count") == 2
    assert of(metrics, "txmail_queue_deliveries", state="failed") == 1
    assert of(metrics, "txmail_queue_deliveries", state="deferred") == 1
    assert of(metrics, "txmail_queue_deliveries", state="ready") == 0


def test_a_route_that_is_down_is_counted_and_shown(metrics, enqueue, work, server):
    enqueue("a@example.com", "b@example.com")
    server.stop()
    work()
    assert of(metrics, "txmail_route_failures_total", route="default") == 1
    assert of(metrics, "txmail_route_open", route="default") == 1
    assert of(metrics, "txmail_route_stopped", route="default") == 0
    assert of(metrics, "txmail_queue_deliveries", state="ready") == 2


def test_results_that_were_refused_are_counted(metrics, watched):
    watched.emit(ResultsRefused("a queue", 3))
    assert of(metrics, "txmail_results_refused_total") == 3


def test_what_waits_is_read_whoever_has_put_it_there(metrics, enqueue):
    enqueue("a@example.com", "b@example.com", priority="bulk")
    assert of(metrics, "txmail_queue_up") == 1
    assert of(metrics, "txmail_queue_deliveries", state="ready") == 2
    assert of(metrics, "txmail_queue_oldest_due_seconds") >= 0
    assert of(metrics, "txmail_queue_workers") == 0


def test_a_queue_that_cannot_be_read_is_down_and_nothing_fails(metrics, queue, get, tmp_path):
    (tmp_path / "mail.db").write_bytes(b"this is no database")
    assert of(metrics, "txmail_queue_up") == 0
    assert of(metrics, "txmail_queue_workers") is None
    code, _, text = get("/health")
    assert code == 503
    assert "corrupt" in json.loads(text)["problems"][0]


def test_nothing_of_a_message_is_in_a_metric(metrics, enqueue, work, server, get):
    enqueue("ann@example.com")
    server.refuse("ann@example.com", "550 5.1.1 nobody called Ann")
    work()
    for text in (metrics.text().decode(), get("/health")[2]):
        for secret in ("ann", "Ann", "app@", BODY, "News"):
            assert secret not in text


def test_metrics_are_served_as_prometheus_reads_them(get, enqueue):
    code, headers, text = get("/metrics")
    assert code == 200
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "txmail_queue_up 1.0" in text.splitlines()


def test_health_says_what_is_wrong(get, enqueue):
    enqueue("a@example.com")
    code, headers, text = get("/health")
    found = json.loads(text)
    assert code == 503
    assert headers["Content-Type"] == "application/json"
    assert found["problems"] == ["0 of 1 workers run: start txmail worker"]
    assert found["deliveries"]["ready"] == 1


def test_health_is_good_while_a_worker_lives(get, queue):
    with queue.database.write() as connection:
        queue.store.beat(connection, queue.database.now_ms(connection), "worker")
    code, _, text = get("/health")
    assert code == 200
    assert json.loads(text)["problems"] == []


@pytest.mark.parametrize("path", ["/", "/metrics/x", "/../etc/passwd", "/health%00"])
def test_nothing_else_is_served(get, path):
    assert get(path)[0] == 404


def test_nothing_can_be_changed(get):
    assert get("/metrics", method="POST", data=b"x")[0] == 501


def test_two_queues_can_share_a_process_but_not_a_registry(queue, watched):
    registry = CollectorRegistry()
    Metrics(queue, watched, registry)
    Metrics(queue, watched)
    with pytest.raises(ValueError, match="Duplicated"):
        Metrics(queue, watched, registry)
