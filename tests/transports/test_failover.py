"""Several routes: the first that works is used, and what one has accepted no other gets."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
from letters import letter, statuses, subjects
from zope.interface.verify import verifyObject

from txmail import Mailer, mailer_from_settings, transport_from_url
from txmail.exceptions import (
    ConfigurationError,
    DeliveryRefused,
    DeliveryUnavailable,
    PartialDelivery,
    TransportError,
)
from txmail.interfaces import ISession, ITransport
from txmail.testing import CLOSE, HANG, RESET, ScriptedServer, then
from txmail.transports.failover import PAUSE, FailoverTransport


@pytest.fixture
def second():
    with ScriptedServer(hostname="second.example.com") as server:
        yield server


@pytest.fixture
def transport(server, second, clock):
    transport = FailoverTransport(
        [transport_from_url(server.url), transport_from_url(second.url)], clock=clock
    )
    yield transport
    transport.close()


@pytest.fixture
def mailer(transport, tm):
    return Mailer(transport, transaction_manager=tm)


def commit(tm, mailer, *names):
    tm.begin()
    for name in names:
        mailer.send(letter(name))
    tm.commit()


def verbs(server):
    return [line.partition(" ")[0] for line in server.commands]


def test_the_first_route_is_used_while_it_works(tm, mailer, server, second):
    commit(tm, mailer, "one")
    commit(tm, mailer, "two")
    assert subjects(server) == ["one", "two"]
    assert second.connections == []


@pytest.mark.parametrize(
    "action", ["421 4.3.2 not now", "554 5.7.1 go away", CLOSE, RESET], ids=str
)
def test_a_first_route_that_turns_us_away_is_passed_over(tm, mailer, server, second, action):
    server.on("connect", action, times=None)
    commit(tm, mailer, "one", "two")
    assert server.messages == []
    assert subjects(second) == ["one", "two"]
    assert statuses(mailer.last_outcomes) == ["accepted", "accepted"]


def test_a_first_route_that_is_down_is_passed_over(tm, mailer, server, second):
    server.stop()
    commit(tm, mailer, "one")
    assert subjects(second) == ["one"]


def test_a_first_route_that_does_not_know_ehlo_as_it_should_is_passed_over(
    tm, mailer, server, second
):
    server.on("EHLO", "550 5.7.1 not you")
    commit(tm, mailer, "one")
    assert subjects(second) == ["one"]


@pytest.mark.parametrize("verb", ["MAIL", "RCPT"])
@pytest.mark.parametrize("action", [CLOSE, RESET, then("421 4.3.2 bye", CLOSE)], ids=str)
def test_a_first_route_that_dies_in_the_preflight_is_left(tm, mailer, server, second, verb, action):
    server.on(verb, action, times=None)
    commit(tm, mailer, "one", "two")
    assert server.messages == []
    assert subjects(second) == ["one", "two"]
    assert "DATA" not in verbs(server)


@pytest.mark.parametrize("reply", ["530 5.7.0 log in first", "421 4.7.0 slow down"])
def test_a_first_route_that_will_not_be_used_now_is_left(tm, mailer, server, second, reply):
    server.on("MAIL", reply, times=None)
    commit(tm, mailer, "one")
    assert subjects(second) == ["one"]


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        ("550 5.1.1 no such user", DeliveryRefused),
        ("450 4.2.0 greylisted", DeliveryUnavailable),
    ],
)
def test_what_a_route_says_about_a_recipient_is_not_asked_again(
    tm, mailer, server, second, reply, error
):
    server.refuse("ann@example.com", reply)
    with pytest.raises(error):
        commit(tm, mailer, "one")
    tm.abort()
    assert second.connections == []


def test_a_route_that_hangs_leaves_time_for_the_next(tm, server, second):
    server.on("MAIL", HANG, times=None)
    routes = [transport_from_url(server.url), transport_from_url(second.url)]
    mailer = Mailer(FailoverTransport(routes), transaction_manager=tm, commit_timeout=2.0)
    commit(tm, mailer, "one")
    mailer.close()
    assert subjects(second) == ["one"]


def test_a_route_that_hangs_at_the_greeting_leaves_time_for_the_next(tm, server, second):
    server.on("connect", HANG, times=None)
    routes = [transport_from_url(server.url), transport_from_url(second.url)]
    mailer = Mailer(FailoverTransport(routes), transaction_manager=tm, commit_timeout=2.0)
    commit(tm, mailer, "one")
    mailer.close()
    assert subjects(second) == ["one"]


# -- what has been accepted


def test_what_was_accepted_once_is_never_sent_by_another(tm, mailer, server, second):
    server.on(".", CLOSE, after=1)
    with pytest.raises(PartialDelivery) as caught:
        commit(tm, mailer, "one", "two", "three")
    tm.abort()
    assert statuses(caught.value.outcomes) == ["accepted", "in_doubt", "unsent"]
    assert subjects(server) == ["one"]
    assert second.connections == []


def test_a_doubt_about_the_first_message_is_no_reason_to_send_it_again(tm, mailer, server, second):
    server.on(".", CLOSE)
    with pytest.raises(PartialDelivery) as caught:
        commit(tm, mailer, "one")
    tm.abort()
    assert statuses(caught.value.outcomes) == ["in_doubt"]
    assert second.connections == []


def test_a_first_route_that_dies_between_hook_and_vote_is_left(tm, mailer, server, second):
    class Killer:
        """Votes before the mail, after its preflight."""

        transaction_manager = tm

        def sortKey(self):
            return "a"

        def tpc_vote(self, transaction):
            server.kill()

        def _nothing(self, transaction):
            pass

        abort = tpc_begin = commit = tpc_finish = tpc_abort = _nothing

    tm.begin()
    mailer.send(letter("one"))
    mailer.send(letter("two"))
    tm.get().join(Killer())
    tm.commit()
    assert server.messages == []
    assert subjects(second) == ["one", "two"]


# -- coming back


def test_a_route_is_tried_again_after_a_pause(tm, mailer, server, second, clock):
    server.stop()
    commit(tm, mailer, "one")
    server.start()
    clock.now += PAUSE - 1
    commit(tm, mailer, "two")
    clock.now += 1
    commit(tm, mailer, "three")
    assert subjects(second) == ["one", "two"]
    assert subjects(server) == ["three"]


def test_a_route_that_failed_while_sending_is_passed_over_next_time(tm, server, second, transport):
    mailer = Mailer(transport, transaction_manager=tm, preflight="never")
    server.on("MAIL", "451 4.7.1 slow down", times=None)
    with pytest.raises(DeliveryUnavailable):
        commit(tm, mailer, "one")
    tm.abort()
    commit(tm, mailer, "two")
    assert subjects(second) == ["two"]


def test_if_all_have_failed_all_are_tried_again(tm, mailer, server, second):
    server.stop()
    second.stop()
    with pytest.raises(DeliveryUnavailable) as caught:
        commit(tm, mailer, "one")
    tm.abort()
    for port in (server.port, second.port):
        assert f":{port}" in str(caught.value)
    second.start()
    commit(tm, mailer, "two")
    assert subjects(second) == ["two"]


def test_a_kept_connection_that_has_ended_is_no_failure_of_its_route(tm, mailer, server, second):
    commit(tm, mailer, "one")
    server.on("MAIL", then("421 4.4.2 idle too long", CLOSE), connection=1)
    commit(tm, mailer, "two")
    assert subjects(server) == ["one", "two"]
    assert second.connections == []


def test_both_failing_is_permanent_only_if_a_person_has_to_act_on_both(server, second, transport):
    server.on("connect", "554 5.7.1 go away", times=None)
    second.on("connect", "421 4.3.2 not now", times=1)
    with pytest.raises(TransportError) as caught:
        transport.open()
    assert caught.value.temporary is True
    second.on("connect", "554 5.7.1 go away", times=None)
    with pytest.raises(TransportError) as caught:
        transport.open()
    assert caught.value.temporary is False


def test_no_connection_is_left_behind(tm, mailer, server, second):
    server.on("MAIL", "530 5.7.0 log in first", times=None)
    commit(tm, mailer, "one")
    mailer.close()
    server.wait_closed()
    second.wait_closed()


def test_many_threads_may_use_it(transport, server, second):
    server.on("MAIL", then("421 4.3.2 bye", CLOSE), times=None)
    errors = []

    def work(number):
        try:
            Mailer(transport).send_immediately(letter(number))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(subjects(second)) == [str(number) for number in range(8)]


# -- contract and settings


def test_it_keeps_the_contracts(transport):
    assert verifyObject(ITransport, transport)
    session = transport.open()
    assert verifyObject(ISession, session)
    session.close()
    assert transport.asks_server is True
    assert FailoverTransport([transport_from_url("console:")]).asks_server is False


def test_its_name_shows_all_routes(server, second, transport):
    assert transport.name == f"{server.url}, {second.url}"
    assert repr(transport) == f"<FailoverTransport {server.url}, {second.url}>"


@pytest.mark.parametrize("twin", [copy.copy, lambda t: pickle.loads(pickle.dumps(t))])
def test_a_copy_finds_out_by_itself_what_is_down(server, second, twin):
    transport = FailoverTransport([transport_from_url(u) for u in (server.url, second.url)])
    server.stop()
    transport.open().close()
    other = twin(transport)
    server.start()
    session = other.open()
    assert session.host == server.url
    session.close()
    transport.close()
    other.close()


@pytest.mark.parametrize("as_text", [True, False])
def test_the_setting_takes_several_urls(tm, server, second, as_text):
    urls = [server.url, second.url]
    settings = {"mail.url": "\n".join(["", *urls]) if as_text else urls}
    mailer = mailer_from_settings(settings).bind(transaction_manager=tm)
    server.stop()
    commit(tm, mailer, "one")
    mailer.close()
    assert subjects(second) == ["one"]


@pytest.mark.parametrize("urls", [[], "", " \n ", ["smtp://localhost", 7], [""], ["a b"], {"a": 1}])
def test_a_setting_that_is_no_list_of_urls_is_refused(urls):
    with pytest.raises(ConfigurationError, match=r"^mail\.url"):
        mailer_from_settings({"mail.url": urls})


@pytest.mark.parametrize("routes", [[], ["smtp://localhost"], [None]])
def test_routes_that_are_no_transports_are_refused(routes):
    with pytest.raises(ConfigurationError, match=r"^routes"):
        FailoverTransport(routes)


def test_one_url_in_a_list_is_that_url(server):
    mailer = mailer_from_settings({"mail.url": [server.url]})
    assert not isinstance(mailer._direct.transport, FailoverTransport)
