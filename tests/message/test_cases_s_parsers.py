"""Messages of the standard library: what its parsers would choke on is refused before they see it.

What the parsers take cannot be counted from outside: their time goes into copies. Tests see that
no parser is called, that memory has a bound, and that a long list of short items is in proportion.
"""

from __future__ import annotations

import contextlib
import email
import email.policy
import tracemalloc
from email.headerregistry import HeaderRegistry

import pytest
from test_message_work import calls

from txmail import Envelope
from txmail.exceptions import MessageTooLarge, TxmailError
from txmail.message import to_envelope
from txmail.message.stdlib.costs import MAX_COST, list_items, parse_cost
from txmail.transports.local.console import shown

POLICIES = {"old": email.policy.compat32, "new": email.policy.SMTP}
OTHERS = ["Message-ID", "Content-Transfer-Encoding", "MIME-Version"]

#: What is repeated in a header, and some of which the parsers take the square, or more, of.
PUMPS = [
    *('"', " ", "\\", "\\\"", ",", ".", "(", ")", "<", ">", "[", "@", ":", ";", "=", "\t", "a "),
    *("=?utf-8?q?a?= ", "=?utf-8?q?a?=", "=?utf-8?b?YQ==?= ", 'a="', ';a="b"', ";a=b", "a*0=b;"),
    *("é ", "é", "()", "a@b,", "a:", "a:;", '"a" ', "<a@b>"),
]  # fmt: skip


def message(name, value, policy, rest=""):
    """A message that has the header as it came from a parser, which has not looked into it."""
    found = email.message_from_string(f"From: me@x.y\nTo: a@b.c\n{rest}\ntext\n", policy=policy)
    del found[name]
    # Not through the policy, which would parse it for whoever sets it.
    found._headers.append((name, value))
    return found


def peak_of(function):
    tracemalloc.start()
    try:
        with contextlib.suppress(TxmailError):
            function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def turns():
    """Each of `PUMPS` with some of the headers and policies; four of them by default."""
    headers = ["To", "From", "Reply-To", "Content-Type"]
    kinds = [(name, policy) for name in headers for policy in POLICIES]
    for place, pump in enumerate(PUMPS):
        few = pump in ('"', " ", ",", "=?utf-8?q?a?= ")
        for name, policy in kinds[place % 3 :: 3]:
            marks = () if few else pytest.mark.sweep
            yield pytest.param(pump, name, policy, marks=marks)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("pump", "name", "policy"), list(turns()))
def test_s7_twenty_kilobytes_of_anything_are_little_work(pump, name, policy):
    """Stands for any header that a foreign parser takes more than linear time or memory for."""
    value = pump * (20_000 // len(pump.encode()))
    hostile = message(name, value, POLICIES[policy])
    assert peak_of(lambda: to_envelope(hostile, recipients=["a@b.c"])) < 12_000_000


@pytest.mark.parametrize("name", ["To", "Cc", "Content-Type", "Content-Disposition", *OTHERS])
@pytest.mark.parametrize("pump", ['"', "\\", ";", "=?utf-8?q?a?=", ".", "é "])
def test_s7_what_is_too_much_is_refused_by_name_before_it_is_parsed(name, pump, monkeypatch):
    """The same: no parser has seen it, and the refusal says which header it was."""
    value = pump * (50_000 // len(pump))
    if name in ("To", "Cc") and pump == ";":
        return  # empty groups, one after the other: each is little work
    hostile = message(name, value, email.policy.SMTP)
    seen = []
    monkeypatch.setattr(HeaderRegistry, "__call__", lambda *arguments: seen.append(arguments))
    with pytest.raises(MessageTooLarge) as caught:
        to_envelope(hostile, sender="me@x.y", recipients=["a@b.c"])
    assert caught.value.field == name
    assert not seen


def test_s7_the_headers_of_all_parts_have_one_allowance():
    """The same, spread over the parts of a message."""
    part = "--b\nContent-Type: text/plain; a=" + '"' * 1500 + "\n\ntext\n"
    text = "From: me@x.y\nTo: a@b.c\nContent-Type: multipart/mixed; boundary=b\n\n" + part * 50
    with pytest.raises(MessageTooLarge) as caught:
        to_envelope(email.message_from_string(text + "--b--\n"))
    assert caught.value.field == "Content-Type"


@pytest.mark.parametrize("signature", ["DKIM-Signature: v=1; h=From\n", ""])
def test_s7_what_is_signed_is_paid_for_whichever_header_it_is(signature):
    """The same where the standard library writes all headers, for which it parses them."""
    kind = "" if signature else "Content-Type: multipart/signed; boundary=b; protocol=x\n"
    body = "text\n" if signature else "--b\n\nx\n--b\nContent-Type: a/b\n\ny\n--b--\n"
    head = f"From: me@x.y\nTo: a@b.c\n{signature}{kind}"
    hostile = email.message_from_string(f"{head}\n{body}", policy=email.policy.SMTP)
    hostile._headers.append(("Subject", "=?utf-8?q?a?= " * 7000))
    with pytest.raises(MessageTooLarge) as caught:
        to_envelope(hostile)
    assert caught.value.field == "Subject"


def test_s7_what_is_shown_on_a_console_is_paid_for_too():
    """The same behind the gate: octets that are well-formed, and that are parsed to be shown."""
    head = "From: me@x.y\r\nDate: x\r\nMessage-ID: <a@b>\r\n"
    value = '"" ' * 16_000
    content = f"{head}To: {value}\r\n\r\ntext\r\n".encode()
    assert peak_of(lambda: shown("a@b.c", ["a@b.c"], content)) < 30_000_000
    assert 'To: "" ""' in shown("a@b.c", ["a@b.c"], content)


@pytest.mark.representative(every=2)
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_s7_a_thousand_recipients_are_no_more_work_than_they_are(policy):
    """The other side of it: a long list of short mailboxes is read, in proportion."""

    def read(count):
        value = ", ".join([f'"Last, First {n}" <a{n}@example.com>' for n in range(count)])
        hostile = message("To", value, policy)
        assert len(to_envelope(hostile).recipients) == count
        return calls(lambda: to_envelope(hostile))

    assert read(400) < 5 * read(100)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("a@b.c, d@e.f", [(None, "a@b.c"), (None, "d@e.f")]),
        ('"Last, First" <a@b.c>, (x, y) d@e.f', [(None, '"Last, First" <a@b.c>'),
                                                 (None, "(x, y) d@e.f")]),
        ("them: a@b.c, d@e.f;, g@h.i", [("them", "a@b.c"), ("them", "d@e.f"), (None, "g@h.i")]),
        ("nobody:;, a@b.c", [("nobody", ""), (None, "a@b.c")]),
        ('"a:b;c" <a@b.c>, <x@[IPv6:::1]>', [(None, '"a:b;c" <a@b.c>'),
                                             (None, "<x@[IPv6:::1]>")]),
        ('"a\\", b" <a@b.c>, c@d.e', [(None, '"a\\", b" <a@b.c>'), (None, "c@d.e")]),
        (", ,a@b.c,", [(None, "a@b.c")]),
    ],
)  # fmt: skip
def test_s7_a_list_is_taken_apart_where_the_parser_would(text, items):
    """The cut is in front of the parser, and must be where it would be."""
    assert list(list_items(text)) == items
    # Long enough to be cut, it says the same as the short one.
    short = to_envelope(message("To", text, email.policy.SMTP)).recipients
    long = f"{text}, " + ", ".join([f"b{n}@example.com" for n in range(200)])
    content = to_envelope(message("To", long, email.policy.SMTP))
    assert content.recipients[: len(short)] == short
    assert len(content.recipients) == len(short) + 200


def test_s7_the_cost_is_what_the_parser_takes():
    """Letters cost nothing, whatever the parser stops at costs the length of the text."""
    assert parse_cost("a" * 1000) == 1000
    assert parse_cost('"' * 1000) == 1001 * 1000
    assert parse_cost("%41" * 300) == 900
    assert parse_cost('"' * 5000) > MAX_COST
    assert Envelope("a@b.c", ["a@b.c"], b"").gated is False
