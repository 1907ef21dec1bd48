"""More than 200 sample messages: every form that an application can hand in.

Each sample is a function without arguments that returns an `Envelope`, or raises what the message
is refused with. Message-ID and Date are given where the form has a place for them;
`test_message_octets` holds the clock and the randomness still for all others.
"""

from __future__ import annotations

import email
import email.policy
import io
import random
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from email.message import EmailMessage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from functools import partial
from pathlib import Path

from txmail import Attachment, Envelope, Message, Template
from txmail.address import parse_mailbox
from txmail.message import to_envelope

WHEN = datetime(2026, 11, 21, 12, tzinfo=timezone(timedelta(hours=1)))
FIXED = {"message_id": "<sample@example.com>", "date": WHEN}
SHOP = "Shop <shop@example.com>"
ANN = "ann@example.com"
CALENDAR = "BEGIN:VCALENDAR\r\nMETHOD:REQUEST\r\nBEGIN:VEVENT\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n"
EML = Path(__file__).parents[1] / "message" / "eml"

TEXTS = {
    "ascii": "Dear Ann,\nyour order has left.\n",
    "no end": "one line",
    "crlf": "a\r\nb\rc\n",
    "umlauts": "Grüße aus Köln, 3 €\n",
    "greek": "Καλημέρα κόσμε, " * 20,
    "long line": "word " * 300,
    "long word": "x" * 3000,
    "dots": ".\n..\n.dot\n",
    "from": "From here\n>From there\n",
    "equals": "a=b\n" * 40 + "=20\n",
    "blanks": "end \nend\t\n \n",
    "nul": "a\0b",
    "controls": "a\x0bb\x0cc\n",
    "braces": "{{ x }} {% if %}",
    "empty lines": "\n\n\na\n\n\n",
}
SUBJECTS = [
    "",
    "Hello",
    "Grüße",
    "word " * 60,
    "x" * 1200,
    "Ελληνικά " * 30,
    "=?utf-8?q?x?=",
    " blanks around ",
    "a\tb",
    "100% of =? and ?=",
    "\U0001f4e7" * 40,
    "two\nlines",
]
NAMES = [
    "Ann",
    "Ann B. Carter",
    'Ann "the" Boss',
    "Grüßer, Ann",
    "Ann " * 40,
    "Ελένη",
    "a@b.c",
    "=?utf-8?q?Ann?=",
    "back\\slash",
]


def sent(**options):
    """The envelope of a `Message` that has what every sample needs."""
    given = {
        "subject": "Hello",
        "recipients": [ANN],
        "body": "Dear Ann\n",
        "sender": SHOP,
        **FIXED,
        **options,
    }
    return Message(**given).to_envelope()


def of_messages():
    """Samples of `Message`: one argument at a time."""
    forms = {f"subject {number}": {"subject": text} for number, text in enumerate(SUBJECTS)}
    forms |= {f"body {name}": {"body": text} for name, text in TEXTS.items()}
    forms |= {f"html {name}": {"body": None, "html": text} for name, text in TEXTS.items()}
    forms |= {f"name {n}": {"recipients": [(name, ANN)]} for n, name in enumerate(NAMES)}
    many = [(f"Name {n}", f"n{n}@example.com") for n in range(40)]
    for field in ("list_help", "list_unsubscribe", "list_post", "list_owner", "list_archive"):
        forms[field] = {field: ["https://example.com/x?y=1", "mailto:x@example.com?subject=y"]}
    return forms | {
        "text and html": {"html": "<p>Dear Ann"},
        "many recipients": {"recipients": many},
        "cc and bcc": {"cc": ["cc@example.com"], "bcc": ["bcc@example.com"]},
        "only bcc": {"recipients": None, "bcc": ["bcc@example.com"]},
        "the same recipient twice": {"recipients": [ANN, "Ann <ann@EXAMPLE.com>"]},
        "mailbox": {"recipients": [parse_mailbox("Ann <ann@example.com>")]},
        "local part beyond ASCII": {"recipients": ["jürgen@example.com"]},
        "domain beyond ASCII": {"recipients": ["ann@bücher.example"]},
        "quoted local part": {"recipients": ['"a b"@example.com']},
        "no sender": {"sender": None},
        "replies": {"reply_to": ["a@b.c", ("Ann", "d@e.f")]},
        "one reply": {"reply_to": "a@b.c"},
        "null sender": {"envelope_sender": "<>"},
        "envelope sender": {"envelope_sender": "bounces@example.com"},
        "extra headers": {"extra_headers": {"X-Kind": "test", "Precedence": "bulk"}},
        "extra pairs": {"extra_headers": [("X-A", "1"), ("X-A", "2"), ("Comments", "Grüße")]},
        "extra references": {"extra_headers": {"References": "<a@b.c> " * 40}},
        "extra sender": {"extra_headers": {"Sender": "Ann <ann@example.com>"}},
        "extra mailbox list": {"extra_headers": {"Disposition-Notification-To": "a@b.c, d@e.f"}},
        "list id beyond ASCII": {"list_id": ("Grüße", "news.example.com")},
        "extra subject": {"extra_headers": {"Subject": "x"}},
        "extra received": {"extra_headers": {"Received": "x"}},
        "list id": {"list_id": "Our news <news.example.com>"},
        "list post NO": {"list_post": "NO"},
        "one click": {"list_unsubscribe": "https://example.com/u", "one_click": True},
        "one click without a URI": {"one_click": True},
        "auto submitted": {"auto_submitted": "auto-generated"},
        "calendar text": {"calendar": CALENDAR},
        "calendar octets": {"calendar": CALENDAR.encode()},
        "calendar file": {"calendar": Attachment("x.ics", "text/calendar", CALENDAR)},
        "calendar and html": {"calendar": CALENDAR, "html": "<p>x"},
        "nobody": {"recipients": None},
        "nothing": {"body": None},
        "body of an attachment": {"body": Attachment(data="Grüße", content_type="text/plain")},
        "html of an attachment": {"html": Attachment(data="<p>x", transfer_encoding="8bit")},
    }


def of_attachments():
    """Samples of `Attachment`: keyword arguments of one each."""
    octets = bytes(range(256)) * 20
    forms = {
        f"charset {name}": {
            "filename": "x.txt",
            "content_type": f"text/plain; charset={name}",
            "data": "Ann äöü\nx\n",
        }
        for name in ("utf-8", "iso-8859-1", "us-ascii", "utf-16", "cp1252", "cp500", "no-such")
    }
    for encoding in ("base64", "quoted-printable", "7bit", "8bit", "uuencode"):
        for name, data in {"text": "Grüße\n", "ascii": "abc\n", "octets": octets}.items():
            forms[f"{encoding} of {name}"] = {"data": data, "transfer_encoding": encoding}
            forms[f"{encoding} of {name} as text"] = {
                "data": data,
                "content_type": "text/csv",
                "transfer_encoding": encoding,
            }
    return forms | {
        "file": {"filename": "x.bin", "data": io.BytesIO(octets)},
        "name beyond ASCII": {"filename": "Grüße.pdf", "data": b"x"},
        "long name": {"filename": "x" * 200 + ".pdf", "data": b"x"},
        "name with a path": {"filename": "C:\\a/b\\c.txt", "data": b"x"},
        "name with quotes": {"filename": 'a"b.txt', "data": b"x"},
        "compressed": {"filename": "x.csv.gz", "data": b"x"},
        "inline": {"filename": "x.png", "data": b"x", "disposition": "inline", "content_id": "x"},
        "disposition": {"data": b"x", "disposition": "attachment; filename=y.txt"},
        "empty": {"filename": "x.txt", "data": b""},
        "no data": {"filename": "x.txt"},
        "message": {"content_type": "message/rfc822", "data": b"Subject: x\r\n\r\nx\r\n"},
        "message beyond ASCII": {"content_type": "message/rfc822", "data": "Subject: ä\n\nx"},
        "calendar": {"filename": "x.ics", "content_type": "text/calendar", "data": CALENDAR},
        "parameters": {"content_type": 'text/x-y; a=b; c="d e"; long=' + "x" * 90, "data": "x"},
        "bad type": {"content_type": "text", "data": "x"},
    }


TEMPLATES = {
    "text": {"text": "Dear {{ x }},\nyour {{ y }}.\n"},
    "html": {"html": "<p>Dear {{ x }} &amp; {{ y }}"},
    "both": {"text": "Dear {{ x }}\n", "html": "<p title='{{ y }}'>{{ x }}</p>\n"},
    "constant": {"subject": "Hello", "text": "The same.\n" * 30},
    "umlauts": {"text": "Grüße an {{ x }}\n" * 5, "html": "<p>Grüße an {{ y }}\n" * 5},
    "headers": {
        "text": "x",
        "sender": ("Shop of {{ x }}", "shop@example.com"),
        "reply_to": [("{{ y }}", "r@example.com")],
        "extra_headers": {"X-Order": "{{ y }}", "References": "<a@b.c>"},
        "cc": ["cc@example.com"],
    },
    "lists": {
        "text": "x",
        "list_unsubscribe": "https://example.com/leave?token={{ y }}",
        "list_id": "news.example.com",
        "one_click": True,
    },
    "attachments": {
        "text": "{{ x }}",
        "html": '<img src="cid:logo">{{ x }}',
        "attachments": [
            Attachment("logo.png", data=b"logo", content_id="logo"),
            Attachment("terms.pdf", data=b"terms"),
        ],
    },
    "calendar": {"text": "{{ x }}", "calendar": CALENDAR},
    "statements": {"text": "{% for c in x %}{{ c|upper }},{% endfor %} {{ y|default('none') }}"},
}
FIELDS = {
    "ascii": {"x": "Ann", "y": "order 4711"},
    "beyond ASCII": {"x": "Jürgen <&>", "y": "€" * 30},
    "long": {"x": "x " * 400, "y": "y" * 900},
    "scalars": {"x": "1", "y": Decimal("12.50")},
    "dates": {"x": "=", "y": date(2026, 11, 21)},
    "lines": {"x": "a\nb", "y": "c"},
    "missing": {"x": "Ann"},
}


def of_templates():
    """Samples of `Template`: what is given to it, and fields."""
    return {
        f"{name}, {fields}": (options, FIELDS[fields])
        for name, options in TEMPLATES.items()
        for fields in FIELDS
    }


def filled(options, fields):
    """The envelope of a template's message."""
    given = {"subject": "Hello {{ x }}", "sender": SHOP, **options}
    return Template(**given).render(fields, [ANN], **FIXED).to_envelope()


def prepared(options, fields):
    """The same of the compiled template."""
    given = {"subject": "Hello {{ x }}", "sender": SHOP, **options}
    return Template(**given).compile().envelope(ANN, fields, **FIXED)


def standard(policy=email.policy.default, **headers):
    """A message of the standard library."""
    message = EmailMessage(policy=policy)
    given = {"From": SHOP, "To": ANN, "Subject": "Hello", "Message-ID": "<1@example.com>"}
    for name, value in {**given, "Date": WHEN, **headers}.items():
        if value is not None:
            message[name.replace("_", "-")] = value
    message.set_content("Dear Ann\n")
    return message


def of_standard_library():
    """Samples of messages of the standard library: functions that make them."""
    return {
        "default": standard,
        "smtp": partial(standard, email.policy.SMTP),
        "smtputf8": partial(standard, email.policy.SMTPUTF8, Subject="Grüße"),
        "names": partial(standard, To='"Grüßer, Ann" <ann@example.com>, b@c.d'),
        "group": partial(standard, To="Friends: a@b.c, d@e.f;, g@h.i"),
        "sender": partial(standard, From="a@b.c, d@e.f", Sender="g@h.i"),
        "two authors": partial(standard, From="a@b.c, d@e.f"),
        "bcc": partial(standard, Bcc="bcc@example.com"),
        "resent": partial(standard, Resent_To="a@b.c"),
        "without date and id": partial(standard, Date=None, Message_ID=None),
        "long subject": partial(standard, Subject="Ελληνικά " * 40),
        "references": partial(standard, References="<a@b.c> " * 40),
        "html": _with_html,
        "attachments": _with_attachments,
        "old text": _old_text,
        "old multipart": _old_multipart,
    }


def _with_html():
    message = standard(email.policy.SMTP)
    message.add_alternative("<p>Grüße\n", subtype="html")
    return message


def _with_attachments():
    message = _with_html()
    message.add_attachment(b"x" * 300, maintype="image", subtype="png", filename="Bild ä.png")
    message.add_attachment(standard())
    return message


def _old_text():
    message = MIMEText("Grüße\n" * 20, "plain", "iso-8859-1")
    message["From"], message["To"], message["Subject"] = SHOP, ANN, "Grüße"
    return message


def _old_multipart():
    message = MIMEMultipart("mixed", boundary="=_fixed", _subparts=[_old_text(), MIMEText("x")])
    message["From"], message["To"], message["Subject"] = SHOP, ANN, "x"
    return message


def of_options():
    """Samples of messages that have many arguments at once, by a seed."""
    forms, attachments = [*of_messages().values()], [*of_attachments().values()]
    chosen = random.Random(14)
    samples = {}
    for number in range(40):
        options = {}
        for form in chosen.sample(forms, 4):
            options |= form
        options["attachments"] = [
            partial(Attachment, **form) for form in chosen.sample(attachments, number % 3)
        ]
        samples[f"mixed {number}"] = options
    return samples


def mixed(options):
    """The envelope of one of `of_options`."""
    return sent(**{**options, "attachments": [make() for make in options["attachments"]]})


def samples():
    """All samples by their names."""
    found = {f"message: {n}": partial(sent, **form) for n, form in of_messages().items()}
    for name, form in of_attachments().items():
        found[f"attachment: {name}"] = partial(_attached, form)
        if "data" in form and not hasattr(form["data"], "read"):
            found[f"shown: {name}"] = partial(_shown, form)
    found |= {n: partial(mixed, options) for n, options in of_options().items()}
    for name, (options, fields) in of_templates().items():
        found[f"template: {name}"] = partial(filled, options, fields)
        found[f"compiled: {name}"] = partial(prepared, options, fields)
    for name, make in of_standard_library().items():
        found[f"standard: {name}"] = partial(_of_standard, make)
    for path in sorted(EML.glob("*.eml")):
        found[f"eml: {path.stem}"] = partial(_of_file, path)
        found[f"eml as envelope: {path.stem}"] = partial(_as_envelope, path)
    return found


def _attached(form):
    return sent(attachments=[Attachment(**form)])


def _shown(form):
    image = Attachment(**{**form, "content_id": "shown"})
    return sent(html='<img src="cid:shown">', attachments=[image])


def _of_standard(make):
    return to_envelope(make())


def _of_file(path):
    message = email.message_from_bytes(path.read_bytes(), policy=email.policy.SMTP)
    return to_envelope(message, sender="b@example.com", recipients=[ANN])


def _as_envelope(path):
    return to_envelope(Envelope("b@example.com", (ANN,), path.read_bytes()))


NOW = datetime(2026, 11, 30, tzinfo=UTC).timestamp()
