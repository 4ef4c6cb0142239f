"""twistedproxy-warm against a whole proxy and a store."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from tests.dicomweb.support import ALICE, ProxyCase, RunningProxy, token
from tests.running import free_port, python_environment
from tests.slides import Made, loop, slide
from tests.stores.dialects import NO_SYNTAX, STANDARD
from tests.stores.faults import Answer
from tests.waiting import wait_until, within
from twistedproxy.cache.lease import Lease
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicomweb import middleware
from twistedproxy.prefetch.load_lock import LOCK
from twistedproxy.warm import options as targets
from twistedproxy.warm.command import warm
from twistedproxy.warm.options import WarmOptions


class Terminal(io.StringIO):
    """What is written to a terminal."""

    def isatty(self) -> bool:
        return True


@attrs.frozen
class Run:
    """How a run of the command ended."""

    code: int
    out: str
    errors: str


class WarmCase(ProxyCase):
    """A study with slides of twelve frames and one image, and a proxy that loads by hand only."""

    def study(self, slides: int = 2) -> list[Made]:
        made = [slide(self.mktemp(), 3, 4, 64, study="1.2", series="1.3", sop=f"1.4.{n}") for n in range(slides)]
        return [*made, loop(self.mktemp(), 1, study="1.2", series="1.5", sop="1.6")]

    async def run_command(self, *arguments: str, terminal: bool = False, **environment: str) -> Run:
        from twisted.internet import reactor

        options = WarmOptions(environment)
        options.parseOptions(arguments)
        out, errors = io.StringIO(), Terminal() if terminal else io.StringIO()
        code = await within(warm(reactor, options, out, errors))
        return Run(code, out.getvalue(), errors.getvalue())


class WarmTests(WarmCase):
    """What is loaded, what is left out, what fails."""

    async def test_study(self) -> None:
        """All series of a study are loaded, one after the other; then no frame is asked of the store."""
        store = self.store(STANDARD, *(made := self.study()))
        proxy = await self.warm_proxy(store)
        run = await self.run_command(f"{proxy.url}/dicomweb/studies/1.2")
        self.assertEqual((run.code, run.errors), (0, ""))
        self.assertIn("1.3: 2 loaded, 24 frames, ", run.out)
        self.assertIn("1.5: 1 loaded, 1 frames, ", run.out)
        self.assertIn("3 loaded: 25 frames, ", run.out)
        asked = len(store.requests)
        for one in made:
            answer = await proxy.client().frames(one.resource, range(1, one.frames + 1))
            self.assertEqual(answer.frames(), one.stored_frames())
        self.assertEqual(len(store.requests), asked)

    async def test_series_and_instance(self) -> None:
        """Of a series only what is in it; what is named twice is loaded once; neither is searched for."""
        store = self.store(STANDARD, *self.study())
        proxy = await self.warm_proxy(store)
        url = f"{proxy.url}/dicomweb/studies/1.2/series/1.3"
        run = await self.run_command(url, f"{url}/instances/1.4.1")
        self.assertEqual((run.code, "2 loaded: 24 frames" in run.out), (0, True), run)
        self.assertEqual([line for line in store.lines() if "?" in line], [])

    async def test_stack(self) -> None:
        """A CT of 140 slices is loaded as a whole; what the store refuses of it is named, and the exit code is 1."""
        made = [loop(self.mktemp(), 1, 16, 16, study="1.2", series="1.3", sop=f"1.4.{n}") for n in range(140)]
        store = self.store(STANDARD, *made)
        run = await self.run_command(f"{(await self.warm_proxy(store)).url}/dicomweb/studies/1.2")
        self.assertEqual((run.code, "\n140 loaded: 140 frames, " in run.out, run.errors), (0, True, ""), run)
        store.fail(Answer(403), "1.4.7/frames", times=None)
        run = await self.run_command(url := f"{(await self.warm_proxy(store)).url}/dicomweb/studies/1.2/series/1.3")
        self.assertEqual(run.errors, f"{url}/instances/1.4.7: failed: the origin answered 403\n")
        self.assertEqual((run.code, "1.3: 139 loaded, 1 failed, 139 frames, " in run.out), (1, True), run)

    async def test_pages(self) -> None:
        """A study of more series than one search gives is searched to its end."""
        self.patch(targets, "PAGE", 2)
        made = [loop(self.mktemp(), 1, study="1.2", series=f"1.{n}", sop=f"1.{n}.1") for n in range(5)]
        proxy = await self.warm_proxy(self.store(STANDARD, *made), max_jobs=3)
        run = await self.run_command("-j", "3", f"{proxy.url}/dicomweb/studies/1.2")
        self.assertEqual((run.code, "5 loaded: 5 frames" in run.out), (0, True), run)

    async def test_waits_for_a_busy_proxy(self) -> None:
        """While the proxy is busy with other loads it is asked again as long as patience lasts, and no longer."""
        self.patch(middleware, "BUSY_RETRY_AFTER", 1)
        store = self.store(STANDARD, *self.study())
        proxy = await self.warm_proxy(store, block_pixels=1)  # small ones are not counted
        url = f"{proxy.url}/dicomweb/studies/1.2/series/1.3/instances"
        gate = store.hold(lambda seen: seen.path.endswith("1.4.0"))
        first = Deferred.fromCoroutine(self.run_command(f"{url}/1.4.0"))
        await gate.reached()
        run = await self.run_command("--patience", "0", f"{url}/1.4.1")
        self.assertEqual((run.code, "--max-jobs" in run.errors), (1, True), run)
        patient = Deferred.fromCoroutine(self.run_command(f"{url}/1.4.1"))
        await wait_until(lambda: self._refusals(proxy) == 2, "the proxy refuses for the second time")
        gate.release()
        self.assertEqual([(await first).code, (await patient).code], [0, 0])

    async def test_waits_for_another_worker(self) -> None:
        """While another worker or host loads it, the proxy is asked again; once that one has gone, it is loaded."""
        proxy = await self.warm_proxy(self.store(STANDARD, *self.study()))

        async def soon(_: Lease) -> float:
            return 0.5

        self.patch(Lease, "left", soon)
        instance = Instance(proxy.components.mounts.all[0].origin.url, "", "1.2", "1.3", "1.4.0")
        cache = proxy.components.cache
        fence = (await cache.get_many(instance, [])).fence
        assert fence is not None
        self.assertTrue(await cache.claim(instance, [LOCK + fence], b"another", 600.0))
        run = Deferred.fromCoroutine(self.run_command(f"{proxy.url}/dicomweb/studies/1.2/series/1.3/instances/1.4.0"))
        await wait_until(lambda: self._refusals(proxy, "4xx") == 1, "a refusal")
        await cache.unclaim(instance, [LOCK + fence], b"another")
        self.assertIn("1 loaded: 12 frames", (await run).out)

    @staticmethod
    def _refusals(proxy: RunningProxy, kind: str = "5xx") -> float:
        rows = proxy.components.metrics.snapshot().get("requests", [])
        return sum(row[0] for labels, row in rows if labels == ["prefetch", "POST", kind])

    async def test_loaded_lately(self) -> None:
        """What was loaded lately is no failure, and is loaded once more with --again."""
        proxy = await self.warm_proxy(self.store(STANDARD, *self.study()))
        url = f"{proxy.url}/dicomweb/studies/1.2/series/1.3/instances/1.4.0"
        await self.run_command(url)
        run = await self.run_command(url)
        self.assertEqual(run.code, 0, run)
        self.assertRegex(run.out, r"1\.4\.0: was loaded recently, .* or wait \d+ s\n")
        self.assertIn("1 loaded: 12 frames", (await self.run_command("--again", url)).out)

    async def test_failures(self) -> None:
        """One that fails is named with its reason, the others are loaded, and the end is not 0."""
        store = self.store(STANDARD, *self.study())
        store.fail(Answer(500), lambda seen: seen.path.endswith("1.4.0"), times=None)
        proxy = await self.warm_proxy(store)
        run = await self.run_command("--quiet", url := f"{proxy.url}/dicomweb/studies/1.2")
        self.assertEqual((run.code, run.out), (1, ""))
        self.assertRegex(run.errors, f"^{url}/series/1.3/instances/1.4.0: failed: .*500.*\n$")

    async def test_words_of_the_store(self) -> None:
        """Text from a server drives no terminal and makes no lines of its own."""
        store = self.store(STANDARD, *self.study())
        detail = json.dumps({"detail": "no\x1b]0;owned\x07\nall is loaded"}).encode()
        store.fail(Answer(403, (("Content-Type", "application/problem+json"),), detail), lambda seen: True, times=None)
        proxy = await self.warm_proxy(store)
        run = await self.run_command(url := f"{proxy.url}/dicomweb/studies/1.2")
        self.assertEqual(run.errors, f"{url}: 403 no\\u001b]0;owned\\u0007\\nall is loaded\n")

    async def test_not_allowed(self) -> None:
        """The caller's headers go along; without them the store's refusal is reported."""
        store = self.store(STANDARD, *self.study())
        store.allow(token(ALICE))
        proxy = await self.warm_proxy(store)
        url = f"{proxy.url}/dicomweb/studies/1.2"
        run = await self.run_command(url)
        self.assertEqual((run.code, f"{url}: 401 " in run.errors), (1, True), run)
        line = f"Authorization: {ALICE['Authorization']}"
        self.assertEqual((await self.run_command("--header-env", "MINE", url, MINE=line)).code, 0)

    async def test_prefetch_off(self) -> None:
        """A proxy that loads nothing is a failure, not something to leave out."""
        proxy = await self.warm_proxy(self.store(STANDARD, *self.study()), prefetch=False)
        run = await self.run_command(f"{proxy.url}/dicomweb/studies/1.2")
        self.assertEqual((run.code, "prefetch-off" in run.errors), (1, True), run)

    async def test_what_cannot_be_loaded(self) -> None:
        """What the proxy will never load is left out below a study, and fails where it is asked for by name."""
        packed = slide(self.mktemp(), 3, 4, 64, "raw", study="1.2", series="1.3", sop="1.7", extra={"BitsAllocated": 1})
        proxy = await self.warm_proxy(self.store(STANDARD, packed))
        url = f"{proxy.url}/dicomweb/studies/1.2"
        run = await self.run_command(url)
        self.assertEqual((run.code, "/instances/1.7: skipped: packed-frames\n" in run.out), (0, True), run)
        self.assertEqual((await self.run_command(f"{url}/series/1.3/instances/1.7")).code, 1)

    async def test_no_proxy(self) -> None:
        """Nothing that listens, a store without proxy, and an empty study are each reported in a line."""
        store = self.store(NO_SYNTAX, *self.study())
        empty = await self.run_command(f"http://127.0.0.1:{free_port()}/studies/1.2")
        self.assertEqual((empty.code, "no connection" in empty.errors), (1, True), empty)
        direct = await self.run_command(f"{store.url}/studies/1.2/series/1.3/instances/1.4.0")
        self.assertEqual((direct.code, len(direct.errors.splitlines())), (1, 1), direct)
        nothing = await self.run_command(f"{(await self.warm_proxy(store)).url}/dicomweb/studies/9.9")
        self.assertEqual((nothing.code, len(nothing.errors.splitlines())), (1, 1), nothing)

    async def test_proxy_ends(self) -> None:
        """A proxy that goes in the middle of a load is a failure."""
        store = self.store(STANDARD, *self.study())
        gate = store.hold(lambda seen: seen.path.endswith("1.4.0"))
        proxy = await self.warm_proxy(store, stop_deadline=0.0)
        running = Deferred.fromCoroutine(
            self.run_command(f"{proxy.url}/dicomweb/studies/1.2/series/1.3/instances/1.4.0")
        )
        await gate.reached()
        await proxy.components.connections.drain(0.0)
        run = await running
        self.assertEqual((run.code, "connection" in run.errors), (1, True), run)
        gate.release()


class ShowingTests(WarmCase):
    """How progress is shown."""

    async def test_bar(self) -> None:
        """On a terminal there is a bar with frames, MB/s and the time left, which ends full."""
        proxy = await self.warm_proxy(self.store(STANDARD, *self.study()))
        run = await self.run_command(f"{proxy.url}/dicomweb/studies/1.2", terminal=True)
        self.assertEqual(run.code, 0)
        self.assertRegex(run.errors, r"\r100%\|.*\| 25/25 frames \[\d\d:\d\d<\d\d:\d\d, [\d.]+ MB/s\]")

    async def test_terminal_without_a_size(self) -> None:
        """The bar is there on a terminal that claims to have no columns and no rows, as some consoles do."""
        proxy = await self.warm_proxy(self.store(STANDARD, *self.study()))
        url = f"{proxy.url}/dicomweb/studies/1.2/series/1.3"
        terminal, ours = pty.openpty()
        self.addCleanup(os.close, terminal)

        def run() -> int:
            command = [sys.executable, "-m", "twistedproxy.warm", url]
            try:
                return subprocess.run(
                    command, env=python_environment(), stdout=ours, stderr=ours, timeout=30
                ).returncode
            finally:
                os.close(ours)

        self.assertEqual(await deferToThread(run), 0)
        self.assertIn("24/24 frames [", os.read(terminal, 65536).decode())

    async def test_as_a_command(self) -> None:
        """As a process without a terminal it prints plain lines, and its exit code is 1 after a failure."""
        proxy = await self.warm_proxy(self.store(STANDARD, *self.study()))
        command = [sys.executable, "-m", "twistedproxy.warm"]
        url = f"{proxy.url}/dicomweb/studies/1.2/series/1.3"

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*command, *arguments], env=python_environment(), capture_output=True, text=True, timeout=30
            )

        good = await deferToThread(run, url)
        self.assertEqual((good.returncode, good.stderr), (0, ""))
        self.assertRegex(good.stdout, r"^1\.3: 2 loaded, 24 frames, .*\n2 loaded: 24 frames, .*\n$")
        bad = await deferToThread(run, f"{url}/instances/9.9")
        self.assertEqual(bad.returncode, 1)
        self.assertIn("404", bad.stderr)
        wrong = await deferToThread(run, "--no-such-option")
        self.assertEqual((wrong.returncode, wrong.stderr.count("\n")), (2, 1))
