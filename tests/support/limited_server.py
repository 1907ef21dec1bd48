"""A simulated mail server that limits what it takes, as a transport, in simulated time.

The replies are those that real servers give, and the failure table says what they mean.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from zope.interface import implementer

from txmail.envelope import Envelope
from txmail.interfaces import ISession, ITransport
from txmail.outcome import Outcome
from txmail.reply import Reply
from txmail.smtp.failure_policy import ACCEPTED, Step, judge
from txmail.smtp.progress import outcome_of

#: Seconds of simulated time that a message takes.
PACE = 0.02
DAY = 86400.0

#: What a server says, and to what: None if it takes the message.
Answer = tuple[Step, str] | None
Rule = Callable[["LimitedServer", float, str, str], Answer]


@implementer(ITransport)
class LimitedServer:
    """Asks its rules about each message; the first that answers decides."""

    name = "simulated:"
    asks_server = True
    connections = 1

    def __init__(self, clock, *rules: Rule, window: int = 4) -> None:
        self.clock, self.rules, self.window = clock, rules, window
        #: by recipient, how often it was named, and who got the message
        self.asked: Counter[str] = Counter()
        self.taken: list[str] = []
        #: what was said, by recipient
        self.said: dict[str, list[str]] = {}
        #: messages taken on the connection, and in all of time
        self.in_session = 0
        self.times: deque[float] = deque()

    def open(self, **options) -> LimitedSession:
        self.in_session = 0
        return LimitedSession(self)

    def close(self) -> None:
        pass

    def answer(self, sender: str, recipient: str) -> tuple[Step, Reply]:
        self.clock.advance(PACE)
        self.asked[recipient] += 1
        for rule in self.rules:
            found = rule(self, self.clock(), sender, recipient)
            if found is not None:
                step, text = found
                self.said.setdefault(recipient, []).append(text)
                return step, Reply(int(text[:3]), tuple(text[4:].split("\n")))
        self.in_session += 1
        self.times.append(self.clock())
        self.taken.append(recipient)
        return Step.FINAL, Reply(250, ("2.0.0 Ok",))


@implementer(ISession)
class LimitedSession:
    host, fresh, restartable = "simulated:", True, False

    def __init__(self, server: LimitedServer) -> None:
        self._server = server

    def preflight(self, envelopes, **options) -> list[Outcome]:
        return []

    def send(self, envelopes: Iterable[Envelope], **options) -> Iterator[Outcome]:
        for position, envelope in enumerate(envelopes):
            for index, recipient in enumerate(envelope.recipients):
                step, reply = self._server.answer(envelope.sender, recipient)
                verdict = judge(step, reply)
                yield outcome_of(envelope, index, verdict, reply, position=position)
            if verdict is not ACCEPTED and reply.code == 421:
                return

    def unsettled(self) -> list[Outcome]:
        return []

    def close(self, *, dirty: bool = False) -> None:
        pass


# -- rules


def domain(address: str) -> str:
    return address.rpartition("@")[2]


def after_all(most: int, answer: Answer) -> Rule:
    """So many, and nothing any more."""
    return lambda server, now, sender, recipient: answer if len(server.taken) >= most else None


def per_session(most: int, answer: Answer) -> Rule:
    return lambda server, now, sender, recipient: answer if server.in_session >= most else None


def per_time(most: int, seconds: float, answer: Answer) -> Rule:
    """So many in any span of so many seconds."""

    def rule(server, now, sender, recipient):
        while server.times and server.times[0] <= now - seconds:
            server.times.popleft()
        return answer if len(server.times) >= most else None

    return rule


def per_day(most: int, answer: Answer, day: float = DAY) -> Rule:
    """So many from one midnight to the next."""
    asked: Counter[int] = Counter()

    def rule(server, now, sender, recipient):
        asked[int(now // day)] += 1
        return answer if asked[int(now // day)] > most else None

    return rule


def until(end: float, answer: Answer) -> Rule:
    """A client that is blocked until a moment."""
    return lambda server, now, sender, recipient: answer if now < end else None


def at_domain(name: str, rule: Rule) -> Rule:
    def only(server, now, sender, recipient):
        return rule(server, now, sender, recipient) if domain(recipient) == name else None

    return only


@dataclass
class PerDomain:
    """So many for one domain in any span of so many seconds."""

    name: str
    most: int
    seconds: float
    answer: Answer
    times: deque[float] = field(default_factory=deque)

    def __call__(self, server, now, sender, recipient) -> Answer:
        if domain(recipient) != self.name:
            return None
        while self.times and self.times[0] <= now - self.seconds:
            self.times.popleft()
        if len(self.times) >= self.most:
            return self.answer
        self.times.append(now)
        return None


@dataclass
class Greylisting:
    """Who comes for the first time comes again after some minutes."""

    text: str
    wait: float = 250.0
    seen: dict[tuple[str, str], float] = field(default_factory=dict)

    def __call__(self, server, now, sender, recipient) -> Answer:
        first = self.seen.setdefault((sender, recipient), now)
        return (Step.RCPT, self.text) if now - first < self.wait else None


def dead(text: str) -> Rule:
    """Addresses that begin with "dead" are not there."""

    def rule(server, now, sender, recipient):
        if not recipient.startswith("dead"):
            return None
        return Step.RCPT, text.replace("{}", recipient)

    return rule


def shuffled(seed: int, *lists: list) -> list:
    """Lists in blocks, in an order of their own: stale lists come in a row."""
    rng = random.Random(seed)
    blocks = []
    for some in lists:
        some = list(some)
        while some:
            size = rng.randint(1, 12)
            blocks.append(some[:size])
            some = some[size:]
    rng.shuffle(blocks)
    return [each for block in blocks for each in block]
