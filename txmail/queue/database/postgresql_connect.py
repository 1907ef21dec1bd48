"""Connects to PostgreSQL by a URL: its options and their types, and errors without its password."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from ...common.ascii_text import ascii_lower, whole_number
from ...common.nearest import did_you_mean
from ...common.shown import echo
from ...exceptions import ConfigurationError, TxmailError
from ...secret import Unshown, bare

#: seconds that connecting may take now
_left: ContextVar[float] = ContextVar("_left", default=30.0)

#: Options of psycopg itself. libpq tells its own.
_PSYCOPG = ("prepare_threshold",)
#: Options of libpq that are whole numbers.
_NUMBERS = (
    "connect_timeout",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "tcp_user_timeout",
)
#: The options where the URL does not say otherwise.
_DEFAULTS: dict[str, Any] = {
    "application_name": "txmail",
    # A role or a database may have an encoding in which addresses cannot be written.
    "client_encoding": "UTF8",
    # A pooler gives each transaction another server, without the prepared statements.
    "prepare_threshold": None,
    # For connections that a firewall has forgotten, or whose other end has lost power.
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "tcp_user_timeout": 30_000,
}


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Inside of it, connecting may take `seconds`."""
    token = _left.set(seconds)
    try:
        yield
    finally:
        _left.reset(token)


def printable(url: sa.URL) -> str:
    """`url` without user, password and options."""
    host = url.host or ""
    if ":" in host:
        host = f"[{host}]"
    port = f":{url.port}" if url.port else ""
    return f"postgresql://{host}{port}/{url.database or ''}"


def connector(
    url: sa.URL, field: str, translated: Callable[[BaseException], TxmailError]
) -> Callable[[], Any]:
    """A function that connects, with the password in a closure.

    Raises `ConfigurationError`, about `field`. The function raises the error that `translated`
    makes of the driver's.
    """
    try:
        import psycopg
    except ImportError:
        raise ConfigurationError(
            "PostgreSQL needs psycopg: pip install 'txmail[postgresql]'", field=field
        ) from None
    given = Unshown({**_DEFAULTS, **_options(url, field)})

    def connect() -> Any:
        left = max(math.ceil(_left.get()), 1)
        try:
            return psycopg.connect(**_bounded(given, left).get(), autocommit=True)
        except psycopg.Error as error:
            problem: BaseException = translated(error)
        except BaseException as error:  # the handler of a signal raises anywhere
            problem = error
        raise _bare(problem)

    return connect


def _bare(problem: BaseException) -> BaseException:
    """`problem` without the driver's frames, in which the password is a variable."""
    problem.__cause__ = problem.__context__ = None
    return problem.with_traceback(None)


def _bounded(given: Unshown, left: int) -> Unshown:
    options = given.get()
    return Unshown({**options, "connect_timeout": min(options.get("connect_timeout", left), left)})


def typed_options(url: sa.URL, field: str) -> tuple[sa.URL, dict[str, Any]]:
    """`url` without the options of psycopg, and these options with their types.

    SQLAlchemy would pass them on as text. Raises `ConfigurationError`, about `field`.
    """
    found = {name: _typed(name, url.query[name], field) for name in _PSYCOPG if name in url.query}
    defaults = {name: _DEFAULTS[name] for name in ("client_encoding", "prepare_threshold")}
    given = {name: value for name, value in defaults.items() if name not in url.query}
    return url.difference_update_query(_PSYCOPG), {**given, **found}


def _options(url: sa.URL, field: str) -> dict[str, Any]:
    """The arguments for psycopg in `url`."""
    import psycopg

    known = [option.keyword.decode("ascii") for option in psycopg.pq.Conninfo.get_defaults()]
    known += _PSYCOPG
    for name in url.query:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigurationError(
                f"the URL has an option {echo(name)}, which PostgreSQL does not know{hint}",
                field=field,
            )
    dialect: Any = url.set(drivername="postgresql+psycopg").get_dialect()()
    problem = None
    try:
        _, options = dialect.create_connect_args(url.set(drivername="postgresql+psycopg"))
    except (exc.ArgumentError, ValueError):
        problem = ConfigurationError(
            "the hosts and ports in the URL do not fit: give one port for each host or for all",
            field=field,
        )
    if problem is not None:
        raise bare(problem)
    return {name: _typed(name, value, field) for name, value in options.items()}


def _typed(name: str, value: Any, field: str) -> Any:
    """The `value` of an option in the type that the driver wants. Raises `ConfigurationError`."""
    if name == "host" or (name == "port" and isinstance(value, int)):
        return value
    if not isinstance(value, str):
        raise ConfigurationError(f"the URL has the option {name} twice: remove one", field=field)
    if name == "prepare_threshold" and ascii_lower(value) == "none":
        return None
    if name in _NUMBERS or name in _PSYCOPG:
        number = whole_number(value)
        if number is None:
            words = "a whole number or none" if name in _PSYCOPG else "a whole number"
            raise ConfigurationError(f"the option {name} of the URL has to be {words}", field=field)
        return number
    if name == "client_encoding" and ascii_lower(value).replace("-", "") not in ("utf8", "unicode"):
        raise ConfigurationError("the option client_encoding has to be UTF8", field=field)
    return value
