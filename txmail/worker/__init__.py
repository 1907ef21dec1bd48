"""Workers: they send what is in a queue, and try again what could not be sent.

`Worker` is one; `run_once` and `start_worker` are the ways to run it without a command. A `Route`
is a way out, and a `RetryPolicy` says what is tried again, and when.
"""

from ..queue.retry import RetryPolicy
from .router import Route
from .worker import RunningWorker, Worker, run_once, start_worker

__all__ = ["RetryPolicy", "Route", "RunningWorker", "Worker", "run_once", "start_worker"]
