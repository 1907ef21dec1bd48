"""The queue of the settings: in a database of its own, or in the application's."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, cast
from urllib.parse import quote

from ..exceptions import ConfigurationError
from ..interfaces import IQueue
from ..secret import Secret, Unshown
from .optional import queue_module
from .values import conflict

#: Settings that describe the queue.
QUEUE_SETTINGS = (
    *("queue_url", "queue_path", "queue_engine_url", "queue_limit"),
    *("on_doubt", "doubt_retries"),
)
#: The URL of a queue in the application's database, which the session of a bound mailer writes.
IN_SESSION = "session:"
#: Names of the settings of the application's database begin with this, as in SQLAlchemy's
#: `engine_from_config`.
APPLICATION_DATABASE = "sqlalchemy."
#: The file of a queue in the folder that pyramid_mailer's ``queue_path`` names.
QUEUE_FILE = "txmail.db"


def read_queue(
    combined: Mapping[str, Any], prefix: str, settings: Mapping[str, Any]
) -> IQueue | None:
    """The queue that `combined` describes; None without one.

    `combined` has converted values by names without `prefix`; `settings` has all of them, as given.
    Raises `ConfigurationError`.
    """
    url, path = combined.get("queue_url"), combined.get("queue_path")
    if url is not None and path is not None:
        raise conflict(prefix, "queue_path", "queue_url", "where the queue is")
    in_session = url == Secret(IN_SESSION)
    if not in_session and "queue_engine_url" in combined:
        raise ConfigurationError(
            f"it is only for {prefix}queue_url = {IN_SESSION}: remove it, or set that URL",
            field=f"{prefix}queue_engine_url",
        )
    if url is None and path is None:
        for name in ("on_doubt", "doubt_retries", "queue_limit"):
            if name in combined:
                problem = f"there is no queue: {prefix}queue_url is needed"
                raise ConfigurationError(problem, field=prefix + name)
        return None
    if path is not None:
        url = Secret("sqlite:///" + quote(os.path.join(os.path.abspath(path), QUEUE_FILE)))
    options: dict[str, Any] = {
        "on_doubt": combined.get("on_doubt", "retry"),
        "limit": combined.get("queue_limit"),
    }
    if combined.get("doubt_retries") is not None:
        options["doubt_retries"] = combined["doubt_retries"]
    name, needed = ("queue.queue", "SQLAlchemy")
    if in_session:
        name, needed = ("integrations.session_queue", "zope.sqlalchemy")
        options |= _engines(combined.get("queue_engine_url"), settings, prefix)
    module = queue_module(name, needed, prefix)
    queue = module.session_queue(**options) if in_session else module.Queue(url, **options)
    return cast("IQueue", queue)


def _engines(
    url: Secret | None, settings: Mapping[str, Any], prefix: str
) -> dict[str, Callable[[], Any]]:
    """What opens the application's database for a worker, which has no session."""
    named = queue_module("queue.database.named_engine", "SQLAlchemy", prefix)
    if url is not None:
        return {"engine": named.engine_of_url(url, f"{prefix}queue_engine_url")}
    if not settings.get(f"{APPLICATION_DATABASE}url"):
        return {}
    database = {k: v for k, v in settings.items() if str(k).startswith(APPLICATION_DATABASE)}
    make = named.engine_of_settings(Unshown(database), APPLICATION_DATABASE)
    return {"default_engine": make}
