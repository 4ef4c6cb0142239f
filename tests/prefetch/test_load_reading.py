"""Readings of the machine's load, from figures and folders made for each test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.machine import MemoryReading
from twistedproxy.prefetch.gates import LoadReading
from twistedproxy.prefetch.load_reading import LoadReader, cpu_count, cpu_quotas

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


class Quotas(SynchronousTestCase):
    """CPUs of control groups, in folders laid out as the kernel does."""

    def setUp(self) -> None:
        self.root = Path(self.mktemp())
        self.write("proc/self/cgroup", "0::/\n")

    def write(self, path: str, text: str) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def test_v2(self) -> None:
        """A quota of version 2 is the quota over the period."""
        self.write("sys/fs/cgroup/cpu.max", "150000 100000\n")
        self.assertEqual(list(cpu_quotas(self.root)), [1.5])

    def test_v2_without_a_quota(self) -> None:
        """``max`` is no quota."""
        self.write("sys/fs/cgroup/cpu.max", "max 100000\n")
        self.assertEqual(list(cpu_quotas(self.root)), [])

    def test_v1(self) -> None:
        """A quota of version 1 stands in two files of the cpu controller; -1 is none."""
        self.write("proc/self/cgroup", "4:memory:/a\n2:cpu,cpuacct:/a\n0::/\n")
        self.write("sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "50000\n")
        self.write("sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n")
        self.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
        self.write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
        self.assertEqual(list(cpu_quotas(self.root)), [0.5])

    def test_groups_above(self) -> None:
        """The quota of every group above holds as well."""
        self.write("proc/self/cgroup", "0::/kubepods/pod/me\n")
        self.write("sys/fs/cgroup/kubepods/pod/me/cpu.max", "max 100000\n")
        self.write("sys/fs/cgroup/kubepods/pod/cpu.max", "200000 100000\n")
        self.write("sys/fs/cgroup/kubepods/cpu.max", "25000 100000\n")
        self.assertEqual(sorted(cpu_quotas(self.root)), [0.25, 2.0])
        self.assertEqual(cpu_count(self.root), 0.25)

    def test_path_of_the_host(self) -> None:
        """In a container that shows the host's path, the group is the one mounted at the top."""
        self.write("proc/self/cgroup", "3:cpu:/docker/abc\n")
        self.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n")
        self.write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
        self.assertEqual(list(cpu_quotas(self.root)), [0.5])

    def test_no_quota(self) -> None:
        """Without a quota, or without control groups, there are the CPUs that this process may run on."""
        alone = cpu_count(Path(self.mktemp()))
        self.assertGreaterEqual(alone, 1.0)
        self.assertEqual(cpu_count(self.root), alone)

    def test_large_quota(self) -> None:
        """A quota above what the machine has adds no CPU."""
        self.write("sys/fs/cgroup/cpu.max", "100000000 1000\n")
        self.assertEqual(cpu_count(self.root), cpu_count(Path(self.mktemp())))

    def test_nonsense(self) -> None:
        """Files that hold nonsense are no quota."""
        for text in ("", "1 2 3", "a b", "100 0", "-5 100"):
            self.write("sys/fs/cgroup/cpu.max", text)
            self.assertEqual(list(cpu_quotas(self.root)), [])
