"""Routes whose login was refused: they wait for another password, however it gets here.

The password is asked for in a thread of its own, by `look`: its source may be a slow disk or
somebody else's function, and the keeper has a queue to look after.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from ..common.logs import quiet_logger
from ..transports.login_limit import Logins, logins_of
from .lane import Lane
from .router import FIRST_PAUSE, LONGEST_PAUSE, Circuit, Route

log = quiet_logger("txmail.worker")

#: Seconds between two looks at a password that was refused.
LOOK = 1.0
#: Seconds that a worker which begins waits for the first look.
FIRST_LOOK = 5.0


class LoginWatch:
    """Of the routes of one worker."""

    def __init__(self, lanes: Sequence[Lane], tell: Callable[[], object]) -> None:
        """`tell` is called when a route may be tried again."""
        self._circuits = {lane.route: lane.circuit for lane in lanes if logins_of_route(lane.route)}
        self._tell = tell
        self._stop = threading.Event()
        self._looked = threading.Event()
        #: by the monotonic clock, when a program is asked for a password again
        self._next: dict[Route, float] = {}

    @property
    def needed(self) -> bool:
        """True if a route logs in somewhere."""
        return bool(self._circuits)

    def start(self) -> None:
        """Look now, and from time to time. A source that hangs is not waited for."""
        if self._circuits:
            self._stop.clear()
            self._looked.clear()
            threading.Thread(target=self._run, name="txmail logins", daemon=True).start()
            self._looked.wait(FIRST_LOOK)

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()

    def _run(self) -> None:
        self.look()
        self._looked.set()
        while not self._stop.wait(LOOK):
            self.look()

    def look(self) -> None:
        """Ask for the passwords that were refused, whether they are others now."""
        for route, circuit in self._circuits.items():
            try:
                if self._is_time(route, circuit) and self._has_another(route, circuit):
                    circuit.another_login = True
                    self._tell()
            except Exception:
                log.exception("%s: its password cannot be looked at", route.name)

    def _is_time(self, route: Route, circuit: Circuit) -> bool:
        """A program that makes passwords is asked less and less often: each is another one."""
        logins = logins_of_route(route)
        bar_refused(route)
        if circuit.another_login or not (circuit.refused or any(each.is_barred for each in logins)):
            return False
        if not any(login.of_a_program for login in logins):
            return True
        moment = time.monotonic()
        if moment < self._next.get(route, 0.0):
            return False
        self._next[route] = moment + patience(circuit.failures)
        return True

    def _has_another(self, route: Route, circuit: Circuit) -> bool:
        # Each of them: what was refused is not tried, whatever became of the others.
        known = circuit.compared = circuit.refused
        found = [each.has_another(known.get(each.key)) for each in logins_of_route(route)]
        return any(found)


def logins_of_route(route: Route) -> tuple[Logins, ...]:
    """The logins of the servers of `route`."""
    return logins_of(route.transport)


def bar_refused(route: Route) -> None:
    """What a server has refused is not sent again, also where another one takes the mail."""
    for login in logins_of_route(route):
        login.bar()


def refused_here(route: Route) -> dict[str, int]:
    """An octet of each password that was refused on `route` and is not tried; see `Logins`."""
    found = {login.key: login.octet for login in logins_of_route(route)}
    return {key: octet for key, octet in found.items() if octet is not None}


def is_barred(route: Route) -> bool:
    """True if nothing can leave by `route` before there is another password."""
    return bool(getattr(route.transport, "is_barred", False))


def patience(failures: int) -> float:
    """Seconds between two passwords of a program that are tried, after so many failures."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(max(failures - 1, 0), 20))
