"""The conversation that asks before anything irrevocable. No I/O.

One probe asks about all envelopes with the same sender and needs: one MAIL with the largest SIZE,
up to a hundred distinct RCPTs, one RSET. For the first envelope there is no probe: its own MAIL and
RCPTs are left open, so that only DATA is missing. With PIPELINING all of it is one round trip.

Some servers count every RSET without a message between against the client: a default Exim hangs up
after about twelve, a default Postfix after about 120. `PROBES_LIMIT` stays below both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..envelope import Envelope
from ..outcome import Outcome
from ..reply import Reply
from . import commands, failure_policy
from .extensions import Extensions
from .failure_policy import Step, Verdict, judge
from .progress import outcome_of, unsendable, verdict_on
from .protocol import Protocol
from .reconnect_policy import ReconnectPolicy
from .transactions import RECIPIENTS_LIMIT, CommandGroup, Conversation, MailTransaction

#: Probes on one connection since the server last accepted a message there.
PROBES_LIMIT = 8

#: Reasons why a preflight asks no more.
ASKED_ENOUGH = (
    f"a server is asked about no more than {PROBES_LIMIT} groups (of one sender and "
    f"{RECIPIENTS_LIMIT} recipients) without getting a message"
)
NO_RESET = "this server knows no RSET, and can be asked about the first message only"

_RSET = (Step.RSET, commands.RSET)
_Answer = tuple[Verdict, Reply]
#: envelopes of one kind can share a MAIL: reverse-path, SMTPUTF8, 8BITMIME
_Kind = tuple[bytes, bool, bool]


@dataclass(slots=True)
class _Probe:
    """One group of questions: the envelopes it is about, and the recipients it asks about."""

    envelopes: list[Envelope] = field(default_factory=list)
    paths: list[bytes] = field(default_factory=list)


def _kind(envelope: Envelope) -> _Kind:
    return envelope.reverse_path, envelope.needs_smtputf8, envelope.needs_8bitmime


class Preflight:
    """One call of `ISession.preflight`."""

    def __init__(
        self,
        protocol: Protocol,
        extensions: Extensions,
        envelopes: Sequence[Envelope],
        *,
        always: bool,
        keep_open: bool,
        pipelining: bool,
        dirty: bool,
        allowed: int,
        limit: str = ASKED_ENOUGH,
    ) -> None:
        """`envelopes` have not passed yet, except the first, whose transaction is left open anew.

        A `dirty` connection gets RSET first. `allowed` is the number of probes; envelopes beyond
        it are not asked about or, with `always`, refused because of the `limit`.
        """
        self._protocol = protocol
        self._extensions = extensions
        self._pipelining = pipelining
        self._always = always
        self._allowed = allowed
        self._limit = limit
        self._problems = {id(e): unsendable(e, extensions) for e in envelopes}
        self.envelopes = envelopes
        self._sendable = [e for e in envelopes if not self._problems[id(e)]]
        self._first = envelopes[0] if keep_open and not self._problems[id(envelopes[0])] else None
        #: answers, by the kind of envelope and the recipient
        self._answers: dict[tuple[_Kind, bytes], _Answer] = {}
        #: probes beyond what is allowed
        self._unasked: list[_Probe] = []
        self._plan = self._planned()
        #: answers to MAIL that were not positive, by the id of the envelope
        self._refused: dict[int, _Answer] = {}
        #: the mail transaction left open for the first envelope
        self.open_transaction: MailTransaction | None = None
        #: True if the next mail transaction has to begin with RSET
        self.dirty = dirty
        #: how often the server got RSET in place of a message
        self.probes = 0

    @property
    def probe_count(self) -> int:
        """The number of probes that are needed, besides the open transaction."""
        return len(self._plan)

    # -- results

    def passed(self, envelope: Envelope) -> bool:
        """True if the server was asked about each recipient of `envelope`, and refused none."""
        kind = _kind(envelope)
        return all(
            (answer := self._answers.get((kind, path))) is not None
            and answer[0] is failure_policy.ACCEPTED
            for path in envelope.forward_paths
        )

    def refusals(self) -> list[Outcome]:
        """An outcome for each recipient that the server does not take, in order."""
        found = []
        for position, envelope in enumerate(self.envelopes):
            problem = self._problems[id(envelope)]
            for index, path in enumerate(envelope.forward_paths):
                if problem:
                    verdict = verdict_on(envelope, self._extensions)
                    found.append(
                        outcome_of(envelope, index, verdict, reason=problem, position=position)
                    )
                    continue
                answer = self._refused.get(id(envelope)) or self._answers.get(
                    (_kind(envelope), path)
                )
                if answer is not None and answer[0] is not failure_policy.ACCEPTED:
                    found.append(outcome_of(envelope, index, *answer, position=position))
        return found or (self._refused_unasked() if self._always else [])

    def _refused_unasked(self) -> list[Outcome]:
        reason = f"preflight=always, and {self._limit}"
        unasked = {id(envelope) for probe in self._unasked for envelope in probe.envelopes}
        return [
            outcome_of(
                envelope,
                index,
                failure_policy.NOT_ASKED,
                reason=reason,
                preflighted=False,
                position=position,
            )
            for position, envelope in enumerate(self.envelopes)
            if id(envelope) in unasked
            for index in range(len(envelope.recipients))
        ]

    def reconnect_reply(self, policy: ReconnectPolicy) -> Reply | None:
        """The first refusal that may be about this connection alone, else None."""
        for envelope in self._sendable:
            refused = self._refused.get(id(envelope))
            if refused is not None:
                step, replies = Step.MAIL, [refused[1]]
            else:
                found = map(
                    self._answers.get, [(_kind(envelope), p) for p in envelope.forward_paths]
                )
                answers = [answer for answer in found if answer is not None]
                step, replies = Step.RCPT, [reply for _, reply in answers]
            if (again := policy.for_replies(step, replies)) is not None:
                return again
        return None

    # -- the questions

    def conversation(self) -> Conversation:
        """Ask. Raises `ConnectionEnded`."""
        probes, first = self._plan, None
        if self._first is not None:
            first_ones = range(len(self._first.recipients))[:RECIPIENTS_LIMIT]
            first = MailTransaction(self._first, first_ones, self._extensions)
        while True:
            probes = self._affordable(probes)
            groups = [self._group(probe) for probe in probes]
            resets = [CommandGroup([_RSET])] if self.dirty and (groups or first) else []
            yield from self._ask([*resets, *groups, *([first] if first else [])])
            self.dirty = self.dirty and not resets
            self.probes += len(groups)
            again = [p for probe, group in zip(probes, groups, strict=True)
                     for p in self._evaluate(probe, group)]  # fmt: skip
            if first is not None:
                again += self._evaluate_first(first)
            if not again:
                return
            if self.open_transaction is not None:
                self.open_transaction, self.dirty = None, True
                self.probes += 1
            probes, first = again, None

    def _ask(self, groups: Sequence[CommandGroup]) -> Conversation:
        if self._pipelining:
            for group in groups:
                group.issue(self._protocol)
        for group in groups:
            yield from group.answers(self._protocol, self._pipelining)

    def _planned(self) -> list[_Probe]:
        """The probes that are needed beside the open transaction of the first envelope."""
        probes: list[_Probe] = []
        current: dict[_Kind, _Probe] = {}
        asked: dict[tuple[_Kind, bytes], _Probe] = {}
        for envelope in self._sendable:
            kind = _kind(envelope)
            skip = RECIPIENTS_LIMIT if envelope is self._first else 0
            for path in envelope.forward_paths[skip:]:
                probe = asked.get((kind, path))
                if probe is None:
                    probe = current.get(kind)
                    if probe is None or len(probe.paths) >= RECIPIENTS_LIMIT:
                        probe = current[kind] = _Probe()
                        probes.append(probe)
                    probe.paths.append(path)
                    asked[kind, path] = probe
                if not probe.envelopes or probe.envelopes[-1] is not envelope:
                    probe.envelopes.append(envelope)
        return probes

    def _affordable(self, probes: list[_Probe]) -> list[_Probe]:
        left = max(0, self._allowed - self.probes)
        self._unasked += probes[left:]
        return probes[:left]

    def _group(self, probe: _Probe) -> CommandGroup:
        largest = max(envelope.size for envelope in probe.envelopes)
        mail = commands.mail(probe.envelopes[0], self._extensions, largest)
        recipients = [(Step.RCPT, commands.rcpt(path)) for path in probe.paths]
        return CommandGroup([(Step.MAIL, mail), *recipients, _RSET])

    # -- the answers

    def _evaluate(self, probe: _Probe, group: CommandGroup) -> list[_Probe]:
        """Note the answers to a probe; return the probes that ask again."""
        mail = group.to_mail
        if mail is not None and not mail.positive:
            if len(probe.envelopes) > 1:
                singly = sorted(probe.envelopes, key=lambda e: e.size, reverse=True)
                return [
                    _Probe([e], [path for path in probe.paths if path in e.forward_paths])
                    for e in singly
                ]
            self._refused[id(probe.envelopes[0])] = judge(Step.MAIL, mail), mail
            return []
        replies = dict(zip(probe.paths, group.to_recipients, strict=True))
        return self._note(probe.envelopes, replies)

    def _evaluate_first(self, first: MailTransaction) -> list[_Probe]:
        mail = first.to_mail
        if mail is not None and not mail.positive:
            self._refused[id(first.envelope)] = judge(Step.MAIL, mail), mail
            self.dirty = True
            return []
        paths = [first.envelope.forward_paths[i] for i in first.recipients]
        replies = dict(zip(paths, first.to_recipients, strict=True))
        again = self._note([first.envelope], replies)
        if all(reply.positive for reply in replies.values()):
            self.open_transaction = first
        else:
            self.dirty = True
        return again

    def _note(self, envelopes: list[Envelope], replies: dict[bytes, Reply]) -> list[_Probe]:
        kind = _kind(envelopes[0])
        verdicts = {path: judge(Step.RCPT, reply) for path, reply in replies.items()}
        progress = failure_policy.ACCEPTED in verdicts.values()
        too_many = []
        for path, verdict in verdicts.items():
            if verdict is failure_policy.SPLIT:
                if progress:
                    too_many.append(path)
                    continue
                verdict = failure_policy.DEFER_RECIPIENT
            self._answers[kind, path] = verdict, replies[path]
        return [_Probe(envelopes, too_many)] if too_many else []
