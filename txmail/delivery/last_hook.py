"""A before-commit hook that runs behind the hooks of all others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: How often our hook goes to the end of the line when others are behind it. Two parties that both
#: insist on being last would go on for ever.
HOOK_TURNS = 10


class LastHook:
    """The place of `function` among the before-commit hooks of one transaction.

    The function is an argument everywhere: a reference to its owner would keep both alive.
    """

    def __init__(self) -> None:
        self._pending = False
        self._turns = 0

    def register(self, transaction: Any, function: Callable[[Any], None]) -> None:
        """Have `function` called with `transaction`; does nothing if it is waiting for that."""
        if not self._pending or self.is_dropped(transaction, function):
            self._add(transaction, function)

    def goes_behind(self, transaction: Any, function: Callable[[Any], None]) -> bool:
        """`function` is called: True if others are behind it, and it will be called again."""
        self._pending = False
        hooks = list(transaction.getBeforeCommitHooks())
        if hooks[-1][0] == function or self._turns >= HOOK_TURNS:
            return False
        self._turns += 1
        self._add(transaction, function)
        return True

    def is_dropped(self, transaction: Any, function: Callable[[Any], None]) -> bool:
        """True if a commit has failed in a hook before ours: that has cleared the list."""
        return self._pending and all(
            hook != function for hook, _, _ in transaction.getBeforeCommitHooks()
        )

    def _add(self, transaction: Any, function: Callable[[Any], None]) -> None:
        self._pending = True
        transaction.addBeforeCommitHook(function, (transaction,))
