"""Workers: they send what is in a queue, and try again what could not be sent.

`loop.Worker` is one; `run_once` and `start_worker` are the ways to run it without a command.
"""

from .loop import Worker, run_once, start_worker

__all__ = ["Worker", "run_once", "start_worker"]
