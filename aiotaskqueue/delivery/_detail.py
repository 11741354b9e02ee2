"""Text of strangers, made safe to store and to show: what workers answer, and what libraries say about it."""

from __future__ import annotations

import re

from aiotaskqueue.delivery._base import DETAIL_BYTES, Answer

# Terminals act on C0, DEL and C1; bidirectional controls reorder what a reader sees; line separators start new lines in
# logs; lone surrogates cannot be encoded at all. Source: RELIABILITY T11; Unicode, property Bidi_Control.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


_SUCCESS = Answer(200)


def describe(status: int, retry_after: str | None, location: str | None, body: bytes, secret: str = "") -> Answer:
    """Return a complete answer, with what is kept of it.

    Args:
        status: As sent.
        retry_after: The header of that name.
        location: The header of that name.
        body: The start of the body.
        secret: As for `safe_text`.
    """
    if status == 200:
        return _SUCCESS
    text = body.decode(errors="replace")
    if location is not None and 300 <= status < 400:
        text = f"The redirect to {location} is not followed. {text}"
    return Answer(status, retry_after, safe_text(text, secret))


def safe_text(text: str, secret: str = "") -> str:
    """Return `text` with everything escaped that is not plain text, cut to DETAIL_BYTES of UTF-8.

    Args:
        text: What a stranger said.
        secret: Something of ours that the stranger may have echoed; it is taken out.
    """
    if secret:
        text = text.replace(secret, "[signature]")
    escaped = _UNSAFE.sub(_escape, text[:DETAIL_BYTES])
    return escaped.encode()[:DETAIL_BYTES].decode(errors="ignore")


def _escape(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode("ascii")
