"""The resolver: it decides about batches whose process has died.

======================  =========================================================================
the batch is            the resolver
======================  =========================================================================
staged                  asks its witnesses: yes publishes it, no discards it, unknown waits
unknown                 asks the witnesses again; a person can decide
sending                 publishes it: it has committed. Mail that was being sent is in doubt
publishing              makes the rest ready: it has committed
======================  =========================================================================

The age of a batch says nothing, for a transaction may be slow. The resolver looks at a batch when
its process is dead (see `sql.dead`) or has given it up. A discarded batch stays for a time. Should
its process live after all, and say that the transaction has committed, the batch is published.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from ..common.logs import quiet_logger
from ..exceptions import IllegalMove
from ..interfaces import IWitness
from ..witness_answer import Answer, WitnessAnswer
from .process_identity import Fate
from .retry import DOUBT_DELAY_MS, DOUBT_RETRIES
from .schema import audit, batch
from .sql import connection_slots, leases
from .sql.dead import BATCHES, DEAD_DELAY_MS, dead_holders, fate_of_holder
from .sql.publish import Store
from .states import BatchState

log = quiet_logger("txmail.queue")

_UNDECIDED = (BatchState.STAGED, BatchState.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision of the resolver about one batch."""

    batch: int
    #: its state now
    state: BatchState
    reason: str


class Resolver:
    """Decides about the batches of dead processes."""

    def __init__(
        self,
        store: Store,
        witnesses: Sequence[IWitness],
        *,
        hold_doubt: bool = False,
        retries: int = DOUBT_RETRIES,
    ) -> None:
        """Mail in doubt waits for a person: at once with `hold_doubt`, else after `retries`."""
        self._store = store
        self._witnesses = {witness.name: witness for witness in witnesses}
        self._hold_doubt = hold_doubt or not retries
        self._retries = retries

    def bury(self) -> int:
        """Take back the deliveries that dead workers hold; how many they were."""
        database = self._store.database
        with database.read() as connection:
            if not dead_holders(connection):
                return 0
        with database.write() as connection:
            dead, lease_now_ms = dead_holders(connection), database.lease_now_ms(connection)
            connection_slots.free(connection, dead)
            return leases.end_leases(
                connection,
                database.now_ms(connection),
                lease_now_ms,
                dead=dead,
                hold_doubt=self._hold_doubt,
                retries=self._retries,
            )

    def resolve(self) -> list[Decision]:
        """Decide about all batches of dead processes, and about those that were given up."""
        database = self._store.database
        with database.read() as connection:
            now_ms = database.now_ms(connection)
            found = connection.execute(BATCHES).all()
        made: list[Decision] = []
        for row in found:
            fate = fate_of_holder(row, now_ms)
            if fate is not Fate.ALIVE:
                decision = self._resolve(
                    row, DEAD_DELAY_MS if fate is Fate.DEAD else DOUBT_DELAY_MS
                )
                if decision is not None:
                    made.append(decision)
        return made

    def is_needed(self) -> bool:
        """True if there is a batch of a dead process about which nobody has decided."""
        database = self._store.database
        with database.read() as connection:
            now_ms = database.now_ms(connection)
            return any(
                row.state != BatchState.UNKNOWN and fate_of_holder(row, now_ms) is Fate.DEAD
                for row in connection.execute(BATCHES)
            )

    def _resolve(self, row: Any, delay_ms: int) -> Decision | None:
        """Decide about one batch; a delivery in doubt is due again in `delay_ms`."""
        number = row[0]
        if row.state == BatchState.PUBLISHING:
            return self._publish(number, "it had committed", delay_ms)
        if row.state == BatchState.SENDING:
            reason = "it had committed, and its process died while sending"
            return self._publish(number, reason, delay_ms)
        said = self._ask(number, row.witnesses)
        if said.answer is Answer.YES:
            return self._publish(number, said.reason, delay_ms)
        if said.answer is Answer.NO:
            return self._change(number, BatchState.DISCARDED, said.reason)
        if row.state == BatchState.UNKNOWN and row.reason == said.reason:
            return None
        return self._change(number, BatchState.UNKNOWN, said.reason)

    def _ask(self, number: int, noted: str) -> WitnessAnswer:
        """The answer of all witnesses of a batch together."""
        try:
            content = json.loads(noted)
        except ValueError:
            return WitnessAnswer(Answer.UNKNOWN, "what its witnesses noted cannot be read")
        asked: dict[str, Any] = content.get("witnesses", {})
        others: list[str] = content.get("others", [])
        unknown: list[str] = []
        denied = ""
        for name, what in asked.items():
            witness = self._witnesses.get(name)
            if witness is None:
                unknown.append(f"{name} is not among the witnesses here")
                continue
            said = _answer(witness, number, what)
            if said.answer is Answer.YES:
                return WitnessAnswer(Answer.YES, f"{name}: {said.reason}")
            if said.answer is Answer.NO:
                denied = f"{name}: {said.reason}"
            else:
                unknown.append(f"{name}: {said.reason}")
        if denied:
            # A transaction commits in all its databases or in none, unless it was torn.
            return WitnessAnswer(Answer.NO, denied)
        if unknown:
            return WitnessAnswer(Answer.UNKNOWN, "; ".join(unknown))
        if others:
            return WitnessAnswer(
                Answer.UNKNOWN, f"there is no witness for what else took part: {', '.join(others)}"
            )
        return WitnessAnswer(Answer.NO, "nobody else took part, and it had not come to its vote")

    def _publish(self, number: int, reason: str, delay_ms: int = DOUBT_DELAY_MS) -> Decision | None:
        database, store = self._store.database, self._store
        with database.write() as connection:
            now_ms = database.now_ms(connection)
            if not self._publishing(connection, number, now_ms):
                return None
            due = None if self._hold_doubt else now_ms + delay_ms
            doubtful = store.doubt(connection, number, now_ms, due)
            done = store.promote(connection, number, now_ms)
        while not done:
            with database.write() as connection:
                done = store.promote(connection, number, database.now_ms(connection))
        words = f"{reason}; {doubtful} in doubt" if doubtful else reason
        return self._said(Decision(number, BatchState.PUBLISHED, words))

    def _publishing(self, connection: sa.Connection, number: int, now_ms: int) -> bool:
        """Bring a batch into state ``publishing``; True if it is in this state now."""
        if self._store.change_batch(connection, number, BatchState.PUBLISHING, now_ms):
            return True
        state = connection.scalar(sa.select(batch.c.state).where(batch.c.id == number))
        return state == BatchState.PUBLISHING

    def _change(self, number: int, state: BatchState, reason: str) -> Decision | None:
        with self._store.database.write() as connection:
            now_ms = self._store.database.now_ms(connection)
            changed = connection.execute(
                batch.update()
                # Its process may live after all, and have gone on meanwhile.
                .where(batch.c.id == number, batch.c.state.in_(_UNDECIDED))
                .values(state=state, reason=reason, changed=now_ms)
            )
        if not changed.rowcount:
            return None
        return self._said(Decision(number, state, reason))

    @staticmethod
    def _said(decision: Decision) -> Decision:
        level = logging.WARNING if decision.state is BatchState.UNKNOWN else logging.INFO
        log.log(level, "batch %x: %s: %s", decision.batch, decision.state, decision.reason)
        return decision

    def decide(self, number: int, *, committed: bool, actor: str) -> None:
        """See `Queue.decide`."""
        state = BatchState.PUBLISHING if committed else BatchState.DISCARDED
        reason = f"decided by {actor}"
        database = self._store.database
        with database.write() as connection:
            now_ms = database.now_ms(connection)
            changed = connection.execute(
                batch.update()
                .where(batch.c.id == number, batch.c.state == BatchState.UNKNOWN)
                .values(state=state, reason=reason, changed=now_ms)
            )
            if not changed.rowcount:
                raise IllegalMove(f"there is no batch {number:x} that waits for a decision")
            connection.execute(
                audit.insert(),
                {
                    "at": now_ms,
                    "actor": actor,
                    "action": "publish batch" if committed else "discard batch",
                    "subject": f"batch {number:x}",
                    "detail": "{}",
                },
            )
        if committed:
            self._publish(number, reason)


def _answer(witness: IWitness, number: int, noted: Any) -> WitnessAnswer:
    try:
        return witness.ask(number, noted)
    except Exception as error:
        # A witness must not raise; one that does must not keep others from being asked.
        log.exception("batch %x: %s cannot answer", number, witness.name)
        return WitnessAnswer(Answer.UNKNOWN, f"it cannot answer: {type(error).__name__}")
