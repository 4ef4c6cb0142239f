"""How many CPUs there are, with and without quotas of control groups."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.system.resources import cpu_count, cpu_quotas


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
