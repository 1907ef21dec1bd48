"""What several sweeps need."""

from __future__ import annotations

import gc
import signal
import sys

import pytest


@pytest.fixture
def no_collector():
    """The garbage collector mends nothing during the test."""
    before = signal.getsignal(signal.SIGALRM)
    gc.collect()
    gc.disable()
    handled = sys.exception()
    yield
    gc.enable()
    assert sys.exception() is handled  # none is left behind for the tests to come
    gc.collect()
    signal.signal(signal.SIGALRM, before)
