"""A process of our own that does something and says how it went."""

from __future__ import annotations

import os
import select
import signal
import traceback
from collections.abc import Callable


def in_child(work: Callable[[], object], timeout: float = 30.0) -> str:
    """Fork; what `work` returned there, as text. Raises AssertionError with its traceback."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            said = f"ok {work()}"
        except BaseException:
            said = "failed " + traceback.format_exc()
        os.write(writing, said.encode())
        os._exit(0)  # without the ends of the parent's fixtures
    os.close(writing)
    with os.fdopen(reading) as pipe:
        if not select.select([pipe], [], [], timeout)[0]:
            os.kill(child, signal.SIGKILL)
        said = pipe.read()
    os.waitpid(child, 0)
    verdict, _, text = said.partition(" ")
    assert verdict == "ok", text or "the child said nothing in time"
    return text
