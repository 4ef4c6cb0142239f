"""What the tests themselves stand on: slides, stores, clients, waiting."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pydicom
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import ResponseFailed
from twisted.web.resource import Resource

from tests import slides
from tests.clients import MemoryClient, RawConnection, client, split_multipart
from tests.running import Child, Store
from tests.slides import ENCODINGS, OffsetTable, encoded_frame, loop, slide
from tests.stores import dialects, faults, orthanc
from tests.stores.dialects import DIALECTS, media_ranges
from tests.stores.holdings import big_pieces
from tests.stores.simulated import SimulatedStore
from tests.waiting import NeverHappened, wait_until, within

STORED = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'


def dicom_part(path: Path) -> tuple[dict[str, str], bytes]:
    """Headers and body that store one file (PS3.18 section 10.5)."""
    head = b"--stow\r\nContent-Type: application/dicom\r\n\r\n"
    content_type = 'multipart/related; type="application/dicom"; boundary=stow'
    return {"Content-Type": content_type}, head + path.read_bytes() + b"\r\n--stow--\r\n"


class SlideTests(SynchronousTestCase):
    """DICOM files hold what was asked for."""

    def test_every_encoding(self) -> None:
        """pydicom finds in a file of each encoding the frames that were put there, all different."""
        for name, encoding in ENCODINGS.items():
            made = slide(self.mktemp(), 2, 2, 64 if encoding.side is None else None, encoding=name)
            frames = made.stored_frames()
            expected = [encoded_frame(name, number, made.rows, made.columns) for number in range(1, 5)]
            if encoding.encapsulated:
                expected = [frame + b"\x00" * (len(frame) % 2) for frame in expected]
            self.assertEqual(frames, expected, name)
            self.assertEqual(len(set(frames)), 4, name)
            self.assertEqual(pydicom.dcmread(made.path).file_meta.TransferSyntaxUID, encoding.transfer_syntax)

    def test_offset_tables_and_fragments(self) -> None:
        """Frames are the same whatever table there is and however many fragments they lie in."""
        expected = slide(self.mktemp(), 2, 2, 64).stored_frames()
        for table, fragments in (
            (OffsetTable.NONE, 1),
            (OffsetTable.NONE, 3),
            (OffsetTable.BASIC, 3),
            (OffsetTable.EXTENDED, 1),
        ):
            made = slide(self.mktemp(), 2, 2, 64, offset_table=table, fragments_per_frame=fragments)
            self.assertEqual(made.stored_frames(), expected, (table, fragments))

    def test_what_is_no_plain_slide(self) -> None:
        """Sparse ones say where frames stand, planes and paths repeat the grid, a loop has no total matrix."""
        sparse = pydicom.dcmread(slide(self.mktemp(), 2, 3, 16, sparse=True, encoding="raw").path)
        self.assertEqual(sparse.DimensionOrganizationType, "TILED_SPARSE")
        self.assertEqual(len(sparse.PerFrameFunctionalGroupsSequence), 3)
        self.assertEqual(slide(self.mktemp(), 2, 3, 16, focal_planes=3, optical_paths=2).frames, 36)
        looped = pydicom.dcmread(loop(self.mktemp(), 5).path)
        self.assertEqual((looped.NumberOfFrames, "TotalPixelMatrixColumns" in looped), (5, False))

    def test_odd_native_frames(self) -> None:
        """Native frames of odd length lie side by side, and one pad byte follows them all."""
        made = slides.multi_frame(self.mktemp(), 3, 3, 5, "raw")
        self.assertEqual([len(frame) for frame in made.stored_frames()], [45] * 3)
        self.assertEqual(len(pydicom.dcmread(made.path).PixelData), 136)


class AcceptTests(SynchronousTestCase):
    """What the simulated store reads in Accept."""

    def test_quotes_and_lists(self) -> None:
        """Separators inside quotes are no separators."""
        self.assertEqual(
            media_ranges('multipart/related; type="a/b;c,d"; Transfer-Syntax=*, image/jpeg'),
            [("multipart/related", {"type": "a/b;c,d", "transfer-syntax": "*"}), ("image/jpeg", {})],
        )

    def test_as_stored_or_not(self) -> None:
        """Each store sends frames as stored for its own words, and decompresses or refuses for others'."""
        stored = SimulatedStore(Clock()).add(slide(self.mktemp(), 1, 1, 32).path)
        star, any_type = STORED, 'multipart/related; type="*/*"'
        expected = {
            "standard": (star, True),
            "orthanc": (star, True),
            "dcm4chee": (star, False),
            "google": (star, True),
        }
        for name, (accept, as_stored) in expected.items():
            form = DIALECTS[name].choose(stored, accept)
            assert isinstance(form, dialects.Form)
            self.assertEqual(form.stored, as_stored, name)
        for name, as_stored in (("orthanc", False), ("dcm4chee", True)):
            form = DIALECTS[name].choose(stored, any_type)
            assert isinstance(form, dialects.Form)
            self.assertEqual(form.stored, as_stored, name)


class StoreCase(TestCase):
    """A simulated store with one small slide."""

    def store(self, dialect: dialects.Dialect = dialects.STANDARD, **more: Any) -> SimulatedStore:
        from twisted.internet import reactor

        self.slide = slide(self.mktemp(), 2, 3, 64)
        store = SimulatedStore(reactor, dialect, [self.slide.path], **more).start()
        self.addCleanup(lambda: ensureDeferred(store.stop()))
        self.client = client(self, store.url)
        return store


class SimulatedStoreTests(StoreCase):
    """The simulated store does what a store does."""

    async def test_every_dialect_sends_stored_frames(self) -> None:
        """Asked in its own words, each kind of store sends the frames as stored."""
        words = {"dcm4chee": 'multipart/related; type="*/*"', "dcm4chee-old": 'multipart/related; type="*/*"'}
        for name, dialect in DIALECTS.items():
            store = self.store(dialect)
            frames = self.slide.stored_frames()
            answer = await self.client.frames(self.slide.resource, [3, 1], words.get(name))
            content_type = answer.headers["content-type"]
            if name == "static":
                content_type += "; boundary=" + answer.body[2:].splitlines()[0].decode()
            parts = split_multipart(content_type, answer.body)
            self.assertEqual([part.body for part in parts], [frames[2], frames[0]], name)
            self.assertEqual(store.lines(), [f"GET /{self.slide.resource}/frames/3,1"])

    async def test_metadata_search_and_instance(self) -> None:
        """Metadata, a search and the whole file are those of the instance."""
        store = self.store()
        metadata = (await self.client.get(f"/{self.slide.resource}/metadata")).json()[0]
        self.assertEqual(metadata["00280008"]["Value"], [6])
        self.assertEqual(metadata["00083002"]["Value"], ["1.2.840.10008.1.2.4.50"])
        self.assertTrue(metadata["7FE00010"]["BulkDataURI"].startswith(store.url))
        found = await self.client.get(f"/instances?SOPInstanceUID={self.slide.sop}&PatientID=SL*")
        self.assertEqual([item["00080018"]["Value"] for item in found.json()], [[self.slide.sop]])
        self.assertEqual((await self.client.get("/studies?PatientID=nobody")).status, 204)
        whole = await self.client.get(f"/{self.slide.resource}")
        self.assertEqual(whole.frames(), [self.slide.path.read_bytes()])

    async def test_store_and_delete(self) -> None:
        """What is stored can be read, and is gone once deleted."""
        self.store()
        other = loop(self.mktemp(), 2)
        headers, body = dicom_part(other.path)
        answer = await self.client.request("POST", "/studies", headers, body)
        self.assertEqual(answer.json()["00081199"]["Value"][0]["00081155"]["Value"], [other.sop])
        self.assertEqual((await self.client.frames(other.resource, [2])).frames(), [other.stored_frames()[1]])
        self.assertEqual((await self.client.request("DELETE", f"/studies/{other.study}")).status, 204)
        self.assertEqual((await self.client.frames(other.resource, [2])).status, 404)

    async def test_access(self) -> None:
        """Without a token 401; with one that does not cover the instance 403, and no search result either."""
        store = self.store()
        store.allow("good", self.slide.sop)
        store.allow("poor", "1.2.3")
        path = f"/{self.slide.resource}/metadata"
        self.assertEqual((await self.client.get(path)).status, 401)
        self.assertEqual((await self.client.get(path, {"Authorization": "Bearer good"})).status, 200)
        self.assertEqual((await self.client.get(path, {"Authorization": "Bearer poor"})).status, 403)
        self.assertEqual((await self.client.get("/instances", {"Authorization": "Bearer poor"})).status, 204)
        store.tokens.clear()
        store.users["ann"] = "secret"
        self.assertEqual((await self.client.get(path, {"Authorization": orthanc.basic("ann", "secret")})).status, 200)
        self.assertEqual((await self.client.get(path, {"Authorization": orthanc.basic("ann", "guess")})).status, 401)

    async def test_upload_is_seen_as_it_arrives(self) -> None:
        """The first bytes of a chunked upload are seen before the last are sent."""
        store = self.store()
        raw = await RawConnection.open(store.port)
        self.addCleanup(lambda: ensureDeferred(raw.close()))
        raw.send(b"POST /dicomweb/studies HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await store.requested("/studies")
        await wait_until(lambda: store.requests[0].body_bytes == 5, "the first bytes")
        raw.send(b"4\r\nlast\r\n0\r\n\r\n")
        self.assertIn(b"HTTP/1.1 200 OK", await raw.until(b"\r\n\r\n"))
        self.assertEqual(store.requests[0].body_bytes, 9)

    async def test_big(self) -> None:
        """A body is made on the fly in the size that was asked for, and a client that leaves stops it."""
        store = self.store()
        answer = await self.client.get("/studies/1/bulkdata/big?size=200001")
        self.assertEqual(answer.body, b"".join(big_pieces(200001)))
        raw = await RawConnection.open(store.port)
        raw.pause()
        raw.send(b"GET /dicomweb/studies/1/bulkdata/big?size=2000000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        await store.requested("big", 2)
        await raw.close()
        await wait_until(lambda: store.requests[1].aborted, "the end of the request")
        self.assertLess(store.requests[1].sent, 50_000_000)

    async def test_pipelined_requests(self) -> None:
        """Requests that come at once are answered one after the other."""
        store = self.store()
        raw = await RawConnection.open(store.port)
        self.addCleanup(lambda: ensureDeferred(raw.close()))
        raw.send(b"GET /dicomweb/studies?PatientID=x HTTP/1.1\r\n\r\n" * 3)
        await wait_until(lambda: raw.received.count(b"204 No Content") == 3, "three answers")
        self.assertEqual((len(store.requests), store.factory.accepted), (3, 1))


class FaultTests(StoreCase):
    """The simulated store fails as it is told, and only so often."""

    async def failed(self, store: SimulatedStore, fault: faults.Fault, match: str = "/frames/") -> Any:
        store.fail(fault, match)
        return await self.client.frames(self.slide.resource, [1, 2])

    async def test_wrong_bodies(self) -> None:
        """Each fault that changes an answer is visible in it, and the next answer is right."""
        store = self.store()
        right = (await self.client.frames(self.slide.resource, [1, 2])).body
        half = await self.failed(store, faults.HalfMultipart())
        self.assertEqual(half.body, right[: len(right) // 2])
        with self.assertRaisesRegex(ValueError, "no closing delimiter"):
            (await self.failed(store, faults.NoClosingDelimiter())).parts()
        self.assertEqual(len((await self.failed(store, faults.TooFewParts())).parts()), 1)
        self.assertEqual(len((await self.failed(store, faults.TooManyParts())).parts()), 3)
        typed = (await self.failed(store, faults.WrongPartType("text/html"))).parts()
        self.assertEqual([part.headers["content-type"] for part in typed], ["text/html"] * 2)
        self.assertEqual((await self.failed(store, faults.too_many_requests(3))).headers["retry-after"], "3")
        self.assertEqual((await self.failed(store, faults.server_error())).status, 500)
        self.assertEqual((await self.failed(store, faults.html())).headers["content-type"], "text/html")
        store.fail(faults.number_of_frames(99), "/metadata")
        wrong = await self.client.get(f"/{self.slide.resource}/metadata")
        self.assertEqual(wrong.json()[0]["00280008"]["Value"], [99])
        self.assertEqual((await self.client.frames(self.slide.resource, [1, 2])).body, right)

    async def test_cut_connections(self) -> None:
        """A reset and an early end break the answer; a stall keeps it waiting."""
        store = self.store()
        for fault in (faults.Reset(100), faults.Reset(), faults.Close(100), faults.Close()):
            with self.assertRaises((ResponseFailed, ConnectionDone)):
                await self.failed(store, fault)
        store.fail(faults.Stall(100))
        raw = await RawConnection.open(store.port)
        raw.send(f"GET /dicomweb/{self.slide.resource}/frames/1 HTTP/1.1\r\n\r\n".encode())
        await wait_until(lambda: store.requests[-1].sent == 100, "100 bytes")
        self.assertFalse(store.requests[-1].done or store.requests[-1].aborted)
        await raw.close()
        await wait_until(lambda: store.requests[-1].aborted, "the end")

    async def test_gate(self) -> None:
        """Requests wait at a gate, before the answer or within it, until they are let go."""
        store = self.store()
        before, within_body = store.hold("/frames/1"), store.hold("/frames/2", after=50)
        first = ensureDeferred(self.client.frames(self.slide.resource, [1]))
        second = ensureDeferred(self.client.frames(self.slide.resource, [2]))
        await gatherResults([ensureDeferred(before.reached(1)), ensureDeferred(within_body.reached(1))])
        self.assertEqual(
            [seen.sent for seen in store.requests], [0 if "/1" in seen.path[-2:] else 50 for seen in store.requests]
        )
        self.assertFalse(first.called or second.called)
        before.release()
        within_body.release()
        frames = self.slide.stored_frames()
        self.assertEqual((await first).frames(), [frames[0]])
        self.assertEqual((await second).frames(), [frames[1]])
        self.assertEqual((await self.client.frames(self.slide.resource, [1])).status, 200)


class OrthancTests(TestCase):
    """Real Orthanc, where it is installed."""

    async def test_frames_and_log(self) -> None:
        """It sends frames as stored, its log names the requests, and its users are asked for a password."""
        server = orthanc.Orthanc({"ann": "secret"})
        self.addCleanup(server.stop)
        await server.started()
        made = slide(self.mktemp(), 1, 2, 64)
        server.store(made.path)
        asking = client(self, server.url, {"Authorization": orthanc.basic("ann", "secret")}, persistent=False)
        self.assertEqual((await asking.frames(made.resource, [2])).frames(), [made.stored_frames()[1]])
        self.assertEqual(server.requests("/frames/"), [("GET", f"{orthanc.ROOT}/{made.resource}/frames/2")])
        self.assertEqual((await client(self, server.url, persistent=False).get("/studies")).status, 401)


class ProcessTests(TestCase):
    """Processes of tests."""

    async def test_store_as_a_process(self) -> None:
        """The simulated store serves files from a process of its own, tells what it was asked, and leaves nothing."""
        made = slide(self.mktemp(), 1, 1, 64)
        store = Store(str(made.path.absolute()))
        self.addCleanup(store.remove)
        await wait_until(lambda: "\n" in store.output(), "the store's URL")
        url = store.wait_until_ready()
        asking = client(self, url, persistent=False)
        self.assertEqual((await asking.frames(made.resource, [1])).frames(), made.stored_frames())
        control = await client(self, url.removesuffix("/dicomweb"), persistent=False).get("/_control/requests")
        self.assertEqual([seen["line"] for seen in control.json()], [f"GET /dicomweb/{made.resource}/frames/1"])
        totals = (await client(self, url.removesuffix("/dicomweb"), persistent=False).get("/_control/totals")).json()
        self.assertEqual(totals["requests"], {"frames": 1})
        self.assertGreater(totals["bytes"], len(made.stored_frames()[0]))
        self.assertEqual(len(store.family()), 1)
        store.stop()
        self.assertEqual(store.strays(), [])

    async def test_family(self) -> None:
        """A child's child that outlives it is a stray, and ends when the test is cleaned up."""
        child = Child(
            [
                sys.executable,
                "-c",
                "import subprocess, time; subprocess.Popen(['sleep', '60']); print('up', flush=True); time.sleep(60)",
            ]
        )
        self.addCleanup(child.remove)
        await wait_until(lambda: "up" in child.output(), "the child's child")
        child.kill()
        strays = child.strays()
        self.assertEqual(len(strays), 1)
        child.remove()
        await wait_until(lambda: not child.strays(), "the stray's end")


class WaitingTests(SynchronousTestCase):
    """Waiting without sleeping."""

    def test_wait_until(self) -> None:
        """It ends when the predicate is true, and raises when the deadline passes before."""
        clock, facts = Clock(), list[int]()
        waited = ensureDeferred(wait_until(lambda: facts, "a fact", 5, clock))
        clock.pump([1, 1])
        self.assertNoResult(waited)
        facts.append(1)
        clock.advance(1)
        self.successResultOf(waited)
        late = ensureDeferred(wait_until(lambda: False, "a miracle", 5, clock))
        clock.pump([1] * 7)
        self.assertIn("a miracle", str(self.failureResultOf(late, NeverHappened).value))

    def test_within(self) -> None:
        """A result that does not come in time is a TimeoutError."""
        clock = Clock()
        waited = ensureDeferred(within(Deferred[None](), 5, clock))
        clock.advance(6)
        self.failureResultOf(waited, DeferredTimeout)


class MemoryClientTests(SynchronousTestCase):
    """Requests without sockets."""

    def test_request(self) -> None:
        """A resource sees method, path, headers and body, and its answer comes back whole."""

        class Echo(Resource):
            isLeaf = True

            def render_POST(self, request: Any) -> bytes:
                request.responseHeaders.addRawHeader("X-Seen", request.getHeader("x-sent"))
                seen = [request.uri.decode(), request.content.read().decode()]
                return json.dumps(seen).encode()

        answer = self.successResultOf(MemoryClient(Echo()).begin("POST", "/a%2Fb?c=d", {"X-Sent": "yes"}, b"body"))
        self.assertEqual((answer.json(), answer.headers["x-seen"]), (["/a%2Fb?c=d", "body"], "yes"))
