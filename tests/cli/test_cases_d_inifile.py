"""What Paste Deploy reads from an ini file is what the commands read from it."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plaster import parse_uri
from plaster_pastedeploy import Loader

from txmail.cli import main
from txmail.config.inifile import read_ini
from txmail.exceptions import ConfigurationError
from txmail.testing import ScriptedServer

HERE = "call:test_cases_d_inifile"


def application(global_config, **found):
    """What `pserve` would start: it hands back its settings."""
    return found


def passing(global_config, **found):
    return lambda app: app


def several(loader, global_config, **found):
    return {}


FACTORY = "paste.filter_factory = test_cases_d_inifile:passing"
APP, FILTER = f"use = {HERE}:application", f"use = {HERE}:passing"

BASE = f"[app:main]\n{APP}\nmail.url = base\nmail.default_sender = base\n"
#: a name, the file, others beside it, which application, names from outside
FILES = {
    "plain": (f"[app:main]\n{APP}\nmail.url = one\n", {}, "", {}),
    "base": (
        "[app:main]\nuse = config:base.ini\nmail.default_sender = own\n",
        {"base.ini": BASE},
        "",
        {},
    ),
    "base of a base, in a folder": (
        "[app:main]\nuse = config:etc/middle.ini\n",
        {
            "etc/middle.ini": "[app:main]\nuse = config:base.ini#other\nmail.port = 26\n",
            "etc/base.ini": f"[app:other]\n{APP}\nmail.url = %(here)s\nmail.port = 25\n",
        },
        "",
        {},
    ),
    "here is that of each file": (
        "[app:main]\nuse = config:etc/base.ini\nmail.cafile = %(here)s/ca\n",
        {"etc/base.ini": f"[app:main]\n{APP}\nmail.queue_path = %(here)s/q\n"},
        "",
        {},
    ),
    "DEFAULT of the outer file for the inner one": (
        "[DEFAULT]\nhost = mx\n[app:main]\nuse = config:base.ini\n",
        {
            "base.ini": f"[DEFAULT]\nhost = no\nport = 26\n[app:main]\n{APP}\n"
            "mail.url = smtp://%(host)s:%(port)s\n"
        },
        "",
        {},
    ),
    "another section": (
        f"[app:main]\nuse = shared\nmail.url = own\n[app:shared]\n{APP}\nmail.url = a\n"
        "mail.port = 1\n",
        {},
        "",
        {},
    ),
    "a fragment": (
        f"[app:main]\n{APP}\nmail.url = main\n[app:other]\n{APP}\nmail.url = other\n",
        {},
        "#other",
        {},
    ),
    "a name of DEFAULT is no setting": (
        f"[DEFAULT]\nmail.port = 1\n[app:main]\n{APP}\nmail.port = 2\nmail.url = x\n",
        {},
        "",
        {},
    ),
    "set and get": (
        f"[DEFAULT]\nhost = mx\nother = a\n[app:main]\nset other = b\nget mail.host = host\n"
        f"get mail.url = other\n{APP}\n",
        {},
        "",
        {},
    ),
    "set for a base": (
        "[app:main]\nset host = outer\nuse = config:base.ini\n",
        {
            "base.ini": f"[DEFAULT]\nhost = inner\n[app:main]\n{APP}\nget mail.host = host\n"
            "mail.url = %(host)s\n"
        },
        "",
        {},
    ),
    "given names": (
        f"[app:main]\n{APP}\nmail.url = smtp://%(host)s:%(port)s\nmail.cafile = %(here)s/ca\n",
        {},
        "?port=26",
        {"host": "mx"},
    ),
    "a given name that DEFAULT has": (
        f"[DEFAULT]\nhost = file\n[app:main]\n{APP}\nmail.url = %(host)s\nget mail.host = host\n",
        {},
        "",
        {"host": "given"},
    ),
    "a pipeline": (
        f"[pipeline:main]\npipeline = tm shop\n[filter:tm]\n{FILTER}\nmail.url = no\n"
        f"[app:shop]\n{APP}\nmail.url = shop\n",
        {},
        "",
        {},
    ),
    "a filter in front": (
        f"[filter-app:main]\n{FACTORY}\nnext = shop\nmail.url = no\n"
        f"[app:shop]\n{APP}\nmail.url = shop\n",
        {},
        "",
        {},
    ),
    "filter-with": (
        f"[app:main]\nuse = config:base.ini\nfilter-with = tm\nmail.port = 3\n"
        f"[filter:tm]\n{FILTER}\nmail.url = no\n",
        {"base.ini": BASE},
        "",
        {},
    ),
    "application for app": (f"[application: main]\n{APP}\nmail.url = one\n", {}, "", {}),
    "case of names": (f"[app:main]\n{APP}\nmail.URL = one\nMail.url = two\n", {}, "", {}),
    "percent, colon, several lines": (
        f"[app:main]\n{APP}\nmail.password = a%%40b\nmail.host: mx\nmail.url = a\n  b\n# c\n  d\n",
        {},
        "",
        {},
    ),
    "a file name that is quoted": (
        "[app:main]\nuse = config:my%%20base.ini\n",
        {"my base.ini": BASE},
        "",
        {},
    ),
}


def write(folder, text, others):
    for name, content in {"app.ini": text, **others}.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    return str(folder / "app.ini")


def by_paste(where, names):
    """What the application gets of `pserve WHERE NAMES`."""
    loader = Loader(parse_uri(where))
    return {k: v for k, v in loader.get_wsgi_app(None, names).items() if k.startswith("mail.")}


def by_us(where, names):
    ini = read_ini(where, None, names)
    return {name: ini.get(name) for name in ini if name.startswith("mail.")}


@pytest.mark.parametrize("kind", FILES)
def test_d1_a_file_is_read_as_paste_deploy_reads_it(tmp_path, kind):
    """Kind: a second reader of a format, which reads less of it than the first."""
    text, others, more, names = FILES[kind]
    where = write(tmp_path, text, others) + more
    expected = by_paste(where, names)
    assert by_us(where, names) == expected
    assert expected or kind == "case of names"


_NAMES = st.sampled_from(["mail.url", "mail.host", "host", "port", "other"])
_TEXTS = st.sampled_from(["a", "b", "%(host)s", "x%(here)s", "%%", "%(port)s/%(other)s", ""])
_LINES = st.dictionaries(
    st.builds("{}{}".format, st.sampled_from(["", "", "", "set ", "get "]), _NAMES),
    _TEXTS | _NAMES,
    max_size=5,
)
_SECTIONS = st.fixed_dictionaries({"DEFAULT": _LINES, "app:main": _LINES, "app:other": _LINES})


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    outer=_SECTIONS,
    inner=_SECTIONS,
    use=st.sampled_from(
        [APP, "use = other", "use = config:base.ini", "use = config:base.ini#other"]
    ),
    given_names=st.dictionaries(_NAMES, st.sampled_from(["g", "h"]), max_size=2),
)
def test_d1_whatever_stands_in_two_files_is_read_as_paste_deploy_reads_it_or_refused(
    tmp_path, outer, inner, use, given_names
):
    """Kind: the same, for what nobody has thought of. What Paste Deploy refuses, we may read."""

    def text(sections, last):
        return "".join(
            f"[{name}]\n"
            + "".join(
                f"{k} = {v}\n" for k, v in lines.items() if not (name == "DEFAULT" and " " in k)
            )
            + ("" if name == "DEFAULT" else f"{last if name == 'app:main' else APP}\n")
            for name, lines in sections.items()
        )

    where = write(tmp_path, text(outer, use), {"base.ini": text(inner, APP)})
    try:
        expected = by_paste(where, given_names)
    except Exception:
        return
    assert by_us(where, given_names) == expected


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[DEFAULT]\nmail.url = {url}\n[app:main]\n", "mail.url"),
        ("[DEFAULT]\nmail.host = 127.0.0.1\n[app:main]\nmail.port = 25\n", "mail.host"),
        ("[DEFAULT]\nmail.url = x\n[app:main]\nmail.url = {url}\n", "mail.url"),
        ("[app:main]\nuse = config:nowhere.ini\nmail.url = {url}\n", "nowhere.ini"),
        ("[app:main]\nuse = main\nmail.url = {url}\n", "[app:main]"),
        ("[app:main]\nuse = python:x\nmail.url = {url}\n", "[app:main] use"),
        ("[app:main]\nuse = other\nmail.url = {url}\n", "[app:other]"),
        ("[app:main]\nmail.url = smtp://%(host)s\n", "-D"),
        ("[app:main]\nget mail.url = host\n", "get mail.url"),
        ("[app:main]\nmail.url = a\n[pipeline:main]\npipeline = main\n", "--section"),
        (
            "[composite:main]\nuse = egg:Paste#urlmap\n/ = one\n/two = two\n"
            "[app:one]\nmail.url = {url}\n[app:two]\n",
            "one, two",
        ),
        ("[pipeline:main]\nx = y\n", "[pipeline:main] pipeline"),
    ],
)
def test_d1_what_cannot_be_read_so_is_refused_by_name(tmp_path, capsys, text, named):
    """Kind: a guess at what a file means, where the application reads something else."""
    with ScriptedServer() as server:
        where = write(tmp_path, text.replace("{url}", server.url), {})
        arguments = ["--to", "ann@example.com", "--subject", "x", "--body", "x"]
        assert main(["send", "-c", where, *arguments, "--from", "a@example.com"]) == 78
        assert server.messages == []
    error = capsys.readouterr().err
    assert named in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("suffix", "arguments"),
    [
        ("#other", []),
        ("", ["--section", "app:other"]),
        ("", ["--section", "other"]),
        ("#app:other", []),
        ("?host=127.0.0.1#named", []),
        ("#named", ["-D", "host=127.0.0.1"]),
        ("", ["--section", "named", "--define", "host=127.0.0.1"]),
    ],
)
def test_d1_an_application_of_several_can_be_named_as_for_pserve(tmp_path, suffix, arguments):
    """Kind: what works with one command of a family and not with ours."""
    with ScriptedServer() as server:
        port = server.url.rpartition(":")[2]
        where = write(
            tmp_path,
            "[app:main]\nmail.url = smtp://127.0.0.1:1\n"
            f"[app:other]\nmail.url = {server.url}\n"
            f"[app:named]\nmail.url = smtp://%(host)s:{port}\n",
            {},
        )
        made = ["--to", "ann@example.com", "--from", "a@example.com", "--subject", "x"]
        assert main(["send", "-c", where + suffix, *arguments, *made, "--body", "x", "-q"]) == 0
        assert len(server.messages) == 1


def test_d1_a_section_that_is_named_twice_is_refused(tmp_path):
    """Kind: two answers to one question."""
    where = write(tmp_path, "[app:main]\n[app:other]\n", {})
    with pytest.raises(ConfigurationError, match="named twice"):
        read_ini(where + "#other", "app:main")
