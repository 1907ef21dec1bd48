"""The octets that all messages of a template share, and the places of the bodies in them.

`compiled` uses this. The layout is a message in which marks stand for the variable octets. It is
cut at the marks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from ..mime.gate import MAX_CONTENT
from ..mime.parts import Part, boundary_stem, write_content
from .compiled_body import EncodedBody
from .placeholders import NotCompilable

_SEED = "<x@example.com>"
#: The beginning of a delimiter line with a boundary of txmail.
_DELIMITER = b"\r\n--=_"


class CompiledLayout:
    """The parts of a message. The bodies of `variable_parts` are filled in for each message."""

    def __init__(self, part: Part, variable_parts: Sequence[Part]) -> None:
        marks = [os.urandom(16).hex() for _ in variable_parts]
        marked = {
            id(original): Part((original.headers[0], f"{mark}\r\n"), mark.encode())
            for original, mark in zip(variable_parts, marks, strict=True)
        }
        content, boundaries = write_content([], _replaced(part, marked), _SEED)
        if not part.parts and variable_parts:
            # A body that is filled in may have a line end at its end already.
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
        #: false if a constant line may look like a delimiter
        self._is_clear = content.count(_DELIMITER) == self._delimiters

    def write(self, head: bytes, message_id: str, bodies: Sequence[EncodedBody]) -> bytes:
        """The octets of a message with the headers `head`.

        Raises `NotCompilable` if they are too many, or if a body has the boundary.
        """
        stem = boundary_stem(message_id.encode()).encode()
        chunks = self._chunks.copy()
        for place in self._stems:
            chunks[place] = stem
        clear = self._is_clear
        for (of_encoding, of_body), encoded in zip(self._places, bodies, strict=True):
            chunks[of_encoding] = b"Content-Transfer-Encoding: " + encoded.encoding
            chunks[of_body] = encoded.body
            clear = clear and b"--=_" not in encoded.variable
        if not chunks[-1].endswith(b"\r\n"):
            chunks.append(b"\r\n")
        content = b"".join((head, *chunks))
        if not clear and content.count(b"\r\n--" + stem) != self._delimiters:
            raise NotCompilable
        if len(content) > MAX_CONTENT:
            raise NotCompilable
        return content


def _replaced(part: Part, new: dict[int, Part]) -> Part:
    if not part.parts:
        return new.get(id(part), part)
    return part._replace(parts=tuple([_replaced(child, new) for child in part.parts]))
