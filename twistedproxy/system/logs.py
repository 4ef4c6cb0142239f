"""Logs: for people as twistd writes them, for machines as JSON lines (`twistedproxy.system.log_json`).

How it gets into twistd: twistd asks the application for an `ILogObserver` component before it makes an
observer of its own, and it does so after makeService and before the first log event. So the service that
makeService returns sets that component when it is given its parent, which is the application:
`LoggedService`. Nothing is logged twice or in another format; twistd turns stdout and stderr into log
events, so with ``-n`` stdout holds JSON lines alone, from "starting up" to "Server Shut Down". What twistd
prints before there is a log (usage errors, another process's pid file) is plain text on stdout and stderr.
twistd's ``--logfile`` is honoured; its ``--logger`` wins over this module, and its ``--syslog`` is refused
together with JSON.
"""

from __future__ import annotations

import json
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
    formatEventAsClassicLogText,
    formatTime,
    globalLogBeginner,
)
from twisted.python import logfile, usage

from twistedproxy.system.log_json import json_observer, printable, redacted, time_of
from twistedproxy.system.tracing import current_trace

if TYPE_CHECKING:
    from twisted.python.components import Componentized

FLUSH_SECONDS = 0.2
MAX_LINES = 1000  # of requests that wait to be written
MAX_PATH = 1024  # characters of a request's path

_NOISE = frozenset(
    (
        "Starting factory {factory!r}",
        "Stopping factory {factory!r}",
        "Scheduling retry {attempt} to connect {endpoint} in {delay} seconds.",
    )
)
"""Of Twisted, for each connection that it makes: a third of all lines, and they say nothing of where it leads."""


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
        raise usage.UsageError("--log-format: 'json' cannot be used with twistd's --syslog; use --logfile or stdout")
    if twistd_options.get("logfile") == "-" and not twistd_options.get("nodaemon"):
        raise usage.UsageError("--logfile: '-' needs --nodaemon, because a daemon has no stdout; name a file")


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
        write = json_observer(self.out) if self.json else FileLogObserver(self.out, _text_line)

        def observe(event: LogEvent) -> None:
            if event.get("log_format") not in _NOISE:
                self._write_lines()
                trace = current_trace.get()
                write(event if trace is None else {"request_id": trace.request_id, **event})

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


def _text_line(event: LogEvent) -> Optional[str]:
    """An event as twistd writes it, with the id of the request behind the level: in what came from elsewhere nothing drives a
    terminal. Further lines are indented."""
    if request_id := event.get("request_id"):
        level: Any = event.get("log_level", LogLevel.info)
        system = event.get("log_system") or f"{event.get('log_namespace', '-')}#{level.name}"
        event = {**event, "log_system": f"{system} {request_id}"}
    text = formatEventAsClassicLogText(event)
    return None if text is None else printable(text, also="\n\t")


def twistd_output(log_format: str, twistd_options: Optional[Mapping[str, Any]]) -> Optional[LogOutput]:
    """Where twistd would log to; None where twistd was started with --syslog or --logger.

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
    ``cache`` (the outcome, ``-`` for none), ``client`` (its address), ``request_id`` (`twistedproxy.system.tracing`).
    """

    log = Logger()

    def __init__(self, output: Optional[LogOutput] = None, clock: Callable[[], float] = time.time) -> None:
        self._output = output
        self._clock = clock
        self._second = 0
        self._stamp = ""

    def request(
        self,
        method: bytes,
        target: bytes,
        status: int,
        size: int,
        seconds: float,
        cache: str,
        client: str,
        request_id: str,
    ) -> None:
        """Log one request. *target* is the request target as it came; *size* in bytes."""
        shown_method, path = _shown(method[:32]), _shown(target.partition(b"?")[0][:MAX_PATH])
        text = f"{client} {shown_method} {path} {status} {size} {seconds:.4f} {cache or '-'}"
        if self._output is not None and not self._output.json:
            # Through Twisted's log a line costs 12 us, as much as a sixth of all that a cached frame costs.
            self._output.write(f"{self._now()} [{_ACCESS}#info {request_id}] {text}\n")
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
            "request_id": request_id,
        }
        if self._output is None:
            self.log.emit(LogLevel.info, "{log_text}", log_text=text, **fields)
            return
        known = {"time": time_of(self._clock()), "level": "info", "namespace": _ACCESS, "message": redacted(text)}
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
