"""Bulk mail to very many people, and others who want to be sent meanwhile."""

from __future__ import annotations

import pytest
from commits import note
from queues import OWN_QUEUES, OWN_SQLITE, kinds

pytest.importorskip("sqlalchemy")

from workers import put, put_many

from txmail import transport_from_url
from txmail.queue.sql import claim as claims
from txmail.queue.sql.round_robin import RoundRobin
from txmail.worker import Route, run_once

BATCH = 64


def people(name, count):
    return [f"{name}{number}@example.net" for number in range(count)]


def newsletter(app, name, count, **options):
    put(app, note(name, recipients=people(name, count)), priority="bulk", **options)


@pytest.fixture
def claim(app):
    """Claim and read; the names of the newsletters of what was claimed, with their counts."""
    turn, tokens = RoundRobin(), iter(range(1, 1000))

    def claimed(limit=BATCH, turn=turn):
        token = next(tokens)
        database = app.queue.database
        with database.write() as connection:
            now = database.now_ms(connection)
            rows = claims.take(
                connection,
                token=token,
                now_ms=now,
                lease_ms=now + 60_000,
                limit=limit,
                round_robin=turn,
            )
        assert len({row.id for row in rows}) == len(rows) <= limit
        found = {}
        for row in rows:
            name = row.recipient.partition("@")[0].rstrip("0123456789")
            found[name] = found.get(name, 0) + 1
        return found

    return claimed


@kinds(*OWN_QUEUES)
def test_half_of_a_claim_is_for_other_newsletters_than_the_first(app, claim):
    newsletter(app, "first", 500)
    newsletter(app, "second", 500)
    newsletter(app, "third", 20)
    assert claim() == {"first": 48, "second": 8, "third": 8}


@kinds(*OWN_QUEUES)
def test_of_very_many_newsletters_each_gets_its_turn(app, claim):
    newsletter(app, "large", 500)
    words = [f"n{chr(ord('a') + number)}" for number in range(12)]
    for word in words:
        newsletter(app, word, 100)
    seen = set()
    for _ in range(3):
        found = claim()
        assert found.pop("large") == 32
        assert set(found.values()) == {8}
        assert not seen & set(found), "nobody's turn comes again before that of all others"
        seen |= set(found)
    assert seen == set(words)
    assert claim().keys() > {"large"}


@kinds(OWN_SQLITE)
def test_without_others_the_first_takes_all(app, claim):
    newsletter(app, "only", 150)
    assert [claim() for _ in range(3)] == [{"only": 64}, {"only": 64}, {"only": 22}]
    assert claim() == {}


@kinds(OWN_SQLITE)
def test_single_messages_keep_their_order(app, claim):
    put_many(app, "a", 100, priority="bulk")
    put_many(app, "b", 100, priority="bulk")
    assert claim() == {"a": 64}
    assert claim() == {"a": 36, "b": 28}


@pytest.mark.representative(every=4)
@kinds(OWN_SQLITE)
@pytest.mark.parametrize("limit", [1, 2, 3, 5, 9, 64, 100])
def test_a_claim_is_as_large_as_it_may_be(app, claim, limit):
    newsletter(app, "first", 200)
    newsletter(app, "second", 3)
    newsletter(app, "third", 200)
    assert sum(claim(limit).values()) == limit


@kinds(OWN_SQLITE)
def test_what_is_not_due_gets_no_turn(app, claim, clock):
    newsletter(app, "first", 200)
    newsletter(app, "later", 200, not_before=clock.at(60))
    assert claim() == {"first": 64}
    clock.advance(61)
    assert claim() == {"first": 56, "later": 8}


@kinds(OWN_SQLITE)
def test_classes_share_a_claim_as_they_do_without_turns(app, claim):
    newsletter(app, "first", 200)
    newsletter(app, "second", 200)
    put_many(app, "normal", 200)
    put_many(app, "high", 200, priority="high")
    assert claim() == {"high": 40, "normal": 16, "first": 7, "second": 1}


@pytest.mark.representative(every=2)
@kinds(*OWN_QUEUES)
def test_a_small_newsletter_is_sent_long_before_a_large_one_is_through(app):
    newsletter(app, "large", 2000)
    newsletter(app, "small", 20)
    memory = transport_from_url("memory:")
    assert run_once(app.queue, memory) == 2020
    sent = [recipient for envelope in memory.envelopes for recipient in envelope.recipients]
    assert sorted(sent) == sorted(people("large", 2000) + people("small", 20))
    last = max(place for place, recipient in enumerate(sent) if recipient.startswith("small"))
    assert last < 10 * BATCH


@kinds(OWN_SQLITE)
def test_recipients_of_one_message_take_the_routes_of_their_domains(app):
    partner, rest = transport_from_url("memory:"), transport_from_url("memory:")
    mixed = ["a@partner.test", "b@example.net", "c@Partner.test", "d@example.org"]
    put(app, note("n", recipients=mixed))
    routes = [Route.to("partner", partner, domains=["partner.test"]), Route.to("rest", rest)]
    assert run_once(app.queue, routes) == 4
    assert [envelope.recipients for envelope in partner.envelopes] == [
        ("a@partner.test", "c@Partner.test")
    ]
    assert [envelope.recipients for envelope in rest.envelopes] == [
        ("b@example.net", "d@example.org")
    ]
    assert {row.state for row in app.deliveries().values()} == {"sent"}
    assert len({e.content for e in (*partner.envelopes, *rest.envelopes)}) == 1
