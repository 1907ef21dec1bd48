"""One manager for all mail of a transaction: joining, order, and what it lets go of."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest
import transaction
from databases import Synchronizer
from letters import letter, statuses, subjects
from transaction.interfaces import NoTransaction
from zope.interface.verify import verifyObject

from txmail import DummyMailer, Mailer, transport_from_url
from txmail.datamanager import MailDataManager, join
from txmail.exceptions import DeliveryRefused, DeliveryUnavailable
from txmail.interfaces import IDeliveryMethod, IDeliveryRun, IMailDataManager, ISession, ITransport
from txmail.testing import ScriptedServer

# -- joining


def test_what_is_joined_keeps_the_contracts(tm, mailer):
    tm.begin()
    mailer.send(letter("one"))
    (manager,) = tm.get()._resources
    assert verifyObject(IMailDataManager, manager)
    delivery = mailer._direct
    assert verifyObject(IDeliveryMethod, delivery)
    assert verifyObject(ITransport, delivery.transport)
    run = manager._runs.of(delivery)
    assert verifyObject(IDeliveryRun, run)
    session = delivery.transport.open()
    assert verifyObject(ISession, session)
    session.close()


def test_a_hundred_messages_of_three_mailers_make_one_manager(tm, mailer, make_mailer):
    mailers = [mailer, mailer.bind(default_sender="other@example.com"), make_mailer("memory:")]
    tm.begin()
    for number in range(99):
        mailers[number % 3].send(letter(number))
    (manager,) = tm.get()._resources
    assert isinstance(manager, MailDataManager)
    assert len(list(tm.get().getBeforeCommitHooks())) == 1


def test_three_binds_and_two_transports_send_in_one_transaction(tm, mailer, server, make_mailer):
    with ScriptedServer() as second:
        bound = mailer.bind(default_sender="other@example.com")
        again = bound.bind(default_sender="third@example.com")
        elsewhere = make_mailer(second.url)
        with tm:
            mailer.send(letter("one"))
            elsewhere.send(letter("two"))
            bound.send(letter("three"))
            again.send(letter("four"))
        assert subjects(server) == ["one", "three", "four"]
        assert subjects(second) == ["two"]
        assert len(server.connections) == len(second.connections) == 1


def test_everything_is_asked_before_anything_is_sent(tm, mailer, server, make_mailer):
    with ScriptedServer() as second:
        second.refuse("nobody@example.com")
        elsewhere = make_mailer(second.url)
        tm.begin()
        mailer.send(letter("one"))
        elsewhere.send(letter("two", "nobody@example.com"))
        mailer.send(letter("three"))
        with pytest.raises(DeliveryRefused) as caught:
            tm.commit()
        tm.abort()
        assert server.messages == second.messages == []
        assert not [line for line in server.commands if line.startswith("DATA")]
        assert statuses(caught.value.outcomes) == ["unsent", "failed", "unsent"]


def test_a_second_server_that_is_down_keeps_the_first_from_getting_anything(
    tm, mailer, server, make_mailer
):
    with ScriptedServer() as second:
        elsewhere = make_mailer(second.url)
    tm.begin()
    mailer.send(letter("one"))
    elsewhere.send(letter("two"))
    with pytest.raises(DeliveryUnavailable):
        tm.commit()
    tm.abort()
    assert server.messages == []


def test_pyramid_mailer_55_which_way_mail_takes_is_configured_and_send_is_always_send(tm, server):
    for url, arrived in [
        (server.url, lambda transport: len(server.messages)),
        ("memory:", lambda transport: len(transport.envelopes)),
    ]:
        transport = transport_from_url(url)
        mailer = Mailer(transport, transaction_manager=tm)
        with tm:
            mailer.send(letter("one"))
        assert arrived(transport) == 1
        mailer.close()


def test_pyramid_mailer_76_mail_follows_the_transaction_manager_it_is_bound_to(mailer, server):
    mine, other = transaction.TransactionManager(), transaction.TransactionManager()
    bound = mailer.bind(transaction_manager=mine)
    assert bound.transaction_manager is mine
    transaction.begin()
    mine.begin()
    bound.send(letter("mine"))
    transaction.commit()
    other.commit()
    assert server.messages == []
    mine.commit()
    assert subjects(server) == ["mine"]


def test_pyramid_mailer_82_the_dummy_can_be_bound_as_well(tm):
    dummy = DummyMailer()
    bound = dummy.bind(transaction_manager=tm, default_sender="app@example.com")
    with tm:
        bound.send(letter("one"))
    assert [message.subject for message in dummy.outbox] == ["one"]


def test_an_explicit_manager_without_a_transaction_says_so(mailer, server):
    explicit = transaction.TransactionManager(explicit=True)
    bound = mailer.bind(transaction_manager=explicit)
    with pytest.raises(NoTransaction):
        bound.send(letter("nowhere"))
    with explicit:
        bound.send(letter("one"))
    with pytest.raises(NoTransaction):
        bound.send(letter("nowhere"))
    assert subjects(server) == ["one"]


def test_send_in_another_thread_joins_that_threads_transaction(server, make_mailer):
    mailer = make_mailer().bind(transaction_manager=transaction.manager)
    transaction.begin()
    mailer.send(letter("of the main thread"))
    committed = []

    def work():
        transaction.begin()
        mailer.send(letter("of the other thread"))
        transaction.commit()
        committed.append(statuses(mailer.last_outcomes))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert committed == [["accepted"]]
    assert subjects(server) == ["of the other thread"]
    transaction.abort()
    assert mailer.last_outcomes == ()


def test_every_thread_has_its_own_last_outcomes(tm, mailer, server):
    server.refuse("nobody@example.com")
    seen = {}

    def work(name, recipient):
        manager = transaction.TransactionManager()
        bound = mailer.bind(transaction_manager=manager)
        manager.begin()
        bound.send(letter(name, recipient))
        try:
            manager.commit()
        except DeliveryRefused:
            manager.abort()
        seen[name] = statuses(bound.last_outcomes)

    for name, recipient in [("good", "ann@example.com"), ("bad", "nobody@example.com")]:
        thread = threading.Thread(target=work, args=(name, recipient))
        thread.start()
        thread.join(10)
    assert seen == {"good": ["accepted"], "bad": ["failed"]}
    assert mailer.last_outcomes == ()


# -- order, content, references


def test_mail_arrives_in_call_order(tm, mailer, server):
    with tm:
        for number in range(30):
            mailer.send(letter(number))
    assert subjects(server) == [str(number) for number in range(30)]


def test_what_is_done_to_a_message_after_send_is_not_sent(tm, mailer, server):
    message = letter("as it was")
    with tm:
        mailer.send(message)
        message.subject = "changed"
        message.recipients.append("mallory@example.com")
    assert subjects(server) == ["as it was"]
    assert server.messages[0].recipients == ("ann@example.com",)


@pytest.mark.filterwarnings("ignore:1 message.s. were handed in and never committed")
@pytest.mark.parametrize("end", ["commit", "abort", "fail", "drop"])
def test_nothing_is_kept_of_a_transaction_that_is_over(tm, mailer, server, end):
    if end == "fail":
        server.refuse("ann@example.com")
    manager = transaction.TransactionManager() if end == "drop" else tm
    bound = mailer.bind(transaction_manager=manager)
    manager.begin()
    bound.send(letter("one"))
    traces = [weakref.ref(manager.get()), weakref.ref(join(manager))]
    if end == "commit":
        manager.commit()
    elif end == "abort":
        manager.abort()
    elif end == "fail":
        with pytest.raises(DeliveryRefused):
            manager.commit()
        manager.abort()
    del manager
    bound = bound.bind(transaction_manager=tm)
    gc.collect()
    assert [trace() for trace in traces] == [None, None]


def test_a_manager_that_outlives_its_transaction_holds_no_mail(tm, mailer, server):
    tm.begin()
    mailer.send(letter("one"))
    manager = join(tm)
    tm.commit()
    assert manager.buffered(mailer._direct) == []
    tm.begin()
    mailer.send(letter("two"))
    manager = join(tm)
    tm.abort()
    assert manager.buffered(mailer._direct) == []


def test_a_transaction_dropped_within_its_commit_gives_its_connection_back(server, make_mailer):
    mailer = make_mailer(server.url + "?pool=1")
    manager = transaction.TransactionManager()
    bound = mailer.bind(transaction_manager=manager)
    manager.begin()
    bound.send(letter("dropped"))
    for hook, arguments, options in list(manager.get().getBeforeCommitHooks()):
        hook(*arguments, **options)
    assert len(server.connections) == 1
    del hook, arguments, options, bound, manager
    gc.collect()
    other = transaction.TransactionManager()
    with other:
        mailer.bind(transaction_manager=other).send(letter("next"))
    assert subjects(server) == ["next"]
    assert len(server.connections) == 1


# -- connections of other transactions


def hold_the_only_connection(mailer):
    """A transaction that has run its hook: it has its connection and has not begun to commit."""
    manager = transaction.TransactionManager()
    manager.begin()
    mailer.bind(transaction_manager=manager).send(letter("of the other transaction"))
    for hook, arguments, options in list(manager.get().getBeforeCommitHooks()):
        hook(*arguments, **options)
    return manager


@pytest.mark.parametrize("how", ["second transport", "after tpc_begin"])
def test_no_transaction_waits_for_a_connection_while_others_may_wait_for_it(
    tm, server, make_mailer, how
):
    mailer = make_mailer(server.url + "?pool=1")
    other = hold_the_only_connection(mailer)
    synchronizer = Synchronizer(before=lambda: mailer.send(letter("ours")))
    started = time.monotonic()
    tm.begin()
    if how == "second transport":
        make_mailer("memory:").send(letter("first"))
        mailer.send(letter("ours"))
    else:
        tm.registerSynch(synchronizer)
    tm.commit()
    assert time.monotonic() - started < 2
    assert subjects(server) == ["ours"]
    assert len(server.connections) == 2
    other.commit()
    assert subjects(server) == ["ours", "of the other transaction"]


def test_a_transaction_waits_in_its_hook_for_the_connection_of_another(tm, server, make_mailer):
    mailer = make_mailer(server.url + "?pool=1")
    other = hold_the_only_connection(mailer)
    hook_began = threading.Event()

    def work():
        manager = transaction.TransactionManager()
        txn = manager.begin()
        txn.addBeforeCommitHook(hook_began.set)
        mailer.bind(transaction_manager=manager).send(letter("waited"))
        manager.commit()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert hook_began.wait(10)
    other.commit()
    thread.join(4)
    assert not thread.is_alive()
    assert subjects(server) == ["of the other transaction", "waited"]
    assert len(server.connections) == 1


@pytest.mark.parametrize("seconds", [7, 100])
def test_a_transaction_has_the_time_that_its_mailer_gives_it(tm, make_mailer, seconds, monkeypatch):
    mailer = make_mailer("memory:", commit_timeout=seconds)
    open_, timeouts = mailer.transport.open, []

    def opened(*, timeout=None, **options):
        timeouts.append(timeout)
        return open_(timeout=timeout, **options)

    monkeypatch.setattr(mailer.transport, "open", opened)
    with tm:
        mailer.send(letter("one"))
    mailer.send_immediately(letter("two"))
    assert [round(timeout) for timeout in timeouts] == [seconds] * 2
