"""Mail from hooks and synchronizers, where no commit follows, and in doomed transactions."""

from __future__ import annotations

import pytest
from databases import Recorder, Synchronizer
from letters import letter, statuses, subjects
from transaction.interfaces import DoomedTransaction

from txmail.delivery.last_hook import HOOK_TURNS
from txmail.exceptions import DeliveryRefused, TransactionClosed

# -- hooks


def test_a_hook_that_sends_mail_is_part_of_the_commit(tm, mailer, server):
    with tm as txn:
        mailer.send(letter("first"))
        txn.addBeforeCommitHook(lambda: mailer.send(letter("from a hook")))
    assert subjects(server) == ["first", "from a hook"]
    assert len(server.connections) == 1


def test_a_hook_may_send_the_first_mail_of_a_transaction(tm, mailer, server):
    with tm as txn:
        txn.addBeforeCommitHook(lambda: mailer.send(letter("from a hook")))
    assert subjects(server) == ["from a hook"]


def test_what_hooks_send_is_asked_about_before_any_manager_is_called(tm, mailer, server):
    server.refuse("nobody@example.com")
    other = Recorder("a")
    tm.begin().join(other)
    mailer.send(letter("first"))
    tm.get().addBeforeCommitHook(lambda: mailer.send(letter("two", "nobody@example.com")))
    with pytest.raises(DeliveryRefused):
        tm.commit()
    assert other.calls == []
    tm.abort()
    assert server.messages == []


def test_hooks_that_add_hooks_end_and_everything_is_sent(tm, mailer, server):
    turns = []

    def insistent():
        turns.append(1)
        mailer.send(letter(len(turns)))
        if len(turns) < HOOK_TURNS * 3:
            tm.get().addBeforeCommitHook(insistent)

    with tm as txn:
        txn.addBeforeCommitHook(insistent)
    assert subjects(server) == [str(number + 1) for number in range(HOOK_TURNS * 3)]


def test_our_hook_is_there_once_after_leaving_and_joining_again(tm, mailer, server):
    with tm as txn:
        savepoint = tm.savepoint()
        for number in range(5):
            mailer.send(letter(number))
            savepoint.rollback()
        assert txn._resources == []
        mailer.send(letter("kept"))
        assert len(txn._resources) == len(list(txn.getBeforeCommitHooks())) == 1
    assert subjects(server) == ["kept"]


@pytest.mark.parametrize("place", ["before ours", "after ours"])
def test_a_commit_repeated_after_a_hook_raised_sends_everything_once(tm, mailer, server, place):
    def fails():
        raise LookupError("hook")

    txn = tm.begin()
    if place == "before ours":
        txn.addBeforeCommitHook(fails)
    mailer.send(letter("one"))
    if place == "after ours":
        txn.addBeforeCommitHook(fails)
    with pytest.raises(LookupError):
        tm.commit()
    assert server.messages == []
    tm.commit()
    assert subjects(server) == ["one"]


def test_after_a_hook_raised_more_mail_can_be_sent_and_is_asked_about(tm, mailer, server):
    def fails():
        raise LookupError("hook")

    server.refuse("nobody@example.com")
    other = Recorder("a")
    txn = tm.begin()
    txn.join(other)
    txn.addBeforeCommitHook(fails)
    mailer.send(letter("one"))
    with pytest.raises(LookupError):
        tm.commit()
    txn.addBeforeCommitHook(lambda: None)  # all hooks are gone, ours too; this one is not ours
    mailer.send(letter("two", "nobody@example.com"))
    with pytest.raises(DeliveryRefused):
        tm.commit()
    assert other.calls == []
    tm.abort()
    assert server.messages == []


def test_a_commit_repeated_after_a_refusal_in_our_hook_is_refused_again(tm, mailer, server):
    server.refuse("nobody@example.com")
    tm.begin()
    mailer.send(letter("one"))
    mailer.send(letter("two", "nobody@example.com"))
    for _ in range(2):
        with pytest.raises(DeliveryRefused):
            tm.commit()
    tm.abort()
    assert server.messages == []


def test_mail_of_a_synchronizer_is_sent(tm, mailer, server):
    synchronizer = Synchronizer(before=lambda: mailer.send(letter("synchronized")))
    tm.registerSynch(synchronizer)
    with tm:
        mailer.send(letter("first"))
    with tm:
        pass
    tm.unregisterSynch(synchronizer)
    assert subjects(server) == ["first", "synchronized", "synchronized"]
    assert len(server.connections) == 1


def test_refused_mail_of_a_synchronizer_aborts_the_transaction(tm, mailer, server):
    server.refuse("nobody@example.com")
    synchronizer = Synchronizer(before=lambda: mailer.send(letter("two", "nobody@example.com")))
    other = Recorder("a")
    tm.begin().join(other)
    mailer.send(letter("first"))
    tm.registerSynch(synchronizer)
    with pytest.raises(DeliveryRefused):
        tm.commit()
    tm.unregisterSynch(synchronizer)
    tm.abort()
    assert "vote" not in other.calls
    assert server.messages == []


# -- where no commit follows


@pytest.mark.parametrize("had_mail", [True, False])
def test_kinto_emailer_38_send_in_an_after_commit_hook_raises(tm, mailer, server, had_mail):
    told = []

    def hook(status):
        with pytest.raises(TransactionClosed):
            mailer.send(letter("too late"))
        told.append(status)

    with tm as txn:
        if had_mail:
            mailer.send(letter("in time"))
        txn.addAfterCommitHook(hook)
    assert told == [True]
    assert subjects(server) == ["in time"] * had_mail


def test_send_in_an_after_commit_hook_of_a_failed_commit_raises(tm, mailer, server):
    told = []

    def hook(status):
        with pytest.raises(TransactionClosed):
            mailer.send(letter("too late"))
        told.append(status)

    txn = tm.begin()
    txn.join(Recorder("a", fails="vote"))
    mailer.send(letter("mail"))
    txn.addAfterCommitHook(hook)
    with pytest.raises(Exception, match="failed in vote"):
        tm.commit()
    tm.abort()
    assert told == [False]
    assert server.messages == []


def test_cmfplone_1856_to_abort_or_to_carry_on_is_the_applications_choice(tm, mailer, server):
    server.refuse("nobody@example.com")
    outcomes = []

    def carry_on(committed):
        if committed:
            welcome = letter("welcome", "nobody@example.com")
            outcomes.extend(mailer.send_immediately(welcome, fail_silently=True))

    user = Recorder("a")
    txn = tm.begin()
    txn.join(user)
    txn.addAfterCommitHook(carry_on)
    tm.commit()
    assert user.calls[:4] == ["begin", "commit", "vote", "finish"]
    assert statuses(outcomes) == ["failed"]

    user = Recorder("a")
    tm.begin().join(user)
    mailer.send(letter("welcome", "nobody@example.com"))
    with pytest.raises(DeliveryRefused):
        tm.commit()
    tm.abort()
    assert "finish" not in user.calls


@pytest.mark.parametrize("phase", ["commit", "vote", "finish", "abort"])
def test_send_within_the_commit_of_another_manager_raises(tm, mailer, server, phase):
    raised = []

    def late():
        with pytest.raises(TransactionClosed):
            mailer.send(letter("late"))
        raised.append(phase)

    tm.begin().join(Recorder("a", do={phase: late}))
    mailer.send(letter("in time"))
    if phase == "abort":
        tm.abort()
    else:
        tm.commit()
    assert raised == [phase]
    assert subjects(server) == ["in time"] * (phase != "abort")


@pytest.mark.parametrize("kind", ["addBeforeAbortHook", "addAfterAbortHook"])
def test_send_in_an_abort_hook_raises_if_the_transaction_had_mail(tm, mailer, server, kind):
    raised = []

    def hook():
        try:
            mailer.send(letter("too late"))
        except TransactionClosed as error:
            raised.append(error)

    tm.begin()
    mailer.send(letter("mail"))
    getattr(tm.get(), kind)(hook)
    tm.abort()
    assert len(raised) == 1
    tm.commit()
    assert server.messages == []


def test_send_from_after_completion_of_an_abort_joins_the_next_transaction(tm, mailer, server):
    synchronizer = Synchronizer(after=lambda: mailer.send(letter("next")))
    tm.begin()
    mailer.send(letter("aborted"))
    tm.registerSynch(synchronizer)
    tm.abort()
    tm.unregisterSynch(synchronizer)
    assert server.messages == []
    tm.commit()
    assert subjects(server) == ["next"]


def test_send_from_after_completion_of_a_commit_raises(tm, mailer, server):
    raised = []

    def after():
        with pytest.raises(TransactionClosed):
            mailer.send(letter("too late"))
        raised.append(True)

    synchronizer = Synchronizer(after=after)
    tm.begin()
    mailer.send(letter("in time"))
    tm.registerSynch(synchronizer)
    tm.commit()
    tm.unregisterSynch(synchronizer)
    assert raised == [True]
    assert subjects(server) == ["in time"]


def test_mail_without_a_commit_to_follow_is_not_sent(tm, mailer, server):
    mailer.send(letter("forgotten"))
    tm.begin()
    tm.commit()
    assert server.connections == []


# -- doom


def test_a_doomed_transaction_buffers_and_its_commit_raises(tm, mailer, server):
    tm.begin()
    tm.doom()
    mailer.send(letter("doomed"))
    with pytest.raises(DoomedTransaction):
        tm.commit()
    tm.abort()
    assert server.connections == []


@pytest.mark.parametrize("when", ["before the mail", "after the mail"])
def test_a_transaction_doomed_by_a_hook_sends_nothing(tm, mailer, server, when):
    other = Recorder("a")
    txn = tm.begin()
    txn.join(other)
    if when == "before the mail":
        txn.addBeforeCommitHook(txn.doom)
    mailer.send(letter("doomed"))
    if when == "after the mail":
        txn.addBeforeCommitHook(txn.doom)
    with pytest.raises(DoomedTransaction):
        tm.commit()
    tm.abort()
    assert other.calls == ["abort"]
    assert server.connections == []
