"""The witnesses of a queue's transactions: those that were named, and those that were found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..interfaces import IWitness

#: ``find(data_managers, known)``: the witnesses of some data managers, without `known` ones.
FindWitnesses = Callable[[Sequence[Any], Sequence[IWitness]], Iterable[IWitness]]


class Witnesses:
    """The witnesses of the databases that change in the same transactions as a queue."""

    def __init__(self, named: Iterable[IWitness] = ()) -> None:
        self.known: list[IWitness] = list(named)
        #: finds the witnesses of databases by their data managers
        self.find: FindWitnesses | None = None
        self._found: list[IWitness] = []

    def of(self, resources: Sequence[Any]) -> list[IWitness]:
        """All witnesses, now that the data managers `resources` take part."""
        for witness in () if self.find is None else self.find(resources, self.known):
            # A found witness of that name is of a database that was closed and opened again.
            others = [w for w in self.known if w.name != witness.name or w not in self._found]
            if all(other.name != witness.name for other in others):
                self.known[:] = [*others, witness]
                self._found.append(witness)
        return self.known
