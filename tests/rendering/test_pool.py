"""Rendering children: calls, their limits, and how both sides end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.trial.unittest import TestCase

from tests.cache.support import alive
from tests.running import signals
from tests.waiting import wait_until
from twistedproxy.imaging.errors import CallFailed, ChildDied, PoolBusy, PoolTimeout
from twistedproxy.processes.child import child_environment
from twistedproxy.rendering import pool as pools
from twistedproxy.rendering.pool import MODULE, RenderPool

STUB = "tests.rendering.stub_child"


class PoolCase(TestCase):
    """Pools that end with the test."""

    timeout = 30

    def pool(self, workers: int = 2, queue: int = 10, seconds: float = 20.0) -> RenderPool:
        from twisted.internet import reactor

        pool = RenderPool(reactor, workers, queue, seconds, STUB)
        self.addCleanup(lambda: Deferred.fromCoroutine(pool.stop()))
        return pool


def started(coroutine: Any) -> Deferred[Any]:
    """*coroutine* under way."""
    return Deferred.fromCoroutine(coroutine)


class CallTests(PoolCase):
    """Calls and what becomes of them."""

    async def test_large_values(self) -> None:
        """Megabytes go there and back unchanged, also where they are a part of something."""
        blob = os.urandom(1 << 20) * 5
        answer = await self.pool().call({"op": "echo"}, [blob, b"", b"x", memoryview(blob)[5:]])
        self.assertEqual(list(answer.blobs), [blob, b"", b"x", blob[5:]])

    async def test_as_many_children_as_allowed(self) -> None:
        """Children are started as they are needed, up to the limit, and used again."""
        pool = self.pool(workers=2)
        first = (await pool.call({"op": "echo"})).head["pid"]
        self.assertEqual((await pool.call({"op": "echo"})).head["pid"], first)
        self.assertEqual(pool.pids, [first])
        answers = await gatherResults([started(pool.call({"op": "slow", "seconds": 0.05})) for _ in range(6)])
        self.assertEqual(len({answer.head["pid"] for answer in answers}), 2)
        self.assertEqual(len(pool.pids), 2)

    async def test_full_queue(self) -> None:
        """Beyond the queue's limit a call is refused at once; those in the queue are all done."""
        pool = self.pool(workers=1, queue=3)
        calls = [started(pool.call({"op": "echo"}, [b"%d" % number])) for number in range(3)]
        await self.assertFailure(started(pool.call({"op": "echo"})), PoolBusy)
        answers = await gatherResults(calls)
        self.assertEqual([answer.blobs[0] for answer in answers], [b"0", b"1", b"2"])
        self.assertEqual(pool.status(), {"children": 1, "busy": 0, "waiting": 0})

    async def test_failure(self) -> None:
        """What a child could not do is told, and the child lives on."""
        pool = self.pool(workers=1)
        error = await self.assertFailure(started(pool.call({"op": "fail"})), CallFailed)
        self.assertEqual((error.kind, str(error)), ("BadImage", "no"))
        pids = pool.pids
        await pool.call({"op": "echo"})
        self.assertEqual(pool.pids, pids)

    async def test_crash(self) -> None:
        """A crash fails the one call; who waits gets another child."""
        pool = self.pool(workers=1)
        crash, after = started(pool.call({"op": "crash"})), started(pool.call({"op": "echo"}, [b"x"]))
        await self.assertFailure(crash, ChildDied)
        self.assertEqual((await after).blobs[0], b"x")

    async def test_garbage(self) -> None:
        """A child that does not speak the language any more is ended, and its call fails."""
        pool = self.pool(workers=1)
        await self.assertFailure(started(pool.call({"op": "garbage"})), ChildDied)
        self.assertEqual((await pool.call({"op": "echo"}, [b"x"])).blobs[0], b"x")

    async def test_deadline(self) -> None:
        """A call that does not come back ends its child after the time allowed."""
        pool = self.pool(workers=1, seconds=0.2)
        await pool.call({"op": "echo"})
        pid = pool.pids[0]
        await self.assertFailure(started(pool.call({"op": "hang"})), PoolTimeout)
        await wait_until(lambda: pid not in pool.pids)
        await pool.call({"op": "echo"})

    async def test_cancelled_in_the_queue(self) -> None:
        """Who leaves the queue leaves nothing behind."""
        pool = self.pool(workers=1)
        running = started(pool.call({"op": "slow", "seconds": 0.1}))
        waiting = started(pool.call({"op": "note"}, [b"never"]))
        waiting.cancel()
        await self.assertFailure(waiting, CancelledError)
        await running
        self.assertEqual(list((await pool.call({"op": "notes"})).blobs), [])

    async def test_cancelled_at_work(self) -> None:
        """A call that nobody waits for may end by itself, and its child is used again for the next."""
        pool = self.pool(workers=1)
        await pool.call({"op": "echo"})
        pids = pool.pids
        call = started(pool.call({"op": "slow", "seconds": 0.1}))
        call.cancel()
        await self.assertFailure(call, CancelledError)
        self.assertEqual((await pool.call({"op": "echo"}, [b"mine"])).blobs[0], b"mine")
        self.assertEqual(pool.pids, pids)

    async def test_cancelled_and_hanging(self) -> None:
        """A call that nobody waits for and that does not end takes its child along."""
        self.patch(pools, "GRACE_SECONDS", 0.1)
        pool = self.pool(workers=1)
        await pool.call({"op": "echo"})
        pids = pool.pids
        call = started(pool.call({"op": "hang"}))
        call.cancel()
        await self.assertFailure(call, CancelledError)
        await pool.call({"op": "echo"})
        self.assertNotEqual(pool.pids, pids)


class HeldTests(PoolCase):
    """Children that hold something."""

    async def test_the_same_child(self) -> None:
        """Calls about what a child holds go to that child, while others use it in between."""
        pool = self.pool(workers=2)
        held = pool.held()
        await held.call({"op": "note"}, [b"1"])
        others = [started(pool.call({"op": "slow", "seconds": 0.02})) for _ in range(5)]
        for number in (b"2", b"3"):
            await held.call({"op": "note"}, [number])
        self.assertEqual(list((await held.call({"op": "notes"})).blobs), [b"1", b"2", b"3"])
        await gatherResults(others)

    async def test_gone(self) -> None:
        """When the child is gone, what it held is, and says so."""
        pool = self.pool(workers=1)
        held = pool.held()
        await held.call({"op": "note"}, [b"1"])
        crash = started(pool.call({"op": "crash"}))
        queued = started(held.call({"op": "notes"}))
        await self.assertFailure(crash, ChildDied)
        await self.assertFailure(queued, ChildDied)
        await self.assertFailure(started(held.call({"op": "notes"})), ChildDied)
        await pool.call({"op": "echo"})


class ReadyTests(PoolCase):
    """Children that are there before anybody asks."""

    def kept(self, workers: int = 2) -> RenderPool:
        """A pool that has children ready."""
        self.patch(pools, "FIRST_SECONDS", 0.0)
        pool = self.pool(workers)
        pool.start()
        return pool

    async def test_first(self) -> None:
        """One child is ready without a call, and does the first."""
        pool = self.kept()
        await wait_until(lambda: pool.status() == {"children": 1, "busy": 0, "waiting": 0})
        (pid,) = pool.pids
        self.assertEqual((await pool.call({"op": "echo"})).head["pid"], pid)
        self.assertEqual(pool.pids, [pid])

    async def test_replaced(self) -> None:
        """A child that ends has another in its place without a call, and never more than may be."""
        pool = self.kept(workers=1)
        await wait_until(lambda: pool.status() == {"children": 1, "busy": 0, "waiting": 0})
        pids = pool.pids
        await self.assertFailure(started(pool.call({"op": "crash"})), ChildDied)
        await wait_until(lambda: pool.pids != pids and pool.status() == {"children": 1, "busy": 0, "waiting": 0})

    async def test_does_not_come_up(self) -> None:
        """A first child that cannot start is not tried again and again: the next call tells."""
        pool = self.kept()
        pool.module = "tests.rendering.no_such_module"
        await wait_until(lambda: pool._not_before > 0)
        self.assertEqual(pool.pids, [])
        await self.assertFailure(started(pool.call({"op": "echo"})), PoolBusy)

    async def test_stopped_before(self) -> None:
        """A pool that stops before its first child has started leaves none, and no timer."""
        pool = self.pool()
        pool.start()
        await pool.stop()
        self.assertEqual(pool.pids, [])


class RealChildTests(PoolCase):
    """The real child, at work."""

    timeout = 120  # it runs only where nothing else wants to

    def setUp(self) -> None:
        self.patch(pools, "START_SECONDS", 90.0)

    async def test_short_time_slices(self) -> None:
        """What it does in a call may be interrupted at C level (see `short_time_slices`)."""
        pool = self.pool(workers=1, seconds=90.0)
        pool.module = MODULE
        await pool.call({"op": "drop", "number": 0})
        self.assertIn(signal.SIGALRM, signals(pool.pids[0], "SigCgt"))

    async def test_interrupted(self) -> None:
        """Ctrl-C in a terminal reaches the children too; what they are at is done before the proxy ends."""
        pool = self.pool(workers=1, seconds=90.0)
        pool.module = MODULE
        await pool.call({"op": "drop", "number": 0})
        (child,) = pool.pids
        os.kill(child, signal.SIGINT)
        await pool.call({"op": "drop", "number": 0})
        self.assertEqual(pool.pids, [child])


class EndTests(PoolCase):
    """Ends."""

    async def test_stop(self) -> None:
        """Stopping ends the children and tells all who wait."""
        pool = self.pool(workers=1)
        await pool.call({"op": "echo"})
        (pid,) = pool.pids
        running, waiting = started(pool.call({"op": "hang"})), started(pool.call({"op": "echo"}))
        await pool.stop()
        await self.assertFailure(running, ChildDied)
        await self.assertFailure(waiting, PoolBusy)
        await self.assertFailure(started(pool.call({"op": "echo"})), PoolBusy)
        self.assertRaises(ProcessLookupError, os.kill, pid, 0)

    async def test_no_child_comes_up(self) -> None:
        """Where children do not start, calls fail at once for a while, instead of starting one after the other."""
        pool = self.pool()
        pool.module = "tests.rendering.no_such_module"
        await self.assertFailure(started(pool.call({"op": "echo"})), PoolBusy)
        await self.assertFailure(started(pool.call({"op": "echo"})), PoolBusy)
        self.assertEqual(pool.pids, [])

    async def test_killed_proxy(self) -> None:
        """A child ends when its proxy is killed, even if its pipe does not: so would one that is at work."""
        pipe = os.pipe()
        for descriptor in pipe:
            self.addCleanup(os.close, descriptor)
        command = [sys.executable, "-c", PROXY, *map(str, pipe)]
        proxy = subprocess.Popen(  # noqa: ASYNC220 -- it is not waited for but to end
            command, stdout=subprocess.PIPE, env=child_environment(), pass_fds=pipe
        )
        assert proxy.stdout is not None
        pid = int(proxy.stdout.readline())
        os.kill(pid, 0)
        proxy.send_signal(signal.SIGKILL)
        proxy.wait()
        proxy.stdout.close()
        await wait_until(lambda: not alive(pid))


PROXY = """
import os, subprocess, sys, time
from twistedproxy.processes.messages import CONTROL_IN, CONTROL_OUT, Message
source, target = map(int, sys.argv[1:])
mine, answers = os.pipe()

def descriptors():
    os.dup2(source, 100)
    os.dup2(answers, 101)
    os.dup2(100, CONTROL_IN)
    os.dup2(101, CONTROL_OUT)

command = [sys.executable, "-m", "twistedproxy.rendering.child"]
child = subprocess.Popen(command, preexec_fn=descriptors, pass_fds=[CONTROL_IN, CONTROL_OUT])
os.write(target, b"".join(Message({"call": "ping", "id": 1, "with": {}}).packed()))
assert len(os.read(mine, 4)) == 4
print(child.pid, flush=True)
time.sleep(60)
"""
"""Prints its rendering child's number, once that has come up. The child's pipe stays open without it."""
