"""First steps: what an error says."""

from __future__ import annotations

import pytest

from txmail import mailer_from_settings
from txmail.cli.inifile import read_ini
from txmail.exceptions import ConfigurationError


@pytest.mark.parametrize(
    ("octets", "problem"),
    [
        (b"[app:main]\na = hush\na = other\n", "line 3: .* its section has this name twice"),
        (b"[app:main]\na = hush\n[app:main]\n", "line 3: .* has this section twice"),
        (b"a = hush\n[app:main]\n", "line 1: .*no \\[section\\] has begun"),
        (b"\xef\xbb\xbf[app:main]\na = hush\n", "line 1: .*byte order mark"),
        (b"[app:main]\na = hush\xe4\n", "file in UTF-8"),
        (b"[app:main]\na = b\nhush\n", "line 3: .* neither"),
    ],
)
def test_d1_a_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path, octets, problem):
    """Stands for one text for all that may be wrong, which is not so for most of it."""
    path = tmp_path / "app.ini"
    path.write_bytes(octets)
    with pytest.raises(ConfigurationError, match=problem) as caught:
        read_ini(str(path))
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("name", ["url", "queue_url", "default_sender", "commit_timeout", "ulr"])
def test_d3_a_prefix_that_stands_twice_is_seen(name):
    """Stands for the nearest name where it is the whole of a name that is too long."""
    meant = "url" if name == "ulr" else name
    with pytest.raises(ConfigurationError, match=f"did you mean mail.{meant}\\?"):
        mailer_from_settings({f"mail.mail.{name}": "x"})
