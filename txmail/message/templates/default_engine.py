"""The engine of templates that name none.

Core imports no optional library. The engine is one: `txmail` registers what makes it.
"""

from __future__ import annotations

from collections.abc import Callable

from ...exceptions import ConfigurationError
from ...interfaces import ITemplateEngine


class DefaultEngine:
    """Holds what makes the engine, which is not made before a template needs it."""

    def __init__(self) -> None:
        self._make: Callable[[], ITemplateEngine] | None = None

    def register(self, make: Callable[[], ITemplateEngine]) -> None:
        """Get engines from `make` from now on. It is called for each template."""
        self._make = make

    def get(self) -> ITemplateEngine:
        """The engine. Raises `ConfigurationError` if none is registered, and what `make` raises."""
        if self._make is None:
            raise ConfigurationError("there is no default: name one", field="engine")
        return self._make()


#: The one of this process.
default_engine = DefaultEngine()
