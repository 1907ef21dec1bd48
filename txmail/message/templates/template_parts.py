"""The parts of a template: headers, mailboxes and URIs with fields in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from ...address import Mailbox
from ...common.shown import echo
from ...exceptions import BadHeaders, InvalidMessage, TemplateError
from ...interfaces import ITemplateEngine, ITemplateText
from ...types import Several
from ..addresses import AddressLike, mailbox_of
from ..message import Message
from ..mime.header_check import FORBIDDEN, check_value
from .template_values import Field, Pieces, in_text, in_uri


class Compilable(Protocol):
    """The parts of a `Template`, and its `render`, as the compiler uses them."""

    @property
    def subject(self) -> HeaderTemplate: ...
    @property
    def text(self) -> ITemplateText | None: ...
    @property
    def html(self) -> ITemplateText | None: ...
    @property
    def sender(self) -> MailboxTemplate | None: ...
    @property
    def reply_to(self) -> Sequence[MailboxTemplate]: ...
    @property
    def headers(self) -> Sequence[tuple[str, HeaderTemplate]]: ...
    @property
    def uris(self) -> Mapping[str, Sequence[UriTemplate]]: ...
    @property
    def constants(self) -> Mapping[str, Any]: ...

    def render(
        self,
        fields: Mapping[str, Any] | None = None,
        recipients: Several[AddressLike] | None = None,
        *,
        message_id: str | None = None,
        date: datetime | None = None,
    ) -> Message:
        """The `Message` to `recipients` with `fields` in it."""


class HeaderTemplate(NamedTuple):
    """A template for the value of a header. A template without fields needs no engine."""

    text: ITemplateText | None
    constant: str
    field: str

    @classmethod
    def of(cls, source: str, field: str, engine: ITemplateEngine) -> HeaderTemplate:
        check_value(source, field, tab=True)
        compiled = engine.compile(source, field) if "{" in source else None
        return cls(compiled, source, field)

    @property
    def pieces(self) -> Pieces | None:
        """See `ITemplateText`."""
        return self.text.pieces if self.text else (self.constant,)

    def render(self, fields: Mapping[str, Any]) -> str:
        """The value. Raises `BadHeaders` for a value that no header can have."""
        if self.text is None:
            return self.constant
        value = self.text.render(fields)
        check_value(value, self.field, tab=True)
        return value


class MailboxTemplate(NamedTuple):
    """A mailbox whose display name is a template."""

    name: HeaderTemplate
    mailbox: Mailbox

    @classmethod
    def of(cls, entry: AddressLike, field: str, engine: ITemplateEngine) -> MailboxTemplate:
        mailbox = mailbox_of(entry, field)
        return cls(HeaderTemplate.of(mailbox.display_name, field, engine), mailbox)

    def render(self, fields: Mapping[str, Any]) -> Mailbox:
        """The mailbox with its name. Raises `BadHeaders` for a name that no header can have."""
        name = self.name.render(fields)
        check_value(name, self.name.field)
        return Mailbox(name, self.mailbox.address)


class UriTemplate(NamedTuple):
    """A template for a URI."""

    pieces: Pieces
    field: str

    def render(self, fields: Mapping[str, Any]) -> str:
        """The URI. Raises `TemplateError` for a missing field, `BadHeaders` for a bad value."""
        alone = len(self.pieces) == 1
        found = []
        for piece in self.pieces:
            if isinstance(piece, Field):
                value = in_text(self._value(piece, fields))
                if FORBIDDEN.search(value):
                    problem = "a control character or line separator is not allowed"
                    raise BadHeaders(problem, field=self.field, value=value)
                found.append(value if alone else in_uri(value))
            else:
                found.append(piece)
        return "".join(found)

    def _value(self, piece: Field, fields: Mapping[str, Any]) -> Any:
        value = fields.get(piece.name, piece.default)
        if value is None and piece.name not in fields:
            raise TemplateError(f"{echo(piece.name)} is undefined", field=self.field)
        if isinstance(value, (list, dict)):
            problem = f"{echo(piece.name)} is a list or mapping, which cannot stand in text"
            raise TemplateError(problem, field=self.field)
        return value


def render_uris(uris: list[UriTemplate], fields: Mapping[str, Any]) -> str | list[str]:
    """The URIs as `Message` takes them. A single one is a string: it may be ``"NO"``."""
    found = [uri.render(fields) for uri in uris]
    return found[0] if len(found) == 1 else found


def uri_templates(value: Any, field: str, engine: ITemplateEngine) -> list[UriTemplate]:
    sources = [value] if isinstance(value, str) else value
    if not isinstance(sources, (list, tuple)):
        raise InvalidMessage("a URI or a list of URIs is needed", field=field, value=value)
    found = []
    for source in sources:
        check_value(source, field)
        pieces = engine.compile(source, field).pieces if "{" in source else (source,)
        if pieces is None:
            raise TemplateError("only text and {{ field }} can stand in a URI", field=field)
        found.append(UriTemplate(tuple(pieces), field))
    return found
