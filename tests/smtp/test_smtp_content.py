"""Content leaves as one message, whoever reads it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txmail.envelope import Envelope, is_canonical
from txmail.smtp.dot_stuffing import dot_stuffed
from txmail.smtp.extensions import Extensions
from txmail.smtp.progress import unsendable

ENDS = (b"\r\n", b"\n", b"\r", b"")
SMUGGLED = b"MAIL FROM:<evil@example.net>\r\n"


@pytest.mark.parametrize(("before", "after"), list(itertools.product(ENDS, ENDS)))
def test_a_dot_between_any_line_ends_is_refused_or_stuffed(before, after):
    content = b"Subject: x\r\n\r\ntext" + before + b"." + after + SMUGGLED
    strict = before in (b"\r\n", b"") and after in (b"\r\n", b"")
    assert is_canonical(content) is strict
    problem = unsendable(Envelope("a@b.example", ["c@d.example"], content), Extensions())
    if not strict:
        assert "line ends" in problem
        return
    assert problem == ""
    wire = b"".join(dot_stuffed(content))
    assert messages_read(wire, [b"\r\n"]) == [content]
    assert len(messages_read(wire, [b"\r\n", b"\n"])) == 1
    assert len(messages_read(wire, [b"\r\n", b"\n", b"\r"])) == 1


def messages_read(wire, line_ends):
    """What a server makes of `wire` that takes each of `line_ends` for one; commands are not read.

    A lenient server ends the content at a dot between any two of them.
    """
    messages, current = [], []
    rest = wire
    while rest:
        found = [(rest.find(end), -len(end), end) for end in line_ends if end in rest]
        at, _, end = min(found)
        line, rest = rest[:at], rest[at + len(end) :]
        if line == b".":
            messages.append(b"".join(current))
            current = []
        else:
            current.append(line.removeprefix(b".") + end)
    assert current == []
    return messages


@pytest.mark.parametrize(
    ("content", "canonical"),
    [
        (b"a\r\n", True),
        (b"a\r\n\r\n.\r\n", True),
        (b"a", False),
        (b"", False),
        (b"a\n", False),
        (b"a\r", False),
        (b"a\rb\r\n", False),
        (b"a\nb\r\n", False),
        (b"a\r\r\n", False),
        (b"a\n\r\r\n", False),
        (b"\n\r", False),
        (b"a\0\r\n", False),
    ],
)
def test_canonical_has_crlf_only_and_at_its_end_and_no_nul(content, canonical):
    assert is_canonical(content) is canonical


@pytest.mark.parametrize(
    ("content", "wire"),
    [
        (b"a\r\n", b"a\r\n.\r\n"),
        (b".\r\n", b"..\r\n.\r\n"),
        (b"..\r\n", b"...\r\n.\r\n"),
        (b"a\r\n.b\r\n..\r\n", b"a\r\n..b\r\n...\r\n.\r\n"),
        (b"a.\r\nb.c\r\n", b"a.\r\nb.c\r\n.\r\n"),
    ],
)
def test_dots_at_line_starts_are_doubled_and_no_others(content, wire):
    assert b"".join(dot_stuffed(content)) == wire


def test_content_without_leading_dots_is_not_copied():
    content = b"a" * 100 + b"\r\n"
    assert dot_stuffed(content)[0] is content


@given(st.text(alphabet=".\r\nab\0", max_size=40))
def test_canonical_content_is_read_back_as_it_was(text):
    content = text.encode() + b"\r\n"
    if is_canonical(content):
        assert messages_read(b"".join(dot_stuffed(content)), [b"\r\n", b"\n", b"\r"]) == [content]
