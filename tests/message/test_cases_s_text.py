"""Text of protocols and settings: its case, digits, blanks and line ends are those of ASCII.

`test_cases_s_patterns` has the same for regular expressions.
"""

from __future__ import annotations

import ast
import contextlib
from pathlib import Path

import pytest

import txmail
from txmail import Attachment, DummyMailer, Message
from txmail.cli import catch, doctor, metrics, worker
from txmail.common import ascii_text
from txmail.exceptions import ConfigurationError, FieldError
from txmail.message.templates.compiled_body import _lines
from txmail.queue.database.postgresql_connect import _typed
from txmail.testing import ScriptedServer
from txmail.testing._settings import Settings, parse_path, refusal_of_mail

ROOT = Path(txmail.__file__).parent

#: Methods of `str` that know letters, digits and line ends of all scripts. `isprintable` is none
#: of them: what asks by it wants to know about all of Unicode.
OF_UNICODE = {
    *("lower", "upper", "casefold", "title", "capitalize", "swapcase"),
    *("isdigit", "isdecimal", "isnumeric", "isalnum", "isalpha", "isspace", "isidentifier"),
    *("islower", "isupper", "istitle", "splitlines", "zfill"),
}
#: They do so if they are not told which characters they are about.
OF_BLANKS = {"strip", "lstrip", "rstrip", "split", "rsplit"}
#: They read the digits of all scripts.
NUMBERS = {"int", "float", "complex", "Decimal", "Fraction", "UUID"}

HERE = "this is the module that they are for"
OCTETS = "octets, whose methods know ASCII only"
FOREIGN = "counts the work of a function of others, which does the same"
LENIENT = "looks for what the most lenient reader of a header would find in it"
SHOWN = "makes one line of what others say, for people, whatever parts it"
PROSE = "a text for people, of no protocol"
KNOWN = "a number already"
DIGITS = "what a pattern or a check in front of it has found to be ASCII digits"

#: What may stand in which file, and why.
ALLOWED = {
    HERE: {
        ("ascii_text.py", "text.lower"),
        ("ascii_text.py", "text.upper"),
        ("ascii_text.py", "text.isdigit"),
        ("ascii_text.py", "int(text)"),
    },
    OCTETS: {
        ("auth.py", "count.isdigit"),
        ("dialogue.py", "octets.splitlines"),
        ("gate.py", "fields[place][1].strip"),
        ("gate.py", "name.lower"),
        ("process_identity.py", "file.read().rpartition(b')')[2].split"),
        ("compiled_body.py", "variable.splitlines"),
        ("protocol.py", "line.split"),
        ("source.py", "f[1].lower"),
    },
    FOREIGN: {
        ("sandbox_costs.py", "text.split"),
        ("sandbox_costs.py", "text.splitlines"),
    },
    LENIENT: {
        ("header_check.py", "before.rstrip"),
        ("header_check.py", "behind.lstrip"),
        ("header_check.py", "charset.strip"),
        ("header_check.py", "head[1].partition('*')[0].strip"),
        ("header_check.py", "head[1].partition('*')[0].strip().lower"),
        ("header_check.py", "name.lower"),
        ("header_check.py", "rest.split"),
        ("header_check.py", "text[run_end:head.start()].strip"),
        ("header_check.py", "value.strip"),
        # It refuses a host in which urlsplit has made such a letter another.
        ("url.py", "c.lower"),
    },
    PROSE: {
        ("_script.py", "argument.casefold"),
        ("_script.py", "self.matching.casefold"),
        ("html_text.py", "line.rstrip"),
        ("render.py", "text.strip"),
    },
    SHOWN: {
        ("console.py", "str(value).split"),
        ("shown.py", "text[:2 * limit].split"),
    },
    KNOWN: {
        ("bounded_server.py", "int(self._server.server_address[1])"),
        ("settlements.py", "int(made.doubt)"),
        ("schedule.py", "int(p)"),
        ("claim.py", "int(priority)"),
        ("schedule.py", "int(priority)"),
        ("lane.py", "int(window)"),
        ("command.py", "int(code)"),
        ("database.py", "int(connection.execute(_BOOT, {'id': start}).scalar_one())"),
        ("inspect.py", "int(number)"),
        ("streamed_message.py", "int(self.reset)"),
        ("impossible.py", "int(Priority.NORMAL)"),
        ("impossible.py", "int(priority)"),
        ("template_values.py", "int(exponent)"),
        ("postgresql.py", "int(driver.pgconn.socket)"),
        ("postgresql.py", "int(found.scalar_one())"),
        ("postgresql_settings.py", "int(version[0])"),
        ("values.py", "int(count)"),
        ("values.py", "int(port)"),
        ("date.py", "int(time.time())"),
        ("retry.py", "int(tried)"),
        ("route_state.py", "int(allowance)"),
        ("router.py", "int(PRIORITIES[word])"),
        ("router.py", "int(getattr(self.transport, 'connections', 1))"),
        ("router.py", "int(self.clock())"),
        ("sandbox_costs.py", "int(a)"),
        ("publish.py", "int(begun)"),
        ("publish.py", "int(made.doubt)"),
        ("rows.py", "int(options.priority)"),
        ("rows.py", "int(row.begun)"),
        ("times.py", "int(priority)"),
        ("round_robin.py", "int(Priority.BULK)"),
    },
    DIGITS: {
        ("_protocol.py", "int(found[1])"),
        ("_settings.py", "int(size)"),
        ("_settings.py", "int(value)"),
        ("auth.py", "int(count)"),
        ("dummy.py", "int(code)"),
        ("extensions.py", "int(size[0])"),
        ("header_check.py", "int(found[1], 16)"),
        ("header_check.py", "int(number[:6] or 0)"),
        ("process_identity.py", "int(fields[19])"),
        ("replies.py", "int(code)"),
        ("reply.py", "int(found[1])"),
        ("reply.py", "int(found[2])"),
        ("reply.py", "int(found[3])"),
        ("sandbox_costs.py", "int(digits[:4])"),
        ("setup.py", "int(found[1])"),
        ("headers.py", "map(int, zone.group(2, 3, 4))"),
        ("version.py", "int(one)"),
        ("version.py", "int(other)"),
    },
}
#: Functions that take `int` or `float` for the name of a kind, and check the text themselves.
CHECKED = {"isinstance", "number_of", "_number", "TypeVar"}


def is_arithmetic(node):
    return isinstance(node, (ast.BinOp, ast.Constant, ast.UnaryOp)) or (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("len", "max", "min", "round", "sum")
    )


def is_without_characters(call):
    """True for a call such as ``.strip()``, and for the method as such."""
    if call is None:
        return True
    named = [k.value for k in call.keywords if k.arg in ("sep", "chars")]
    given = [*call.args[:1], *named]
    return not given or (isinstance(given[0], ast.Constant) and given[0].value is None)


def uses(tree):
    """All in `tree` that goes by Unicode where ASCII may be meant."""
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not isinstance(node.value, ast.Constant):
            call = calls.get(id(node))
            is_method = call is not None or node.attr != "title"
            of_str = isinstance(node.value, ast.Name) and node.value.id == "str"
            if (
                (node.attr in OF_UNICODE and is_method)
                or (node.attr in OF_BLANKS and is_without_characters(call))
                or (of_str and node.attr in OF_UNICODE | OF_BLANKS)
            ):
                yield node
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            of_numbers = [a for a in node.args if isinstance(a, ast.Name) and a.id in NUMBERS]
            if (name in NUMBERS and node.args and not is_arithmetic(node.args[0])) or (
                of_numbers and name not in CHECKED
            ):
                yield node


def test_s8_no_method_goes_by_unicode_where_ascii_is_meant():
    """Stands for each comparison and number that takes letters and digits of other scripts.

    `txmail.common.ascii_text` has what to use instead.
    """
    allowed = set().union(*ALLOWED.values())
    found, wrong = set(), []
    for path in sorted(ROOT.rglob("*.py")):
        for node in uses(ast.parse(path.read_text(encoding="utf-8"))):
            use = (path.name, ast.unparse(node))
            found.add(use)
            if use not in allowed:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {use[1]}")
    assert wrong == []
    assert allowed - found == set(), "no longer there"


@pytest.mark.parametrize(
    "source",
    [
        "a.lower()",
        "sorted(x, key=str.casefold)",
        "map(str.strip, x)",
        "f(x.isdigit)",
        "x.strip()",
        "x.split(None, 1)",
        "x.rsplit(maxsplit=1)",
        "x.split(sep=None)",
        "x.splitlines(keepends=True)",
        "int(x)",
        "int(x[1:], 16)",
        "map(float, x)",
        "parser.add_argument('-n', type=int) or f(int)",
        "uuid.UUID(x)",
        "x.title()",
    ],
)
def test_s8_the_rule_sees_what_goes_by_unicode(source):
    """The instrument itself."""
    assert list(uses(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        'x.strip(" ")',
        'x.split(",")',
        "x.title",
        "int(a * 1000)",
        "int(len(x))",
        "isinstance(x, int)",
        "number_of(int, x)",
        "x.isprintable()",
        '"a b".split()',
    ],
)
def test_s8_the_rule_leaves_the_rest_alone(source):
    """The same, from the other side."""
    assert not list(uses(ast.parse(source)))


#: Blanks of Unicode that `str.strip` and `str.split` know, and those of ASCII that no protocol has.
BLANKS = ["\u00a0", "\u1680", "\u2003", "\u2028", "\u2029", "\u202f", "\u3000", "\x85", "\x1c"]
#: Digits, and what is one for `str.isdigit` only.
DIGITS_OF_OTHERS = ["\u0663", "\uff12", "\u0968", "\u00b2", "\u2460", "\U0001d7d8", "1\u0663"]


@pytest.mark.parametrize("blank", BLANKS)
def test_s8_blanks_are_those_of_ascii(blank):
    """The helpers, for each blank that is none."""
    text = f"{blank}a{blank}b{blank}"
    assert ascii_text.ascii_strip(text) == text
    assert ascii_text.ascii_split(text) == [text]
    assert ascii_text.ascii_words(text) == [text]
    assert ascii_text.ascii_lines(text) == [text]
    for line_end in "\x0b", "\x0c":
        assert ascii_text.ascii_lines(f"a{line_end}b") == [f"a{line_end}b"]


@pytest.mark.parametrize("text", ["", "a", "a\n", "\n", "a\r\nb", "a\rb\n\n", "\r\r\n", " \tb "])
def test_s8_the_helpers_do_what_octets_do(text):
    """The same for ASCII, where the methods of `bytes` say what is right."""
    raw = text.encode()
    assert [line.encode() for line in ascii_text.ascii_lines(text)] == raw.splitlines(keepends=True)
    assert [word.encode() for word in ascii_text.ascii_split(text)] == raw.split()
    assert ascii_text.ascii_strip(text).encode() == raw.strip()
    assert ascii_text.ascii_upper(text).encode() == raw.upper()
    assert ascii_text.ascii_lower(text).encode() == raw.lower()


@pytest.mark.parametrize("digits", DIGITS_OF_OTHERS)
def test_s8_digits_are_those_of_ascii(digits):
    """Each place that reads a number: of the command line, of URLs, of the scripted server."""
    assert ascii_text.whole_number(digits) is None
    assert ascii_text.number_of(int, digits) is None
    assert ascii_text.number_of(float, f"1.{digits}") is None
    for read in (catch._port, catch._count, doctor._number, metrics._port, worker._count):
        with pytest.raises(Exception, match="number"):
            read(digits)
        with pytest.raises(Exception, match="number"):
            read("9" * 5000)
    for url in (f"sendmail:?timeout={digits}", f"smtp://localhost?timeout={digits}"):
        with pytest.raises(ConfigurationError, match="timeout"):
            txmail.transport_from_url(url)
    with pytest.raises(ConfigurationError, match="connect_timeout"):
        _typed("connect_timeout", digits, "queue_url")
    assert Settings("h", extensions=(f"SIZE {digits}",)).size_limit == 0
    assert refusal_of_mail("a@b.c", {"SIZE": digits}, ["SIZE"], 5).startswith("501")
    with pytest.raises(ConfigurationError):
        DummyMailer().refuse("a@b.c", f"5{digits}0 no")


@pytest.mark.parametrize("blank", BLANKS)
def test_s8_settings_have_the_blanks_of_ascii(blank):
    """A blank that is none is a part of a word, which is then another word."""
    base = {"mail.url": "smtp://localhost"}
    for name, value in (
        ("mail.transient", f"true{blank}"),
        ("mail.commit_timeout", f"1{blank}"),
        ("mail.delivery", f"direct{blank}"),
        ("mail.queue_limit", f"{blank}7"),
    ):
        with pytest.raises(ConfigurationError, match=name):
            txmail.mailer_from_settings({**base, name: value})
    with pytest.raises(ConfigurationError, match=r"mail\.url"):
        txmail.mailer_from_settings({"mail.url": f"smtp://a.example{blank}smtp://b.example"})


@pytest.mark.parametrize("letter", ["\u017f", "\u0131", "\u212a", "\u0130"])
def test_s8_words_of_a_message_are_of_ascii(letter):
    """Names of headers, media types, dispositions and encodings, each with a letter changed."""
    plain = {"\u017f": "s", "\u0131": "i", "\u212a": "k", "\u0130": "i"}[letter]
    given = {"subject": "x", "recipients": ["a@b.c"], "body": "x", "sender": "a@b.c"}
    for name in ("subject", "sender", "list-id", "keywords", "resent-sender", "dkim-signature"):
        if plain in name:
            with pytest.raises(FieldError, match="not the name of a header"):
                Message(**given, extra_headers={name.replace(plain, letter): "x"}).to_envelope()
    for field, value in (
        ("transfer_encoding", "8bit"),
        ("transfer_encoding", "base64"),
        ("disposition", "inline"),
        ("content_type", "multipart/mixed"),
        ("content_type", "text/plain; charset=iso-8859-1"),
    ):
        if plain in value:
            options = {"filename": "a.txt", "data": b"x", field: value.replace(plain, letter)}
            part = Attachment(**options)
            assert not part.inline
            with contextlib.suppress(FieldError):
                content = Message(**given, attachments=[part]).to_envelope().content
                # A charset of another name is written as it is, and none in its place.
                assert value.encode() not in content.replace(b"\r\n ", b" ")


@pytest.mark.parametrize("end", ["\u2028", "\x85", "\x0b", "\x1e", "\u2029"])
def test_s8_lines_end_with_line_ends(end):
    """A text that is compiled has the lines that it has when it is written."""
    assert list(_lines([f"a{end}b\n", "c"])) == [[f"a{end}b\n"], ["c"]]


def test_s8_the_scripted_server_knows_ascii_only():
    """Stands for all words of commands that a test may send to it."""
    assert parse_path("FROM", "from:<a@b.c> size=1") == ("a@b.c", {"SIZE": "1"})
    assert parse_path("FROM", "from:<a@b.c> \u017fize=1") != ("a@b.c", {"SIZE": "1"})
    for blank in BLANKS:
        found = parse_path("FROM", f"FROM:<a@b.c> BODY=8BITMIME{blank}SIZE=1")
        assert found is None or set(found[1]) == {"BODY"}
    with pytest.raises(ValueError, match="not one of"), ScriptedServer() as server:
        server.on("\u017ftarttls", "421 no")
