"""Take secrets out of text before a person, a log or a Parquet file sees it.

Text goes in, the same text comes out with `***` where a credential stood. Over-redacting is accepted, leaking is not.
Standard library only, so that every layer can use it.
"""

import os
import re

_ENVIRONMENT = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "ATROUS_NOTIFY")
_SHORTEST_SECRET = 8
"""Shorter values of these variables are placeholders; replacing them would chew up ordinary words."""

_USERINFO = re.compile(r"(?<=://)[^\s/@:]*:(?!\d{1,5}[/\s])[^\s@]*@|(?<=://)[^\s/@]+@")
"""`user:password@` of a URL. AWS secrets may hold a slash, so a password runs to the `@`; `host:8080/` has none."""

_QUERY = re.compile(r"\?[^\s'\"<>]+")
_SIGNED = re.compile(r"X-Amz-|Signature=|\bsig=|token=|key=", re.IGNORECASE)

_PATTERNS = (
    (_USERINFO, "***@"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}"), "***"),
    (re.compile(r"(--notify[=\s]+)(?:'[^']*'|\S+)"), r"\1***"),
    (re.compile(r"\b(Bearer)\s+[\w.~+/=-]+", re.IGNORECASE), r"\1 ***"),
    (re.compile(r"(\bauthorization[\"']?\s*[:=]\s*)[^\r\n]+", re.IGNORECASE), r"\1***"),
    (
        re.compile(
            r"((?:secret|password|passwd|token|api[_-]?key|access[_-]?key|account[_-]?key|signature)[\"']?\s*[:=]\s*)"
            r"(?:\"[^\"]*\"|'[^']*'|[^\s\"',;&}\])]+)",
            re.IGNORECASE,
        ),
        r"\1***",
    ),
)


def redact(text: str) -> str:
    """Replace credentials in `text` by `***`.

    Removed: user and password of URLs, query strings that sign or authorise, AWS key ids, values assigned to names that
    end in secret, token, password or key, bearer tokens and Authorization headers, the URL of `--notify`, and the
    present values of AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, RAY_AUTH_TOKEN and ATROUS_NOTIFY wherever they stand.
    `redact(redact(x)) == redact(x)`.
    """
    for name in _ENVIRONMENT:
        value = os.environ.get(name, "")
        if len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    text = _QUERY.sub(lambda query: "?***" if _SIGNED.search(query[0]) else query[0], text)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text
