"""Whose fault a negative reply is: the message's, the route's, or a recipient domain's. No I/O.

`failure_policy` says what one reply means. One reply can lie: a server that has enough of us, or
wants a login, refuses each message with a 5yz as if something were wrong with it. `Evidence` hears
the outcome of every message of one route, and compares:

- Three different messages in a row get the same refusal (but for addresses and numbers), and none
  is accepted between: the route is at fault. All that got it since are given back unharmed. If
  other domains pass meanwhile, only that recipient domain is at fault.
- Until it knows, a refusal is *undecided*. It stands as soon as its recipient domain accepts a
  message, after `PATIENCE` seconds, or when there is nothing more to compare it with.
- Words about our rate, login or address are the route's at the first message (`reply_hints`).
- What was given back is tried again later. If it gets the same reply although the route has
  accepted another message meanwhile, the reply is the message's own.

Replies about a mailbox never count. Three messages in a row that are put off at MAIL, DATA or the
content slow the route down; three recipients of one domain that are put off slow that domain down.
Greylisting (450 or 451 to RCPT) slows nothing.

A connection that has carried messages may refuse for its age. `reconnect_policy` has a fresh one
asked, and only the answer of that one is heard here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, TypeVar

from ..outcome import Action, Outcome, Scope, Status
from .reply_hints import PUT_OFF, Hint, alike, hint, is_about_mailbox

#: Different messages in a row with the same reply: that many are no matter of the messages.
IN_A_ROW = 3
#: Seconds for which a refusal is undecided at most, and how many are at once.
PATIENCE, MOST_UNDECIDED = 30.0, 64
#: Seconds for which a reply that turned out to be the messages' own is taken as that at once.
STANDS_FOR = 600.0
#: Seconds that a message waits at least, before words that hint at the route can be its own, and
#: before it is put off for its own sake that was put off with others.
HINT_HOLDS, PUT_OFF_HOLDS = 900.0, 300.0
#: Seconds that a message waits at most for a route that accepts nothing else: more than a day, for
#: servers count by the day.
WAITS_AT_MOST = 26 * 3600.0
#: Seconds after which it is forgotten that a route was at fault, and after which its pauses begin
#: with short ones again; how many replies and domains are known at once.
FORGOTTEN, BEGINS_ANEW, MOST_KNOWN = 3600.0, 600.0, 256

T = TypeVar("T")


class Fault(StrEnum):
    """Whose fault a reply is."""

    #: the message's or the recipient's: the verdict on the single reply stands
    OWN = "own"
    ROUTE = "route"
    DOMAIN = "domain"


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What the server said of one recipient."""

    #: what tells messages apart; all recipients of a job are one message
    message: str
    sender: str
    #: of the recipient, in lower case
    domain: str
    outcome: Outcome
    #: what it is about, for the caller
    about: T
    #: if it was given back before, the reply that it got then, as the queue keeps it
    before: str = ""
    #: seconds since it was first due
    waited: float = 0.0


@dataclass(frozen=True, slots=True)
class Ruling(Generic[T]):
    """Whose fault the replies in some answers are."""

    fault: Fault
    answers: tuple[Answer[T], ...]
    #: True if the route, or the domain, is to carry less
    slow: bool = False
    #: True if a person has to act
    stop: bool = False
    #: the reply, and how often it came
    reason: str = ""
    #: how often that was said of late: a pause is longer each time
    times: int = 1
    #: the domain, if it is that
    domain: str = ""
    #: False if the route is known to work, and only these messages are tried again
    pauses: bool = True


@dataclass(slots=True)
class _Suspicion:
    """A reply that was found to be the route's or a domain's fault."""

    since: float
    times: int = 0
    domains: set[str] = field(default_factory=set)
    senders: set[str] = field(default_factory=set)
    #: domains that have accepted something since the last refusal
    passed: set[str] = field(default_factory=set)
    of_domain: bool = False


@dataclass(frozen=True, slots=True)
class _Open(Generic[T]):
    """An answer that is undecided."""

    answer: Answer[T]
    key: str
    until: float


#: by reply, the messages in a row that got it
_Rows = dict[str, set[str]]


class Evidence(Generic[T]):
    """What one route has said. Its methods are for one thread at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._undecided: list[_Open[T]] = []
        self._row: _Rows = {}
        self._rows_of_domains: dict[str, _Rows] = {}
        self._suspicions: dict[str, _Suspicion] = {}
        #: by reply, until when it is taken as the messages' own
        self._stands: dict[str, float] = {}
        #: True if the route has accepted a message since it was last at fault
        self.works = False

    @property
    def quiet(self) -> bool:
        """True if there is nothing that an accepted message would change."""
        return not (self._row or self._rows_of_domains or self._suspicions or self._undecided)

    @property
    def undecided(self) -> int:
        """How many answers are undecided."""
        return len(self._undecided)

    def hear(self, answer: Answer[T], *, paused: bool = False) -> list[Ruling[T]]:
        """What is decided now that `answer` is known: it, or some before it, or nothing yet.

        `paused` if the route has failed since the message left: what it accepts says nothing of
        how it is now.
        """
        self._forget()
        outcome = answer.outcome
        if outcome.status is Status.ACCEPTED:
            rulings = [] if paused else self._accepted(answer.domain)
            return [*rulings, *self._late(), _own([answer])]
        return [*self._late(), *self._refused(answer)]

    def rest(self) -> list[Ruling[T]]:
        """There is nothing more to compare with: what is undecided stands."""
        return self._stand(lambda _: True)

    def likeness(self, sender: str, domain: str) -> int:
        """How much mail of `sender` to `domain` is like what was refused: 0 to 3.

        After a pause the message with the smallest number tells most.
        """
        some = self._suspicions.values()
        return 2 * any(domain in found.domains for found in some) + any(
            sender in found.senders for found in some
        )

    # -- what was accepted

    def _accepted(self, domain: str) -> list[Ruling[T]]:
        self.works = True
        self._row.clear()
        self._rows_of_domains.pop(domain, None)
        for suspicion in self._suspicions.values():
            suspicion.passed.add(domain)
        return self._stand(lambda each: each.answer.domain == domain)

    def _late(self) -> list[Ruling[T]]:
        """Those that have been undecided for long, or are too many."""
        if not self._undecided:
            return []
        now, many = self._clock(), len(self._undecided) - MOST_UNDECIDED
        late = {id(each) for n, each in enumerate(self._undecided) if n < many or each.until <= now}
        return self._stand(lambda each: id(each) in late) if late else []

    def _stand(self, decided: Callable[[_Open[T]], bool]) -> list[Ruling[T]]:
        """What `decided` is true of is no pattern: it stands.

        A reply that was found to be the route's fault of late stands only the second time.
        """
        some = self._taken(lambda each: decided(each) and each.key in self._suspicions)
        again: list[Ruling[T]] = [
            Ruling(
                Fault.ROUTE,
                (answer,),
                slow=_is_temporary(answer),
                reason=str(answer.outcome.reply),
                pauses=False,
            )
            for answer in some
        ]
        some = self._taken(decided)
        return [*again, *([_own(some)] if some else [])]

    def _taken(self, decided: Callable[[_Open[T]], bool]) -> list[Answer[T]]:
        """Answers that are undecided no longer."""
        some = [each.answer for each in self._undecided if decided(each)]
        self._undecided = [each for each in self._undecided if not decided(each)]
        return some

    # -- what was not

    def _refused(self, answer: Answer[T]) -> list[Ruling[T]]:
        outcome = answer.outcome
        reply = outcome.reply
        if reply is None or outcome.status in (Status.UNSENT, Status.IN_DOUBT):
            return [_own([answer])]
        if outcome.scope is Scope.ROUTE:
            return [_own([answer])]  # the table says it
        if is_about_mailbox(reply.enhanced, reply.text) or outcome.action is Action.SPLIT:
            return [_own([answer])]
        if outcome.scope is Scope.RECIPIENT and reply.temporary:
            return self._put_off_at_domain(answer)
        key, said = _key(answer, str(reply)), hint(reply) if reply.permanent else None
        if self._is_own(answer, key, said):
            return [_own([answer])]
        suspicion = self._suspicions.get(key)
        if said is not None:
            return [self._blame(key, [answer], said)]
        if suspicion is not None and not suspicion.passed:
            return [self._blame(key, [answer], Hint(slow=key is PUT_OFF))]
        if suspicion is None and _was_given_back(answer, key) and key is not PUT_OFF:
            return [self._blame(key, [answer], Hint())]  # by another process, and nothing is better
        return self._compare(answer, key)

    def _is_own(self, answer: Answer[T], key: str, said: Hint | None) -> bool:
        """True if the reply is known to be the message's own."""
        if said is None and self._clock() < self._stands.get(key, 0.0):
            return True
        if not _was_given_back(answer, key):
            return False
        if answer.waited >= WAITS_AT_MOST and (said is None or self.works):
            return True
        suspicion = self._suspicions.get(key)
        if suspicion is None:  # another process has given it back
            return self.works and said is None and key is not PUT_OFF
        if not suspicion.passed:
            return False
        if suspicion.of_domain and answer.domain not in suspicion.passed:
            return False
        if said is not None:
            return answer.waited >= HINT_HOLDS and answer.domain in suspicion.passed
        if key is PUT_OFF:
            return answer.waited >= PUT_OFF_HOLDS
        self._stands[key] = self._clock() + STANDS_FOR
        _bounded(self._stands)
        return True

    def _compare(self, answer: Answer[T], key: str) -> list[Ruling[T]]:
        self._undecided.append(_Open(answer, key, self._clock() + PATIENCE))
        row = _in_row(self._row, key, answer)
        of_domain = _in_row(self._rows_of(answer.domain), key, answer)
        if max(row, of_domain) < IN_A_ROW:
            return []
        alone = row < IN_A_ROW
        found = self._taken(
            lambda each: each.key == key and (not alone or each.answer.domain == answer.domain)
        )
        return [self._blame(key, found, Hint(slow=key is PUT_OFF), alone=alone)]

    def _blame(
        self, key: str, found: Sequence[Answer[T]], said: Hint, *, alone: bool = False
    ) -> Ruling[T]:
        """The route, or the domain, has given this reply; `alone` if others pass meanwhile."""
        suspicion = self._suspect(key)
        suspicion.domains.update(answer.domain for answer in found)
        suspicion.senders.update(answer.sender for answer in found)
        others = bool(suspicion.passed - suspicion.domains)
        one = len(suspicion.domains) == 1
        suspicion.of_domain = one and (alone or others or suspicion.of_domain)
        suspicion.passed.clear()
        self._row.pop(key, None)
        for domain in suspicion.domains:
            self._rows_of_domains.get(domain, {}).pop(key, None)
        count = len({answer.message for answer in found})
        reason = str(found[-1].outcome.reply)
        if count > 1:
            reason += f" (to {count} messages in a row)"
        of_domain = suspicion.of_domain
        self.works = self.works and of_domain
        return Ruling(
            Fault.DOMAIN if of_domain else Fault.ROUTE,
            tuple(found),
            said.slow,
            said.stop,
            reason,
            suspicion.times,
            found[0].domain if of_domain else "",
        )

    def _suspect(self, key: str) -> _Suspicion:
        """What is known of the reply `key`, which has come once more."""
        now = self._clock()
        suspicion = self._suspicions.pop(key, None) or _Suspicion(now)
        if now - suspicion.since > BEGINS_ANEW:
            suspicion.times = 0
        suspicion.since = now
        suspicion.times += 1
        self._suspicions[key] = suspicion  # the last one again
        _bounded(self._suspicions)
        return suspicion

    def _put_off_at_domain(self, answer: Answer[T]) -> list[Ruling[T]]:
        """A 4yz to RCPT is the recipient's. Of three in a row, its domain gets less."""
        reply = answer.outcome.reply
        assert reply is not None
        if reply.code in (450, 451):
            return [_own([answer])]
        rows = self._rows_of(answer.domain)
        if _in_row(rows, "RCPT", answer) < IN_A_ROW:
            return [_own([answer])]
        del rows["RCPT"]
        slower: Ruling[T] = Ruling(
            Fault.DOMAIN, (), slow=True, reason=str(reply), domain=answer.domain
        )
        return [_own([answer]), slower]

    def _rows_of(self, domain: str) -> _Rows:
        rows = self._rows_of_domains.setdefault(domain, {})
        _bounded(self._rows_of_domains)
        return rows

    def _forget(self) -> None:
        if self._suspicions:
            before = self._clock() - FORGOTTEN
            for key in [k for k, found in self._suspicions.items() if found.since < before]:
                del self._suspicions[key]


def _bounded(known: dict[str, Any]) -> None:
    """Forget the oldest, whatever a server says."""
    while len(known) > MOST_KNOWN:
        del known[next(iter(known))]


def _own(answers: Iterable[Answer[T]]) -> Ruling[T]:
    return Ruling(Fault.OWN, tuple(answers))


def _key(answer: Answer[T], said: str) -> str:
    return alike(said, answer.sender, answer.outcome.recipient)


def _is_temporary(answer: Answer[Any]) -> bool:
    reply = answer.outcome.reply
    return reply is not None and reply.temporary


def _was_given_back(answer: Answer[Any], key: str) -> bool:
    return bool(answer.before) and _key(answer, answer.before) == key


def _in_row(rows: _Rows, key: str, answer: Answer[T]) -> int:
    """Count the message of `answer` among those in a row that got the same; how many they are."""
    messages = rows.setdefault(key, set())
    messages.add(answer.message)
    _bounded(rows)
    return len(messages)
