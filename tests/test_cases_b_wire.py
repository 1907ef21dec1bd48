"""Cases at commit that the wire has: replies too many, names that do not resolve, endings."""

from __future__ import annotations

import pytest
from smtp_helpers import (
    GO_AHEAD,
    LOCKSTEP,
    OK,
    PIPELINING,
    STREAMING,
    Dialogue,
    make_envelope,
    statuses,
)

ONE, TWO, THREE = (make_envelope(n, [f"r{n}@b.example"]) for n in (1, 2, 3))
GOODBYE = b"421 4.4.2 closing\r\n"
SPAM = b"554 5.7.1 spam\r\n"

#: what may lie behind the last reply that is due
SURPLUS = {
    "550": b"550 5.7.1 no\r\n",
    "451": b"451 4.3.0 later\r\n",
    "250": OK,
    "354": GO_AHEAD,
    "two": OK + SPAM,
    "several lines": b"250-one\r\n250 two\r\n",
    "the beginning of a line": b"5",
    "the beginning of a reply": b"550-no\r\n",
    "no reply at all": b"hello\r\n",
    "421 and more": GOODBYE + SPAM,
    "more and 421": OK + GOODBYE,
}
#: what is no surplus: the server says goodbye
GOODBYES = (
    b"",
    GOODBYE,
    GOODBYE * 2,
    b"421-4.4.2\r\n421 closing\r\n",
    b"4",
    b"421 4.4.",
    b"421-x\r\n",
)

#: by the way a message is sent: the extensions, the window, and what comes before its final reply
WAYS = {
    "stream": (STREAMING, 4, (OK, OK)),
    "pipeline": (PIPELINING, 0, (OK, OK, GO_AHEAD)),
    "lockstep": (LOCKSTEP, 0, (OK, OK, GO_AHEAD)),
}


def sent(way, *, strict=True):
    """One message on its way, with its final reply to come: the dialogue, the sending, the rest."""
    extensions, window, before = WAYS[way]
    dialogue = Dialogue(extensions)
    sending = dialogue.sending(ONE, strict=strict, window=window, dirty=False)
    if way == "stream":
        dialogue.write()
        return dialogue, sending, b"".join(before)
    for reply in before if way == "lockstep" else [b"".join(before)]:
        dialogue.answer(reply)
    dialogue.write()
    return dialogue, sending, b""


@pytest.mark.parametrize("surplus", SURPLUS.values(), ids=SURPLUS)
@pytest.mark.parametrize("way", WAYS)
def test_b6_what_has_a_reply_too_many_behind_its_final_reply_is_in_doubt(way, surplus):
    """Kind: a reply is believed to be about a message although another may be."""
    dialogue, sending, before = sent(way)
    dialogue.feed(before + OK + surplus)
    assert statuses(sending.ready) == ["in_doubt"]
    assert not dialogue.protocol.idle or dialogue.error


@pytest.mark.parametrize("goodbye", GOODBYES)
@pytest.mark.parametrize("way", WAYS)
def test_b6_a_421_behind_the_final_reply_is_no_surplus(way, goodbye):
    """Kind: a message that the server has taken is doubted because the server says goodbye."""
    dialogue, sending, before = sent(way)
    dialogue.feed(before + OK + goodbye)
    assert statuses(sending.ready) == ["accepted"]


@pytest.mark.parametrize("way", WAYS)
def test_b6_a_refusal_with_a_reply_too_many_is_in_doubt_as_well(way):
    """Kind: a refusal is believed to be about a message although another reply may be."""
    dialogue, sending, before = sent(way)
    dialogue.feed(before + SPAM + OK)
    assert statuses(sending.ready) == ["in_doubt"]


def test_b6_in_a_stream_nothing_is_certain_that_is_judged_together():
    """Kind: one surplus reply moves all that come behind it to the next message."""
    dialogue = Dialogue(STREAMING)
    sending = dialogue.sending(ONE, TWO, THREE, strict=False, window=3, dirty=False)
    dialogue.answer(*[OK] * 11, SPAM)
    assert statuses(sending.ready) == ["in_doubt"] * 3


def test_b6_in_a_pipeline_the_replies_to_the_next_message_are_no_surplus():
    """Kind: replies that are due are taken for surplus ones."""
    dialogue = Dialogue(PIPELINING)
    sending = dialogue.sending(ONE, TWO, strict=False)
    dialogue.answer(OK, OK, GO_AHEAD)
    dialogue.answer(OK, OK, OK, GO_AHEAD)
    dialogue.answer(OK)
    assert statuses(sending.ready) == ["accepted"] * 2
    assert dialogue.error is None


def test_b6_one_more_than_these_is():
    dialogue = Dialogue(PIPELINING)
    sending = dialogue.sending(ONE, TWO, strict=False)
    dialogue.answer(OK, OK, GO_AHEAD)
    dialogue.answer(OK, SPAM, OK, OK, GO_AHEAD)
    assert statuses(sending.ready) == ["in_doubt", "unsent"]
