"""Readings of memory, with and without control groups around the process."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.system.resources import MemoryReading, VirtualMemory, read_memory


def machine() -> VirtualMemory:
    """A machine of 1000 bytes, 600 of which are available."""
    return SimpleNamespace(total=1000, available=600)


class MachineTests(SynchronousTestCase):
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

    def test_v2(self) -> None:
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

    def test_v1(self) -> None:
        """A version 1 group counts in the same way."""
        reading = self.write(
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/\n4:memory:/one\n0::/\n",
                "sys/fs/cgroup/memory/one/memory.limit_in_bytes": "800",
                "sys/fs/cgroup/memory/one/memory.usage_in_bytes": "700",
                "sys/fs/cgroup/memory/one/memory.stat": "total_inactive_file 100\ntotal_active_file 100\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            }
        )
        self.assertEqual(MemoryReading(800, 300), reading)

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
