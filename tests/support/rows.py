"""The rows of the failure table as parameters of tests."""

from __future__ import annotations

import pytest

from txmail.smtp.failure_policy import TABLE

#: Stages of one message, and those that every connection begins with.
IN_TRANSACTION = ("MAIL", "RCPT", "DATA", "final dot")
OPENING = ("greeting", "EHLO", "HELO", "STARTTLS", "AUTH", "RSET")
#: What a scripted server calls some of them.
VERBS = {"greeting": "connect", "final dot": "."}


def sample(pattern):
    """A reply that `pattern` is about, and none of its stage's other rows."""
    code, _, detail = pattern.partition(" ")
    code = code.replace("xx", "98")
    detail = detail.replace("x.x", "3.1").replace("x", "77")
    return f"{code} {detail} said" if detail else f"{code} said"


def replies_at(*stages):
    """Stage, reply and row, for each reply of the table."""
    return [
        pytest.param(stage, sample(pattern), row, id=f"{stage}-{pattern}")
        for row in TABLE
        for stage in row.stages
        for pattern in row.replies
        if stage in stages
    ]


def events():
    """Stage, event and row, for each event of the table."""
    return [
        pytest.param(stage, row.event, row, id=f"{stage}-{row.event}")
        for row in TABLE
        if row.event
        for stage in row.stages
    ]
