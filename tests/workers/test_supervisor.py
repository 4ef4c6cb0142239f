"""The parent with real processes that are no proxies: starts that fail, crash loops, reloads, ends."""

from __future__ import annotations

import os
import pickle
import signal
from functools import partial
from typing import Any

import psutil
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.logger import formatEvent
from twisted.trial.unittest import TestCase

from tests.dicomweb.support import logged
from tests.running import TREE, free_port
from tests.waiting import wait_until, within
from tests.workers import fake_worker
from twistedproxy.cache.address import LocalAddress, NoAddress
from twistedproxy.server.listening import bind
from twistedproxy.settings import Settings
from twistedproxy.system.metrics import merge
from twistedproxy.workers import supervisor, watchdog
from twistedproxy.workers.supervisor import Supervisor


class SupervisorCase(TestCase):
    """Two workers of `tests.workers.fake_worker`."""

    timeout = 60

    def setUp(self) -> None:
        self.patch(os, "environ", {**os.environ, "PYTHONPATH": str(TREE)})
        self.order = "good"
        self.before = set(self.children())

    def children(self) -> list[int]:
        """This process's living children."""
        return [child.pid for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]

    def family(self) -> set[int]:
        """Those of them that came since the test began: workers, and the spare."""
        return set(self.children()) - self.before

    def assert_nothing_left(self) -> None:
        self.assertEqual(set(self.children()) - self.before, set())

    def made(self, **settings: Any) -> Supervisor:
        """A parent, not yet started."""
        from twisted.internet import reactor

        known: dict[str, Any] = {
            "workers": 2,
            "cache": NoAddress(),
            "listen": ("tcp:0:interface=127.0.0.1",),
            "stop_deadline": 0.1,
        }
        found = Supervisor(
            reactor, Settings(**{**known, **settings}), None, partial(bind, reactor), fake_worker.__name__
        )
        found.packed = lambda: self.order.encode()  # type: ignore[method-assign]
        self.addCleanup(lambda: Deferred.fromCoroutine(found.stop()))
        return found

    async def started(self, **settings: Any) -> Supervisor:
        found = self.made(**settings)
        await within(found.start())
        return found

    async def stopped(self, parent: Supervisor) -> None:
        await within(parent.stop())
        self.assert_nothing_left()


class StartTests(SupervisorCase):
    """The beginning."""

    async def test_settings(self) -> None:
        """Every worker has all of the settings as they are: none is divided among the workers."""
        from twisted.internet import reactor

        settings = Settings(workers=3, origin_concurrency=7, cache=NoAddress())
        parent = Supervisor(reactor, settings, None, partial(bind, reactor), fake_worker.__name__)
        self.assertEqual(pickle.loads(parent.packed()), settings)

    async def test_started(self) -> None:
        """All workers are there when the start is over, and gone when the stop is."""
        parent = await self.started()
        self.assertEqual(len(parent.pids()), 2)
        children = set(self.children()) - self.before
        self.assertEqual((len(children), set(parent.pids()) - children), (3, set()), "a spare one too")
        await self.stopped(parent)

    async def test_announced(self) -> None:
        """Where to go and what to mind is said once, not by each worker, nor by those that come later."""
        with logged() as events:
            parent = await self.started(listen=("tcp:0:interface=127.0.0.1", "tcp:0:interface=0.0.0.0"))
            gone = parent.pids()[0]
            os.kill(gone, signal.SIGKILL)
            await wait_until(lambda: gone not in parent.pids() and len(parent.pids()) == 2, "another worker")
        here, everywhere = (port.getHost().port for port in parent._ports)
        announced = [event for event in events if event.get("log_namespace") == "twistedproxy.service"]
        self.assertEqual(
            [(event["event"], event.get("address") or event.get("base") or event["url"]) for event in announced],
            [
                ("page", f"http://127.0.0.1:{here}/"),
                ("page", f"http://localhost:{everywhere}/"),
                ("pages_exposed", f"IPv4Address(type='TCP', host='0.0.0.0', port={everywhere})"),
                ("mount", f"http://127.0.0.1:{here}/dicomweb"),
                ("example", f"http://127.0.0.1:{here}/dicomweb/studies"),
                ("mount", f"http://0.0.0.0:{everywhere}/dicomweb"),
                ("example", f"http://0.0.0.0:{everywhere}/dicomweb/studies"),
            ],
        )
        await self.stopped(parent)

    async def failed(self, **settings: Any) -> str:
        """Why a start failed; nothing is left of it."""
        parent = self.made(**settings)
        with self.assertRaises((OSError, RuntimeError, CannotListenError)) as caught:
            await within(parent.start())
        await self.stopped(parent)
        return str(caught.exception)

    async def test_refused(self) -> None:
        """A worker that cannot start ends the start with its reason."""
        self.order = "refuses"
        self.assertEqual(await self.failed(), "a worker could not be started: the origin has gone fishing")

    async def test_died(self) -> None:
        """One that dies at once ends it with how it died, and its last words."""
        self.order = "dies"
        reason = await self.failed()
        self.assertIn("exit code 3", reason)
        self.assertIn("Fatal: out of cheese", reason)

    async def test_chattering(self) -> None:
        """What workers print, more than a pipe holds, keeps nobody; every line of it arrives."""
        self.order = "chatters"
        with logged() as events:
            parent = await self.started()
            said = lambda: sum("x" * 1023 in formatEvent(event) for event in events)  # noqa: E731
            await wait_until(lambda: said() == 4 * fake_worker.CHATTER_LINES, "all lines")
        await self.stopped(parent)

    async def test_babbled(self) -> None:
        """One that talks nonsense is ended."""
        self.order = "babbles"
        self.assertIn("signal 9", await self.failed())

    async def test_silent(self) -> None:
        """One that never says that it listens is given up."""
        self.patch(supervisor, "START_SECONDS", 0.01)
        self.assertIn("is not ready after 0.01 s", await self.failed())

    async def test_port_taken(self) -> None:
        """A taken port is named, and no worker is started for it."""
        taken = f"tcp:{free_port()}:interface=127.0.0.1"
        reason = await self.failed(listen=(taken, taken))
        self.assertIn("Address already in use", reason)

    async def test_no_cache(self) -> None:
        """A folder that cannot be the cache's is named, and no worker is started."""
        folder = f"{os.getcwd()}/{self.mktemp()}"
        os.mkdir(folder, 0o755)
        reason = await self.failed(cache=LocalAddress(folder, 64 << 20))
        self.assertIn(f"{folder} is open to others (mode 755)", reason)

    async def test_stopped_meanwhile(self) -> None:
        """Stopped in the middle of its start, it leaves nothing."""
        parent = self.made()
        starting = Deferred.fromCoroutine(parent.start())
        starting.addErrback(lambda failure: failure.trap(RuntimeError) and None)
        await wait_until(lambda: set(self.children()) - self.before, "a worker")
        await self.stopped(parent)
        await within(starting)


class WatchTests(SupervisorCase):
    """Workers that end."""

    async def test_killed(self) -> None:
        """A worker that is killed is replaced, and only that one, by the spare process; there is a new spare then."""
        parent = await self.started()
        [spare] = set(self.children()) - self.before - set(parent.pids())
        gone, stays = parent.pids()
        os.kill(gone, signal.SIGKILL)
        await wait_until(lambda: gone not in parent.pids() and len(parent.pids()) == 2, "another worker")
        self.assertEqual(set(parent.pids()), {stays, spare})
        await wait_until(lambda: len(set(self.children()) - self.before) == 3, "another spare")
        os.kill(max(set(self.children()) - self.before - set(parent.pids())), signal.SIGKILL)
        os.kill(stays, signal.SIGKILL)
        await wait_until(lambda: stays not in parent.pids() and len(parent.pids()) == 2, "another worker, without it")
        await self.stopped(parent)

    async def test_spare_killed(self) -> None:
        """A spare process that ends has a successor, later."""
        self.patch(supervisor, "SPARE_SECONDS", 0.01)
        parent = await self.started()
        killed = await self.kill_spare(parent)
        await wait_until(lambda: len(self.family() - {killed}) == 3, "another spare")
        await self.stopped(parent)

    async def test_killed_without_spare(self) -> None:
        """A worker that ends while there is no spare is replaced at once, and then there is a spare again."""
        self.patch(supervisor, "SPARE_SECONDS", 3600.0)
        parent = await self.started()
        await self.kill_spare(parent)
        gone = parent.pids()[0]
        os.kill(gone, signal.SIGKILL)
        await wait_until(lambda: gone not in parent.pids() and len(self.family()) == 3, "another worker and spare")
        await self.stopped(parent)

    async def kill_spare(self, parent: Supervisor) -> int:
        [spare] = self.family() - set(parent.pids())
        with logged() as events:
            os.kill(spare, signal.SIGKILL)
            await wait_until(lambda: [event for event in events if event.get("event") == "spare_ended"], "its end")
        return spare

    async def test_hangs(self) -> None:
        """A worker that is stopped from outside answers nobody: it is killed and replaced, and the log says so."""
        self.patch(watchdog, "PING_SECONDS", 0.25)
        parent = await self.started()
        hangs = parent.pids()[0]
        with logged() as events:
            os.kill(hangs, signal.SIGSTOP)
            await wait_until(lambda: hangs not in parent.pids() and len(parent.pids()) == 2, "another worker")
        self.assertEqual([event["pid"] for event in events if event.get("event") == "worker_hangs"], [hangs])
        self.assertEqual(len([event for event in events if event.get("event") == "worker_ended"]), 1)
        await self.stopped(parent)

    async def test_crash_loop(self) -> None:
        """Workers that crash again and again are started ever later, each time with a line that says so."""
        parent = await self.started()
        self.order = "crashes later"
        with logged() as events:
            os.kill(parent.pids()[0], signal.SIGKILL)
            said = lambda: [event for event in events if event.get("event") == "worker_ended"]  # noqa: E731
            await wait_until(lambda: len(said()) == 4, "three crashes more")
            self.order = "good"
        self.assertEqual([event["delay"] for event in said()], [0.0, 0.1, 0.2, 0.4])
        restarts = merge(await parent._workers.handlers(parent._workers.all[0])["snapshots"]())["worker_restarts"]
        self.assertIn(restarts[0][1][0], (3.0, 4.0))  # the fourth comes after a delay
        self.assertIn("signal 9", said()[0]["reason"])
        self.assertIn("exit code 4", said()[1]["reason"])
        await self.stopped(parent)


class ReloadTests(SupervisorCase):
    """SIGHUP."""

    async def test_replaced(self) -> None:
        """All workers are replaced; reloads that are asked for meanwhile become one more."""
        parent = await self.started()
        first = set(parent.pids())
        with logged() as events:
            for _ in range(5):
                parent.reload()
            done = lambda: [event for event in events if event.get("event") == "reloaded"]  # noqa: E731
            await wait_until(lambda: len(done()) == 2, "two reloads")
        self.assertEqual(len(parent.pids()), 2)
        self.assertFalse(first & set(parent.pids()))
        await self.stopped(parent)

    async def test_failed(self) -> None:
        """Where new workers cannot start the old ones stay, and are watched as before."""
        parent = await self.started()
        first = parent.pids()
        self.order = "refuses"
        with logged() as events:
            parent.reload()
            await wait_until(lambda: [event for event in events if event.get("event") == "reload_failed"], "a line")
            await wait_until(lambda: len(parent.pids()) == 2, "the failed one is gone")
        self.assertEqual(parent.pids(), first)
        self.order = "good"
        os.kill(first[0], signal.SIGKILL)
        await wait_until(lambda: len(set(parent.pids()) - set(first)) == 1, "another worker")
        await self.stopped(parent)

    async def test_stubborn(self) -> None:
        """An old worker that does not end is killed after the deadline."""
        self.patch(supervisor, "KILL_SECONDS", 0.1)
        self.patch(supervisor, "IDLE_SECONDS", 0.1)
        self.order = "stays"
        parent = await self.started()
        first = parent.pids()
        self.order = "good"
        parent.reload()
        await wait_until(lambda: len(parent.pids()) == 2 and not set(first) & set(parent.pids()), "new workers")
        await self.stopped(parent)

    async def test_killed_meanwhile(self) -> None:
        """New and old workers that are killed while the others are replaced are not replaced twice, nor is the spare."""
        parent = await self.started()
        first = set(parent.pids())
        with logged() as events:
            parent.reload()
            await wait_until(lambda: set(parent.pids()) - first, "a new worker")
            for pid in parent.pids():
                os.kill(pid, signal.SIGKILL)
            done = lambda: [event for event in events if event.get("event") in ("reloaded", "reload_failed")]  # noqa: E731
            await wait_until(done, "the reload is over")

            def settled() -> bool:
                spare = parent._spare.child  # one that was killed may still be listed for a moment
                return len(parent.pids()) == 2 and spare is not None and self.family() == {*parent.pids(), spare.pid}

            await wait_until(settled, "two workers and the spare, and no other process")
        self.assertFalse(first & set(parent.pids()))
        await self.stopped(parent)

    async def test_stopped_meanwhile(self) -> None:
        """Stopped in the middle of a reload, old and new workers end; nobody is left behind."""
        parent = await self.started()
        first = set(parent.pids())
        parent.reload()
        await wait_until(lambda: set(parent.pids()) - first, "a new worker")
        await self.stopped(parent)

    async def test_too_early(self) -> None:
        """What is asked for while the workers are being started is done once they are there."""
        parent = self.made()
        starting = Deferred.fromCoroutine(parent.start())
        parent.reload()
        first: set[int] = set()
        starting.addCallback(lambda _: first.update(parent.pids()))
        await within(starting)
        await wait_until(lambda: len(parent.pids()) == 2 and not first & set(parent.pids()), "two others")
        await self.stopped(parent)

    async def test_too_late(self) -> None:
        """After the end a reload does nothing."""
        parent = self.made()
        await within(parent.start())
        await self.stopped(parent)
        parent.reload()
        self.assert_nothing_left()
