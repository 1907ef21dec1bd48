"""Sweeps: every case in turn under the marker `sweep`, and representatives of them by default.

`.ci/run` runs the sweeps; the default run leaves them out. There are three forms:

- ``@pytest.mark.representative(every=50)`` on a parametrized test: one case in 50 stays in the
  default run, the first among them, and the others get the marker `sweep`.
- ``@all_of(cases)``: one test runs through all `cases` as a sweep, and another through some of them
  by default. It is for thousands of cases that take no time: pytest needs longer to collect such
  a case than to run it.
- The stores take turns, and no test has to ask for it: of the cases of a test that differ only in
  the kind of queue or database, one stays in the default run, and the others get the marker
  `sweep`. The name of the test decides with which kind its turns begin, so that a case stays where
  it is when other tests come and go, and every kind gets about as many.

A case that the command line names by its id runs whatever the others do: it is alone.
"""

from __future__ import annotations

import functools
import inspect
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import databases
import pytest
import queues
import queues_kill

#: How many cases of each group the default run takes.
FEW = 4
#: The values of parameters that stand for a kind of queue or database.
STORES = {
    *queues.QUEUES,
    *databases.KINDS,
    *queues_kill.KINDS,
    *("SQLite", "PostgreSQL"),
    *("sqlite", "postgresql"),
}


def all_of(*groups: Mapping[str, Any], name: str = "payload") -> Callable[[Any], Any]:
    """Call a test with each value of the mappings `groups` as its argument `name`.

    A failure is told with the name of its case.
    """
    whole = {key: value for group in groups for key, value in group.items()}
    some = {key: group[key] for group in groups for key in spread(group, FEW)}

    def decorate(test: Any) -> Any:
        @functools.wraps(test)
        def loop(cases: Mapping[str, Any], **others: Any) -> None:
            for key, value in cases.items():
                try:
                    test(**{name: value}, **others)
                except BaseException as error:
                    error.add_note(f"in the case: {key}")
                    raise

        # pytest asks for the arguments of the loop, not for those of the test in it.
        del loop.__wrapped__
        parameters = [p for p in inspect.signature(test).parameters.values() if p.name != name]
        parameters.append(inspect.Parameter("cases", inspect.Parameter.KEYWORD_ONLY))
        loop.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        every = pytest.param(whole, id="all", marks=pytest.mark.sweep)
        return pytest.mark.parametrize("cases", [pytest.param(some, id="some"), every])(loop)

    return decorate


def spread(cases: Mapping[str, Any], count: int) -> list[str]:
    """The names of about `count` of `cases`, from all over."""
    names = list(cases)
    return names[:: max(1, len(names) // count)]


def mark_sweeps(items: list[pytest.Item]) -> None:
    """Give the marker `sweep` to every case that another one represents."""
    _mark_represented(items)
    _take_turns(items)


def _mark_represented(items: list[pytest.Item]) -> None:
    seen: dict[Any, int] = {}
    for item in items:
        marker = item.get_closest_marker("representative")
        if marker is not None:
            key = (item.path, item.name.partition("[")[0])
            number = seen[key] = seen.get(key, -1) + 1
            if number % marker.kwargs["every"]:
                item.add_marker(pytest.mark.sweep)


def _take_turns(items: list[pytest.Item]) -> None:
    groups: dict[Any, dict[Any, list[pytest.Item]]] = {}
    for item in items:
        others = _but_for_the_store(item)
        if others is not None and not any(map(item.get_closest_marker, ("sweep", "long"))):
            name = item.nodeid.partition("[")[0]
            groups.setdefault(name, {}).setdefault(others, []).append(item)
    for name, cases in groups.items():
        first = zlib.crc32(name.rpartition("/")[2].encode())
        for number, alike in enumerate(cases.values(), first):
            for item in alike[: number % len(alike)] + alike[number % len(alike) + 1 :]:
                item.add_marker(pytest.mark.sweep)


def _but_for_the_store(item: pytest.Item) -> Any:
    """What tells a case from others of its test besides its store; None if it has no store."""
    callspec = getattr(item, "callspec", None)
    if callspec is None:
        return None
    found = {
        name: (type(value), value if isinstance(value, (str, int, float)) else id(value))
        for name, value in callspec.params.items()
        if not (isinstance(value, str) and value in STORES)
    }
    return tuple(found.items()) if len(found) < len(callspec.params) else None
