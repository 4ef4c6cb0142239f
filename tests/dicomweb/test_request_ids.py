"""Request ids from the client to the store, back to the client, and into the logs."""

from __future__ import annotations

import io
import json
from typing import Any

from twisted.logger import globalLogPublisher

from tests.clients import Answer
from tests.dicomweb.support import ALICE, STORED, ProxyCase, RunningProxy
from tests.stores import faults
from tests.stores.simulated import SimulatedStore
from twistedproxy.cache.address import LocalAddress, MemoryAddress
from twistedproxy.system.logs import LogOutput

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OWN = r"^[0-9a-f]{16}-[0-9a-f]{8,}$"


class RequestIdTests(ProxyCase):
    """A store, a proxy, and a client that sends ids or none."""

    origin: SimulatedStore
    running: RunningProxy

    async def begin(self, **settings: Any) -> None:
        self.origin = self.store()
        self.running = await self.proxy(self.origin, **settings)

    async def get(self, path: str, **headers: str) -> Answer:
        """Ask for *path* below the instance, with *headers* whose dashes are written as underscores."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.running.client({"Accept": STORED, **ALICE, **given}).get(f"/{self.slide.resource}/{path}")

    def sent(self, name: str) -> set[str]:
        """The values of a header in all requests that the store has seen."""
        return {request.header(name) for request in self.origin.requests}

    async def test_everywhere(self) -> None:
        """The proxy's own requests, those that it passes on, and the answers have the client's id."""
        await self.begin()
        for path in ("frames/1", "metadata", "frames/2?x=1"):
            answer = await self.get(path, X_Request_Id="gateway-7f")
            self.assertEqual((200, "gateway-7f"), (answer.status, answer.headers["x-request-id"]))
        self.assertEqual({"gateway-7f"}, self.sent("X-Request-Id"))
        self.assertGreater(len(self.origin.requests), 3)

    async def test_own(self) -> None:
        """Where there is none, or none that is fit, the store and the client see one of the proxy's, for each request another."""
        await self.begin()
        seen = set()
        for number, headers in enumerate(({}, {"X_Request_Id": "not fit"}, {}), start=1):
            answer = await self.get(f"frames/{number}", **headers)
            self.assertRegex(answer.headers["x-request-id"], OWN)
            seen.add(answer.headers["x-request-id"])
        self.assertEqual(3, len(seen))
        self.assertEqual(seen, self.sent("X-Request-Id"))

    async def test_store_answers_with_its_own(self) -> None:
        """An id in the store's answer is not the client's."""
        await self.begin()
        self.origin.fail(faults.Answer(200, (("X-Request-Id", "of-the-store"),), b"x"))
        answer = await self.get("frames/1?x=1", X_Request_Id="a-1")
        self.assertEqual("a-1", answer.headers["x-request-id"])

    async def test_refused(self) -> None:
        """Errors of the proxy and of the store have it, too."""
        await self.begin()
        self.origin.allow("somebody-else")
        for path, status in (("frames/0", 400), ("frames/1", 401), ("frames/1/none", 404)):
            answer = await self.get(path, X_Request_Id="a-1")
            self.assertEqual((status, "a-1"), (answer.status, answer.headers["x-request-id"]), path)

    async def test_trace_context(self) -> None:
        """traceparent and tracestate reach the store with all that is asked of it for a request; invalid ones do not."""
        await self.begin()
        for path in ("frames/1", "metadata"):
            await self.get(path, traceparent=PARENT, tracestate="a=1")
        self.assertEqual(({PARENT}, {"a=1"}), (self.sent("traceparent"), self.sent("tracestate")))
        self.origin.requests.clear()
        for path in ("frames/2", "metadata?x=1"):
            await self.get(path, traceparent="00-nothing", tracestate="a=1")
        self.assertEqual(({""}, {""}), (self.sent("traceparent"), self.sent("tracestate")))

    async def test_no_part_of_the_caller(self) -> None:
        """Requests that differ by these alone are one caller's: one grant, one cache, descriptions from it too."""
        await self.begin()
        for number, outcome in enumerate(("fwd=uri-miss; stored", "hit", "hit")):
            headers = {
                "X_Request_Id": f"a-{number}",
                "traceparent": PARENT[:-1] + str(number),
                "tracestate": f"a={number}",
            }
            for path in ("frames/1", "metadata"):
                answer = await self.get(path, **headers)
                self.assertEqual(f"twistedproxy; {outcome}", answer.headers["cache-status"], path)
                self.assertEqual(f"a-{number}", answer.headers["x-request-id"])

    async def test_logs(self) -> None:
        """Lines that are written while a request is handled have its id, in both formats; others have none."""
        await self.begin()
        outputs = {name: io.StringIO() for name in ("text", "json")}
        for name, out in outputs.items():
            observer = LogOutput(name, out).observer()
            globalLogPublisher.addObserver(observer)
            self.addCleanup(globalLogPublisher.removeObserver, observer)
        (mount,) = self.running.components.mounts.all
        self.patch(mount.origin, "forward", lambda _request: 1 / 0)
        self.assertEqual(500, (await self.get("frames/1?x=1", X_Request_Id="a-1")).status)
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
        await self.running.settled()
        self.running.components.access._log.info("of no request")
        lines = [json.loads(line) for line in outputs["json"].getvalue().splitlines()]
        told = {line["message"]: line.get("request_id") for line in lines}
        self.assertIsNone(told.pop("of no request"))
        self.assertEqual((2, {"a-1"}), (len(told), set(told.values())), told)
        text = outputs["text"].getvalue().splitlines()
        self.assertEqual([" a-1] " in line for line in text if line[0] != "\t"], [True, True, False])

    async def test_hot(self) -> None:
        """A hot answer has the id of its own request, not that of the request whose answer was kept."""
        await self.begin(hot_memory=1 << 24)
        for number in range(3):
            answer = await self.get("frames/1", X_Request_Id=f"a-{number}")
            self.assertEqual(f"a-{number}", answer.headers["x-request-id"])
        self.assertRegex((await self.get("frames/1")).headers["x-request-id"], OWN)
        self.assertEqual(1, len(self.origin.lines("/frames/1")))

    async def test_loads(self) -> None:
        """What a load asks the store for has the id of the request that began it, also in a child process."""
        for cache in (MemoryAddress(), LocalAddress()):
            self.origin = self.store()
            self.running = await self.warm_proxy(self.origin, cache=cache, block_pixels=1)
            client = self.running.client({**ALICE, "X-Request-Id": "warm-1"})
            answer = await client.request("POST", f"/{self.slide.resource}/prefetch?follow=1")
            self.assertEqual("done", json.loads(answer.body.splitlines()[-1])["result"])
            self.assertEqual({"warm-1"}, self.sent("X-Request-Id"))
            self.assertEqual(1, len([seen for seen in self.origin.requests if seen.path.endswith(self.slide.sop)]))
