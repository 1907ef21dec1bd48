"""Functions that an operating system may lack. Importing txmail needs none; using a part may.

====================================  =======================================================
a system without                      refuses
====================================  =======================================================
``poll`` (Windows)                    ``smtp://``, ``smtps://``, ``sendmail:``
``killpg`` (Windows)                  ``sendmail:``
``O_DIRECTORY``, ``O_NOFOLLOW``,      ``file:``
``dir_fd`` (Windows)
``O_DIRECTORY``, ``geteuid``          a queue in an SQLite file of its own
(Windows)
``fork`` (Windows)                    nothing: there are no forked children
``/proc`` (macOS, FreeBSD, Windows)   nothing: heartbeats show which processes are gone
====================================  =======================================================
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable


def at_fork(
    *,
    before: Callable[[], object] | None = None,
    in_parent: Callable[[], object] | None = None,
    in_child: Callable[[], object] | None = None,
) -> None:
    """Call `os.register_at_fork` if the system has forks."""
    register = getattr(os, "register_at_fork", None)
    if register is None:
        return
    hooks = {"before": before, "after_in_parent": in_parent, "after_in_child": in_child}
    register(**{name: hook for name, hook in hooks.items() if hook is not None})


def lacks(*names: str) -> str:
    """Say which of `names` this system lacks; empty if it has all of them.

    The names are those of `os`; ``poll`` is that of `select`, and ``dir_fd`` stands for functions
    that take one.
    """
    missing = ", ".join(name for name in names if not _has(name))
    return missing and f"it does not work on this operating system, which has no {missing}"


def _has(name: str) -> bool:
    if name == "dir_fd":
        # Compare names: a tool may have replaced a function, and the set has the original.
        return {"open", "unlink"} <= {function.__name__ for function in os.supports_dir_fd}
    return hasattr(select if name == "poll" else os, name)
