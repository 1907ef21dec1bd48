"""Direct mail that a queue stands behind: it is written down first, and ends as its outcome."""

from __future__ import annotations

import pytest
from databases import Failure, Recorder
from letters import letter, statuses, subjects
from queues import (
    IN_POSTGRESQL,
    IN_SQLITE,
    IN_TWO_PHASE,
    OWN_POSTGRESQL,
    OWN_SQLITE,
    QUEUES,
    kinds,
)
from transaction.interfaces import TransientError

from txmail.events import MessageQueued, MessageSettled
from txmail.exceptions import DeliveryRefused, DeliveryUnavailable, PartialDelivery
from txmail.queue.queue import Queue
from txmail.queue.retry import DEFERRED_DELAY_MS, DOUBT_DELAY_MS
from txmail.testing import CLOSE, HANG, RESET, Callback, then

ONE, TWO, THREE = NAMES = ("one@example.com", "two@example.com", "three@example.com")

#: every way to say what becomes of a transaction whose mail cannot all be sent
OPTIONS = [(u, p) for u in ("abort", "queue") for p in ("abort", "queue")]

#: what a queue makes of an outcome
STATES = {
    "accepted": "sent",
    "deferred": "deferred",
    "failed": "failed",
    "in_doubt": "in_doubt",
    "unsent": "ready",
}


def send(app, mailer, tm, names=NAMES, data=True):
    """A transaction with a letter to each of `names`; the error of its commit, or None."""
    tm.begin()
    if data:
        app.database.write("order")
    for name in names:
        mailer.send(letter(name.partition("@")[0], name))
    try:
        tm.commit()
    except Exception as error:
        tm.abort()
        return error
    return None


def state_of(outcome):
    """What becomes of a row: a failure of the route costs no try."""
    if outcome.status == "deferred" and outcome.scope == "route":
        return "ready"
    return STATES[outcome.status]


def agree(app, mailer):
    """The rows are what the outcomes say; the states in call order."""
    outcomes = {o.recipient: o for o in mailer.last_outcomes}
    assert app.states() == {name: state_of(o) for name, o in outcomes.items()}
    for name, row in app.deliveries().items():
        outcome = outcomes[name]
        assert row.code == (outcome.reply.code if outcome.reply else None)
        assert row.reply == (str(outcome.reply) if outcome.reply else outcome.reason or None)
        assert row.begun == 0
        assert outcome.queued is (outcome.status != "accepted")
    assert app.batches() == ["published"]
    assert not app.queue.host.open
    return [state_of(o) for o in mailer.last_outcomes]


# -- all is well


@kinds(*QUEUES)
def test_rows_are_there_before_anything_is_sent_and_end_as_sent(make_queue, tm, server, kind):
    app = make_queue(kind)
    mailer = app.mailer()
    seen = []

    def look():
        seen.append({(r.state, r.begun) for r in app.deliveries().values()})
        seen.append(app.queue.counts())

    server.on(".", then(Callback(look)))
    assert send(app, mailer, tm) is None
    # Rows in a two-phase session are there for everybody when it has committed, or is resolved.
    there = kind != IN_TWO_PHASE
    assert seen == [{("staged", 1)}, {"staged": 3}] if there else [set(), {}]
    assert app.database.values() == ["order"]
    assert subjects(server) == ["one", "two", "three"]
    assert agree(app, mailer) == ["sent"] * 3
    assert all(row.attempts == 1 for row in app.deliveries().values())
    assert all(app.attempts(name) == [] for name in NAMES)


@pytest.mark.parametrize("kind", [OWN_SQLITE, IN_SQLITE])
def test_of_what_is_not_to_be_queued_no_queue_hears(make_queue, tm, server, kind, monkeypatch):
    app = make_queue(kind)
    mailer = app.mailer(on_unavailable="abort", on_partial="abort")

    def begin(*args):
        raise AssertionError("the queue was asked")

    monkeypatch.setattr(Queue, "begin", begin)
    monkeypatch.setattr(type(app.queue), "begin", begin)
    assert send(app, mailer, tm) is None
    server.stop()
    assert type(send(app, mailer, tm, data=False)) is DeliveryUnavailable
    assert len(server.messages) == 3
    assert app.is_empty()
    assert mailer.send_immediately(letter("now"), fail_silently=True)[0].status == "unsent"


# -- before anything is sent


@pytest.mark.representative(every=4)
@pytest.mark.parametrize(("unavailable", "partial"), OPTIONS)
@kinds(OWN_SQLITE, IN_SQLITE, IN_TWO_PHASE)
def test_a_server_that_is_down(make_queue, tm, server, kind, unavailable, partial):
    app = make_queue(kind)
    mailer = app.mailer(on_unavailable=unavailable, on_partial=partial)
    server.stop()
    error = send(app, mailer, tm)
    assert statuses(mailer.last_outcomes) == ["unsent"] * 3
    if unavailable == "queue":
        assert error is None
        assert agree(app, mailer) == ["ready"] * 3
        assert app.database.values() == ["order"]
        assert {row.attempts for row in app.deliveries().values()} == {0}
    else:
        assert type(error) is DeliveryUnavailable
        assert error.outcomes == mailer.last_outcomes
        assert app.is_empty()
        assert app.database.values() == []


@pytest.mark.parametrize(("unavailable", "partial"), OPTIONS)
def test_a_recipient_who_is_asked_to_wait_in_preflight(
    make_queue, tm, server, unavailable, partial
):
    app = make_queue(OWN_SQLITE)
    server.refuse(TWO, "450 4.2.0 greylisted")
    mailer = app.mailer(on_unavailable=unavailable, on_partial=partial)
    error = send(app, mailer, tm)
    assert server.messages == []
    assert statuses(mailer.last_outcomes) == ["unsent", "deferred", "unsent"]
    if unavailable == "abort":
        assert type(error) is DeliveryUnavailable
        assert app.is_empty()
        return
    assert error is None
    assert agree(app, mailer) == ["ready", "deferred", "ready"]
    rows = app.deliveries()
    # Whoever was asked to wait is not tried again at once; the others are due.
    assert rows[TWO].due - rows[TWO].changed == DEFERRED_DELAY_MS
    assert (rows[TWO].code, rows[TWO].attempts) == (450, 1)
    assert rows[ONE].due <= rows[ONE].changed
    (attempt,) = app.attempts(TWO)
    assert (attempt.state, attempt.code, attempt.reply) == (
        "deferred",
        450,
        "450 4.2.0 greylisted",
    )


@pytest.mark.parametrize("kind", [OWN_SQLITE, IN_SQLITE, IN_POSTGRESQL])
def test_who_is_asked_to_wait_beside_others_of_the_same_message(make_queue, tm, server, kind):
    app = make_queue(kind)
    server.refuse(TWO, "450 4.2.0 greylisted")
    with tm:
        app.mailer().send(letter("all", *NAMES))
    assert app.states() == {ONE: "ready", TWO: "deferred", THREE: "ready"}


@pytest.mark.representative(every=4)
@pytest.mark.parametrize(("unavailable", "partial"), OPTIONS)
@kinds(OWN_SQLITE, IN_POSTGRESQL)
def test_a_refusal_for_good_in_preflight_aborts_whatever_is_said(
    make_queue, tm, server, kind, unavailable, partial
):
    app = make_queue(kind)
    server.refuse(TWO)
    server.refuse(THREE, "450 4.2.0 greylisted")
    mailer = app.mailer(on_unavailable=unavailable, on_partial=partial)
    error = send(app, mailer, tm)
    assert type(error) is DeliveryRefused
    assert statuses(error.outcomes) == ["unsent", "failed", "deferred"]
    assert not any(o.queued for o in error.outcomes)
    assert server.messages == []
    assert app.database.values() == []
    assert app.is_empty()


# -- at the final dot


@pytest.mark.representative(every=6)
@pytest.mark.parametrize(("unavailable", "partial"), OPTIONS)
@pytest.mark.parametrize("which", [0, 1, 2], ids=["first", "second", "last"])
@pytest.mark.parametrize(
    ("reply", "status"),
    [("452 4.3.1 full", "deferred"), ("554 5.7.1 spam", "failed"), (RESET, "in_doubt")],
    ids=["4xx", "5xx", "lost"],
)
@pytest.mark.parametrize("kind", [OWN_SQLITE])
def test_one_of_three_at_its_final_dot(
    make_queue, tm, server, kind, reply, status, which, unavailable, partial
):
    app = make_queue(kind)
    server.on(".", reply, after=which)
    mailer = app.mailer(on_unavailable=unavailable, on_partial=partial)
    error = send(app, mailer, tm)
    if (unavailable, partial) == ("abort", "abort"):
        assert error.outcomes == mailer.last_outcomes
        assert app.is_empty()
    elif partial == "queue":
        assert error is None
        states = agree(app, mailer)
        assert states[which] == STATES[status]
        assert states[:which] == ["sent"] * which
        assert ("sent" in states[which + 1 :]) or which == 2 or status == "in_doubt"
    elif which or status == "in_doubt":
        check_torn(app, mailer, error, which, status)
    elif status == "failed":
        assert type(error) is DeliveryRefused
        assert app.is_empty()
    else:
        # Nothing is out, and nothing refused for good.
        assert error is None
        assert agree(app, mailer) == ["deferred", "ready", "ready"]
    check_server(server, app, mailer)


def check_torn(app, mailer, error, which, status):
    """A transaction was aborted with something out: that is written down, the rest never sent."""
    assert type(error) is PartialDelivery
    assert error.outcomes == mailer.last_outcomes
    assert statuses(error.outcomes) == ["accepted"] * which + [status] + ["unsent"] * (2 - which)
    assert not any(o.queued for o in error.outcomes)
    kept = {"accepted": "sent", "in_doubt": "in_doubt"}
    assert app.states() == {o.recipient: kept.get(o.status, "cancelled") for o in error.outcomes}
    for row in app.deliveries().values():
        if row.state == "in_doubt":
            assert row.due is None
        if row.state == "cancelled":
            assert row.reply == "its transaction was aborted"
    assert app.batches() == ["discarded"]
    assert app.queue.counts().get("ready") is None


def check_server(server, app, mailer):
    """What the server has was accepted, or is in doubt, and is in the queue as such."""
    names = [r for m in server.messages for r in m.recipients]
    states = app.states()
    for outcome in mailer.last_outcomes:
        times = names.count(outcome.recipient)
        assert times in {"accepted": [1], "in_doubt": [0, 1]}.get(outcome.status, [0])
        if times and states:
            assert states[outcome.recipient] in ("sent", "in_doubt")


@pytest.mark.representative(every=4)
@pytest.mark.parametrize("which", [0, 1], ids=["first", "second"])
@pytest.mark.parametrize("reply", ["452 4.3.1 full", RESET], ids=["4xx", "lost"])
@pytest.mark.parametrize("partial", ["abort", "queue"])
@kinds(OWN_POSTGRESQL, IN_SQLITE, IN_TWO_PHASE)
def test_one_of_two_at_its_final_dot(make_queue, tm, server, kind, reply, which, partial):
    app = make_queue(kind)
    server.on(".", reply, after=which)
    mailer = app.mailer(on_partial=partial)
    error = send(app, mailer, tm, names=[ONE, TWO])
    statuses_ = statuses(mailer.last_outcomes)
    there = bool(app.database.values())
    if partial == "queue" or (not which and reply is not RESET):
        assert error is None
        assert there
        agree(app, mailer)
        return
    assert type(error) is PartialDelivery
    assert error.databases_may_be_committed is app.one_phase
    assert there is app.one_phase
    kept = {"accepted": "sent", "in_doubt": "in_doubt"}
    expected = {n: kept.get(s, "cancelled") for n, s in zip((ONE, TWO), statuses_, strict=True)}
    if kind == IN_TWO_PHASE:
        expected = {}
    assert app.states() == expected
    assert app.queue.counts().get("ready") is None
    assert app.queue.counts().get("deferred") is None
    if kind == IN_TWO_PHASE:
        assert app.is_empty()


@pytest.mark.representative(every=6)
@pytest.mark.parametrize(
    ("reply", "status"),
    [
        ("421 4.3.2 shutting down", "deferred"),
        (then("421 4.3.2 shutting down", CLOSE), "deferred"),
        ("452 4.3.1 full", "deferred"),
        ("554 5.7.1 spam", "failed"),
        (CLOSE, "in_doubt"),
        (b"2xx what?\r\n", "in_doubt"),
    ],
    ids=["421", "421 and closed", "4xx", "5xx", "closed", "nonsense"],
)
@pytest.mark.parametrize(("unavailable", "partial"), OPTIONS)
def test_a_single_message_at_its_final_dot(
    make_queue, tm, server, reply, status, unavailable, partial
):
    app = make_queue(OWN_SQLITE)
    server.on(".", reply)
    mailer = app.mailer(on_unavailable=unavailable, on_partial=partial)
    error = send(app, mailer, tm, names=[ONE])
    assert statuses(mailer.last_outcomes) == [status]
    way = {"deferred": unavailable, "in_doubt": partial}.get(status, "abort")
    if way == "queue":
        assert error is None
        (state,) = agree(app, mailer)
        assert state == ("ready" if "421" in str(reply) else STATES[status])
        assert [a.state for a in app.attempts(ONE)] == [state]
        assert app.deliveries()[ONE].attempts == (state != "ready")
        return
    errors = {"deferred": DeliveryUnavailable, "failed": DeliveryRefused}
    assert type(error) is errors.get(status, PartialDelivery)
    if status == "in_doubt" and (unavailable, partial) != ("abort", "abort"):
        assert app.states() == {ONE: "in_doubt"}
        assert app.deliveries()[ONE].due is None
    else:
        assert app.is_empty()


def test_all_refused_for_good_is_no_partial_delivery(make_queue, tm, server):
    app = make_queue(OWN_SQLITE)
    server.on(".", "554 5.7.1 spam", times=None)
    error = send(app, app.mailer(), tm)
    assert type(error) is DeliveryRefused
    assert statuses(error.outcomes) == ["failed"] * 3
    assert app.is_empty()


def test_one_recipient_of_a_message_who_is_refused_while_it_is_sent(make_queue, tm, server):
    app = make_queue(OWN_SQLITE)
    server.refuse(TWO)
    server.refuse(THREE, "450 4.2.0 greylisted")
    mailer = app.mailer(preflight="never")
    with tm:
        mailer.send(letter("all", *NAMES))
    assert statuses(mailer.last_outcomes) == ["accepted", "failed", "deferred"]
    assert agree(app, mailer) == ["sent", "failed", "deferred"]
    assert server.messages[0].recipients == (ONE,)
    assert [a.code for a in app.attempts(TWO)] == [550]
    assert app.attempts(ONE) == []


@pytest.mark.parametrize("on_doubt", ["retry", "hold"])
@kinds(OWN_SQLITE, IN_POSTGRESQL)
def test_what_is_in_doubt_is_tried_again_or_waits_for_a_person(
    make_queue, tm, server, kind, on_doubt
):
    app = make_queue(kind, on_doubt=on_doubt)
    server.on(".", CLOSE)
    assert send(app, app.mailer(), tm, names=[ONE]) is None
    assert app.states() == {ONE: "in_doubt"}
    row = app.deliveries()[ONE]
    assert row.due == (row.changed + DOUBT_DELAY_MS if on_doubt == "retry" else None)
    assert (row.duplicate, row.attempts) == (1, 1)


@pytest.mark.parametrize("partial", ["abort", "queue"])
def test_a_server_that_says_nothing_until_the_time_is_over(make_queue, tm, server, partial):
    app = make_queue(OWN_SQLITE)
    server.on(".", HANG, after=1)
    mailer = app.mailer(commit_timeout=0.7, on_partial=partial)
    error = send(app, mailer, tm)
    assert statuses(mailer.last_outcomes)[:2] == ["accepted", "in_doubt"]
    if partial == "queue":
        assert error is None
        assert agree(app, mailer)[:2] == ["sent", "in_doubt"]
    else:
        assert type(error) is PartialDelivery
        assert app.states() == {ONE: "sent", TWO: "in_doubt", THREE: "cancelled"}


def test_a_server_that_says_nothing_in_preflight(make_queue, tm, server):
    app = make_queue(OWN_SQLITE)
    server.on("RCPT", HANG)
    mailer = app.mailer(commit_timeout=0.5)
    assert send(app, mailer, tm, data=False) is None
    assert agree(app, mailer) == ["ready"] * 3


# -- others


@pytest.mark.representative(every=6)
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, Failure])
@pytest.mark.parametrize("names", [(ONE,), (ONE, TWO)], ids=["one", "two"])
@kinds(OWN_SQLITE, IN_SQLITE, IN_TWO_PHASE)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_interrupted_vote_aborts_and_nothing_goes_on_from_the_queue(
    make_queue, tm, server, kind, error, names, monkeypatch
):
    app = make_queue(kind)
    mailer = app.mailer("memory:")
    transport = mailer._direct.transport
    opened = transport.open

    def interrupted(**options):
        session = opened(**options)
        real = session.send

        def send(*args, **options):
            for outcome in real(*args, **options):
                yield outcome
                raise error("in the vote")

        session.send = send
        return session

    monkeypatch.setattr(transport, "open", interrupted)
    tm.begin()
    app.database.write("order")
    for name in names:
        mailer.send(letter(name, name))
    with pytest.raises(error) as caught:
        tm.commit()
    tm.abort()
    assert any("while sending mail" in note for note in caught.value.__notes__)
    assert mailer.last_outcomes[0].status == "accepted"
    states = app.states()
    assert states.get(ONE, "sent") == "sent"
    assert set(states.values()) <= {"sent", "in_doubt", "cancelled"}
    assert bool(states) is (kind != IN_TWO_PHASE)
    assert app.queue.counts().get("ready") is None


@pytest.mark.representative(every=5)
@pytest.mark.parametrize("phase", ["commit", "vote"])
@kinds(*QUEUES)
def test_another_manager_that_fails_before_our_vote_leaves_nothing(
    make_queue, tm, server, kind, phase
):
    app = make_queue(kind)
    mailer = app.mailer()
    tm.begin().join(Recorder("!", fails=phase))
    app.database.write("order")
    mailer.send(letter("one", ONE))
    with pytest.raises(Failure):
        tm.commit()
    tm.abort()
    assert server.messages == []
    assert app.is_empty()
    assert not app.queue.host.open


@pytest.mark.parametrize("kind", [IN_SQLITE, IN_POSTGRESQL])
def test_what_a_one_phase_session_has_committed_before_an_abort_is_not_sent(
    make_queue, tm, server, kind
):
    app = make_queue(kind)
    mailer = app.mailer()
    tm.begin().join(Recorder("~t", fails="vote"))
    app.database.write("order")
    mailer.send(letter("one", ONE))
    with pytest.raises(Failure):
        tm.commit()
    tm.abort()
    assert server.messages == []
    assert app.states() == {ONE: "cancelled"}


@kinds(OWN_SQLITE, IN_SQLITE, IN_TWO_PHASE)
def test_when_another_manager_fails_in_its_finish_what_is_out_is_written_down(
    make_queue, tm, server, kind
):
    app = make_queue(kind, **({} if kind != OWN_SQLITE else {"witness": True}))
    mailer = app.mailer()
    tm.begin().join(Recorder("!", fails="finish"))
    app.database.write("order")
    mailer.send(letter("one", ONE))
    mailer.send(letter("two", TWO))
    with pytest.raises(Failure):
        tm.commit()
    tm.abort()
    app.queue.flush(10)
    app.queue.resolve()
    assert subjects(server) == ["one", "two"]
    assert app.states() == ({} if kind == IN_TWO_PHASE else {ONE: "sent", TWO: "sent"})
    assert app.is_empty() is (kind == IN_TWO_PHASE)


def test_a_conflict_after_the_preflight_sends_once(make_queue, tm, server):
    app = make_queue(OWN_SQLITE)
    mailer = app.mailer()
    tries = []

    def conflict():
        if len(tries) < 3:
            raise TransientError("try again")

    for attempt in tm.attempts(5):
        with attempt:
            tries.append(1)
            tm.get().join(Recorder("!", do={"vote": conflict}))
            mailer.send(letter("one", ONE))
    assert subjects(server) == ["one"]
    assert app.states() == {ONE: "sent"}


# -- who hears of it


def test_events_and_outcomes_say_what_was_sent_and_what_is_queued(make_queue, tm, server):
    app = make_queue(OWN_SQLITE)
    server.on(".", "452 4.3.1 full", after=1)
    mailer = app.mailer()
    told = []
    mailer.events.subscribe(told.append)
    seen = []
    server.on(".", then(Callback(lambda: seen.append(list(told)))))
    assert send(app, mailer, tm) is None
    told = [event for event in told if isinstance(event, (MessageSettled, MessageQueued))]
    assert [type(event) for event in told] == [MessageSettled] * 3 + [MessageQueued]
    assert [statuses(event.outcomes) for event in told[:3]] == [
        ["accepted"],
        ["deferred"],
        ["accepted"],
    ]
    assert [o.queued for o in mailer.last_outcomes] == [False, True, False]
    (queued,) = told[3].outcomes
    assert (queued.recipient, queued.queued) == (TWO, True)
    assert told[3].queue == app.queue.name


@pytest.mark.parametrize("asked", [True, False])
def test_of_what_was_not_tried_no_outcome_is_told(make_queue, tm, server, asked):
    app = make_queue(OWN_SQLITE)
    if asked:
        server.refuse(ONE, "450 4.2.0 greylisted")
    else:
        server.stop()
    mailer = app.mailer()
    told = []
    mailer.events.subscribe(told.append)
    assert send(app, mailer, tm, names=[ONE]) is None
    told = [type(e) for e in told if isinstance(e, (MessageSettled, MessageQueued))]
    assert told == [MessageSettled] * asked + [MessageQueued]


# -- now


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("452 4.3.1 full", "deferred"),
        ("554 5.7.1 spam", None),
        (CLOSE, "in_doubt"),
        ("250 ok", "sent"),
    ],
    ids=["4xx", "5xx", "lost", "accepted"],
)
@kinds(OWN_SQLITE, IN_SQLITE)
def test_a_message_sent_immediately_ends_as_its_outcome(make_queue, server, kind, reply, expected):
    app = make_queue(kind)
    server.on(".", reply)
    mailer = app.mailer()
    if expected is None:
        with pytest.raises(DeliveryRefused) as caught:
            mailer.send_immediately(letter("one", ONE))
        assert caught.value.outcomes == mailer.last_outcomes
        assert app.is_empty()
        return
    outcomes = mailer.send_immediately(letter("one", ONE))
    assert outcomes == mailer.last_outcomes
    assert [STATES[o.status] for o in outcomes] == [expected]
    assert app.states() == {ONE: expected}
    assert not app.queue.host.open


def test_a_message_in_doubt_that_may_not_go_on_is_an_error(make_queue, server):
    app = make_queue(OWN_SQLITE)
    server.on(".", CLOSE)
    mailer = app.mailer(on_partial="abort")
    with pytest.raises(PartialDelivery):
        mailer.send_immediately(letter("one", ONE))
    assert app.states() == {ONE: "in_doubt"}
    assert app.deliveries()[ONE].due is None
