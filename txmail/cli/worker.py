"""``txmail worker``: sends the mail in the queue until a signal stops it."""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..common.ascii_text import whole_number
from ..common.shown import printable
from ..config.settings import Settings, read_settings
from ..events import Events
from ..exceptions import ConfigurationError, QueueUnavailable, SchemaError, TxmailError
from . import metrics, settings
from .exits import CannotRun, Exit, require
from .lines import complain, logging_to_stderr

if TYPE_CHECKING:
    from ..worker import Worker
from ..common.logs import quiet_logger

log = quiet_logger("txmail.worker")

#: The signals of process managers, of the keyboard and of a closed terminal, as far as the system
#: has them.
_SIGNALS = tuple(
    signal.Signals[name]
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
    if name in signal.Signals.__members__
)

_DESCRIPTION = """\
Send the mail in the queue until a signal stops the worker. Any number of workers
may share a queue: on one host with SQLite, on many hosts with PostgreSQL. The
worker logs to standard error: each line is about a recipient, a route or the
queue.
"""

_EPILOG = """\
examples:
  txmail worker -c app.ini
  txmail worker --queue-url sqlite:////var/lib/app/mail.db --url smtp://localhost
  txmail worker -c app.ini --once --seconds 50      # once a minute, from cron
  txmail worker -c app.ini --metrics-port 0         # each worker at a free port

After SIGTERM, SIGINT, SIGHUP or SIGQUIT the worker finishes the messages on the
wire, gives back the rest and ends with 0. A second signal ends it at once, and
messages on the wire are in doubt. Signals that were ignored at its start (nohup)
stay ignored.

Do not put a password on the command line, where every user of the machine can
read it: put URLs into TXMAIL_URL and TXMAIL_QUEUE_URL, or into the file of -c.

exit codes:
  0  a signal stopped it; --once: nothing is due, or the limit or the time is
     over. The queue keeps unsent mail: see txmail doctor
  1  the tables are missing or of another version; --once: the queue cannot be
     reached, or mail waits for a paused route. Without --once the worker goes on
     in these two cases
  2  wrong arguments or settings, or something that the command needs is missing
"""


def add_parser(subparsers: Any) -> None:
    """Add ``worker`` to the parser of ``txmail``."""
    parser = subparsers.add_parser(
        "worker",
        help="send the mail in the queue",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--once", action="store_true", help="end when nothing is due; runs may overlap"
    )
    parser.add_argument(
        "--limit", type=_count, metavar="N", help="with --once: try at most N recipients"
    )
    parser.add_argument(
        "--seconds", type=_count, metavar="S", help="with --once: begin no message after S seconds"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="log only warnings and errors")
    metrics.add_arguments(parser)
    settings.add_worker_arguments(parser)
    parser.set_defaults(run=run, parser=parser)


def _count(text: str) -> int:
    number = whole_number(text)
    if not number:
        raise argparse.ArgumentTypeError("a number above 0 is needed")
    return number


def run(arguments: argparse.Namespace) -> Exit:
    """Run a worker. Raises `CannotRun`."""
    for name in ("limit", "seconds"):
        if getattr(arguments, name) is not None and not arguments.once:
            arguments.parser.error(f"--{name} is for --once: add that")
    require("queue", "sqlalchemy", "alembic")
    metrics.check(arguments)
    try:
        found = read_settings(*settings.read_worker(arguments))
        settings.require_database(found.queue)
        with logging_to_stderr(quiet=arguments.quiet):
            return _run(found, arguments)
    except ConfigurationError as error:
        # The settings are wrong, or the place of the queue is, which only its use shows.
        raise CannotRun(printable(settings.said(error, arguments))) from None


def _run(found: Settings, arguments: argparse.Namespace) -> Exit:
    from ..worker import Worker

    queue: Any = found.queue
    events = Events()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(queue))
        for transport in (found.transport, *(route.transport for route in found.routes)):
            stack.enter_context(contextlib.closing(transport))
        try:
            queue.database.prepare()
        except QueueUnavailable as error:
            if arguments.once:
                complain("worker", error)
                return Exit.FAILED
        except SchemaError as error:
            complain("worker", error)
            return Exit.FAILED
        ways = found.routes or found.transport
        worker = Worker(queue, ways, limit=arguments.limit, events=events)
        with metrics.serving(queue, events, arguments):
            if arguments.once:
                code = _work(worker, lambda: worker.run_once(arguments.seconds))
                return code if code is not Exit.OK else _waits(queue, ways)
            return _work(worker, worker.run)


def _waits(queue: Any, ways: Any) -> Exit:
    """`Exit.FAILED`, and a line, if mail waits for a paused route of this worker."""
    from ..queue.inspect import read_health
    from ..worker.router import Route

    names = {w.name for w in ways if isinstance(w, Route)} if isinstance(ways, tuple) else set()
    try:
        health = read_health(queue.database)
    except TxmailError as error:
        complain("worker", error)
        return Exit.FAILED
    waiting = [r for r in health.routes if r.holds_up and r.name in (names or {"default"})]
    for route in waiting:
        complain("worker", str(route))
    return Exit.FAILED if waiting else Exit.OK


def _work(worker: Worker, work: Callable[[], object]) -> Exit:
    """Do `work` in another thread; this thread waits for signals."""
    problems: list[BaseException] = []
    done = threading.Event()

    def body() -> None:
        try:
            work()
        except BaseException as error:
            problems.append(error)
        finally:
            done.set()

    with _stopping(worker.stop):
        threading.Thread(target=body, name="txmail keeper", daemon=True).start()
        done.wait()
    for problem in problems:
        if not isinstance(problem, TxmailError):
            raise problem
        complain("worker", problem)
    return Exit.FAILED if problems else Exit.OK


@contextlib.contextmanager
def _stopping(stop: Callable[[], object]) -> Iterator[None]:
    """Call `stop` at the first signal; the second one has its default effect."""
    before: dict[signal.Signals, Any] = {}

    def told(number: int, frame: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        log.info("%s: finishing what is on the wire", signal.Signals(number).name)
        stop()

    if threading.current_thread() is threading.main_thread():
        for each in _SIGNALS:
            # A shell that starts us in the background may have us ignore the keyboard.
            if signal.getsignal(each) is not signal.SIG_IGN:
                before[each] = signal.signal(each, told)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
