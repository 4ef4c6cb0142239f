"""twistd's ``--uid``: started as root, the real process goes on as another user, on a port that only root may bind."""

from __future__ import annotations

import functools
import os
import pwd
import random
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from typing import Optional

import psutil
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.clients import client
from tests.dicomweb.support import ALICE, STORED
from tests.running import TREE, Child, free_port, listens, python_environment
from tests.waiting import wait_until
from tests.workers.support import MEMORY, WorkersCase, over_tcp
from twistedproxy.server.listening import Ports, changes_user

USER = "nobody"
TWISTD = ("-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile=", f"--uid={USER}", "twistedproxy")


def interpreters() -> list[tuple[str, str]]:
    """Pythons, and the path to be given to each."""
    packages = os.pathsep.join([str(TREE), *{sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}])
    return [(sys.executable, str(TREE)), ("/usr/bin/python3", packages)]


@functools.cache
def usable() -> Optional[tuple[str, str]]:
    """The first of them that `USER`, too, may read all of. Some live in root's home."""
    for python, path in interpreters():
        environment = python_environment({"PYTHONPATH": path})
        command = [python, "-P", "-c", "import gzip, twistedproxy.proxy"]
        try:
            tried = subprocess.run(command, user=USER, env=environment, cwd="/", capture_output=True, check=False)
        except OSError:
            continue
        if tried.returncode == 0:
            return python, path
    return None


def privileged_port() -> Optional[int]:
    """A free loopback port below 1024, None where there is none for us. Any of them: tests may run side by side."""
    for port in random.sample(range(600, 1024), 424):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except PermissionError:
                return None
            except OSError:
                continue
            return port
    return None


class AnotherUserTests(WorkersCase):
    """Real processes."""

    if os.geteuid() != 0:
        skip = "only root may become another user"

    async def begun(self, *options: str) -> tuple[Child, int]:
        """A proxy of that user's, and its port."""
        found, port = usable(), privileged_port()
        if found is None or port is None:
            self.skipTest(f"{USER} may read no Python that has all packages" if port else "no port below 1024 is free")
        python, path = found  # type: ignore[misc]
        listen = f"tcp:{port}:interface=127.0.0.1"
        command = [
            python,
            *TWISTD,
            "--listen",
            listen,
            "--origin",
            self.store.url,
            *MEMORY,
            "--log-format",
            "json",
            *options,
        ]
        proxy = Child(command, {"PYTHONPATH": path, "HOME": "/root", "TMPDIR": tempfile.gettempdir()})
        self.addCleanup(deferToThread, proxy.remove)
        await wait_until(lambda: proxy.logged("mount") or not proxy.running(), "it is there")
        assert port is not None
        return proxy, port

    async def assert_serves(self, port: int) -> None:
        answer = await client(self, f"http://127.0.0.1:{port}", ALICE).get(self.frame_path, {"Accept": STORED})
        self.assertEqual((answer.status, self.frame in answer.body), (200, True))

    def assert_nobody(self, family: list[psutil.Process], least: int) -> None:
        """All are that user's, and know where that one is at home; one at least is among them."""
        nobody = pwd.getpwnam(USER)
        self.assertEqual({(nobody.pw_uid, nobody.pw_uid)}, {process.uids()[:2] for process in family})
        own = [process for process in family if "-m twistedproxy." in " ".join(process.cmdline())]
        homes = [process.environ().get("HOME") for process in own]
        self.assertEqual({nobody.pw_dir}, set(homes))
        self.assertGreaterEqual(len(homes), least)

    async def ends(self, proxy: Child) -> None:
        proxy.send(signal.SIGTERM)
        self.assertEqual(-signal.SIGTERM, await self.ended(proxy))
        self.assert_no_complaints(proxy)

    async def test_one_process(self) -> None:
        """One process serves, its loader and its cache server are that user's too, and it ends in order."""
        proxy, port = await self.begun()
        await self.assert_serves(port)
        self.assert_nobody(proxy.family(), 1)
        await self.ends(proxy)
        with self.assertRaises(ConnectionRefusedError):
            over_tcp(port)

    async def test_workers(self) -> None:
        """So do two workers, and those that replace them in a reload."""
        proxy, port = await self.begun("--workers", "2")
        await self.assert_serves(port)
        proxy.send(signal.SIGHUP)
        await wait_until(lambda: proxy.logged("reloaded"), "a reload")
        await self.assert_serves(port)
        self.assert_nobody(proxy.family(), 3)
        await self.ends(proxy)


class PortsTests(TestCase):
    """What is bound early, on real sockets."""

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.ports = Ports(reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.ports.close()))
        self.port = free_port()
        self.description = f"tcp:{self.port}:interface=127.0.0.1"

    def is_taken(self) -> bool:
        return listens(self.port)

    async def test_listened_at(self) -> None:
        """A port that was bound early is there at once; who listens has it alone, and it is gone when they stop."""
        self.ports.bind_early([self.description, "unix:never-made"])
        self.assertTrue(self.is_taken())
        listening = await self.ports.listen(self.description, Factory())
        self.assertEqual(self.port, listening.getHost().port)  # type: ignore[attr-defined]
        await self.ports.close()
        self.assertTrue(self.is_taken())
        await listening.stopListening()  # type: ignore[misc]
        self.assertFalse(self.is_taken())
        self.assertNotIn("never-made", os.listdir())

    async def test_not_asked_for(self) -> None:
        """What nobody asks for in the end is closed, also what could not be bound."""
        self.ports.bind_early([self.description, f"tcp:{self.port}:interface=0.0.0.0"])
        await self.ports.close()
        self.assertFalse(self.is_taken())

    async def test_failed(self) -> None:
        """That a port cannot be bound is said when it is asked for."""
        with socket.socket() as other:
            other.bind(("127.0.0.1", self.port))
            other.listen()
            self.ports.bind_early([self.description])
        with self.assertRaises(CannotListenError):
            await self.ports.bind(self.description)

    async def test_nothing_early(self) -> None:
        """Without another user nothing is bound before it is asked for."""
        self.assertFalse(self.is_taken())
        bound = await self.ports.bind(self.description)
        self.assertEqual(self.port, bound.getHost().port)  # type: ignore[attr-defined]
        await bound.stopListening()  # type: ignore[misc]

    def test_changes(self) -> None:
        """twistd's options tell; a user of number 0 is one."""
        known = [changes_user(one) for one in (None, {}, {"uid": None, "gid": None}, {"uid": 0}, {"gid": 7})]
        self.assertEqual([False, False, False, True, True], known)
