"""Where the bodies of a message stand among all that is the same in every message.

`compiled` uses this. A layout is read off what the writer writes, with marks in place of what
changes, and cut at them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from ..mime.gate import MAX_CONTENT
from ..mime.parts import Part, boundary_stem, write
from .compiled_body import Filled, NotPlain

_SEED = "<x@example.com>"
#: How a delimiter line begins that has a boundary of ours.
_DELIMITER = b"\r\n--=_"


class Layout:
    """The parts of a message, of which `leaves` have bodies that are to be filled in."""

    def __init__(self, part: Part, leaves: Sequence[Part]) -> None:
        marks = [os.urandom(16).hex() for _ in leaves]
        marked = {
            id(leaf): Part((leaf.headers[0], f"{mark}\r\n"), mark.encode())
            for leaf, mark in zip(leaves, marks, strict=True)
        }
        content, boundaries = write([], _replaced(part, marked), _SEED)
        if not part.parts and leaves:
            # Of a body that is filled in it is not known yet whether its last line has an end.
            content = content.removesuffix(b"\r\n")
        stem = boundary_stem(_SEED.encode())
        self._chunks = re.compile(f"({'|'.join([stem, *marks])})".encode()).split(content)
        if not self._chunks[-1]:
            self._chunks.pop()
        self._stems, *self._places = [
            [place for place, chunk in enumerate(self._chunks) if chunk == cut.encode()]
            for cut in (stem, *marks)
        ]
        self._delimiters = sum(boundaries.values())
        #: false if there is a line in what never changes that may look like a delimiter
        self._is_clear = content.count(_DELIMITER) == self._delimiters

    def write(self, head: bytes, message_id: str, bodies: Sequence[Filled]) -> bytes:
        """The octets of a message that has the headers `head`.

        Raises `NotPlain` if that is too much, or a boundary is in it that was not meant to be.
        """
        stem = boundary_stem(message_id.encode()).encode()
        chunks = self._chunks.copy()
        for place in self._stems:
            chunks[place] = stem
        clear = self._is_clear
        for (of_encoding, of_body), filled in zip(self._places, bodies, strict=True):
            chunks[of_encoding] = b"Content-Transfer-Encoding: " + filled.encoding
            chunks[of_body] = filled.body
            clear = clear and b"--=_" not in filled.made
        if not chunks[-1].endswith(b"\r\n"):
            chunks.append(b"\r\n")
        content = b"".join((head, *chunks))
        if not clear and content.count(b"\r\n--" + stem) != self._delimiters:
            raise NotPlain
        if len(content) > MAX_CONTENT:
            raise NotPlain
        return content


def _replaced(part: Part, new: dict[int, Part]) -> Part:
    if not part.parts:
        return new.get(id(part), part)
    return part._replace(parts=tuple([_replaced(child, new) for child in part.parts]))
