"""Serve metrics from a command, and the options for that."""

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
        help="serve /metrics, /health and /live on this port; 0 takes a free port, which the log "
        "names (needs the extra metrics)",
    )
    parser.add_argument(
        "--metrics-host",
        metavar="ADDRESS",
        help=f"listen at this address, so that other machines can read the metrics: 0.0.0.0 is "
        f"all addresses of this machine (default: {_LOOPBACK})",
    )
    parser.add_argument(
        "--metrics-allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that clients use for this machine, besides its own name and addresses; "
        "may be repeated",
    )


def check(arguments: argparse.Namespace) -> None:
    """End the command if an option lacks --metrics-port, or prometheus_client is missing."""
    if arguments.metrics_port is not None:
        require("metrics", "prometheus_client")
    elif arguments.metrics_host is not None or arguments.metrics_allow_host:
        name = "--metrics-host" if arguments.metrics_host is not None else "--metrics-allow-host"
        arguments.parser.error(f"{name} is for --metrics-port: add that")


@contextlib.contextmanager
def serving(queue: Any, events: Events, arguments: argparse.Namespace) -> Iterator[None]:
    """Serve the metrics of `queue` and `events` within the block, if --metrics-port is given.

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
        return f"port {port}: {reason}; each worker needs its own: use --metrics-port 0"
    where = f"port {port}" if host == _LOOPBACK else f"--metrics-host {host}, port {port}"
    return f"{where}: {reason}"


def _port(text: str) -> int:
    number = whole_number(text)
    if number is None or number > _MOST_PORT:
        raise argparse.ArgumentTypeError(f"a number from 0 to {_MOST_PORT} is needed")
    return number
