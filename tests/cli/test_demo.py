"""`txmail demo` keeps its promises, and says so if it does not."""

from __future__ import annotations

import dataclasses
import logging
import os
import pty
import re
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest
from sqlalchemy import event

import txmail.cli
from txmail import DummyMailer, Mailer, Message, transport_from_url
from txmail.cli import main
from txmail.cli.demo import scenarios, wording
from txmail.cli.demo.dialogue import Turn, dialogue_of, moment_of
from txmail.cli.demo.display import Display
from txmail.cli.demo.scenario import Row, Scenario, perform
from txmail.cli.demo.scenarios import SCENARIOS
from txmail.cli.demo.setup import MAILS, OBJECTS, ROWS, SENDER, Setup

ROOT = Path(txmail.cli.__file__).parents[2]
BY_TITLE = {scenario.title: scenario for scenario in SCENARIOS}
ALL_ROWS = [
    (number, what, str(promised))
    for number, scenario in enumerate(SCENARIOS, 1)
    for what, promised in scenario.promises.items()
]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def environment(tmp_path, **more):
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    return {**kept, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "TERM": "xterm", **more}


def run_code(code, tmp_path):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(tmp_path),
        check=False,
    )


@pytest.fixture
def setup(tmp_path):
    with Setup(tmp_path / "setup") as setup:
        yield setup


def broken(report):
    return {row.what: (row.promised, row.happened) for row in report.rows if not row.kept}


# The command


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    """The finished process of a run through a pipe, and the folder it had for temporary files."""
    folder = tmp_path_factory.mktemp("plain")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "txmail", "demo"],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(folder),
        check=False,
    )
    return done, folder


def test_it_succeeds_without_a_word_on_stderr(plain_run):
    done, _ = plain_run
    assert (done.returncode, done.stderr) == (0, "")


def test_it_leaves_nothing_in_the_temporary_folder(plain_run):
    _, folder = plain_run
    assert list(folder.iterdir()) == []


def test_its_last_words_count_the_promises(plain_run):
    done, _ = plain_run
    said = f"All {len(ALL_ROWS)} promises in {len(SCENARIOS)} scenarios were kept ("
    assert said in done.stdout


def test_its_plain_text_is_ascii_of_less_than_80_columns(plain_run):
    done, _ = plain_run
    assert done.stdout.isascii()
    assert max(map(len, done.stdout.splitlines())) < 80


@pytest.mark.parametrize(("number", "what", "promised"), ALL_ROWS)
def test_every_promise_is_shown_beside_what_happened(plain_run, number, what, promised):
    done, _ = plain_run
    _, _, after = done.stdout.partition(f"\n{number}. {SCENARIOS[number - 1].title} ")
    block = re.split(r"\n\n(?:[0-9]+\. |The dialogue of)", after)[0]
    rows = [re.split(r" {2,}", line.strip()) for line in block.splitlines()]
    assert [what.strip(), promised, promised, "ok"] in rows


def test_the_dialogue_shows_questions_before_the_votes_and_content_after(plain_run):
    done, _ = plain_run
    _, _, after = done.stdout.partition(wording.DIALOGUE_TITLE)
    said = [re.sub(r"^    [CS ] ", "", line).strip() for line in after.splitlines()]
    order = [
        wording.ASKING,
        "EHLO [127.0.0.1]",
        "RCPT TO:<buyer2@example.com>  ... and 8 more",
        wording.SENDING,
        "DATA",
        "354 End with <CRLF>.<CRLF>",
        "... 8 more messages in the same way ...",
        "QUIT",
    ]
    places = [said.index(line) for line in order]
    assert places == sorted(places)


# On a terminal


def on_terminal(tmp_path, columns, *arguments, **more):
    """Run the demo on a terminal of `columns` columns; exit code and what it wrote."""
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, columns))
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "txmail", "demo", *arguments],
        stdin=child,
        stdout=child,
        stderr=child,
        env=environment(tmp_path, **more),
    )
    os.close(child)
    written = bytearray()
    try:
        while octets := os.read(parent, 65536):
            written += octets
    except OSError:
        pass  # how Linux says that the other end was closed
    finally:
        os.close(parent)
        process.wait(60)
    return process.returncode, written.decode()


@pytest.mark.sweep
@pytest.mark.parametrize("columns", [40, 80, 120])
def test_on_a_terminal_it_shows_everything_within_its_width(tmp_path, columns):
    code, written = on_terminal(tmp_path, columns)
    assert code == 0
    assert "\x1b[32m" in written, "no colour"
    text = ESCAPES.sub("", written)
    assert f"{len(SCENARIOS)}/{len(SCENARIOS)}" in text, "no progress"
    # Progress is drawn and erased on lines of its own, behind carriage returns.
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    assert max(map(len, lines)) <= columns
    flat = " ".join(text.split())
    assert f"All {len(ALL_ROWS)} promises in {len(SCENARIOS)} scenarios were kept" in flat
    headings = [line.split("  ")[0] for line in lines]
    numbers = [found[1] for found in map(re.compile(r"(\d+)\. ").match, headings) if found]
    assert numbers == [str(number) for number in range(1, len(SCENARIOS) + 1)]


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("arguments", "variables"),
    [(("--plain",), {}), ((), {"TERM": "dumb"})],
    ids=["--plain", "TERM=dumb"],
)
def test_a_terminal_gets_plain_text_if_it_wants_that(tmp_path, arguments, variables):
    code, written = on_terminal(tmp_path, 80, *arguments, **variables)
    assert code == 0
    assert "\x1b" not in written
    assert "were kept" in written


@pytest.mark.sweep
def test_a_terminal_that_knows_ascii_alone_gets_it(tmp_path):
    code, written = on_terminal(tmp_path, 80, PYTHONIOENCODING="ascii")
    assert code == 0
    assert written.isascii()


@pytest.mark.sweep
def test_without_rich_a_terminal_hears_how_to_get_it(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['rich'] = None\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    for arguments in ((), ("--plain",)):
        code, written = on_terminal(tmp_path, 80, *arguments, PYTHONPATH=path)
        assert code == 2
        assert "pip install 'txmail[demo]'" in written


@pytest.mark.sweep
def test_no_color_leaves_the_colours_out(tmp_path):
    code, written = on_terminal(tmp_path, 80, NO_COLOR="1")
    assert code == 0
    assert not re.search(r"\x1b\[[0-9;]*\b[34][0-7]\b[0-9;]*m", written)
    assert "were kept" in ESCAPES.sub("", written)


@pytest.mark.parametrize("columns", [20, 50, 77, 78, 80, 200])
def test_plain_text_keeps_within_the_columns(capsys, monkeypatch, setup, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    report = perform(BY_TITLE["A refused recipient"], setup)
    display = Display(sys.stdout, plain=True)
    display.ended(1, report)
    display.closing([report], 1.0)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= min(max(columns - 1, 30), 100)
    flat = " ".join(" ".join(lines).split())
    if columns <= 77:
        assert "commit() raises: promised DeliveryRefused, happened DeliveryRefused" in flat
    else:
        assert "commit() raises DeliveryRefused DeliveryRefused ok" in flat


# The scenarios


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.title)
def test_every_scenario_keeps_its_promises(scenario, setup):
    report = perform(scenario, setup)
    assert broken(report) == {}
    assert [row.what for row in report.rows] == list(scenario.promises)


@pytest.mark.representative(every=5)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.title)
def test_what_happened_does_not_come_from_the_promise(scenario, setup):
    promises = dict.fromkeys(scenario.promises, "something else")
    report = perform(dataclasses.replace(scenario, promises=promises), setup)
    happened = {row.what: row.happened for row in report.rows}
    assert happened == {what: str(promised) for what, promised in scenario.promises.items()}
    assert not report.kept


def test_a_scenario_leaves_no_thread_behind(tmp_path):
    before = set(threading.enumerate())
    for number, scenario in enumerate(SCENARIOS):
        with Setup(tmp_path / str(number)) as setup:
            perform(scenario, setup)
    # A thread of an earlier test may still be ending: only new ones count.
    assert not [t.name for t in threading.enumerate() if t not in before]


# Broken promises: each by breaking what would have kept it


def test_a_server_that_refuses_what_nobody_expected_breaks_promises(setup):
    setup.catcher.refuse("buyer3@example.com")
    report = perform(BY_TITLE["Ten mails in one transaction"], setup)
    found = broken(report)
    assert found[MAILS] == ("10", "0")
    assert found[ROWS] == ("10", "0")
    assert found["mails before the commit"] == ("0", "not measured")
    promised, happened = found["errors nobody expected"]
    assert promised == "none"
    assert happened.startswith("DeliveryRefused: buyer3@example.com failed (550 5.1.1")


def test_a_mailer_that_does_not_ask_first_breaks_promises(setup):
    setup.mailer = Mailer(
        transport_from_url(setup.catcher.url),
        transaction_manager=setup.manager,
        default_sender=SENDER,
        preflight="never",
    )
    found = broken(perform(BY_TITLE["A refused recipient"], setup))
    assert found["commit() raises"] == ("DeliveryRefused", "PartialDelivery")
    assert found[MAILS] == ("0", "1")
    assert found[ROWS] == ("0", "3")


@pytest.mark.parametrize(
    "title",
    [
        "A transaction that is aborted",
        "A savepoint that is rolled back",
        "A database that votes no",
        "A write conflict, tried again",
    ],
)
def test_a_mailer_that_does_not_wait_for_the_commit_breaks_promises(setup, monkeypatch, title):
    monkeypatch.setattr(setup.mailer, "send", setup.mailer.send_immediately, raising=False)
    assert MAILS in broken(perform(BY_TITLE[title], setup))


@pytest.mark.parametrize(
    "scenario",
    # That with a queue sets up a mailer of its own.
    [s for s in SCENARIOS if s.promises[MAILS] and "queue" not in s.title],
    ids=lambda scenario: scenario.title,
)
def test_a_mailer_that_sends_nothing_breaks_promises(setup, scenario):
    setup.mailer = DummyMailer(default_sender=SENDER).bind(transaction_manager=setup.manager)
    setup.mailer.close = lambda: None
    found = broken(perform(scenario, setup))
    assert found[MAILS] == (str(scenario.promises[MAILS]), "0")


def test_a_database_that_does_not_vote_no_breaks_promises(setup):
    def trust(connection, _):
        connection.execute("PRAGMA foreign_keys = OFF")

    engine = setup._sessions.kw["bind"]
    engine.dispose()
    event.listen(engine, "connect", trust)
    found = broken(perform(BY_TITLE["A database that votes no"], setup))
    assert found["commit() raises"] == ("IntegrityError", "nothing")
    assert found[ROWS] == ("0", "2")
    assert found[OBJECTS] == ("0", "2")


def test_what_cannot_be_measured_is_a_broken_promise(setup):
    scenario = Scenario("Nothing", "", {MAILS: 0, "what nobody measures": 1}, lambda setup: {})
    report = perform(scenario, setup)
    assert broken(report) == {"what nobody measures": ("1", "not measured")}


def test_an_error_that_nobody_expected_is_shown_without_control_characters(setup):
    def play(setup):
        raise RuntimeError("one\x1b[2Jtwo")

    report = perform(Scenario("Failing", "", {MAILS: 0}, play), setup)
    assert report.rows[-1] == Row("errors nobody expected", "none", r"RuntimeError: one\x1b[2Jtwo")


def test_a_broken_promise_is_shown_and_ends_with_exit_code_1(monkeypatch, capsys):
    first = SCENARIOS[0]
    lie = dataclasses.replace(first, title="A lie", promises={**first.promises, MAILS: 11})
    monkeypatch.setattr(scenarios, "SCENARIOS", (first, lie))
    assert main(["demo", "--plain"]) == 1
    written, errors = capsys.readouterr()
    rows = [re.split(r" {2,}", line.strip()) for line in written.splitlines()]
    assert [MAILS, "11", "10", "BROKEN"] in rows
    assert "1 of 16 promises were BROKEN" in written
    assert f"  2. A lie: {MAILS}: promised 11, happened 10" in written
    assert errors == ""


LIE_ON_A_TERMINAL = """\
import dataclasses, sys
from txmail.cli import main
from txmail.cli.demo import scenarios
lie = dataclasses.replace(scenarios.SCENARIOS[0], title="A [bold]lie[/bold]", promises={"x": 1})
scenarios.SCENARIOS = (lie,)
sys.stdout.isatty = lambda: True
sys.exit(main(["demo"]))
"""


@pytest.mark.sweep
def test_a_broken_promise_is_shown_on_a_terminal_too(tmp_path):
    done = run_code(LIE_ON_A_TERMINAL, tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert "A [bold]lie[/bold]" in done.stdout
    assert "BROKEN" in done.stdout
    assert "were kept" not in done.stdout


def test_the_remarks_of_the_dialogue_need_a_kept_promise(setup):
    report = perform(SCENARIOS[0], setup)
    remarks = [turn.lines[0] for turn in wording.annotated(report) if not turn.who]
    assert wording.SENDING in remarks
    unkept = dataclasses.replace(report, rows=(Row("a", "b", "c"),))
    assert wording.annotated(unkept) == list(report.dialogue)


# What it leaves behind, whatever happens

INTERRUPTED = """\
import signal, sys
from txmail.cli import main
from txmail.cli.demo import scenarios
from txmail.cli.demo.scenario import Scenario

def play(setup):
    with setup.transaction() as shop:
        shop.bill(1)
        signal.raise_signal(signal.SIGINT)

scenarios.SCENARIOS = (Scenario("Ctrl-C", "", {}, play),)
sys.exit(main(["demo", "--plain"]))
"""


def test_an_interrupted_run_cleans_up_and_has_no_traceback(tmp_path):
    done = run_code(INTERRUPTED, tmp_path)
    assert (done.returncode, done.stderr) == (130, "")
    assert list(tmp_path.iterdir()) == []


LITTLE_SPACE = """\
import resource, sys
from txmail.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.exit(main(["demo", "--plain"]))
"""


@pytest.mark.representative(every=2)
@pytest.mark.parametrize(
    ("limit", "problem"),
    [
        (0, "there is no folder for the databases"),
        (4096, "a server or a database cannot be opened"),
    ],
)
def test_without_space_it_says_so_and_breaks_no_promise(tmp_path, limit, problem):
    done = run_code(LITTLE_SPACE.format(limit=limit), tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"txmail demo: {problem}: ")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_logging_is_as_it_was(monkeypatch, capsys):
    before = list(logging.getLogger().handlers)
    monkeypatch.setattr(scenarios, "SCENARIOS", (BY_TITLE["A refused recipient"],))
    assert main(["demo", "--plain"]) == 0
    assert logging.getLogger().handlers == before


# The dialogue


def test_a_dialogue_has_content_as_one_line_and_counts_its_octets(server, mailer, tm):
    mailer.send_immediately(_letter())
    mailer.close()
    server.wait_closed()
    turns = dialogue_of(server.connections[0])
    size = len(server.messages[0].content)
    assert Turn("C", (f"(content, {size} octets)", "."), 1) in turns
    assert turns[0] == Turn("S", ("220 mx.example.com ESMTP",))
    assert turns[-1] == Turn("S", ("221 2.0.0 Bye",))


def test_what_follows_a_refused_data_is_no_content(server, mailer):
    server.on("DATA", "451 4.3.0 not now")
    mailer.send_immediately(_letter(), fail_silently=True)
    mailer.close()
    server.wait_closed()
    lines = [line for turn in dialogue_of(server.connections[0]) for line in turn.lines]
    assert "451 4.3.0 not now" in lines
    assert "QUIT" in lines
    assert not any(line.startswith("(content") for line in lines)


def test_a_few_messages_are_all_shown(server, mailer, tm):
    for _ in range(3):
        mailer.send(_letter())
    tm.commit()
    mailer.close()
    server.wait_closed()
    turns = dialogue_of(server.connections[0])
    assert sum(turn.messages for turn in turns) == 3
    assert all(turn.who for turn in turns)


def test_the_moment_of_a_command_that_was_not_given_is_an_error(server, mailer):
    mailer.send_immediately(_letter())
    (connection,) = server.connections
    assert moment_of(connection, "MAIL") < moment_of(connection, "DATA")
    with pytest.raises(ValueError, match="no VRFY"):
        moment_of(connection, "VRFY")


def _letter():
    return Message("Hello", ["ann@example.com"], "Hello.", sender=SENDER)
