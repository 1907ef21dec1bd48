"""What hostile input looks like: values that try to become a header, a part or a command."""

from __future__ import annotations

import base64


def _b64(text: str, charset: str = "utf-8") -> str:
    return f"=?{charset}?b?{base64.b64encode(text.encode(charset)).decode()}?="


#: Raw characters that end a line, or are taken for a line end somewhere.
LINE_ENDS = {
    "CRLF": "\r\n",
    "LF": "\n",
    "CR": "\r",
    "CRCRLF": "\r\r\n",
    "LFCR": "\n\r",
    "VT": "\x0b",
    "FF": "\x0c",
    "FS": "\x1c",
    "GS": "\x1d",
    "RS": "\x1e",
    "NEL": "\x85",
    "LS": "\u2028",
    "PS": "\u2029",
}

#: Raw characters that no header may have.
CONTROLS = {
    "NUL": "x\0y",
    "SOH": "x\x01y",
    "BS": "x\x08y",
    "TAB": "x\ty",
    "ESC": "x\x1b[2Jy",
    "DEL": "x\x7fy",
    "C1": "x\x9by",
    "high surrogate": "x\ud800y",
    "low surrogate": "x\udc0ay",
    "escaped octet": "x\udcffy",
}

#: Line ends followed by what they try to bring in.
INJECTIONS = {
    **{f"header after {name}": f"x{end}Bcc: evil@x.y" for name, end in LINE_ENDS.items()},
    **{f"trailing {name}": f"x{end}" for name, end in LINE_ENDS.items()},
    **{f"leading {name}": f"{end}x" for name, end in LINE_ENDS.items()},
    "body": "x\r\n\r\nforged body",
    "body by LF": "x\n\nforged body",
    "body by CR": "x\r\rforged body",
    "fold of nothing": "x\r\n \r\nBcc: evil@x.y",
    "fold, then header": "x\r\n y\r\nBcc: evil@x.y",
    "part": 'x"\r\n\r\n--b\r\nContent-Type: text/html\r\n\r\nforged',
    "end of data": "x\r\n.\r\nMAIL FROM:<evil@x.y>",
}

#: Encoded words that decode to a line end or control, in every spelling we know of.
HIDDEN = {
    "q": "=?utf-8?q?x=0d=0aBcc:_evil=40x.y?=",
    "Q upper case": "=?UTF-8?Q?x=0D=0ABcc:_evil=40x.y?=",
    "q, LF only": "=?utf-8?q?x=0aBcc:_evil=40x.y?=",
    "q, CR only": "=?utf-8?q?x=0dBcc:_evil=40x.y?=",
    "q, after text": "hello =?utf-8?q?x=0d=0aBcc:_evil=40x.y?= world",
    "q, glued": "hello=?utf-8?q?x=0d=0aBcc:_evil=40x.y?=world",
    "q, blank inside": "=?utf-8?q?x y=0d=0aBcc:_evil=40x.y?=",
    "q, with language": "=?utf-8*en?q?x=0d=0aBcc:_evil=40x.y?=",
    "q, starts with an escape": "=?utf-8?q?=0d=0aBcc:_evil=40x.y?=",
    "b": _b64("x\r\nBcc: evil@x.y"),
    "b, NUL": _b64("x\0y"),
    "b, no padding": _b64("x\r\nBcc: e@x.y!").rstrip("=?") + "?=",
    "b, stray characters": "=?utf-8?b?eA0K!Qm*NjOiB4?=",
    "b, adjacent": "=?utf-8?b?eA==?= =?utf-8?b?DQpCY2M6IGU=?=",
    "b, split within a quantum": "=?utf-8?b?eA0?= =?utf-8?b?KQmNjOiB4?=",
    "q, adjacent": "=?utf-8?q?x?= =?utf-8?q?=0d=0aBcc:?=",
    "NEL": "=?utf-8?q?x=C2=85Bcc:_evil?=",
    "NEL, split within a character": "=?utf-8?q?x=C2?= =?utf-8?q?=85Bcc:_evil?=",
    "NEL in latin-1": "=?iso-8859-1?q?x=85Bcc:_evil?=",
    "line separator": "=?utf-8?q?x=E2=80=A8Bcc:_evil?=",
    "paragraph separator": _b64("x\u2029Bcc: evil"),
    "separator, split within a character": "=?utf-8?b?4oA=?= =?utf-8?b?qA==?=",
    "escape sequence": "=?utf-8?q?=1B[2J?=",
    "DEL": "=?us-ascii?q?x=7Fy?=",
    "utf-7": "=?utf-7?q?x+AA0ACg-Bcc:_evil?=",
    "utf-16": _b64("x\r\nBcc: evil", "utf-16"),
    "Python's escapes": "=?unicode_escape?q?x=5Cr=5CnBcc:_evil?=",
    "unknown charset": "=?x-nothing?q?x=0d=0aBcc:?=",
    "word in a word": "=?utf-8?b?aaa =?utf-8?q?x=0d=0aBcc:?=",
}

#: Percent-encoding and extended parameters that decode to a line end.
HIDDEN_PARAMETERS = {
    "percent": "x%0d%0aX-Evil: 1.txt",
    "percent, upper case": "x%0D%0AX-Evil: 1.txt",
    "percent NUL": "x%00.txt",
    "percent NEL": "x%C2%85.txt",
    "percent line separator": "x%E2%80%A8.txt",
    "with charset": "utf-8''x%0d%0aX-Evil:%201",
}
EXTENDED = {
    "extended": "attachment; filename*=utf-8''x%0d%0aX-Evil:%201",
    "continued": "attachment; filename*0*=utf-8''x%0d; filename*1*=%0aX-Evil:%201",
    "continued, split in an escape": "attachment; filename*0*=utf-8''x%0; filename*1*=aX-Evil",
    "continued, out of order": "attachment; filename*1*=aX-Evil; filename*0*=utf-8''x%0",
    "quoted": "attachment; filename*=\"utf-8''x%0d%0aX-Evil:%201\"",
    "latin-1 NEL": "attachment; filename*=iso-8859-1''x%85y",
}

#: What looks like syntax and is data: has to arrive as it is where it is accepted.
HARMLESS = {
    "encoded word": "=?utf-8?q?hello?=",
    "encoded word in text": "re: =?utf-8?b?aGVsbG8=?= again",
    "adjacent encoded words": "=?utf-8?q?a?= =?utf-8?q?b?=",
    "encoded comma": "=?utf-8?q?a=2C_evil=40x.y?=",
    "unfinished word": "=?utf-8?q?hello",
    "double encoding": "=?utf-8?q?=3D=3Futf-8=3Fq=3Fx=3D0d=3D0aBcc=3A=3F=3D?=",
    "template": "{{ 7*7 }} {% include 'x' %} ${x} %(x)s",
    "markup": '<script>alert("1")</script>',
    "quotes": '"; filename="evil.exe',
    "backslashes": 'x\\"y\\',
    "comment": "x (comment) y",
    "list": "x, evil@x.y; z",
    "group": "x: evil@x.y;",
    "blanks": "x  y   z",
    "long": "word " * 60 + "end",
    "long word": "w" * 1500,
    "non-ASCII": "Grüße, 你好 🎉",
    "long non-ASCII": "Grüße 你好🎉" * 30,
    "bidi": "x\u202etxt.exe",
    "boundary": "--=_boundary",
    "percent": "100 % off %20",
}

#: Not an address in any form we accept, whether with or without a name.
BAD_ADDRESSES = {
    "empty": "",
    "null": "<>",
    "no domain": "a@",
    "no local part": "@b.c",
    "no at": "ab.c",
    "two at": "a@b@c.d",
    "closed early": "a@b.c> SIZE=1",
    "closed early, reopened": "a@b.c>\x20<evil@x.y",
    "parameter": "a@b.c SIZE=1",
    "parameter in brackets": "<a@b.c> SIZE=1",
    "command": "a@b.c>\r\nRCPT TO:<evil@x.y",
    "list": "a@b.c,evil@x.y",
    "list with blank": "a@b.c, evil@x.y",
    "list by semicolon": "a@b.c;evil@x.y",
    "named list": "A <a@b.c>, B <evil@x.y>",
    "group": "g: a@b.c;",
    "route": "@x.y:a@b.c",
    "route in brackets": "<@x.y:a@b.c>",
    "comment": "a@b.c (comment)",
    "comment in front": "(comment)a@b.c",
    "comment inside": "a(comment)@b.c",
    "leading blank": " a@b.c",
    "trailing blank": "a@b.c ",
    "blank inside": "a b@c.d",
    "blank in domain": "a@b .c",
    "trailing dot": "a@b.c.",
    "leading dot in domain": "a@.b.c",
    "two dots": "a@b..c",
    "local part starts with dot": ".a@b.c",
    "local part ends with dot": "a.@b.c",
    "two dots in local part": "a..b@c.d",
    "underscore in domain": "a@b_c.d",
    "hyphen first": "a@-b.c",
    "hyphen last": "a@b-.c",
    "colon": "a:b@c.d",
    "backslash": "a\\b@c.d",
    "open quote": '"a@b.c',
    "quote inside": 'a"b"@c.d',
    "two words": '"a"."b"@c.d',
    "quote ends early": '"a"b"@c.d',
    "line end in quotes": '"a\r\nb"@c.d',
    "TAB in quotes": '"a\tb"@c.d',
    "NUL": "a\0@b.c",
    "LF at the end": "a@b.c\n",
    "TAB": "a@b.c\t",
    "DEL": "a\x7f@b.c",
    "NEL": "a\x85@b.c",
    "line separator": "a\u2028@b.c",
    "no-break space": "a\u00a0b@c.d",
    "zero width space": "a\u200bb@c.d",
    "bidi": "a\u202eb@c.d",
    "surrogate": "a\ud800@b.c",
    "unassigned": "a\u0378@b.c",
    "not NFC": "u\u0308@b.c",
    "fullwidth at": "a\uff20b.c",
    "ideographic full stop": "a@b\u3002c",
    "fullwidth domain": "a@\uff42.c",
    "uppercase U-label": "a@B\u00dcCHER.example",
    "zero width joiner": "a@b\u200dc.d",
    "mixed directions": "a@\u05d0b.c",
    "soft hyphen": "a@b\u00adc.d",
    "surrogate in domain": "a@b\ud800.c",
    "slash in domain": "a@b/c.d",
    "general literal": "a@[x:y]",
    "bad IPv4": "a@[192.0.2.256]",
    "short IPv4": "a@[192.0.2]",
    "leading zero in IPv4": "a@[192.0.2.01]",
    "bad IPv6": "a@[IPv6:::1::]",
    "scope": "a@[IPv6:fe80::1%eth0]",
    "IPv6 without tag": "a@[::1]",
    "open literal": "a@[192.0.2.1",
    "digits of another script": "a@[\u0661.2.3.4]",
    "long local part": "a" * 65 + "@b.c",
    "long label": "a@" + "b" * 64 + ".c",
    "long U-label": "a@" + "\u00fc" * 63 + ".c",
    "long domain": "a@" + "b." * 130 + "c",
    "long path": "a" * 64 + "@" + ".".join(["b" * 48] * 4),
    "very long": "a" * 100_000,
    "encoded word": "=?utf-8?q?a=40b.c?=",
}

#: Everything that must not get into a header, by name.
FORBIDDEN = {**CONTROLS, **INJECTIONS, **HIDDEN}
