"""Engines for the application's database, by the settings that name it.

Workers and commands have no session that could tell the database. They have threads and no event
loop, so their engine has an ordinary driver, whatever driver the application has.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from ...exceptions import ConfigurationError
from ...secret import Secret, Unshown, bare
from .postgresql_connect import typed_options

#: Settings of the application that we leave out: our statements must not go into a log.
_OURS = ("echo", "echo_pool", "hide_parameters", "url")
#: Drivers of SQLAlchemy by the module that they need, for names that leave the driver open.
_POSTGRESQL = {"psycopg": "postgresql+psycopg", "psycopg2": "postgresql+psycopg2"}


def engine_of_url(url: Secret, field: str) -> Callable[[], sa.Engine]:
    """A function that makes an engine for `url`. Raises `ConfigurationError` about `field`."""
    chosen = _driver_for_threads(Unshown(url.reveal(field)), field)
    return lambda: _made(chosen, {}, field)


def engine_of_settings(settings: Unshown, prefix: str) -> Callable[[], sa.Engine]:
    """A function that makes an engine as `sqlalchemy.engine_from_config` reads `settings`.

    It raises `ConfigurationError` about ``url`` under `prefix`.
    """
    field = f"{prefix}url"

    def make() -> sa.Engine:
        given: Mapping[str, Any] = settings.get()
        chosen = _driver_for_threads(Unshown(given[field]), field)
        options = {name.removeprefix(prefix): value for name, value in given.items()}
        return _made(chosen, options, field)

    return make


def _made(url: Unshown, options: Mapping[str, Any], field: str) -> sa.Engine:
    kept = {name: value for name, value in options.items() if name not in _OURS}
    try:
        chosen: sa.URL = url.get()
        typed: dict[str, Any] = {}
        if chosen.drivername == "postgresql+psycopg":
            chosen, typed = typed_options(chosen, field)
        if typed:
            kept["connect_args"] = typed
        return sa.engine_from_config({**kept, "url": chosen}, prefix="", hide_parameters=True)
    except ConfigurationError as error:
        raise bare(error) from None
    except ImportError as error:
        problem = f"its driver is missing: {error.name}"
    except (exc.ArgumentError, TypeError, ValueError):
        problem = "SQLAlchemy cannot make an engine of it and of the settings beside it"
    raise bare(ConfigurationError(problem, field=field))


def _driver_for_threads(given: Unshown, field: str) -> Unshown:
    """The URL `given` as SQLAlchemy's, with a driver that works without an event loop."""
    problem = "this is not the URL of a database"
    try:
        url = sa.make_url(given.get())
        kind, _, driver = url.drivername.partition("+")
        if kind not in ("postgresql", "sqlite"):
            problem = "the queue cannot be in this kind of database: use SQLite or PostgreSQL"
        elif not driver:
            return Unshown(url.set(drivername=_ordinary(kind, url.drivername)))
        elif not url.get_dialect().is_async:
            return Unshown(url)
        elif not (driver.startswith("psycopg") or set(url.query) <= {"host", "port"}):
            problem = (
                f"its options are for {driver}, which works in an event loop only: name the "
                "database with another driver by mail.queue_engine_url"
            )
        else:
            return Unshown(url.set(drivername=_ordinary(kind, kind)))
    except ImportError as error:
        problem = f"its driver is missing: {error.name}"
    except (exc.ArgumentError, TypeError, ValueError):
        pass
    raise bare(ConfigurationError(problem, field=field))


def _ordinary(kind: str, otherwise: str) -> str:
    """The driver that is installed: what SQLAlchemy takes by itself depends on its version."""
    if kind == "postgresql":
        for module, name in _POSTGRESQL.items():
            if importlib.util.find_spec(module) is not None:
                return name
    return otherwise
