"""Is the store still the same store? Damaged contents, upgraded tables, files that were cut."""

from __future__ import annotations

import contextlib
import logging

import pytest

sa = pytest.importorskip("sqlalchemy")
pytest.importorskip("alembic")

from workers import Watched  # noqa: E402

from txmail import Mailer, Message, transport_from_url  # noqa: E402
from txmail.exceptions import QueueFull, SchemaError  # noqa: E402
from txmail.integrations.session_queue import session_queue  # noqa: E402
from txmail.queue import schema  # noqa: E402
from txmail.queue.database import upgrade, version  # noqa: E402
from txmail.queue.database.database import Database  # noqa: E402
from txmail.queue.queue import Queue  # noqa: E402
from txmail.queue.schema import delivery, message  # noqa: E402
from txmail.queue.sql.claimed import SMALL  # noqa: E402
from txmail.worker import run_once  # noqa: E402

NEXT = f"{int(schema.VERSION) + 1:04}"


@pytest.fixture
def url(url):
    """The same with the tables of an empty queue."""
    database = Database.from_url(url)
    if database.is_in_process:
        database.prepare()
    else:
        with database.write(prepared=False) as connection:
            schema.metadata.create_all(connection)
    database.close()
    return url


@pytest.fixture
def queue(url):
    queue = Queue(url)
    yield queue
    queue.close()


@pytest.fixture
def transport():
    return transport_from_url("memory:")


def elsewhere(url, *statements):
    """Somebody else writes to the database at `url`."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(statement)
    engine.dispose()


def ends(url):
    """What became of each recipient: its state, and why."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    columns = delivery.c
    with engine.connect() as connection:
        rows = connection.execute(sa.select(columns.recipient, columns.state, columns.reply)).all()
    engine.dispose()
    return {recipient: (state, reply) for recipient, state, reply in rows}


def change_content(url, recipient, change):
    """Have `change` make other values of the row of the message to `recipient`."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        number = connection.scalar(
            sa.select(delivery.c.message).where(delivery.c.recipient == recipient)
        )
        where = message.c.id == number
        content = connection.scalar(sa.select(message.c.content).where(where))
        connection.execute(message.update().where(where).values(**change(content)))
    engine.dispose()


def flipped(content, place):
    octets = bytearray(content)
    octets[place] ^= 1
    return {"content": bytes(octets)}


DAMAGES = {
    "the first octet": lambda content: flipped(content, 0),
    "one in the middle": lambda content: flipped(content, len(content) // 2),
    "the last octet": lambda content: flipped(content, -1),
    "the end is missing": lambda content: {"content": content[:-7]},
    "nothing is left": lambda content: {"content": b""},
    "zeros": lambda content: {"content": bytes(len(content))},
    "somebody else's": lambda content: {"content": content.replace(b"News", b"Olds")},
    "the digest": lambda content: {"digest": bytes(32)},
    "a digest that is none": lambda content: {"digest": b""},
}


@pytest.mark.parametrize("size", [10, SMALL + 1], ids=["small", "large"])
def test_q9_a_damaged_content_fails_and_is_not_sent(url, queue, enqueue, transport, size):
    """Kind: octets that changed in the store look like mail; only a digest tells them apart."""
    damaged = [f"{number}@example.com" for number in range(len(DAMAGES))]
    enqueue(*damaged, "well@example.com", body="x" * size)
    for recipient, change in zip(damaged, DAMAGES.values(), strict=True):
        change_content(url, recipient, change)
    assert run_once(queue, transport) == 1
    found = ends(url)
    for recipient in damaged:
        assert found[recipient] == ("failed", "the content is damaged")
    assert found["well@example.com"][0] == "sent"
    assert [each.recipients for each in transport.envelopes] == [("well@example.com",)]


@pytest.mark.parametrize("size", [10, SMALL + 1], ids=["small", "large"])
def test_q9_a_content_from_before_there_were_digests_goes_out(url, queue, enqueue, transport, size):
    """Kind: a check that is new must not fail what is old."""
    enqueue("a@example.com", body="x" * size)
    change_content(url, "a@example.com", lambda content: {"digest": None})
    assert run_once(queue, transport) == 1
    assert ends(url)["a@example.com"][0] == "sent"


def test_q9_a_content_that_was_blanked_is_not_sent_again(url, queue, enqueue, transport):
    """Kind: no content is not an empty content."""
    enqueue("a@example.com")
    change_content(url, "a@example.com", lambda content: {"digest": None, "content": b""})
    assert run_once(queue, transport) == 0
    assert ends(url)["a@example.com"] == ("failed", "the content has been removed from the queue")


# -- upgraded under a running process


def set_version(url, number, minimum):
    elsewhere(url, schema.version.update().values(version_num=number, min_version=minimum))


#: What an upgrade wrote, and whether a process of our version may go on.
UPGRADES = [
    (NEXT, schema.VERSION, True),
    (NEXT, "0001", True),
    ("9999", schema.VERSION, True),
    (NEXT, NEXT, False),
    (NEXT, None, False),
    ("9999", "9998", False),
    ("of-a-fork", None, False),
    (NEXT, "nonsense", False),
    ("0001", None, False),
]


@pytest.mark.representative(every=6)
@pytest.mark.parametrize(("number", "minimum", "goes_on"), UPGRADES)
@pytest.mark.parametrize("how", ["a new connection", "a round"])
def test_q10_only_processes_older_than_the_upgrade_allows_stop(
    url, opened, number, minimum, goes_on, how
):
    """Kind: what was true when a process began is not true for ever."""
    database = opened(url)
    with database.read():
        pass
    set_version(url, number, minimum)
    if how == "a round":
        database.look_again()
    else:
        database.engine.dispose()
    for use in (database.write, database.read):
        if goes_on:
            with use():
                pass
            continue
        with pytest.raises(SchemaError, match=number) as caught, use():
            raise AssertionError("it goes on")
        assert "\n" not in str(caught.value)
        assert caught.value.outdated == (number != "0001")
    set_version(url, schema.VERSION, None)
    with database.write():
        pass


def test_q10_a_file_says_so_at_each_transaction(tmp_path, opened):
    """Kind: a connection that is kept sees what others have changed."""
    url = f"sqlite:///{tmp_path}/mail.db"
    database = opened(url)
    with database.write():
        pass
    set_version(url, NEXT, NEXT)
    with pytest.raises(SchemaError, match="start this process again"), database.write():
        pass


def test_q10_a_commit_of_an_older_process_fails_and_says_why(url, queue, enqueue):
    """Kind: the refusal is at the commit, before anything is acknowledged."""
    enqueue("a@example.com")
    set_version(url, NEXT, NEXT)
    queue.database.look_again()
    with pytest.raises(SchemaError, match="start this process again"):
        enqueue("b@example.com")
    set_version(url, schema.VERSION, None)
    enqueue("c@example.com")
    assert set(ends(url)) == {"a@example.com", "c@example.com"}


@pytest.mark.parametrize("minimum", [NEXT, schema.VERSION])
def test_q10_a_worker_stops_with_one_line_or_goes_on(
    url, queue, enqueue, transport, minimum, caplog
):
    """Kind: who cannot go on ends, at once and once; whoever can, does."""
    caplog.set_level(logging.INFO)
    worker = Watched(queue, transport, lease=1.0)
    problems = []

    def run():
        try:
            worker.run()
        except SchemaError as error:
            problems.append(error)

    worker.thread._target = run
    worker.start().wait_rounds()
    set_version(url, NEXT, minimum)
    if minimum == schema.VERSION:
        enqueue("a@example.com")
        worker.wait_rounds(3)
        worker.end()
        assert problems == []
        assert ends(url)["a@example.com"][0] == "sent"
        return
    worker.thread.join(20)
    assert not worker.thread.is_alive()
    (problem,) = problems
    assert problem.outdated
    assert [r for r in caplog.records if NEXT in r.getMessage()] == []


def test_q10_a_queue_in_the_applications_database_looks_too(url, tm, transport):
    """Kind: whoever's connection it is."""
    from zope.sqlalchemy import register

    engine = sa.create_engine(url)
    session = sa.orm.scoped_session(sa.orm.sessionmaker(engine))
    register(session, transaction_manager=tm)
    queue = session_queue(session)
    mailer = Mailer(transport, queue=queue, transaction_manager=tm)

    def enqueue():
        with tm:
            mailer.enqueue(Message("x", ["a@example.com"], "x", sender="a@example.com"))

    enqueue()
    set_version(url, NEXT, NEXT)
    queue.database.look_again()
    with pytest.raises(SchemaError, match=NEXT):
        enqueue()
    set_version(url, NEXT, schema.VERSION)
    enqueue()
    queue.close()
    session.remove()
    engine.dispose()


COMING = f"""
from alembic import op

revision = "{NEXT}"
down_revision = "{schema.VERSION}"
"""


@pytest.mark.parametrize("minimum", [None, NEXT, schema.VERSION])
def test_q10_a_revision_names_the_oldest_version_that_may_go_on(
    url, opened, monkeypatch, tmp_path, minimum
):
    """Kind: who wrote the change knows whom it breaks."""
    import shutil

    folder = tmp_path / "migrations"
    shutil.copytree(upgrade._SCRIPTS, folder)
    names = "" if minimum is None else f'min_version = "{minimum}"\n'
    script = COMING + names + "\ndef upgrade():\n    pass\n"
    (folder / "versions" / "v9999_coming.py").write_text(script)
    running = opened(url)
    with running.write():
        pass
    with monkeypatch.context() as then:
        then.setattr(upgrade, "_SCRIPTS", folder)
        then.setattr(version, "VERSION", NEXT)
        assert upgrade.upgrade(opened(url))
        with opened(url).write():
            pass
    running.look_again()
    if minimum == schema.VERSION:
        with running.write():
            pass
    else:
        with pytest.raises(SchemaError), running.write():
            pass


# -- a full disk


def fill(folder):
    """Leave no room on the disk of `folder`."""
    with (folder / "filler").open("ab", buffering=0) as filler:
        for size in (4096, 512, 1):
            with contextlib.suppress(OSError):
                while filler.write(b"x" * size):
                    pass


@pytest.mark.representative(every=3)
@pytest.mark.parametrize("count", [1, 5, 40])
@pytest.mark.parametrize("restarted", [False, True])
def test_q8_workers_drain_a_queue_whose_disk_is_full(small_disk, tm, transport, count, restarted):
    """Kind: who gives room back must not be kept from it by those who take it."""
    url = f"sqlite:///{small_disk}/mail.db"
    queue = Queue(url)

    def enqueue(*recipients):
        mailer = Mailer(transport, queue=queue, transaction_manager=tm)
        with tm:
            for to in recipients:
                mailer.enqueue(Message("News", [to], "Hello.", sender="app@example.com"))

    enqueue(*(f"{n}@example.com" for n in range(count)))
    fill(small_disk)
    if restarted:
        queue.close()
        fill(small_disk)
        queue = Queue(url)
    for _ in range(2):
        fill(small_disk)  # what was in the log may be in the file by now
        with pytest.raises(QueueFull):
            enqueue("more@example.com")
    assert run_once(queue, transport) == count
    assert len(transport.envelopes) == count
    assert queue.counts() == {"sent": count}
    fill(small_disk)
    with pytest.raises(QueueFull):
        enqueue("more@example.com")
    (small_disk / "filler").unlink()
    enqueue("again@example.com")
    assert run_once(queue, transport) == 1
    queue.close()
