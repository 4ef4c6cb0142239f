"""Readings of the machine's load, from figures and folders made for each test."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.prefetch.load_reading import LoadReader
from twistedproxy.prefetch.rules import LoadReading
from twistedproxy.system.resources import MemoryReading

GIB = 1 << 30


def reader(**changed: Any) -> LoadReader:
    figures: dict[str, Any] = {
        "cached_bytes": lambda: 0,
        "load_averages": lambda: (1.0, 0.5, 9.0),
        "cpus": lambda: 4.0,
        "memory": lambda: MemoryReading(total=16 * GIB, available=12 * GIB),
    }
    return LoadReader(**{**figures, **changed})


def fails(*_: object) -> Any:
    raise OSError("cannot be read")


class Readings(SynchronousTestCase):
    """Figures in, percentages out."""

    def test_cpu(self) -> None:
        """CPU load is the larger of the 1- and the 5-minute load average, over the CPUs, in percent."""
        self.assertEqual(reader().read(0.0).cpu_percent, 25.0)
        self.assertEqual(reader(load_averages=lambda: (0.5, 3.0, 9.0)).read(0.0).cpu_percent, 75.0)
        self.assertEqual(reader(cpus=lambda: 0.5).read(0.0).cpu_percent, 200.0)

    def test_memory(self) -> None:
        """Memory in use is the total less what is available, in percent."""
        self.assertEqual(reader().read(0.0).memory_percent, 25.0)

    def test_cache_is_not_in_use(self) -> None:
        """What the embedded cache holds doesn't count, and never makes the figure negative."""
        self.assertEqual(reader(cached_bytes=lambda: 3 * GIB).read(0.0).memory_percent, 6.25)
        self.assertEqual(reader(cached_bytes=lambda: 99 * GIB).read(0.0).memory_percent, 0.0)

    def test_failures(self) -> None:
        """A figure that cannot be read is None, and the other is read all the same."""
        self.assertEqual(reader(load_averages=fails).read(0.0), LoadReading(None, 25.0))
        self.assertEqual(reader(cpus=fails).read(0.0), LoadReading(None, 25.0))
        self.assertEqual(reader(memory=fails).read(0.0), LoadReading(25.0, None))
        self.assertEqual(reader(cached_bytes=fails).read(0.0), LoadReading(25.0, None))

    def test_kept_for_a_second(self) -> None:
        """A reading holds for a second, then another is taken."""
        averages = iter([(1.0, 0.0, 0.0), (2.0, 0.0, 0.0), (3.0, 0.0, 0.0)])
        one = reader(load_averages=lambda: next(averages))
        self.assertEqual([one.read(now).cpu_percent for now in (5.0, 5.5, 5.99)], [25.0] * 3)
        self.assertEqual([one.read(now).cpu_percent for now in (6.0, 6.9)], [50.0] * 2)
        self.assertEqual(one.read(1.0).cpu_percent, 75.0, "a clock that was set back keeps no old reading for ever")

    def test_this_machine(self) -> None:
        """On the machine that runs this both figures can be read, and are percentages."""
        reading = LoadReader().read(0.0)
        assert reading.cpu_percent is not None and reading.memory_percent is not None
        self.assertGreaterEqual(reading.cpu_percent, 0.0)
        self.assertTrue(0.0 < reading.memory_percent < 100.0)
