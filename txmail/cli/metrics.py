"""The options of a command that serves metrics, and the serving."""

from __future__ import annotations

import argparse
import contextlib
import errno
from collections.abc import Iterator
from typing import Any

from ..common.ascii_text import whole_number
from ..common.logs import quiet_logger
from ..events import Events
from .exits import CannotRun, require

log = quiet_logger("txmail.worker")

_MOST_PORT = 65535
_LOOPBACK = "127.0.0.1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `serving` to `parser`."""
    parser.add_argument(
        "--metrics-port",
        type=_port,
        metavar="PORT",
        help="serve /metrics and /health on this port; 0 is any free one, which the log tells "
        "(needs the extra metrics)",
    )
    parser.add_argument(
        "--metrics-host",
        metavar="ADDRESS",
        help=f"serve them at this address of the machine, to be read from other ones: 0.0.0.0 is "
        f"all of them (default: {_LOOPBACK})",
    )
    parser.add_argument(
        "--metrics-allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that clients call this machine by, beside its own name and addresses; "
        "may be repeated",
    )


def check(arguments: argparse.Namespace) -> None:
    """End the command if the options do not fit together, or what they need is not there."""
    if arguments.metrics_port is not None:
        require("metrics", "prometheus_client")
    elif arguments.metrics_host is not None or arguments.metrics_allow_host:
        name = "--metrics-host" if arguments.metrics_host is not None else "--metrics-allow-host"
        arguments.parser.error(f"{name} is for --metrics-port")


@contextlib.contextmanager
def serving(queue: Any, events: Events, arguments: argparse.Namespace) -> Iterator[None]:
    """Within it the metrics of `queue` and `events` are served, if that was asked for.

    Raises `CannotRun`.
    """
    port, host = arguments.metrics_port, arguments.metrics_host or _LOOPBACK
    if port is None:
        yield
        return
    from ..integrations.prometheus import Metrics, serve

    metrics = Metrics(queue, events)
    try:
        server = serve(metrics, port, host, hosts=arguments.metrics_allow_host)
    except OSError as error:
        raise CannotRun(_problem(error, host, port)) from error
    log.info("metrics at %s/metrics", server.url)
    try:
        yield
    finally:
        server.stop()


def _problem(error: OSError, host: str, port: int) -> str:
    reason = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port}: {reason}; each worker needs its own, --metrics-port 0 takes a free one"
        )
    where = f"port {port}" if host == _LOOPBACK else f"--metrics-host {host}, port {port}"
    return f"{where}: {reason}"


def _port(text: str) -> int:
    number = whole_number(text)
    if number is None or number > _MOST_PORT:
        raise argparse.ArgumentTypeError(f"a port is a number of 0 to {_MOST_PORT}")
    return number
