"""The base URL of a target: what the operator writes, checked once at the start."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import re

from yarl import URL

from aiotaskqueue._masking import mask_url
from aiotaskqueue._task_arguments import shorten
from aiotaskqueue.errors import ConfigError

_logger = logging.getLogger("aiotaskqueue.delivery")

# Addresses to listen on; nothing can be sent to them portably.
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}

_SPACES_AND_CONTROLS = re.compile(r"[\s\x00-\x1f\x7f]")

# 127.1, 2130706433, 0x7f000001: other ways to write an address, on which resolvers and checks disagree (RELIABILITY H11).
_NUMBERS = re.compile(r"(0x[0-9a-f]*|[0-9]+)(\.(0x[0-9a-f]*|[0-9]+))*\.?")

_USERINFO = re.compile(r"//[^/?#]*@")

_ALLOWED = "a base URL is http:// or https://, a host, and perhaps a port and a path"


def parse_base_url(text: str) -> URL:
    """Return the checked base URL, its path without the slash at the end.

    Raises:
        ConfigError: It has no scheme or host, another scheme than http and https, userinfo, a query or a fragment, or its
            host is an address in an unusual spelling. The message does not show a password.
    """
    url = _parse(text)
    reason = _find_fault(text, url)
    if reason:
        raise ConfigError(f"Base URL {shorten(mask_url(text))} {reason}; {_ALLOWED}.")
    return _reachable(url).with_path(url.raw_path.rstrip("/"), encoded=True)


def _parse(text: str) -> URL:
    if not isinstance(text, str):
        raise ConfigError(f"Base URL is of type {type(text).__name__}; {_ALLOWED}.")
    with contextlib.suppress(ValueError):
        return URL(text)
    # Not in a handler: that error may contain the password. And what cannot be parsed can hardly be masked.
    start, slashes, _ = text.partition("//")
    raise ConfigError(f"Base URL {shorten(start + slashes + '***' if slashes else '***')} cannot be parsed; {_ALLOWED}.")


def _find_fault(text: str, url: URL) -> str:
    """Return what is wrong, as a part of a sentence; empty if nothing is."""
    host = url.host or ""
    faults = (
        (url.scheme not in ("http", "https"), "has no scheme http or https"),
        (not host, "has no host"),
        (_USERINFO.search(text), "has userinfo, which would be sent with every task"),
        ("?" in text, "has a query"),
        ("#" in text, "has a fragment"),
        (_SPACES_AND_CONTROLS.search(text), "has spaces or control characters"),
        (_is_odd_address(host), "has an address that is not in its usual form"),
    )
    return next((reason for is_fault, reason in faults if is_fault), "")


def _is_odd_address(host: str) -> bool:
    if not _NUMBERS.fullmatch(host.lower()):
        return False
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return True
    return False


def _reachable(url: URL) -> URL:
    loopback = _WILDCARDS.get(url.host or "")
    if loopback is None:
        return url
    _logger.warning("Base URL %s is an address to listen on; tasks are sent to %s.", url, loopback)
    return url.with_host(loopback)
