"""Events as lines of JSON with stable names.

A line has ``time`` (ISO 8601, UTC, milliseconds), ``level`` (debug, info, warn, error, critical), ``namespace`` (who
speaks), ``message`` (for people), ``failure`` (a traceback, where there is one), and every other field that the event
was emitted with, by its own name; ``event`` among them names what happened where that is worth counting (``access``,
``job_ended``...). Those names do not change; messages may.

Secrets are not logged. As a second line of defense, fields whose names say that they are secret are blotted out, and so
are credentials inside texts, tracebacks and URLs.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Mapping
from typing import TextIO

from twisted.logger import FileLogObserver, LogEvent, formatEvent

BLOT = "..."
MAX_TEXT = 8192  # characters of one field: a line stays small enough for what collects lines
MAX_DEPTH = 3  # of structured values
MAX_ITEMS = 100  # of one structured value

_SECRET_NAME = re.compile(r"authorization|cookie|password|passwd|secret|token|credential|api[-_]?key", re.IGNORECASE)
_SECRETS = (
    (re.compile(r"(://)[^\s/@'\"]*:[^\s/'\"]*@"), rf"\1{BLOT}@"),
    # A word of small letters after "basic" is prose, unless it is long.
    (
        re.compile(r"\b((?i:Bearer|Basic|Digest|Negotiate))[ +]+(?=\S*[A-Z0-9=+/_-]|\S{20})[A-Za-z0-9._~+/=-]{8,}"),
        rf"\1 {BLOT}",
    ),
    (
        re.compile(r"([?&;](?:access_token|token|key|sig|signature|password|X-Amz-[A-Za-z]+)=)[^\s&;'\"]+", re.I),
        rf"\1{BLOT}",
    ),
)
# Plain searches for what every pattern needs: most texts hold none of it, and the patterns are dear.
_WORTH_A_LOOK = ("://", "?", "&", ";", "bearer", "basic", "digest", "negotiate")

# What Twisted itself puts into events, new style and legacy: said in our own fields, or of no use in a line.
_FIXED = frozenset(("time", "level", "namespace", "message", "failure"))
_TWISTED = frozenset(("system", "format", "isError", "logLevel", "from_stdlib", "printed"))
_OF_ERRORS = "why"  # in legacy errors; else a field as any other


# Made once: json.dumps with arguments of its own makes an encoder for every line.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


@functools.lru_cache(1024)
def _is_secret(name: str) -> bool:
    """Whether a field's name says that it is secret."""
    return _SECRET_NAME.search(name) is not None


_UNUSUAL = re.compile(r"[^ -~]")


def printable(text: str, also: str = "") -> str:
    """*text* with what could forge lines or drive a terminal written as JSON escapes it, but for characters in *also*."""
    return _UNUSUAL.sub(
        lambda found: found[0] if found[0].isprintable() or found[0] in also else json.dumps(found[0])[1:-1], text
    )


def redacted(text: str) -> str:
    """*text* without the credentials that can be told by their shape, cut to a bounded length."""
    if len(text) > MAX_TEXT:
        text = text[:MAX_TEXT] + "..."
    lowered = text.lower()
    if any(sign in lowered for sign in _WORTH_A_LOOK):
        for pattern, replacement in _SECRETS:
            text = pattern.sub(replacement, text)
    return text


def json_line(event: LogEvent) -> str:
    """One event as one line of JSON, newline included. Never raises: a log that fails hides what it was about."""
    try:
        fields = _fields(event)
        return printable(_encode(fields)) + "\n"
    except Exception as error:
        return (
            json.dumps(
                {
                    "time": time_of(event.get("log_time") or 0.0),
                    "level": "error",
                    "namespace": __name__,
                    "message": repr(error),
                }
            )
            + "\n"
        )


def _fields(event: LogEvent) -> dict[str, object]:
    level = event.get("log_level")
    fields: dict[str, object] = {
        "time": time_of(event.get("log_time") or 0.0),
        "level": level.name if level is not None else "info",
        "namespace": str(event.get("log_namespace") or event.get("log_system") or "-"),
        "message": redacted(formatEvent(event)),
    }
    failure = event.get("log_failure")
    if failure is not None:
        fields["failure"] = redacted(failure.getTraceback())
    twisted = _TWISTED | {_OF_ERRORS} if event.get("isError") else _TWISTED
    for name, value in event.items():
        if not name.startswith("log_") and name not in _FIXED and name not in twisted:
            fields[name] = BLOT if _is_secret(name) else _plain(value)
    return fields


def time_of(seconds: float) -> str:
    """A moment, in seconds since the epoch, as a line has it."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(value: object, depth: int = MAX_DEPTH) -> object:
    """*value* as JSON knows it; what JSON does not know becomes its text."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)  # JSON has no nan and no infinity (RFC 8259 section 6)
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, (bytes, bytearray)):
        return redacted(bytes(value[:MAX_TEXT]).decode("utf-8", "backslashreplace"))
    if depth and isinstance(value, Mapping):
        items = list(value.items())[:MAX_ITEMS]
        return {str(k): BLOT if _is_secret(str(k)) else _plain(v, depth - 1) for k, v in items}
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, depth - 1) for item in list(value)[:MAX_ITEMS]]
    return redacted(str(value))


def json_observer(out: TextIO) -> FileLogObserver:
    """An observer that writes each event to *out* as one line of JSON, flushed."""
    return FileLogObserver(out, json_line)
