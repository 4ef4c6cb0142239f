"""Logs: for people as twistd writes them, for machines as JSON lines with stable names.

A JSON line has ``time`` (ISO 8601, UTC, milliseconds), ``level`` (debug, info, warn, error, critical),
``namespace`` (who speaks), ``message`` (for people), ``failure`` (a traceback, where there is one), and
every other field that the event was emitted with, by its own name; ``event`` among them names what happened
where that is worth counting (``access``, ``job_ended``...). Those names do not change; messages may.

How it gets into twistd: twistd asks the application for an `ILogObserver` component before it makes an
observer of its own, and it does so after makeService and before the first log event. So the service that
makeService returns sets that component when it is given its parent, which is the application:
`LoggedService`. Nothing is logged twice or in another format; twistd turns stdout and stderr into log
events, so with ``-n`` stdout holds JSON lines alone, from "starting up" to "Server Shut Down". What twistd
prints before there is a log (usage errors, another process's pid file) is plain text on stdout and stderr.
twistd's ``--logfile`` is honoured; its ``--logger`` wins over this module, and its ``--syslog`` is refused
together with JSON.

Secrets: nobody hands any to a log. As a second line, fields whose names say that they are secret are
blotted out, and so are credentials inside texts, tracebacks and URLs.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Optional, TextIO, cast

from twisted.application import service
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import (
    FileLogObserver,
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    formatEvent,
    formatTime,
    globalLogBeginner,
    textFileLogObserver,
)
from twisted.python import logfile, usage

if TYPE_CHECKING:
    from twisted.python.components import Componentized

BLOT = "..."
FLUSH_SECONDS = 0.2
MAX_LINES = 1000  # of requests that wait to be written
MAX_TEXT = 8192  # characters of one field: a line stays small enough for what collects lines
MAX_DEPTH = 3  # of structured values
MAX_ITEMS = 100  # of one structured value
MAX_PATH = 1024  # characters of a request's path

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
_TWISTED = frozenset(("system", "format", "isError", "why", "logLevel", "from_stdlib", "printed"))


# Made once: json.dumps with arguments of its own makes an encoder for every line.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


@functools.lru_cache(1024)
def _is_secret(name: str) -> bool:
    """Whether a field's name says that it is secret."""
    return _SECRET_NAME.search(name) is not None


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
        return _encode(fields) + "\n"
    except Exception as error:
        return (
            json.dumps({"time": _time(event), "level": "error", "namespace": __name__, "message": repr(error)}) + "\n"
        )


def _fields(event: LogEvent) -> dict[str, object]:
    level = event.get("log_level")
    fields: dict[str, object] = {
        "time": _time(event),
        "level": level.name if level is not None else "info",
        "namespace": str(event.get("log_namespace") or event.get("log_system") or "-"),
        "message": redacted(formatEvent(event)),
    }
    failure = event.get("log_failure")
    if failure is not None:
        fields["failure"] = redacted(failure.getTraceback())
    for name, value in event.items():
        if not name.startswith("log_") and name not in _FIXED and name not in _TWISTED:
            fields[name] = BLOT if _is_secret(name) else _plain(value)
    return fields


def _time(event: LogEvent) -> str:
    seconds = event.get("log_time")
    moment = datetime.datetime.fromtimestamp(seconds if seconds is not None else 0.0, datetime.timezone.utc)
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


class LoggedService(service.MultiService):
    """The outermost service: it sets up the log of the application that it becomes part of.

    *output* is `twistd_output`'s; None leaves the log as twistd makes it.
    """

    def __init__(self, output: Optional[LogOutput] = None) -> None:
        super().__init__()
        self._observer = None if output is None else output.observer()

    def setServiceParent(self, parent: object) -> None:
        if self._observer is not None:
            cast("Componentized", parent).setComponent(ILogObserver, self._observer)
        super().setServiceParent(cast(service.IServiceCollection, parent))


def check_destination(log_format: str, twistd_options: Mapping[str, Any]) -> None:
    """Raise `usage.UsageError` where ``--log-format`` and twistd's own options do not go together."""
    if log_format != "json":
        return
    if twistd_options.get("syslog"):
        raise usage.UsageError("--log-format: 'json' came with twistd's --syslog; --logfile or stdout is accepted")
    if twistd_options.get("logfile") == "-" and not twistd_options.get("nodaemon"):
        raise usage.UsageError("--logfile: '-' came without --nodaemon; daemons have no stdout, so a file is accepted")


class LogOutput:
    """Where all lines of a process go: *out* (text), in *log_format*. The many lines of requests are written together,
    a moment later (twistd's log files write each by a system call); before an event's line, and at the end."""

    def __init__(self, log_format: str, out: TextIO) -> None:
        self.json = log_format == "json"
        self.out = out
        self._lines: list[str] = []
        self._due: Optional[IDelayedCall] = None
        self._written_at_the_end = False

    def observer(self) -> ILogObserver:
        """What writes events."""
        write = cast(ILogObserver, json_observer(self.out) if self.json else textFileLogObserver(self.out))

        def observe(event: LogEvent) -> None:
            self._write_lines()
            write(event)

        return cast(ILogObserver, observe)

    def write(self, line: str) -> None:
        """Write a line that is ready, from the reactor's thread."""
        self._lines.append(line)
        if len(self._lines) >= MAX_LINES:
            self._write_lines()
        elif self._due is None:
            self._write_later()

    def _write_later(self) -> None:
        from twisted.internet import reactor

        timed: Any = reactor
        self._due = timed.callLater(FLUSH_SECONDS, self._write_now)
        if not self._written_at_the_end:
            self._written_at_the_end = True
            timed.addSystemEventTrigger("after", "shutdown", self._write_lines)

    def _write_now(self) -> None:
        self._due = None
        self._write_lines()

    def _write_lines(self) -> None:
        if self._lines:  # taken by one step: another thread may log an event
            lines, self._lines = self._lines, []
            self.out.write("".join(lines))
            self.out.flush()


def twistd_output(log_format: str, twistd_options: Optional[Mapping[str, Any]]) -> Optional[LogOutput]:
    """Where twistd would log to; None where the operator told twistd to use the syslog or a logger of their own.

    *twistd_options* are those of twistd (`Options.parent`), checked with `check_destination`.
    """
    options = twistd_options or {}
    if options.get("syslog") or options.get("logger"):
        return None
    return LogOutput(log_format, _log_file(str(options.get("logfile") or ""), bool(options.get("nodaemon"))))


def _log_file(name: str, nodaemon: bool) -> TextIO:
    """Where twistd would write: stdout with ``-n`` or ``-``, else a file that SIGUSR1 rotates."""
    if name == "-" or (nodaemon and not name):
        return sys.stdout
    file = logfile.LogFile.fromFullPath(name or "twistd.log")
    if not signal.getsignal(signal.SIGUSR1):

        def rotate(_number: int, _frame: object) -> None:
            from twisted.internet import reactor

            reactor.callFromThread(file.rotate)  # type: ignore[attr-defined]

        signal.signal(signal.SIGUSR1, rotate)
    return cast(TextIO, file)


def begin_logging(log_format: str, out: TextIO) -> LogOutput:
    """Begin logging to *out*, in a process that twistd did not start (a worker, a console script)."""
    output = LogOutput(log_format, out)
    globalLogBeginner.beginLoggingTo([output.observer()])
    return output


class AccessLog:
    """One ``access`` line for each answered request, to *output*; where there is none, an event.

    Fields: ``method``, ``path`` (percent-encoded as it came, without the query, which may hold tokens),
    ``status``, ``bytes`` (of the body), ``seconds`` (from the request's first line to its last byte),
    ``cache`` (the outcome, ``-`` for none), ``client`` (its address).
    """

    log = Logger()

    def __init__(self, output: Optional[LogOutput] = None, clock: Callable[[], float] = time.time) -> None:
        self._output = output
        self._clock = clock
        self._second = 0
        self._stamp = ""

    def request(
        self, method: bytes, target: bytes, status: int, size: int, seconds: float, cache: str, client: str
    ) -> None:
        """Log one request. *target* is the request target as it came; *size* in bytes."""
        shown_method, path = _shown(method[:32]), _shown(target.partition(b"?")[0][:MAX_PATH])
        text = f"{client} {shown_method} {path} {status} {size} {seconds:.4f} {cache or '-'}"
        if self._output is not None and not self._output.json:
            # Through Twisted's log a line costs 12 us, as much as a sixth of all that a cached frame costs.
            self._output.write(f"{self._now()} [{_ACCESS}#info] {text}\n")
            return
        fields: dict[str, object] = {
            "event": "access",
            "method": shown_method,
            "path": path,
            "status": status,
            "bytes": size,
            "seconds": round(seconds, 6),
            "cache": cache or "-",
            "client": client,
        }
        if self._output is None:
            self.log.emit(LogLevel.info, "{log_text}", log_text=text, **fields)
            return
        event = {"log_time": self._clock(), "log_level": LogLevel.info, "log_namespace": _ACCESS}
        known = {"time": _time(event), "level": "info", "namespace": _ACCESS, "message": redacted(text)}
        self._output.write(json.dumps({**known, **fields}, separators=(",", ":")) + "\n")

    def _now(self) -> str:
        """The time as twistd writes it, made once a second."""
        second = int(self._clock())
        if second != self._second:
            self._second, self._stamp = second, formatTime(second)
        return self._stamp


_ACCESS = f"{__name__}.{AccessLog.__name__}"


def _shown(raw: bytes) -> str:
    """Bytes that a client chose, fit for one line: no controls, which could forge lines or drive a terminal."""
    text = raw.decode("ascii", "backslashreplace")
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
