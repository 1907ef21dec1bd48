"""`Template`: a message with fields in it, the only thing in which ``{{ }}`` is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, TypedDict, Unpack

from ...address import Mailbox
from ...common.shown import echo
from ...exceptions import (
    BadHeaders,
    ConfigurationError,
    InvalidMessage,
    TemplateError,
)
from ...interfaces import ITemplateEngine, ITemplateText
from ...types import Several
from ..addresses import Entry, mailbox_of
from ..attachment import Attachment
from ..message import Message
from ..mime.header_check import FORBIDDEN, check_value
from .template_values import Field, in_text, in_uri, plain_fields

if TYPE_CHECKING:
    from .compiled import CompiledTemplate

#: Arguments that are URIs, or lists of them (`txmail.message.list_headers`).
URI_FIELDS = (
    "list_help",
    "list_unsubscribe",
    "list_subscribe",
    "list_post",
    "list_owner",
    "list_archive",
)


class Constants(TypedDict, total=False):
    """Arguments of `Message` that are the same for all messages of a template."""

    recipients: Several[Entry] | None
    cc: Several[Entry] | None
    bcc: Several[Entry] | None
    attachments: Iterable[Attachment] | None
    envelope_sender: str | None
    calendar: str | Attachment | None
    list_id: str | tuple[str, str] | None
    one_click: bool
    auto_submitted: str | None


class Template:
    """What messages have in common, with fields where they differ.

    `subject`, `text`, `html`
        Templates; `text` is the body of the message. In `html` fields are escaped. `text` or `html`
        has to be there.
    `sender`, `reply_to`
        As in `Message`. The display name is a template, the address is not.
    `extra_headers`
        As in `Message`. The values are templates, the names are not.
    `list_help`, `list_unsubscribe`, `list_subscribe`, `list_post`, `list_owner`, `list_archive`
        As in `Message`, URIs with fields in them, which are percent-encoded:
        ``"https://example.com/leave?token={{ token }}"``. A field alone is a whole URI.
    `engine`
        An `ITemplateEngine`; the sandboxed one of `txmail.integrations.jinja2` otherwise.

    All others are those of `Message`; their text is text. `recipients`, if given, are those of
    messages for which `render` is told none. Templates cannot be changed. One serves any number of
    threads.

    Raises `TemplateError` for a template that cannot be read, naming part and line,
    `ConfigurationError` if there is no engine, and what `Message` raises for its arguments.
    """

    #: Makes the engine of templates that are given none. `txmail.config` sets it, which alone loads
    #: what is optional.
    default_engine: ClassVar[Callable[[], ITemplateEngine] | None] = None

    def __init__(
        self,
        subject: str | None = None,
        text: str | None = None,
        html: str | None = None,
        sender: Entry | None = None,
        *,
        extra_headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        reply_to: Entry | list[Entry] | None = None,
        list_help: str | list[str] | None = None,
        list_unsubscribe: str | list[str] | None = None,
        list_subscribe: str | list[str] | None = None,
        list_post: str | list[str] | None = None,
        list_owner: str | list[str] | None = None,
        list_archive: str | list[str] | None = None,
        engine: ITemplateEngine | None = None,
        **constants: Unpack[Constants],
    ) -> None:
        if not (text or html):
            raise InvalidMessage("neither text nor html", field="text")
        for name in constants:
            if name not in Constants.__annotations__:
                raise TypeError(f"Template() got an unexpected keyword argument {echo(name)}")
        # Lists are copied, and what is no list is refused.
        given = Message(extra_headers=extra_headers, **constants)
        self.constants: dict[str, Any] = {name: getattr(given, name) for name in constants}
        self._engine = engine
        using = engine or self._find_engine()
        self.subject = HeaderTemplate.of(subject or "", "subject", using)
        self.text = using.compile(text, "text") if text else None
        self.html = using.compile(html, "html", html=True) if html else None
        self.sender = None if sender is None else MailboxTemplate.of(sender, "sender", using)
        entries = reply_to if isinstance(reply_to, list) else [reply_to] if reply_to else []
        self.reply_to = [MailboxTemplate.of(entry, "reply_to", using) for entry in entries]
        self.headers = [
            (name, HeaderTemplate.of(value, name, using)) for name, value in given.header_pairs()
        ]
        values = (list_help, list_unsubscribe, list_subscribe, list_post, list_owner, list_archive)
        self.uris = {
            field: _uris(value, field, using)
            for field, value in zip(URI_FIELDS, values, strict=True)
            if value
        }
        self._sources: dict[str, Any] = {
            "subject": subject,
            "text": text,
            "html": html,
            "sender": sender,
            "extra_headers": given.extra_headers,
            "reply_to": entries,
            **dict(zip(URI_FIELDS, values, strict=True)),
        }

    @classmethod
    def _find_engine(cls) -> ITemplateEngine:
        if cls.default_engine is None:
            raise ConfigurationError("there is none", field="engine")
        return cls.default_engine()

    def render(
        self,
        fields: Mapping[str, Any] | None = None,
        recipients: Several[Entry] | None = None,
        *,
        message_id: str | None = None,
        date: datetime | None = None,
    ) -> Message:
        """The `Message` to `recipients` with `fields` in it.

        `fields` is plain data: text, numbers, booleans, None, `Decimal`, dates, and lists and
        mappings of them. `message_id` and `date` are those of `Message`.

        Raises `TemplateError`, naming the field, for a value of any other kind, and naming part
        and field for one that is missing; `BadHeaders` for a value that must not stand in the
        header it is for.
        """
        data = plain_fields(fields)
        options = {**self.constants}
        for field, uris in self.uris.items():
            options[field] = render_uris(uris, data)
        if recipients is not None:
            options["recipients"] = recipients
        return Message(
            self.subject.render(data),
            body=self.text.render(data) if self.text else None,
            html=self.html.render(data) if self.html else None,
            sender=self.sender.render(data) if self.sender else None,
            extra_headers=[(name, header.render(data)) for name, header in self.headers],
            reply_to=[named.render(data) for named in self.reply_to] or None,
            message_id=message_id,
            date=date,
            **options,
        )

    def compile(
        self,
        *,
        default_sender: Entry | None = None,
        html_to_text: Callable[[str], str] | None = None,
    ) -> CompiledTemplate:
        """This template, prepared for many messages. See `CompiledTemplate`.

        The arguments are those of `Message.to_envelope`: as no mailer renders these messages, they
        have to be told here what a mailer would tell.
        """
        from .compiled import CompiledTemplate

        return CompiledTemplate(self, default_sender=default_sender, html_to_text=html_to_text)

    def __reduce__(self) -> tuple[Callable[[], Template], tuple[()]]:
        return partial(type(self), **self._sources, **self.constants, engine=self._engine), ()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {echo(self._sources['subject'] or '')}>"


class HeaderTemplate(NamedTuple):
    """A template for the value of a header; one without fields needs no engine."""

    text: ITemplateText | None
    constant: str
    field: str

    @classmethod
    def of(cls, source: str, field: str, engine: ITemplateEngine) -> HeaderTemplate:
        check_value(source, field, tab=True)
        compiled = engine.compile(source, field) if "{" in source else None
        return cls(compiled, source, field)

    @property
    def pieces(self) -> tuple[str | Field, ...] | None:
        """See `ITemplateText`."""
        return self.text.pieces if self.text else (self.constant,)

    def render(self, fields: Mapping[str, Any]) -> str:
        """The value. Raises `BadHeaders` if it may not stand in a header."""
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
    def of(cls, entry: Entry, field: str, engine: ITemplateEngine) -> MailboxTemplate:
        mailbox = mailbox_of(entry, field)
        return cls(HeaderTemplate.of(mailbox.display_name, field, engine), mailbox)

    def render(self, fields: Mapping[str, Any]) -> Mailbox:
        """The mailbox with its name. Raises `BadHeaders` if that may not stand in a header."""
        name = self.name.render(fields)
        check_value(name, self.name.field)
        return Mailbox(name, self.mailbox.address)


class UriTemplate(NamedTuple):
    """A template for a URI."""

    pieces: tuple[str | Field, ...]
    field: str

    def render(self, fields: Mapping[str, Any]) -> str:
        """The URI. Raises `TemplateError` for a field that is missing, or `BadHeaders`."""
        alone = len(self.pieces) == 1
        found = []
        for piece in self.pieces:
            if isinstance(piece, Field):
                value = in_text(self._value(piece, fields))
                if FORBIDDEN.search(value):
                    problem = "a control character or line separator"
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
    """The URIs as `Message` takes them: one on its own may be a word that is none."""
    found = [uri.render(fields) for uri in uris]
    return found[0] if len(found) == 1 else found


def _uris(value: Any, field: str, engine: ITemplateEngine) -> list[UriTemplate]:
    sources = [value] if isinstance(value, str) else value
    if not isinstance(sources, (list, tuple)):
        raise InvalidMessage("a URI is needed, or a list of them", field=field, value=value)
    found = []
    for source in sources:
        check_value(source, field)
        pieces = engine.compile(source, field).pieces if "{" in source else (source,)
        if pieces is None:
            raise TemplateError("only text and {{ field }} can stand in a URI", field=field)
        found.append(UriTemplate(tuple(pieces), field))
    return found
