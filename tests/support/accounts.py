"""What a client may say of each recipient, by what went over its connections."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that came whole: who its recipients were, and the final reply's code or 0."""

    content: bytes
    recipients: set[bytes]
    code: int
    #: who may have got it, if nothing more is known
    open: set[bytes]
    #: by BDAT
    chunk: bool = False
    #: True if the replies to it say nothing any more
    lost: bool = False

    @property
    def refused_unheard(self) -> bool:
        """True if it was refused where nobody can tell what a reply is about."""
        return self.lost and self.code >= 400

    @property
    def unknown(self) -> bool:
        """True if it was refused because BDAT is not known: then it goes again."""
        return self.chunk and self.code in (500, 501, 502, 503, 504) and not self.lost


def check_account(ended, envelopes, deliveries, window, *, strict):
    """What the client says of each recipient agrees with what went over its connections."""
    outcomes = iter(ended.outcomes)
    if strict:
        assert (ended.error is None) is (set(ended.statuses) == {"accepted"})
        assert (ended.error is None) is (ended.witness == "committed")
    assert len({o.message_id for o in ended.outcomes if o.status == "in_doubt"}) <= window
    first_bad = None
    for position, envelope in enumerate(envelopes):
        of_it = [d for d in deliveries if d.content == envelope.content and not d.unknown]
        for recipient, path in zip(envelope.recipients, envelope.forward_paths, strict=True):
            outcome = next(outcomes)
            assert (outcome.recipient, outcome.position) == (recipient, position)
            if outcome.status != "accepted" and first_bad is None:
                first_bad = position
            # What was on its way already may still be accepted.
            if strict and first_bad is not None and position > first_bad + window - 1:
                assert outcome.status != "accepted"
            check_outcome(outcome, path, of_it)
    assert next(outcomes, None) is None
    contents = {envelope.content for envelope in envelopes}
    assert all(delivery.content in contents for delivery in deliveries)


def check_outcome(outcome, path, deliveries):
    """`deliveries` are all of the message that came whole."""
    # What was refused where the replies said nothing any more counts as unsent.
    codes = [d.code for d in deliveries if path in d.recipients and not d.refused_unheard]
    if outcome.status == "accepted":
        assert [code for code in codes if code // 100 == 2] == codes, outcome
        assert len(codes) == 1, outcome
    elif outcome.status == "in_doubt":
        # Of replies that are one too many nobody knows what each is about.
        shifted = "nothing asked for it" in outcome.reason
        open_ = [d for d in deliveries if shifted or path in d.open]
        assert open_, outcome
        assert len([d for d in open_ if not d.refused_unheard]) <= 1, outcome
    else:  # if it came whole it was refused
        assert not [d for d in deliveries if path in d.open and d.code < 400], outcome
        if codes:
            # A refusal that several messages got alike is the route's fault: see `SharedEvidence`.
            of_route = outcome.status == "unsent" and outcome.scope == "route"
            if of_route:
                assert outcome.reply.permanent, (outcome, codes)
            else:
                assert outcome.status in ("failed", "deferred"), (outcome, codes)
            assert codes == [outcome.reply.code], (outcome, codes)
    if outcome.status == "failed":
        assert outcome.reply is None or outcome.reply.permanent, outcome
