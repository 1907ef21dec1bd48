"""The failure table as it is read: what each reply means at each stage.

`test_failure_table` tries its rows on servers; what is expected here is written down a second
time, so that a slip in the table is noticed.
"""

from __future__ import annotations

from importlib.resources import files

import pytest

from txmail.outcome import Action, Scope, Status
from txmail.reply import Reply
from txmail.smtp import failure_policy
from txmail.smtp.failure_policy import TABLE, Step, judge

ACCEPTED = ("accepted", "message", "done")
DEFER_ROUTE = ("deferred", "route", "defer_route")
STOP_ROUTE = ("deferred", "route", "stop_route")
NOT_NOW = ("unsent", "route", "defer_route")
NOT_HERE = ("unsent", "route", "stop_route")
DEFER = ("deferred", "message", "defer")
FAIL = ("failed", "message", "fail")
DEFER_RECIPIENT = ("deferred", "recipient", "defer")
FAIL_RECIPIENT = ("failed", "recipient", "fail")
SPLIT = ("deferred", "recipient", "split")
IN_TRANSACTION = (Step.MAIL, Step.RCPT, Step.DATA, Step.FINAL)


def verdict(stage, text):
    code, _, said = text.partition(" ")
    judged = judge(stage, Reply(int(code), (said,)))
    assert isinstance(judged.status, Status)
    assert isinstance(judged.scope, Scope)
    assert isinstance(judged.action, Action)
    return judged.status.value, judged.scope.value, judged.action.value


@pytest.mark.parametrize("stage", IN_TRANSACTION)
@pytest.mark.parametrize(
    "said",
    [
        "454 4.7.0 try later",
        "450 4.7.1 slow down",
        "450 4.7.25 who are you",
        "451 4.7.1 slow down",
        "451 4.7.650 throttled",
        "550 5.4.5 quota exceeded",
    ],
)
def test_the_rate_we_are_allowed_is_about_the_route(stage, said):
    if stage is Step.RCPT and said[:3] in ("450", "451"):  # greylisting says the same
        assert verdict(stage, said) == DEFER_RECIPIENT
    else:
        assert verdict(stage, said) == DEFER_ROUTE


@pytest.mark.parametrize("stage", IN_TRANSACTION)
def test_too_many_connections_is_about_the_route(stage):
    expected = NOT_NOW if stage is Step.MAIL else DEFER_ROUTE
    assert verdict(stage, "421 4.7.0 too many connections") == expected


@pytest.mark.parametrize(
    ("stage", "said", "expected"),
    [
        (Step.MAIL, "250 2.1.0 Ok", ACCEPTED),
        (Step.MAIL, "421 closing", NOT_NOW),
        (Step.MAIL, "530 5.7.0 authenticate first", STOP_ROUTE),
        (Step.MAIL, "450 4.1.8 domain not found", DEFER),
        (Step.MAIL, "451 local error", DEFER),
        (Step.MAIL, "452 4.3.1 no space", DEFER),
        (Step.MAIL, "499 what", DEFER),
        (Step.MAIL, "552 5.3.4 too big", FAIL),
        (Step.MAIL, "553 5.1.7 bad sender", FAIL),
        (Step.MAIL, "555 parameter", FAIL),
        (Step.MAIL, "550 5.7.1 not you", FAIL),
        (Step.MAIL, "530 5.7.1 authenticate first", STOP_ROUTE),
        (Step.MAIL, "599 what", FAIL),
        (Step.RCPT, "250 2.1.5 Ok", ACCEPTED),
        (Step.RCPT, "251 will forward", ACCEPTED),
        (Step.RCPT, "252 cannot verify", ACCEPTED),
        (Step.RCPT, "450 4.2.0 greylisted", DEFER_RECIPIENT),
        (Step.RCPT, "451 greylisted", DEFER_RECIPIENT),
        (Step.RCPT, "421 closing", DEFER_ROUTE),
        (Step.RCPT, "499 what", DEFER_RECIPIENT),
        (Step.RCPT, "452 4.5.3 too many recipients", SPLIT),
        (Step.RCPT, "552 5.5.3 too many recipients", SPLIT),
        (Step.RCPT, "452 too many recipients", SPLIT),
        (Step.RCPT, "552 too many recipients", SPLIT),
        (Step.RCPT, "452 4.5.30 something else", DEFER_RECIPIENT),
        (Step.RCPT, "452 4.2.2 mailbox full", DEFER_RECIPIENT),
        (Step.RCPT, "552 5.2.2 mailbox full", DEFER_RECIPIENT),
        (Step.RCPT, "452 4.3.1 no space", DEFER_RECIPIENT),
        (Step.RCPT, "552 5.3.4 too big", FAIL_RECIPIENT),
        (Step.RCPT, "550 5.1.1 no such user", FAIL_RECIPIENT),
        (Step.RCPT, "551 not here", FAIL_RECIPIENT),
        (Step.RCPT, "553 5.1.3 bad address", FAIL_RECIPIENT),
        (Step.RCPT, "554 no", FAIL_RECIPIENT),
        (Step.RCPT, "599 what", FAIL_RECIPIENT),
        (Step.DATA, "451 later", DEFER),
        (Step.DATA, "554 no valid recipients", FAIL),
        (Step.FINAL, "250 2.0.0 queued", ACCEPTED),
        (Step.FINAL, "250", ACCEPTED),
        (Step.FINAL, "451 4.3.0 later", DEFER),
        (Step.FINAL, "452 4.3.1 no space", DEFER),
        (Step.FINAL, "499 what", DEFER),
        (Step.FINAL, "552 5.3.4 too big", FAIL),
        (Step.FINAL, "554 5.7.1 spam", FAIL),
        (Step.FINAL, "599 what", FAIL),
        (Step.DATA, "421 closing", DEFER_ROUTE),
        (Step.DATA, "250 what", DEFER_ROUTE),
        (Step.FINAL, "421 closing", DEFER_ROUTE),
        (Step.FINAL, "354 what", DEFER_ROUTE),
        (Step.GREETING, "554 go away", NOT_HERE),
        (Step.GREETING, "421 busy", NOT_NOW),
        (Step.GREETING, "450 busy", NOT_NOW),
        (Step.EHLO, "550 your name", NOT_HERE),
        (Step.EHLO, "502 what", NOT_HERE),
        (Step.HELO, "421 busy", NOT_NOW),
        (Step.STARTTLS, "454 4.7.0 not now", NOT_NOW),
        (Step.STARTTLS, "501 no", NOT_NOW),
        (Step.AUTH, "454 4.7.0 not now", NOT_NOW),
        (Step.AUTH, "535 5.7.8 wrong", NOT_HERE),
        (Step.AUTH, "534 5.7.9 too weak", NOT_HERE),
        (Step.RSET, "500 what", NOT_NOW),
    ],
)
def test_the_table(stage, said, expected):
    assert verdict(stage, said) == expected


@pytest.mark.parametrize("stage", IN_TRANSACTION)
def test_an_enhanced_code_of_another_class_does_not_count(stage):
    assert verdict(stage, "450 5.7.1 odd")[0] == "deferred"
    assert verdict(stage, "550 4.7.1 odd")[0] == "failed"
    assert verdict(stage, "450 5.7.1 odd") != DEFER_ROUTE


@pytest.mark.parametrize("stage", [s for s in Step if s not in IN_TRANSACTION])
def test_outside_a_mail_transaction_no_message_is_judged(stage):
    for said in ("421 x", "450 x", "500 x", "554 5.7.1 x"):
        assert verdict(stage, said)[1] == "route"


def test_only_a_5yz_is_permanent_and_only_a_2yz_accepted():
    for stage in IN_TRANSACTION:
        for code in range(200, 600):
            status = verdict(stage, str(code))[0]
            assert status != "failed" or code >= 500
            assert status != "accepted" or code < 300


def test_verdicts_are_the_same_object_wherever_they_stand():
    """`sending` and `preflight` compare them with `is`."""
    assert judge(Step.MAIL, Reply(250)) is failure_policy.ACCEPTED
    assert judge(Step.RCPT, Reply(252)) is failure_policy.ACCEPTED
    assert judge(Step.RCPT, Reply(552)) is failure_policy.SPLIT
    assert judge(Step.RCPT, Reply(450)) is failure_policy.DEFER_RECIPIENT
    distinct = {row.verdict for row in TABLE}
    assert len(distinct) == len({id(row.verdict) for row in TABLE})


def test_every_line_of_the_file_is_a_row():
    text = files("txmail.smtp").joinpath("failures.txt").read_text("utf-8")
    _, _, rows, _ = text.split("\n===========================")
    assert len(TABLE) == rows.count("\n") > 70
    for row in TABLE:
        assert bool(row.replies) is not bool(row.event)
        assert all(row.stages)


def test_every_stage_with_a_command_has_its_rows():
    said = {stage for row in TABLE for stage in row.stages}
    assert {str(stage) for stage in Step} <= said
    for stage in ("greeting", "EHLO", "HELO", "STARTTLS", "AUTH", *IN_TRANSACTION, "RSET"):
        for what in ("4xx", "5xx"):
            assert any(stage in row.stages and what in row.replies for row in TABLE), stage


def test_what_a_row_says_of_a_route_and_of_its_end_fits_together():
    for row in TABLE:
        verdict = row.verdict
        assert (verdict.status == "accepted") is (verdict.action == "done"), row
        assert (verdict.status == "in_doubt") is (verdict.action == "in_doubt"), row
        assert (verdict.status == "failed") is (verdict.action == "fail"), row
        if verdict.status == "failed":
            assert all(reply.startswith("5") for reply in row.replies), row
        if verdict.action in ("defer_route", "stop_route"):
            assert verdict.scope == "route", row


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (
            ["MAIL  450    deferred  message  defer", "MAIL   450    failed    message  fail"],
            "450",
        ),
        (
            ["MAIL   EOF    deferred  message  defer", "MAIL   EOF    failed    message  fail"],
            "EOF",
        ),
        (["MAIL  450    delayed   message  defer"], "delayed"),
        (["MAIL  450    deferred  world    defer"], "world"),
        (["MAIL  450    deferred  message  wait"], "wait"),
    ],
)
def test_a_table_that_contradicts_itself_is_not_loaded(rows, problem):
    border = "====  =====  ========  =======  =====  ==="
    head = "at    reply  status    scope    action why"
    text = "\n".join(["What it is.", "", border, head, border, *rows, border, ""])

    def load():
        table = list(failure_policy._read(text))
        failure_policy._each(table, events=False)
        failure_policy._each(table, events=True)

    with pytest.raises(ValueError, match=problem):
        load()
