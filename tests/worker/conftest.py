"""What tests of workers need: a clock, an application with a queue, transports, what was told."""

from __future__ import annotations

import pytest
from hosts import workers_in

from txmail import transport_from_url
from txmail.events import Events
from txmail.testing import ScriptedServer


@pytest.fixture
def app(kind, make_queue, clock):
    """An application with a queue of the test's `kind`, whose clock is `clock`."""
    return make_queue(kind, clock=clock)


@pytest.fixture
def memory():
    return transport_from_url("memory:")


@pytest.fixture
def other_server():
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def make_transport(server):
    """Make transports, to `server` if no URL is given; they are closed at the end."""
    made = []

    def make(url=None, *, query=""):
        made.append(transport_from_url((url or server.url) + query))
        return made[-1]

    yield make
    for transport in made:
        transport.close()


@pytest.fixture
def smtp(make_transport):
    """A transport to `server`."""
    return make_transport()


@pytest.fixture
def told():
    """The events that `listening` was told, in order."""
    return []


@pytest.fixture
def listening(told):
    """Events that are noted in `told`."""
    events = Events()
    events.subscribe(told.append)
    return events


@pytest.fixture
def workers(tmp_path):
    """Workers in processes of their own; they end with the test."""
    with workers_in(tmp_path) as workers:
        yield workers
