"""The failure table: what each reply means at each stage."""

from __future__ import annotations

import pytest

from txmail.envelope import Action, Scope, Status
from txmail.reply import Reply
from txmail.smtp.trouble import Stage, judge

ACCEPTED = ("accepted", "message", "done")
DEFER_ROUTE = ("deferred", "route", "defer_route")
STOP_ROUTE = ("deferred", "route", "stop_route")
DEFER = ("deferred", "message", "defer")
FAIL = ("failed", "message", "fail")
DEFER_RECIPIENT = ("deferred", "recipient", "defer")
FAIL_RECIPIENT = ("failed", "recipient", "fail")
SPLIT = ("deferred", "recipient", "split")
IN_TRANSACTION = (Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.FINAL)


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
        "421 4.7.0 too many connections",
        "454 4.7.0 try later",
        "450 4.7.1 slow down",
        "450 4.7.25 who are you",
        "451 4.7.1 slow down",
        "451 4.7.650 throttled",
        "550 5.4.5 quota exceeded",
    ],
)
def test_the_rate_we_are_allowed_is_about_the_route(stage, said):
    assert verdict(stage, said) == DEFER_ROUTE


@pytest.mark.parametrize(
    ("stage", "said", "expected"),
    [
        (Stage.MAIL, "250 2.1.0 Ok", ACCEPTED),
        (Stage.MAIL, "421 closing", DEFER_ROUTE),
        (Stage.MAIL, "530 5.7.0 authenticate first", STOP_ROUTE),
        (Stage.MAIL, "450 4.1.8 domain not found", DEFER),
        (Stage.MAIL, "451 local error", DEFER),
        (Stage.MAIL, "452 4.3.1 no space", DEFER),
        (Stage.MAIL, "499 what", DEFER),
        (Stage.MAIL, "552 5.3.4 too big", FAIL),
        (Stage.MAIL, "553 5.1.7 bad sender", FAIL),
        (Stage.MAIL, "555 parameter", FAIL),
        (Stage.MAIL, "550 5.7.1 not you", FAIL),
        (Stage.MAIL, "599 what", FAIL),
        (Stage.RCPT, "250 2.1.5 Ok", ACCEPTED),
        (Stage.RCPT, "251 will forward", ACCEPTED),
        (Stage.RCPT, "252 cannot verify", ACCEPTED),
        (Stage.RCPT, "450 4.2.0 greylisted", DEFER_RECIPIENT),
        (Stage.RCPT, "451 greylisted", DEFER_RECIPIENT),
        (Stage.RCPT, "421 closing", DEFER_RECIPIENT),
        (Stage.RCPT, "499 what", DEFER_RECIPIENT),
        (Stage.RCPT, "452 4.5.3 too many recipients", SPLIT),
        (Stage.RCPT, "552 5.5.3 too many recipients", SPLIT),
        (Stage.RCPT, "452 too many recipients", SPLIT),
        (Stage.RCPT, "552 too many recipients", SPLIT),
        (Stage.RCPT, "452 4.5.30 something else", DEFER_RECIPIENT),
        (Stage.RCPT, "452 4.2.2 mailbox full", DEFER_RECIPIENT),
        (Stage.RCPT, "552 5.2.2 mailbox full", DEFER_RECIPIENT),
        (Stage.RCPT, "452 4.3.1 no space", DEFER_RECIPIENT),
        (Stage.RCPT, "552 5.3.4 too big", FAIL_RECIPIENT),
        (Stage.RCPT, "550 5.1.1 no such user", FAIL_RECIPIENT),
        (Stage.RCPT, "551 not here", FAIL_RECIPIENT),
        (Stage.RCPT, "553 5.1.3 bad address", FAIL_RECIPIENT),
        (Stage.RCPT, "554 no", FAIL_RECIPIENT),
        (Stage.RCPT, "599 what", FAIL_RECIPIENT),
        (Stage.DATA, "451 later", DEFER),
        (Stage.DATA, "554 no valid recipients", FAIL),
        (Stage.FINAL, "250 2.0.0 queued", ACCEPTED),
        (Stage.FINAL, "250", ACCEPTED),
        (Stage.FINAL, "451 4.3.0 later", DEFER),
        (Stage.FINAL, "452 4.3.1 no space", DEFER),
        (Stage.FINAL, "499 what", DEFER),
        (Stage.FINAL, "552 5.3.4 too big", FAIL),
        (Stage.FINAL, "554 5.7.1 spam", FAIL),
        (Stage.FINAL, "599 what", FAIL),
        (Stage.GREETING, "554 go away", STOP_ROUTE),
        (Stage.GREETING, "421 busy", DEFER_ROUTE),
    ],
)
def test_the_table(stage, said, expected):
    assert verdict(stage, said) == expected


@pytest.mark.parametrize("stage", IN_TRANSACTION)
def test_an_enhanced_code_of_another_class_does_not_count(stage):
    assert verdict(stage, "450 5.7.1 odd")[0] == "deferred"
    assert verdict(stage, "550 4.7.1 odd")[0] == "failed"
    assert verdict(stage, "450 5.7.1 odd") != DEFER_ROUTE


@pytest.mark.parametrize("stage", [s for s in Stage if s not in IN_TRANSACTION])
def test_outside_a_mail_transaction_no_message_is_judged(stage):
    for said in ("421 x", "450 x", "500 x", "554 5.7.1 x"):
        assert verdict(stage, said)[1] == "route"


def test_only_a_5yz_is_permanent_and_only_a_2yz_accepted():
    for stage in IN_TRANSACTION:
        for code in range(200, 600):
            status = verdict(stage, str(code))[0]
            assert status != "failed" or code >= 500
            assert status != "accepted" or code < 300
