"""The octets of sample messages are those that are written down in ``message_octets.txt``.

``python tests/test_message_octets.py`` writes the file anew: only where octets have to change. Give
it a folder to write the octets themselves into it, to be compared.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
import time
from pathlib import Path

import pytest
from sample_messages import NOW, samples

from txmail.exceptions import TxmailError

FILE = Path(__file__).parent / "message_octets.txt"
SAMPLES = samples()


def frozen():
    """The digests that are written down, by the names of the samples."""
    pairs = (line.split(maxsplit=1) for line in FILE.read_text("utf-8").splitlines())
    return {name: digest for digest, name in pairs}


def octets_of(make, monkeypatch):
    """What is sent: the envelope's addresses and the content; or how the message is refused."""
    numbers = itertools.count(1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "urandom", lambda size: next(numbers).to_bytes(size, "big"))
        patch.setattr(time, "time", lambda: NOW)
        try:
            envelope = make()
        except TxmailError as error:
            return f"refused: {type(error).__name__} {getattr(error, 'field', '')}".encode()
    paths = b" ".join([envelope.reverse_path, *envelope.forward_paths])
    return b"\r\n".join([paths, envelope.message_id.encode(), envelope.content])


def digest_of(octets):
    """Enough of a digest to tell octets apart."""
    return hashlib.sha256(octets).hexdigest()[:20]


def test_every_sample_is_written_down():
    assert list(frozen()) == list(SAMPLES)
    assert len(SAMPLES) >= 200


@pytest.mark.parametrize("name", SAMPLES)
def test_the_octets_of_a_sample_are_those_that_are_written_down(name, monkeypatch):
    if name.startswith(("template:", "compiled:")):
        pytest.importorskip("jinja2")
    assert digest_of(octets_of(SAMPLES[name], monkeypatch)) == frozen()[name]


def write(folder=None):
    """Write the digests of all samples, and their octets into `folder` if there is one."""
    lines = []
    for number, (name, make) in enumerate(SAMPLES.items()):
        octets = octets_of(make, pytest.MonkeyPatch())
        lines.append(f"{digest_of(octets)} {name}\n")
        if folder:
            (Path(folder) / f"{number:03}").write_bytes(f"{name}\n".encode() + octets)
    if not folder:
        FILE.write_text("".join(lines), "utf-8")


if __name__ == "__main__":
    write(*sys.argv[1:])
