"""The engine of templates for which the caller gives none.

The engine needs an optional library, which this package does not import: `txmail` registers a
function that makes the engine.
"""

from __future__ import annotations

from collections.abc import Callable

from ...exceptions import ConfigurationError
from ...interfaces import ITemplateEngine


class DefaultEngine:
    """Makes the engine when a template needs it."""

    def __init__(self) -> None:
        self._make: Callable[[], ITemplateEngine] | None = None

    def register(self, make: Callable[[], ITemplateEngine]) -> None:
        """Use `make` from now on. Each template without an engine calls it."""
        self._make = make

    def get(self) -> ITemplateEngine:
        """The engine. Raises `ConfigurationError` if there is none."""
        if self._make is None:
            raise ConfigurationError("no engine is registered; give one", field="engine")
        return self._make()


#: The default of this process.
default_engine = DefaultEngine()
