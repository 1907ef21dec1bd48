"""What a server offers is read once, from its EHLO reply."""

from __future__ import annotations

import pytest

from txmail.reply import Reply
from txmail.smtp.extensions import Extensions


def offered(*lines):
    return Extensions.from_ehlo(Reply(250, ("mx.example.com greets you", *lines)))


def test_keywords_are_known_in_any_case_and_others_ignored():
    found = offered("pipelining", "8BitMime", "SMTPUTF8", "ENHANCEDSTATUSCODES", "STARTTLS", "XFOO")
    assert found == Extensions(
        pipelining=True,
        eightbitmime=True,
        smtputf8=True,
        enhancedstatuscodes=True,
        starttls=True,
    )


def test_the_first_line_is_a_greeting_and_offers_nothing():
    assert Extensions.from_ehlo(Reply(250, ("PIPELINING",))) == Extensions()


@pytest.mark.parametrize(
    ("line", "size", "limit"),
    [
        ("SIZE 1000", True, 1000),
        ("size  1000 more", True, 1000),
        ("SIZE", True, None),
        ("SIZE 0", True, None),
        ("SIZE many", True, None),
        ("SIZE -5", True, None),
        ("SIZE \u00b2", True, None),
        ("SIZE=1000", False, None),
        ("", False, None),
        ("   ", False, None),
    ],
)
def test_size_is_a_limit_only_if_it_is_a_number_above_zero(line, size, limit):
    found = offered(line)
    assert (found.size, found.size_limit) == (size, limit)
