"""Lines that children print: whole, and in one format."""

from __future__ import annotations

import io
import json

from twisted.internet.interfaces import IDelayedCall
from twisted.trial.unittest import SynchronousTestCase

from tests.dicomweb.support import logged
from tests.properties import given, st
from twistedproxy.processes import child as child_output
from twistedproxy.processes.child import ChildOutput
from twistedproxy.system.logs import LogOutput


class Output(LogOutput):
    """Keeps what is written."""

    def __init__(self, log_format: str) -> None:
        super().__init__(log_format, io.StringIO())
        self.lines: list[str] = []
        self._flush: IDelayedCall | None = None

    def write(self, line: str) -> None:
        assert line.endswith("\n")
        self.lines += line.splitlines()


class LineTests(SynchronousTestCase):
    """Pieces become lines."""

    @given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 30)), max_size=60))
    def test_two_workers(self, cuts: list[tuple[int, int]]) -> None:
        """However the output of two workers is cut and mixed, all lines of both come whole and in their order."""
        output = Output("text")
        said = ["".join(f"worker {w} line {n} äöü\n" for n in range(20)).encode() for w in (0, 1)]
        workers = [ChildOutput("worker", output), ChildOutput("worker", output)]
        rest = list(said)
        for worker, size in cuts:
            workers[worker].received(1, rest[worker][:size])
            rest[worker] = rest[worker][size:]
        for worker in (0, 1):
            workers[worker].received(1, rest[worker])
            workers[worker].ended()
            of_it = [line for line in output.lines if line.startswith(f"worker {worker}")]
            self.assertEqual(of_it, said[worker].decode().splitlines())
        self.assertEqual(len(output.lines), 40)

    def test_end(self) -> None:
        """What a worker left without an end of its line is a line when it has gone."""
        output = Output("text")
        lines = ChildOutput("worker", output)
        lines.received(1, b"whole\nhal")
        self.assertEqual(output.lines, ["whole"])
        lines.ended()
        self.assertEqual(output.lines, ["whole", "hal"])

    def test_endless(self) -> None:
        """A line without end takes no memory without end."""
        self.patch(child_output, "MAX_LINE", 100)
        output = Output("text")
        lines = ChildOutput("worker", output)
        for _ in range(50):
            lines.received(1, b"x" * 10)
        self.assertEqual("".join(output.lines), "x" * 440)
        self.assertEqual(len(output.lines), 4)


class FormatTests(SynchronousTestCase):
    """What is no line of a log."""

    def test_json(self) -> None:
        """Among JSON lines there is nothing else: what a worker printed beside its log becomes an event."""
        output = Output("json")
        lines = ChildOutput("worker", output)
        lines.pid = 17
        with logged() as events:
            lines.received(1, b'{"a":1}\nSegmentation fault\n\n{"b":2}\n')
        self.assertEqual([json.loads(line) for line in output.lines], [{"a": 1}, {"b": 2}])
        [event] = [event for event in events if event.get("line")]
        self.assertEqual((event["pid"], event["line"]), (17, "Segmentation fault"))

    def test_standard_error(self) -> None:
        """What comes on standard error becomes events; the last line is remembered."""
        output = Output("text")
        lines = ChildOutput("worker", output)
        with logged() as events:
            lines.received(2, b"Traceback\nImportError: nothing there\n\n")
        self.assertEqual(output.lines, [])
        self.assertEqual([event["line"] for event in events], ["Traceback", "ImportError: nothing there"])
        self.assertEqual(lines.last_error, "ImportError: nothing there")

    def test_no_output(self) -> None:
        """Where the operator has a logger of their own, each line goes there."""
        lines = ChildOutput("worker", None)
        with logged() as events:
            lines.received(1, b"one\ntwo\n")
        self.assertEqual([event["line"] for event in events], ["one", "two"])
