"""CPUs, memory and system load, with and without control groups around the process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.system.machine_load import (
    MemoryReading,
    SystemLoad,
    SystemLoadReader,
    cpu_count,
    cpu_quotas,
    read_memory,
)


def machine() -> MemoryReading:
    """A machine of 1000 bytes, 600 of which are available."""
    return MemoryReading(total=1000, available=600)


class MemoryTests(SynchronousTestCase):
    """`read_memory` on made-up roots."""

    def setUp(self) -> None:
        self.root = Path(self.mktemp())

    def write(self, files: dict[str, str]) -> MemoryReading:
        """The reading on a root that holds *files*."""
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return read_memory(self.root, machine)

    def test_no_groups(self) -> None:
        """Without control groups the machine's own figures count."""
        self.assertEqual(MemoryReading(1000, 600), self.write({}))

    def test_limit(self) -> None:
        """A version 2 group's limit counts, and page cache that can be reclaimed is available."""
        reading = self.write(
            {
                "proc/self/cgroup": "0::/pod/one\n",
                "sys/fs/cgroup/pod/one/memory.max": "500\n",
                "sys/fs/cgroup/pod/one/memory.current": "400\n",
                "sys/fs/cgroup/pod/one/memory.stat": "anon 100\ninactive_file 200\nactive_file 50\nslab_reclaimable 10\n",
            }
        )
        self.assertEqual(MemoryReading(500, 360), reading)

    def test_limit_of_an_outer_group(self) -> None:
        """A limit further out holds as well."""
        reading = self.write(
            {
                "proc/self/cgroup": "0::/pod/one\n",
                "sys/fs/cgroup/pod/one/memory.max": "max\n",
                "sys/fs/cgroup/pod/memory.max": "300\n",
                "sys/fs/cgroup/pod/memory.current": "250\n",
            }
        )
        self.assertEqual(MemoryReading(300, 50), reading)

    def test_path_of_the_host(self) -> None:
        """In a container that sees the host's path, the top of its own hierarchy counts."""
        reading = self.write({"proc/self/cgroup": "0::/docker/abc\n", "sys/fs/cgroup/memory.max": "200\n"})
        self.assertEqual(MemoryReading(200, 200), reading)

    def test_nonsense(self) -> None:
        """What cannot be read changes nothing."""
        reading = self.write({"proc/self/cgroup": "nonsense\n0::/x\n", "sys/fs/cgroup/x/memory.max": "lots"})
        self.assertEqual(MemoryReading(1000, 600), reading)

    def test_limit_beyond_the_machine(self) -> None:
        """A limit beyond what the machine has gives no more than the machine has."""
        reading = self.write({"proc/self/cgroup": "0::/x\n", "sys/fs/cgroup/x/memory.max": "5000"})
        self.assertEqual(MemoryReading(1000, 600), reading)

    def test_this_machine(self) -> None:
        """This machine has some memory, and more than is available."""
        reading = read_memory()
        self.assertGreater(reading.total, reading.available)
        self.assertGreater(reading.available, 0)


class CpuTests(SynchronousTestCase):
    """CPUs of control groups, in folders laid out as the kernel does."""

    def setUp(self) -> None:
        self.root = Path(self.mktemp())
        self.write("proc/self/cgroup", "0::/\n")

    def write(self, path: str, text: str) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def test_quota(self) -> None:
        """A quota is so many microseconds in a period."""
        self.write("sys/fs/cgroup/cpu.max", "150000 100000\n")
        self.assertEqual(list(cpu_quotas(self.root)), [1.5])

    def test_max(self) -> None:
        """``max`` is no quota."""
        self.write("sys/fs/cgroup/cpu.max", "max 100000\n")
        self.assertEqual(list(cpu_quotas(self.root)), [])

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
        self.write("proc/self/cgroup", "0::/docker/abc\n")
        self.write("sys/fs/cgroup/cpu.max", "50000 100000\n")
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


GIB = 1 << 30


def reader(**changed: Any) -> SystemLoadReader:
    figures: dict[str, Any] = {
        "cached_bytes": lambda: 0,
        "load_averages": lambda: (1.0, 0.5, 9.0),
        "cpus": lambda: 4.0,
        "memory": lambda: MemoryReading(total=16 * GIB, available=12 * GIB),
    }
    return SystemLoadReader(**{**figures, **changed})


def fails(*_: object) -> Any:
    raise OSError("cannot be read")


class SystemLoadTests(SynchronousTestCase):
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
        """What the cache in this process holds doesn't count, and never makes the figure negative."""
        self.assertEqual(reader(cached_bytes=lambda: 3 * GIB).read(0.0).memory_percent, 6.25)
        self.assertEqual(reader(cached_bytes=lambda: 99 * GIB).read(0.0).memory_percent, 0.0)

    def test_failures(self) -> None:
        """A figure that cannot be read is None, and the other is read all the same."""
        self.assertEqual(reader(load_averages=fails).read(0.0), SystemLoad(None, 25.0))
        self.assertEqual(reader(cpus=fails).read(0.0), SystemLoad(None, 25.0))
        self.assertEqual(reader(memory=fails).read(0.0), SystemLoad(25.0, None))
        self.assertEqual(reader(cached_bytes=fails).read(0.0), SystemLoad(25.0, None))

    def test_kept_for_a_second(self) -> None:
        """A reading holds for a second, then another is taken."""
        averages = iter([(1.0, 0.0, 0.0), (2.0, 0.0, 0.0), (3.0, 0.0, 0.0)])
        one = reader(load_averages=lambda: next(averages))
        self.assertEqual([one.read(now).cpu_percent for now in (5.0, 5.5, 5.99)], [25.0] * 3)
        self.assertEqual([one.read(now).cpu_percent for now in (6.0, 6.9)], [50.0] * 2)
        self.assertEqual(one.read(1.0).cpu_percent, 75.0, "a clock that was set back keeps no old reading for ever")

    def test_this_machine(self) -> None:
        """On the machine that runs this both figures can be read, and are percentages."""
        reading = SystemLoadReader().read(0.0)
        assert reading.cpu_percent is not None and reading.memory_percent is not None
        self.assertGreaterEqual(reading.cpu_percent, 0.0)
        self.assertTrue(0.0 < reading.memory_percent < 100.0)
