"""The judge of evidence: whose fault a reply is, from what one route has said. No I/O."""

from __future__ import annotations

from dataclasses import replace

import pytest

from txmail.outcome import Action, Outcome, Scope, Status
from txmail.reply import Reply
from txmail.smtp.evidence import (
    FORGOTTEN,
    HINT_HOLDS,
    MOST_KNOWN,
    MOST_UNDECIDED,
    PATIENCE,
    PUT_OFF_HOLDS,
    STANDS_FOR,
    WAITS_AT_MOST,
    Answer,
    Evidence,
    Fault,
)
from txmail.smtp.reply_hints import alike, hint

SPAM = "550 5.7.1 I do not like this"
OWN, ROUTE, DOMAIN = Fault.OWN, Fault.ROUTE, Fault.DOMAIN
#: Replies that are about us, as servers send them.
RATES = [
    "554 5.7.1 quota exceeded",
    "550 5.7.0 too many emails per second",
    "550 5.7.1 daily relay limit reached",
    "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException",
    "550 5.7.1 Our system has detected an unusual rate of unsolicited mail from your IP address",
    "554 Transaction failed: Daily message quota exceeded.",
    "550 Sender rate limit exceeded, wait an hour",
    "571 You send too much",
    "550 5.1.90 Your message can't be sent because you've reached your daily limit for recipients",
    "550 5.4.6 Too many of yours",
]
LOGINS = [
    "503 AUTH first",
    "503 5.5.4 Bad sequence of commands: authentication required",
    "554 5.7.1 SMTP AUTH is required",
    "550 5.7.57 Client not authenticated to send mail",
    "550 5.7.1 This server requires authentication",
]
BLOCKED = [
    "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org",
    "550 5.7.1 Client host rejected: cannot find your hostname",
    "550 JunkMail rejected - mx.example.com [192.0.2.1] is in an RBL",
    "554 Your IP is on a blacklist",
    "550 5.7.1 messages from [192.0.2.1] weren't sent: part of their network is on our block list",
]
OF_MESSAGES = [
    "550 No such user",
    "550 5.7.1 message contains a virus",
    "552 5.3.4 Message size exceeds fixed limit",
    "552 message too large: limit is 10 MB",
    "550 User over quota",
    "550 5.7.26 Unauthenticated email from example.com is not accepted",
    "550 5.7.1 Unauthorized sender",
    "554 too many links",
]


def said(name, reply=SPAM, domain="a.example", sender="s@example.com", *, job="", **more):
    """What a server said of a message: nothing about the route, as `failures.txt` has it."""
    recipient = f"{name}@{domain}"
    code = int(reply[:3])
    status = {2: Status.ACCEPTED, 4: Status.DEFERRED, 5: Status.FAILED}[code // 100]
    action = {2: Action.DONE, 4: Action.DEFER, 5: Action.FAIL}[code // 100]
    scope = more.pop("scope", Scope.MESSAGE)
    outcome = Outcome(recipient, status, scope, Reply(code, (reply[4:],)), f"<{name}>", action)
    return Answer(job or name, sender, domain, outcome, name, **more)


def taken(name, domain="a.example"):
    return said(name, "250 2.0.0 Ok", domain)


@pytest.fixture
def hear(clock):
    """Tells a judge, and returns what it says: whose fault, and of which messages."""
    evidence = Evidence(clock)

    def tell(answer, **more):
        rulings = evidence.hear(answer, **more)
        hear.rulings += rulings
        return [(r.fault, [each.about for each in r.answers]) for r in rulings]

    def rest():
        return [(r.fault, [each.about for each in r.answers]) for r in evidence.rest()]

    hear, tell.evidence, tell.rest = tell, evidence, rest
    hear.rulings = []
    return tell


# -- words


@pytest.mark.parametrize("text", [*RATES, *LOGINS, *BLOCKED])
def test_words_about_us_are_a_hint(text):
    found = hint(Reply(int(text[:3]), (text[4:],)))
    assert found is not None
    assert (found.slow, found.stop) == (text in RATES, text in LOGINS)


@pytest.mark.parametrize("text", OF_MESSAGES)
def test_words_about_a_message_are_none(text):
    assert hint(Reply(int(text[:3]), (text[4:],))) is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("550 <a@x.example>: no", "550 <b@x.example>: no", True),
        ("550 a@x.example no", "550 b@x.example no", True),
        ("550 no (id 17a)", "550 no (id 94c)", True),
        ("550 no [AM0.prod.example 2026]", "550 no [DB9.prod.example 2027]", True),
        ("550 no", "554 no", False),
        ("550 5.7.1 no", "550 5.7.1 yes", False),
        ("451 no", "452 later", True),
        ("451 no", "551 no", False),
    ],
)
def test_replies_are_alike_but_for_addresses_and_numbers(one, other, same):
    assert (alike(one) == alike(other)) is same


def test_addresses_without_brackets_do_not_tell_replies_apart():
    one = alike("550 user ann in x.example unknown", "", "ann@x.example")
    assert one == alike("550 user ben in y.example unknown", "", "ben@y.example")


def test_a_text_of_a_hostile_server_costs_no_time():
    alike("550 " + "a." * 5000, "a.a@a.a", "a@a")
    assert hint(Reply(550, ("host " * 5000,))) is None


# -- repetition


def test_what_three_different_messages_get_in_a_row_is_the_routes(hear):
    assert hear(said("a")) == hear(said("b")) == []
    assert hear(said("c")) == [(ROUTE, ["a", "b", "c"])]
    (ruling,) = hear.rulings
    assert ruling.reason == f"{SPAM} (to 3 messages in a row)"
    assert not ruling.slow


def test_the_recipients_of_a_job_are_one_message(hear):
    for name in "abcdef":
        assert hear(said(name, job="news")) == []
    assert hear.rest() == [(OWN, list("abcdef"))]


def test_another_text_is_another_row(hear):
    for name, reply in zip("abcdef", [SPAM, "554 no"] * 3, strict=True):
        assert not any(fault is ROUTE for fault, _ in hear(said(name, reply))) or name in "ef"
    assert [(r.fault, len(r.answers)) for r in hear.rulings] == [(ROUTE, 3), (ROUTE, 3)]


def test_a_message_that_is_accepted_between_ends_the_row_and_the_doubt(hear):
    hear(said("a"))
    hear(said("b"))
    assert hear(taken("c")) == [(OWN, ["a", "b"]), (OWN, ["c"])]
    assert hear(said("d")) == []
    assert hear(said("e")) == []
    assert hear(said("f")) == [(ROUTE, ["d", "e", "f"])]


def test_nothing_more_to_compare_with_ends_the_doubt(hear):
    hear(said("a"))
    assert hear.rest() == [(OWN, ["a"])]
    assert hear.rest() == []


def test_time_ends_the_doubt(hear, clock):
    hear(said("a"))
    clock.advance(PATIENCE)
    assert hear(taken("b", "b.example")) == [(OWN, ["a"]), (OWN, ["b"])]


def test_no_more_are_undecided_than_can_be_looked_at(hear):
    for number in range(2 * MOST_UNDECIDED):
        hear(said(f"m{number}", f"550 {'x' * number}", f"d{number}.example"))
    assert hear.evidence.undecided <= MOST_UNDECIDED + 1


def test_no_more_replies_are_known_than_memory_bears(hear):
    for number in range(3 * MOST_KNOWN):
        hear(said(f"m{number}", f"550 {'x' * number} quota", f"d{number}.example"))
        hear(said(f"n{number}", f"550 {'y' * number}", f"d{number}.example"))
    for known in (hear.evidence._suspicions, hear.evidence._row, hear.evidence._rows_of_domains):
        assert len(known) <= MOST_KNOWN + 1


@pytest.mark.parametrize(
    "reply",
    [*(f"550 5.1.{n} no" for n in (*range(7), 10)), "552 5.2.2 full", "550 5.2.1 disabled"],
)
def test_a_mailbox_is_never_counted(hear, reply):
    for name in "abcdefgh":
        assert hear(said(name, reply, scope=Scope.RECIPIENT)) == [(OWN, [name])]


def test_dead_addresses_between_do_not_end_a_row(hear):
    for name in "abc":
        found = hear(said(name))
        hear(said(f"{name}x", "550 5.1.1 no", scope=Scope.RECIPIENT))
    assert found == [(ROUTE, ["a", "b", "c"])]


@pytest.mark.parametrize("reply", [*RATES, *LOGINS, *BLOCKED])
def test_what_hints_at_us_is_the_routes_at_once(hear, reply):
    found = hear(said("a", reply))
    assert found == [(ROUTE, ["a"])]
    (ruling,) = hear.rulings
    assert ruling.reason == reply


def test_what_the_table_calls_the_routes_stays_that(hear):
    outcome = said("a", "451 4.7.0 slowly").outcome
    about = replace(outcome, scope=Scope.ROUTE, action=Action.DEFER_ROUTE)
    for name in "abcd":
        (ruling,) = hear.evidence.hear(Answer(name, "", "a.example", about, name))
        assert ruling.fault is OWN


@pytest.mark.parametrize("status", [Status.UNSENT, Status.IN_DOUBT])
def test_what_no_server_has_judged_is_no_evidence(hear, status):
    for name in "abcd":
        outcome = Outcome(f"{name}@a.example", status, Scope.MESSAGE, Reply(554, ("no",)))
        (ruling,) = hear.evidence.hear(Answer(name, "", "a.example", outcome, name))
        assert ruling.fault is OWN


# -- after the pause


def test_what_another_process_has_given_back_fails_if_the_route_works(hear):
    assert hear(said("a", before=SPAM)) == [(ROUTE, ["a"])]
    hear(taken("probe"))
    assert hear(said("a", before=SPAM)) == [(OWN, ["a"])]


def pattern(hear, *names, **more):
    for name in names or "abc":
        found = hear(said(name, **more))
    return found


def test_what_was_on_its_way_is_given_back_with_the_others(hear):
    pattern(hear)
    assert hear(said("d")) == [(ROUTE, ["d"])]
    assert hear(taken("e"), paused=True) == [(OWN, ["e"])]
    assert hear(said("f")) == [(ROUTE, ["f"])]


def test_if_another_message_is_accepted_the_replies_stand_as_each_messages_own(hear):
    pattern(hear)
    hear(taken("probe", "b.example"))
    for name in "abc":
        assert hear(said(name, before=SPAM)) == [(OWN, [name])]
    # So is the next that gets it: the list is long.
    assert hear(said("d")) == [(OWN, ["d"])]


def test_that_a_reply_stands_is_not_taken_for_ever(hear, clock):
    pattern(hear)
    hear(taken("probe", "b.example"))
    hear(said("a", before=SPAM))
    clock.advance(STANDS_FOR)
    # Meanwhile another domain has passed.
    assert pattern(hear, "x", "y", "z") == [(DOMAIN, ["x", "y", "z"])]
    hear(taken("other", "b.example"))
    assert hear(said("x", before=SPAM)) != [(OWN, ["x"])]
    hear(taken("y"))
    assert hear(said("x", before=SPAM)) == [(OWN, ["x"])]


def test_if_another_message_is_refused_alike_the_pause_grows(hear):
    pattern(hear)
    for times in range(2, 6):
        hear(said(f"probe{times}", domain="b.example"))
        assert (hear.rulings[-1].fault, hear.rulings[-1].times) == (ROUTE, times)
    assert hear(said("a", before=SPAM)) == [(ROUTE, ["a"])]


def test_pauses_begin_anew_after_a_while(hear, clock):
    pattern(hear)
    hear(said("probe"))
    clock.advance(FORGOTTEN - 1)
    hear(said("probe"))
    assert hear.rulings[-1].times == 1
    clock.advance(FORGOTTEN + 1)
    assert hear(said("other")) == []


def test_dead_addresses_that_nothing_else_goes_beside_fail_after_more_than_a_day(hear):
    pattern(hear)
    assert hear(said("a", before=SPAM, waited=WAITS_AT_MOST - 1)) == [(ROUTE, ["a"])]
    assert hear(said("a", before=SPAM, waited=WAITS_AT_MOST)) == [(OWN, ["a"])]


def test_what_hints_at_us_is_a_messages_own_only_after_its_domain_took_others_for_long(hear):
    quota = RATES[0]
    hear(said("a", quota))
    hear(taken("b", "b.example"))
    assert hear(said("a", quota, before=quota, waited=2 * HINT_HOLDS)) == [(DOMAIN, ["a"])]
    hear(taken("c"))
    assert hear(said("a", quota, before=quota, waited=1.0))[0][0] is not OWN
    hear(taken("d"))
    assert hear(said("a", quota, before=quota, waited=2 * HINT_HOLDS)) == [(OWN, ["a"])]


def test_a_message_of_another_sender_or_domain_tells_more(hear):
    pattern(hear)
    likeness = hear.evidence.likeness
    assert likeness("s@example.com", "a.example") == 3
    assert likeness("t@example.com", "a.example") == 2
    assert likeness("s@example.com", "b.example") == 1
    assert likeness("t@example.com", "b.example") == 0


# -- put off


LATER = "451 later"


def test_three_messages_that_are_put_off_slow_the_route_whatever_is_said(hear):
    hear(said("a", "451 later"))
    hear(said("b", "452 4.3.1 no space"))
    assert hear(said("c", "454 Throttling failure")) == [(ROUTE, ["a", "b", "c"])]
    assert hear.rulings[-1].slow


def test_two_that_are_put_off_wait_for_their_own_sake(hear):
    hear(said("a", LATER))
    hear(said("b", LATER))
    assert hear(taken("c")) == [(OWN, ["a", "b"]), (OWN, ["c"])]


def test_who_was_put_off_with_others_loses_a_try_only_later(hear):
    pattern(hear, reply=LATER)
    hear(taken("probe", "b.example"))
    assert hear(said("a", LATER, before=LATER, waited=PUT_OFF_HOLDS - 1)) == []
    assert hear(said("b", LATER, before=LATER, waited=PUT_OFF_HOLDS)) == [(OWN, ["b"])]


@pytest.mark.parametrize("code", [450, 451])
def test_greylisting_slows_nothing(hear, code):
    for number in range(9):
        answer = said(f"g{number}", f"{code} 4.7.1 Greylisted", scope=Scope.RECIPIENT)
        assert hear(answer) == [(OWN, [f"g{number}"])]


def test_a_domain_that_puts_its_recipients_off_is_slowed_down_and_they_lose_a_try(hear):
    for name in "ab":
        assert hear(said(name, "452 4.7.28 too fast", scope=Scope.RECIPIENT)) == [(OWN, [name])]
        hear(taken(f"{name}x", "b.example"))
    found = hear(said("c", "452 4.7.28 too fast", scope=Scope.RECIPIENT))
    assert found == [(OWN, ["c"]), (DOMAIN, [])]
    assert (hear.rulings[-1].slow, hear.rulings[-1].domain) == (True, "a.example")


def test_a_reply_that_was_the_routes_of_late_stands_only_the_second_time(hear):
    pattern(hear)
    hear(taken("probe"))
    hear(said("x"))
    assert hear(taken("y")) == [(ROUTE, ["x"]), (OWN, ["y"])]
    assert not hear.rulings[-2].pauses
    assert hear(said("x", before=SPAM)) == [(OWN, ["x"])]
    assert hear(said("z")) == [(OWN, ["z"])]


# -- recipient domains


def test_one_domain_that_refuses_while_others_pass_is_alone_at_fault(hear):
    for name in "ab":
        assert hear(said(name)) == []
        assert hear(taken(f"{name}x", "b.example")) == [(OWN, [f"{name}x"])]
    assert hear(said("c")) == [(DOMAIN, ["a", "b", "c"])]
    assert hear.rulings[-1].domain == "a.example"


def test_a_limit_that_only_one_domain_has_is_the_domains(hear):
    assert hear(said("a", RATES[0])) == [(ROUTE, ["a"])]
    hear(taken("x", "b.example"))
    assert hear(said("b", RATES[0])) == [(DOMAIN, ["b"])]
    assert hear(said("c", RATES[0])) == [(DOMAIN, ["c"])]  # also if nothing passes between
    assert hear(said("d", RATES[0], "b.example")) == [(ROUTE, ["d"])]


def test_a_domain_that_takes_one_decides_only_about_its_own(hear):
    hear(said("a"))
    hear(said("b", domain="b.example"))
    assert hear(taken("c")) == [(OWN, ["a"]), (OWN, ["c"])]
    assert hear.evidence.undecided == 1


def test_a_route_without_trouble_is_quiet(hear):
    assert hear.evidence.quiet
    hear(said("a", "550 5.1.1 no", scope=Scope.RECIPIENT))
    assert hear.evidence.quiet
    hear(said("a"))
    assert not hear.evidence.quiet
    hear(taken("b"))
    assert hear.evidence.quiet
