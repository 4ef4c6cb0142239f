"""Logs: JSON lines with stable names and without secrets, also from a real twistd."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.application.internet import ClientService
from twisted.application.service import Application
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, Logger, LogLevel, globalLogPublisher, textFileLogObserver
from twisted.python import usage
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

import twistedproxy
from twistedproxy.system.log_json import MAX_TEXT, json_line, json_observer
from twistedproxy.system.logs import MAX_LINES, AccessLog, LoggedService, LogOutput, check_destination, twistd_output

TWISTD = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()")
TREE = str(Path(twistedproxy.__file__).parents[1])

TAC = """
import sys
from twisted.application.service import Application, Service
from twisted.internet import reactor
from twisted.logger import Logger
from twisted.python import log
from twistedproxy.system.logs import LoggedService, twistd_output

class Noise(Service):
    def startService(self):
        Logger(namespace="noise").info("hello {name}", name="world", event="greeted")
        log.msg("old style", system="-")
        print("printed")
        sys.stderr.write("to stderr\\n")
        reactor.callLater(0, lambda: 1 / 0)
        reactor.callLater(0, reactor.stop)

application = Application("noise")
top = LoggedService(twistd_output("json", OPTIONS))
Noise().setServiceParent(top)
top.setServiceParent(application)
"""


class JSONTests(SynchronousTestCase):
    """Events as JSON lines."""

    def setUp(self) -> None:
        self.out = io.StringIO()
        self.log = Logger(namespace="test", observer=json_observer(self.out))

    def line(self) -> dict[str, Any]:
        """The one line that was logged."""
        text = self.out.getvalue()
        self.assertEqual(1, text.count("\n"), text)
        return dict(json.loads(text))

    def test_names(self) -> None:
        """A line has the stable names and the event's own fields."""
        self.log.info("{count} frames", event="job_ended", count=3, instance="studies/1.2")
        line = self.line()
        self.assertRegex(line.pop("time"), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        expected = {
            "level": "info",
            "namespace": "test",
            "message": "3 frames",
            "event": "job_ended",
            "count": 3,
            "instance": "studies/1.2",
        }
        self.assertEqual(expected, line)

    def test_time_is_utc(self) -> None:
        """Time is UTC, in milliseconds."""
        line = json.loads(json_line({"log_time": 1.25, "log_level": LogLevel.warn, "log_format": "x"}))
        self.assertEqual(("1970-01-01T00:00:01.250Z", "warn"), (line["time"], line["level"]))

    def test_failure(self) -> None:
        """A failure comes as its traceback, in the same line."""
        self.log.failure("no {what}", failure=Failure(ValueError("reason")), what="luck")
        line = self.line()
        self.assertEqual(("critical", "no luck"), (line["level"], line["message"]))
        self.assertIn("ValueError: reason", line["failure"])

    def test_values(self) -> None:
        """Values that JSON does not know become text; structures stay, within bounds."""
        deep: list[object] = []
        for _ in range(10):
            deep = [deep]
        self.log.info("x", a=b"\xff\x00", b=float("nan"), c={"k": (1, None)}, d=LogLevel, e=deep, f=range(2), g=True)
        line = self.line()
        self.assertEqual(("\\xff\x00", "nan", {"k": [1, None]}), (line["a"], line["b"], line["c"]))
        self.assertEqual(("range(0, 2)", True), (line["f"], line["g"]))
        self.assertEqual([[["[[[[[[[[]]]]]]]]"]]], line["e"])

    def test_one_line(self) -> None:
        """Newlines in messages stay inside their line."""
        self.log.info("a\nb{c}", c="\r\n{}")
        self.assertEqual("a\nb\r\n{}", self.line()["message"])

    def test_own_names_win(self) -> None:
        """A field cannot pass for another line's time or level."""
        event = {"log_namespace": "test", "log_level": LogLevel.info, "log_format": "x", "log_time": 0.0}
        line = json.loads(
            json_line({**event, "time": "never", "level": "none", "message": ("old",), "namespace": "other"})
        )
        self.assertEqual(("info", "test", "x"), (line["level"], line["namespace"], line["message"]))
        self.assertNotEqual("never", line["time"])

    def test_broken_event(self) -> None:
        """An event that cannot be formatted is still a line."""

        class Broken:
            def __str__(self) -> str:
                raise RuntimeError("no text")

            __repr__ = __str__

        self.log.info("{x}", x=Broken())
        self.assertIn("message", self.line())

    def test_long_text(self) -> None:
        """A text is cut to a bounded length."""
        self.log.info("{x}", x="y" * 100_000)
        self.assertLessEqual(len(self.line()["x"]), MAX_TEXT + 3)

    def test_secrets(self) -> None:
        """Credentials are blotted out wherever they can be told."""
        self.log.failure(
            "asked https://me:hunter2@store/x?access_token=hunter2&a=1 with Authorization: Bearer hunter2hunter2",
            failure=Failure(ValueError("redis://:hunter2@h:1/0 Basic aHVudGVyMjpodW50ZXIy")),
            authorization="hunter2",
            session_cookie="hunter2",
            headers={"Set-Cookie": "hunter2", "x-api-key": "hunter2", "accept": "image/jpeg"},
            text=["Bearer hunter2hunter2"],
            raw=b"Basic aHVudGVyMjpodW50ZXIy",
        )
        text = self.out.getvalue()
        self.assertNotIn("hunter2", text)
        self.assertNotIn("aHVudGVy", text)
        line = self.line()
        self.assertIn("https://...@store/x?access_token=...&a=1", line["message"])
        self.assertEqual("image/jpeg", line["headers"]["accept"])

    def test_plain_text_is_left_alone(self) -> None:
        """What only looks a little like a secret stays readable."""
        message = "basic authentication at http://store/a?b=c, digest of the bearer"
        self.log.info("{text}", text=message)
        self.assertEqual(message, self.line()["message"])


def _output(log_format: str, out: io.StringIO) -> LogOutput:
    """An output whose delayed flush keeps no reactor waiting."""
    output = LogOutput(log_format, out)
    output.write = out.write  # type: ignore[assignment, method-assign]
    return output


@implementer(IStreamClientEndpoint)
class FailingEndpoint:
    """Where nothing can be reached."""

    asked = 0

    def connect(self, protocolFactory: object) -> Deferred[Any]:
        self.asked += 1
        return fail(ConnectError())


class OutputTests(SynchronousTestCase):
    """Lines of requests among those of events."""

    def test_order(self) -> None:
        """Lines of requests wait to be written together, and stand before the event that came after them."""
        out = io.StringIO()
        output = LogOutput("text", out)
        output._write_later = lambda: None  # type: ignore[method-assign]
        observer = output.observer()
        output.write("one\n")
        output.write("two\n")
        self.assertEqual("", out.getvalue())
        observer({"log_format": "three", "log_time": 0.0, "log_level": LogLevel.info, "log_namespace": "x"})
        self.assertEqual(["one", "two"], out.getvalue().splitlines()[:2])
        self.assertTrue(out.getvalue().endswith("three\n"))

    def test_nothing_drives_a_terminal(self) -> None:
        """Controls in what came from elsewhere are escaped, in text and in JSON; further lines are indented."""
        said = "caf\xe9 \x1b[2J\x9b31m\x07\r\u202e\x00 2026-01-01T00:00:00+0000 [forged#info]\nmore"
        for log_format in ("text", "json"):
            out = io.StringIO()
            Logger(namespace="x", observer=LogOutput(log_format, out).observer()).warn("{said}", said=said)
            line = out.getvalue()
            self.assertTrue(line.replace("\n\t", "").removesuffix("\n").isprintable(), line)
            self.assertIn("caf\xe9 \\u001b[2J\\u009b31m\\u0007", line)
        self.assertEqual(json.loads(line)["message"], said)

    def test_no_lines_of_factories(self) -> None:
        """Twisted's own lines about factories and retries are left out."""
        out = io.StringIO()
        observer = LogOutput("text", out).observer()
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        factory = Factory()
        factory.doStart()
        factory.doStop()
        clock, endpoint = Clock(), FailingEndpoint()
        service = ClientService(endpoint, factory, clock=clock, retryPolicy=lambda attempt: 1.0)
        service.startService()
        clock.advance(1.0)
        self.assertEqual(endpoint.asked, 2)
        service.stopService()
        Logger(namespace="x").info("heard")
        self.assertEqual(out.getvalue().count("\n"), 1, out.getvalue())

    def test_bound(self) -> None:
        """No more than so many wait."""
        out = io.StringIO()
        output = LogOutput("text", out)
        output._write_later = lambda: None  # type: ignore[method-assign]
        for _line in range(MAX_LINES + 1):
            output.write("line\n")
        self.assertEqual(MAX_LINES, out.getvalue().count("\n"))


class AccessTests(SynchronousTestCase):
    """The access log."""

    def test_fields(self) -> None:
        """An answered request has its fields, and no query, which may hold tokens."""
        out = io.StringIO()
        log = AccessLog(_output("json", out))
        log.request(
            b"GET", b"/dicomweb/studies?access_token=hunter2", 200, 8700, 0.00123456, "hit", "127.0.0.1", "ab-1"
        )
        line = json.loads(out.getvalue())
        del line["time"]
        expected = {
            "level": "info",
            "namespace": "twistedproxy.system.logs.AccessLog",
            "message": "127.0.0.1 GET /dicomweb/studies 200 8700 0.0012 hit",
            "event": "access",
            "method": "GET",
            "path": "/dicomweb/studies",
            "status": 200,
            "bytes": 8700,
            "seconds": 0.001235,
            "cache": "hit",
            "client": "127.0.0.1",
            "request_id": "ab-1",
        }
        self.assertEqual(expected, line)

    def test_text_is_as_events_are(self) -> None:
        """A line of text looks as one that Twisted's log made, with the id of the request behind the level."""
        ours, twisteds = io.StringIO(), io.StringIO()
        moment = 1795377600.5
        with_output = AccessLog(_output("text", ours), clock=lambda: moment)
        events: list[dict[str, Any]] = []
        by_event = AccessLog()
        by_event.log = Logger(namespace="twistedproxy.system.logs.AccessLog", observer=events.append)  # type: ignore[arg-type]
        for log in (with_output, by_event):
            log.request(b"GET", b"/x", 200, 5, 0.25, "", "127.0.0.1", "ab-1")
        textFileLogObserver(twisteds)({**events[0], "log_time": moment})  # type: ignore[operator]
        self.assertEqual(twisteds.getvalue().replace("#info]", "#info ab-1]"), ours.getvalue())
        _output("text", ours).observer()({**events[0], "log_time": moment})
        self.assertEqual(1, len(set(ours.getvalue().splitlines())))

    def test_nothing_forged(self) -> None:
        """Controls and raw bytes of a request are escaped, and its length is bounded."""
        out = io.StringIO()
        log = AccessLog(_output("json", out))
        log.request(b"G\x1b[31m" + b"X" * 99, b"/\r\n\xff{x}" + b"y" * 5000, 400, 0, 0.0, "", "-", "ab-1")
        event = json.loads(out.getvalue())
        self.assertTrue(event["method"].startswith("G\\x1b[31m"))
        self.assertTrue(event["path"].startswith("/\\x0d\\x0a\\xff{x}y"))
        self.assertLess(len(event["path"]), 1100)
        self.assertLess(len(event["method"]), 40)


class TwistdTests(SynchronousTestCase):
    """The way into twistd."""

    def test_what_the_operator_chose_is_left_alone(self) -> None:
        """With the syslog, or a logger of the operator's own, the log is as twistd makes it."""
        self.assertIsNone(twistd_output("text", {"nodaemon": True, "syslog": True}))
        self.assertIsNone(twistd_output("text", {"nodaemon": True, "logger": "my.logger"}))

    def test_component(self) -> None:
        """The outermost service gives the application its observer."""
        out = io.StringIO()
        application = Application("x")
        LoggedService(LogOutput("json", out)).setServiceParent(application)
        Logger(observer=application.getComponent(ILogObserver)).info("hello")
        self.assertEqual("hello", json.loads(out.getvalue())["message"])

    def test_syslog_refused(self) -> None:
        """JSON lines do not go to syslog."""
        error = self.assertRaises(usage.UsageError, check_destination, "json", {"syslog": True})
        self.assertIn("--log-format", str(error))

    def test_daemon_without_file(self) -> None:
        """A daemon has no stdout to log to."""
        self.assertRaises(usage.UsageError, check_destination, "json", {"logfile": "-", "nodaemon": False})

    def run_twistd(self, options: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run a noisy application to its end."""
        folder = Path(self.mktemp())
        folder.mkdir()
        (folder / "noise.tac").write_text(TAC.replace("OPTIONS", options))
        command = [*TWISTD, "-n", "--pidfile=", "--rundir", str(folder), "-y", str(folder / "noise.tac"), *arguments]
        environ = {**os.environ, "PYTHONPATH": TREE}
        return subprocess.run(command, capture_output=True, env=environ, timeout=60, check=False)

    def check_lines(self, text: bytes) -> None:
        """All that the application and twistd said is there, as JSON alone."""
        lines = [json.loads(line) for line in text.splitlines()]
        messages = " ".join(line["message"] for line in lines)
        for expected in ("starting up", "hello world", "old style", "printed", "to stderr", "Server Shut Down"):
            self.assertIn(expected, messages)
        [greeted] = [line for line in lines if line.get("event") == "greeted"]
        self.assertEqual("world", greeted["name"])
        self.assertTrue(any("ZeroDivisionError" in line.get("failure", "") for line in lines))

    def test_stdout_holds_json_alone(self) -> None:
        """With ``twistd -n``, every line on stdout is JSON, from first to last, and stderr is empty."""
        done = self.run_twistd("{'nodaemon': True}")
        self.assertEqual((0, b""), (done.returncode, done.stderr))
        self.check_lines(done.stdout)

    def test_log_file(self) -> None:
        """With twistd's ``--logfile`` the lines go there."""
        path = os.path.abspath(self.mktemp())
        done = self.run_twistd(repr({"nodaemon": True, "logfile": path}))
        self.assertEqual((0, b"", b""), (done.returncode, done.stdout, done.stderr))
        self.check_lines(Path(path).read_bytes())
