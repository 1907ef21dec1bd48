"""Routes of workers, named by settings: which mail leaves where, and what is refused."""

from __future__ import annotations

import contextlib
import copy
import pickle
import socket

import pytest
import transaction

pytest.importorskip("sqlalchemy")

from txmail import Message, mailer_from_settings, start_worker
from txmail.cli import main
from txmail.config.settings import read_settings
from txmail.exceptions import ConfigurationError
from txmail.testing import ScriptedServer
from txmail.worker import run_once

PASSWORD = "hunter2"
PARTNER = "app@orders.example.com"


@pytest.fixture
def servers():
    """Three servers: the usual one, one for bulk, and one for a partner."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(ScriptedServer()) for _ in range(3)]


@pytest.fixture
def settings(servers, tmp_path):
    usual, bulk, partner = servers
    return {
        "mail.queue_url": f"sqlite:///{tmp_path}/mail.db",
        "mail.url": usual.url,
        "mail.route.newsletter.url": bulk.url,
        "mail.route.newsletter.priorities": "bulk",
        "mail.route.newsletter.rate": "1000",
        "mail.route.newsletter.connections": "3",
        "mail.route.partner.url": partner.url,
        "mail.route.partner.domains": "partner.example partner.test",
        "mail.route.partner.senders": "orders.example.com",
        "mail.route.default.window": "8",
    }


@pytest.fixture
def mailer(settings):
    made = mailer_from_settings(settings)
    yield made
    made.close()


def enqueue(mailer, recipient, sender="shop@example.com", **options):
    with transaction.manager:
        mailer.enqueue(Message("News", [recipient], "hello", sender=sender), **options)


def fill(mailer):
    enqueue(mailer, "ann@example.com")
    enqueue(mailer, "bob@example.com", priority="bulk")
    enqueue(mailer, "eve@Partner.Example", sender=PARTNER)
    enqueue(mailer, "dan@partner.example")


def recipients(servers):
    return [[r for m in server.messages for r in m.recipients] for server in servers]


EXPECTED = [
    ["ann@example.com", "dan@partner.example"],
    ["bob@example.com"],
    ["eve@Partner.Example"],
]


def test_each_message_takes_the_first_route_whose_rules_fit(mailer, servers):
    fill(mailer)
    assert run_once(mailer.queue, mailer.routes) == 4
    assert [sorted(some) for some in recipients(servers)] == EXPECTED


def test_a_worker_of_the_application_knows_the_routes_of_its_mailer(mailer, servers):
    running = start_worker(mailer)
    try:
        fill(mailer)
        usual, bulk, partner = servers
        assert usual.wait_for(lambda: len(usual.messages) == 2, 30)
        assert bulk.wait_for(lambda: len(bulk.messages) == 1, 30)
        assert partner.wait_for(lambda: len(partner.messages) == 1, 30)
    finally:
        running.stop()


def test_the_command_knows_them_too(mailer, servers, settings, tmp_path, capsys):
    fill(mailer)
    ini = tmp_path / "app.ini"
    lines = [f"{name} = {value}" for name, value in settings.items()]
    ini.write_text("[app:main]\n" + "\n".join(lines) + "\n")
    assert main(["worker", "--once", "-c", str(ini)]) == 0
    assert "via newsletter to bob@example.com" in capsys.readouterr().err
    assert [sorted(some) for some in recipients(servers)] == EXPECTED
    assert main(["doctor", "--connect", "-c", str(ini), "--workers", "0"]) == 0
    said = capsys.readouterr().out
    for server in servers:
        assert f"127.0.0.1:{server.port} answers" in said


def test_what_is_sent_directly_takes_the_usual_server(mailer, servers):
    with transaction.manager:
        mailer.send(Message("Yours", ["eve@partner.example"], "hello", sender=PARTNER))
    assert recipients(servers) == [["eve@partner.example"], [], []]


def test_what_the_settings_say_of_a_route_is_in_it(mailer):
    newsletter, partner, default = mailer.routes
    assert [route.name for route in mailer.routes] == ["newsletter", "partner", "default"]
    assert (newsletter.rate, newsletter.connections) == (1000, 3)
    assert partner.domains == {"partner.example", "partner.test"}
    assert default.window == 8
    assert default.transport is mailer.transport


def test_without_settings_of_routes_there_is_none(settings):
    plain = {name: value for name, value in settings.items() if ".route." not in name}
    made = mailer_from_settings(plain)
    assert made.routes == ()
    made.close()


def test_a_route_has_the_server_of_all_mail_if_it_names_none(settings):
    for name in list(settings):
        if name.startswith("mail.route.partner"):
            del settings[name]
    del settings["mail.route.newsletter.url"]
    with contextlib.closing(mailer_from_settings(settings)) as made:
        assert all(route.transport is made.transport for route in made.routes)


def test_a_copy_of_a_mailer_has_its_routes(mailer):
    for made in (copy.copy(mailer), pickle.loads(pickle.dumps(mailer)), mailer.bind()):
        assert [route.name for route in made.routes] == ["newsletter", "partner", "default"]
        assert [r.transport.name for r in made.routes] == [r.transport.name for r in mailer.routes]


def test_a_route_has_an_account_of_its_own(settings):
    settings.update(
        {
            "mail.route.partner.url": "smtps://relay.example.com",
            "mail.route.partner.username": "us",
            "mail.route.partner.password": PASSWORD,
        }
    )
    with contextlib.closing(mailer_from_settings(settings)) as made:
        assert PASSWORD not in repr(made.routes)
        assert made.routes[1].transport.options.user == "us"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("route.newsletter.ratio", "5", "there is no such setting"),
        ("route..rate", "5", "there is no such setting"),
        ("route.newsletter", "5", "there is no such setting"),
        ("route.newsletter.rate", "fast", "messages a second"),
        ("route.newsletter.rate", "-1", "messages a second"),
        ("route.newsletter.window", "0", "a number above 0"),
        ("route.newsletter.connections", "0", "a number above 0"),
        ("route.newsletter.url", "smtp://localhost?connections=4", "4 or more are needed"),
        ("route.newsletter.priorities", "urgent", "high, normal, bulk"),
        ("route.newsletter.domains", 5, "words"),
        ("route.default.domains", "example.com", "takes what no other takes"),
        ("route.newsletter.url", f"smtp://us:{PASSWORD}@[relay", "route.newsletter.url"),
        ("route.new.username", "us", "route.new.url is needed"),
    ],
)
def test_a_setting_that_is_wrong_is_named_and_not_shown(settings, name, value, said):
    settings[f"mail.{name}"] = value
    with pytest.raises(ConfigurationError) as raised:
        read_settings(settings)
    assert said in str(raised.value)
    assert f"mail.{name.rpartition('.')[0]}" in str(raised.value)
    assert PASSWORD not in str(raised.value)


def test_routes_without_a_queue_are_refused(settings):
    del settings["mail.queue_url"]
    with pytest.raises(ConfigurationError, match="queue_url is needed"):
        read_settings(settings)


# -- several servers for one route


@pytest.fixture
def nobody():
    """A port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        return held.getsockname()[1]


def test_a_route_goes_on_with_its_second_server_when_the_first_is_down(servers, settings, nobody):
    _, second, _ = servers
    settings["mail.route.newsletter.url"] = f"smtp://127.0.0.1:{nobody} {second.url}"
    with contextlib.closing(mailer_from_settings(settings)) as mailer:
        for number in range(20):
            enqueue(mailer, f"r{number}@example.com", priority="bulk")
        assert run_once(mailer.queue, mailer.routes) == 20
        assert len(second.messages) == 20
        assert mailer.queue.counts() == {"sent": 20}


def test_a_server_that_shuts_down_in_mid_stream_is_followed_by_the_next(settings):
    with ScriptedServer() as first, ScriptedServer() as second:
        first.on("MAIL", "421 4.3.2 shutting down", after=10, times=None)
        first.on("connect", "421 4.3.2 shutting down", after=1, times=None)
        settings["mail.route.newsletter.url"] = f"{first.url} {second.url}"
        with contextlib.closing(mailer_from_settings(settings)) as mailer:
            for number in range(50):
                enqueue(mailer, f"r{number:02}@example.com", priority="bulk")
            run_once(mailer.queue, mailer.routes)
            assert mailer.queue.counts() == {"sent": 50}
        there = recipients([first, second])
    assert len(there[0]) == 10
    assert sorted(there[0] + there[1]) == [f"r{number:02}@example.com" for number in range(50)]
