"""The HTTP origin against simulated stores of every known kind, on real sockets, and their faults."""

from __future__ import annotations

import contextlib
import gzip
import json
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import attrs
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.trial.unittest import TestCase

from tests.origin.http.test_client import HandStream
from tests.origin.http.wire import Head, Wire, WireServer
from tests.slides import files
from tests.stores import faults
from tests.stores.dialects import DCM4CHEE, DCM4CHEE_OLD, DIALECTS, GOOGLE, NO_SYNTAX, ORTHANC, STANDARD, Dialect
from tests.stores.instances import StoredInstance, from_file
from tests.stores.simulated import SimulatedStore
from tests.waiting import wait_until
from twistedproxy.dicom.json_events import UIDS
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicom.transfer_syntaxes import Frame
from twistedproxy.origin.errors import (
    AnsweredByCache,
    NotAsStored,
    OriginBadAnswer,
    OriginError,
    OriginRefused,
    OriginTimeout,
    OriginUnreachable,
)
from twistedproxy.origin.http import HTTPOrigin, requests
from twistedproxy.origin.interface import Caller, Headers, OriginRequest, Priority
from twistedproxy.settings import Settings
from twistedproxy.streams import ZSTD_LIBRARY, BytesStream, StreamTooLong, read_all
from twistedproxy.system.metrics import Metrics

MB = 1 << 20
ANYONE = Caller(b"anyone")
EXPLICIT = "1.2.840.10008.1.2.1"

_made: dict[str, StoredInstance] = {}


def stored(encoding: str = "jpeg") -> StoredInstance:
    """A slide of 12 frames, made once."""
    if encoding not in _made:
        with tempfile.TemporaryDirectory() as folder:
            _made[encoding] = from_file(files.slide(Path(folder, "slide.dcm"), tile=64, encoding=encoding).path)
    return _made[encoding]


def _another() -> bytes:
    """The file of another instance that is like `stored`."""
    with tempfile.TemporaryDirectory() as folder:
        return files.slide(Path(folder, "other.dcm"), tile=64).path.read_bytes()


def metadata_of(instance: Instance, frames: int = 12) -> dict[str, Any]:
    """The least that metadata of *instance* say (PS3.18 annex F)."""
    uids = {tag: {"vr": "UI", "Value": [uid]} for tag, uid in zip(UIDS, instance.uids)}
    return {**uids, "00280008": {"vr": "IS", "Value": [frames]}}


class Counts(Metrics):
    """Metrics that remember what happened."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[str, str]] = []
        self.bytes = {"in": 0, "out": 0}

    def observe(self, family: str, labels: tuple[str, ...], seconds: float) -> None:
        name, outcome = labels
        self.operations.append((name, outcome))

    def count(self, family: str, labels: tuple[str, ...] = (), amount: float = 1) -> None:
        self.bytes[labels[0]] += int(amount)


class StoreTestCase(TestCase):
    timeout = 30

    def begin(self, dialect: Dialect = STANDARD, encoding: str = "jpeg", **settings: Any) -> None:
        """A store of *dialect* with one slide, and an origin in front of it."""
        from twisted.internet import reactor

        self.slide = stored(encoding)
        self.store = SimulatedStore(reactor, dialect, [self.slide]).start()
        self.counts = Counts()
        known: dict[str, Any] = {"origin_timeout": 5.0, "origin_stall_timeout": 5.0}
        self.origin = origin = HTTPOrigin(reactor, self.store.url, Settings(**{**known, **settings}), self.counts)
        self.instance = Instance(origin.url, "", self.slide.study, self.slide.series, self.slide.sop)
        store = self.store

        async def stop() -> None:
            await origin.stop()
            await store.stop()

        self.addCleanup(lambda: Deferred.fromCoroutine(stop()))

    async def facts(self, **changes: Any) -> InstanceMetadata:
        return attrs.evolve(await self.origin.metadata(self.instance, ANYONE), **changes)

    async def frames(
        self, numbers: Sequence[int], metadata: Optional[InstanceMetadata] = None, limit: Optional[int] = None
    ) -> dict[int, Frame]:
        metadata = metadata or InstanceMetadata(12, transfer_syntax=self.slide.transfer_syntax)
        found = await self.origin.frames(self.instance, numbers, ANYONE, metadata, Priority.CALLER, limit)
        return dict(found)

    def expected(self, numbers: Sequence[int]) -> dict[int, Frame]:
        return {number: Frame(self.slide.frames[number - 1], self.slide.transfer_syntax) for number in numbers}

    def slide_frame(self) -> bytes:
        return stored().frames[0]

    def slide_syntax(self) -> str:
        return stored().transfer_syntax

    async def refuses(self, error: type[OriginError], numbers: Sequence[int] = (1,)) -> OriginError:
        try:
            await self.frames(numbers)
        except error as caught:
            return caught
        self.fail(f"no {error.__name__}")


class DialectTests(StoreTestCase):
    async def test_every_store_and_encoding(self) -> None:
        """Frames are as stored at every known kind of store, whether metadata or parts say the transfer syntax or not."""
        for name, dialect in DIALECTS.items():
            for encoding in ("jpeg", "raw"):
                with self.subTest(store=name, encoding=encoding):
                    self.begin(dialect, encoding)
                    numbers = [5, 1, 2, 12, 7]
                    metadata = await self.facts()
                    self.assertEqual(await self.frames(numbers, metadata), self.expected(numbers))

    async def test_stores_that_hide_their_address(self) -> None:
        """A store whose URL tells nothing is found out from its answers, at most a few requests dearer."""
        for dialect in (ORTHANC, DCM4CHEE, DCM4CHEE_OLD, GOOGLE):
            for known in (True, False):
                with self.subTest(store=dialect.name, known=known):
                    self.begin(attrs.evolve(dialect, root="/hidden", syntax_tag="00083002" if known else ""))
                    metadata = await self.facts()
                    self.assertEqual(await self.frames([1, 2, 3], metadata), self.expected([1, 2, 3]))
                    learning = len(self.store.seen("/frames/"))
                    self.assertLessEqual(learning, 4)
                    await self.frames([4], metadata)
                    self.assertEqual(len(self.store.seen("/frames/")), learning + 1)

    async def test_orthanc_one_by_one(self) -> None:
        """Orthanc gives itself away with its first answer and is then asked for one frame a request."""
        self.begin(ORTHANC)
        await self.frames([3, 1, 2])
        paths = sorted(line.rpartition("/")[2] for line in self.store.lines("/frames/"))
        self.assertEqual(paths, ["1", "2", "3"])
        self.assertEqual(self.origin.frames_per_request(self.instance), 1)

    async def test_dcm4chee_in_one_go(self) -> None:
        """dcm4chee, known by its URL, gets one request with ascending numbers and no octet-stream."""
        self.begin(DCM4CHEE)
        await self.frames([3, 1, 2])
        (seen,) = self.store.seen("/frames/")
        self.assertEqual(seen.path.rpartition("/")[2], "1,2,3")
        self.assertEqual(seen.header("Accept"), 'multipart/related; type="*/*"')

    async def test_standard(self) -> None:
        """Once a store has proven that it doesn't decompress, lists go out in one request."""
        self.begin()
        await self.frames([1])
        await self.frames([2, 3, 4])
        self.assertEqual([line.rpartition("/")[2] for line in self.store.lines("/frames/")], ["1", "2,3,4"])

    async def test_server_field(self) -> None:
        """A Server field decides which dialect is tried first."""
        self.begin(attrs.evolve(DCM4CHEE, root="/hidden"))
        body = json.dumps([metadata_of(self.instance)]).encode()
        headers = (("Content-Type", "application/dicom+json"), ("Server", "WildFly/30"))
        self.store.fail(faults.Answer(200, headers, body))
        await self.facts()
        await self.frames([1])
        (seen,) = self.store.seen("/frames/")
        self.assertEqual(seen.header("Accept"), 'multipart/related; type="*/*"')

    async def test_no_lists(self) -> None:
        """A store that has each frame as a file, and no lists, is asked one by one from then on."""
        self.begin()
        self.store.fail(faults.Answer(404), lambda seen: "," in seen.path, times=None)
        self.assertEqual(await self.frames([1, 2, 3]), self.expected([1, 2, 3]))
        self.assertEqual(self.origin.frames_per_request(self.instance), 1)

    async def test_uncompressed_and_unknown(self) -> None:
        """Where nothing tells the transfer syntax of native frames, a second dialect is asked once for an instance."""
        self.begin(attrs.evolve(NO_SYNTAX, root="/hidden"), "raw")
        metadata = await self.facts(transfer_syntax=None)
        for number in (1, 2):
            (frame,) = (await self.frames([number], metadata)).values()
            self.assertEqual(frame, Frame(self.slide.frames[number - 1], EXPLICIT))
        self.assertEqual(len(self.store.seen("/frames/")), 3)

    async def test_unknown_and_the_second_way_fails(self) -> None:
        """A second dialect that fails once shows nothing: the decompressed frames of the first are not taken for stored
        ones, then or later. The instance's file tells what they are."""
        native = (("Content-Type", f"application/octet-stream; transfer-syntax={EXPLICIT}"),)
        for fault in (faults.server_error(), faults.Answer(403), faults.Answer(406), faults.html()):
            self.begin(attrs.evolve(NO_SYNTAX, root="/hidden"))
            facts = await self.facts(transfer_syntax=None)
            pixels = b"p" * (facts.frame_length or 0)
            self.store.fail(
                faults.Answer(200, native, pixels), lambda seen: "octet" in seen.header("Accept"), times=None
            )
            self.store.fail(fault, lambda seen: "*/*" in seen.header("Accept"))
            self.store.fail(faults.Answer(404), lambda seen: seen.path.endswith(self.slide.sop))
            with self.assertRaises(NotAsStored):
                await self.frames([1], facts)
            self.assertEqual(await self.frames([1], facts), self.expected([1]), fault)
            self.begin(attrs.evolve(NO_SYNTAX, root="/hidden"))
            self.store.fail(
                faults.Answer(200, native, pixels), lambda seen: "octet" in seen.header("Accept"), times=None
            )
            self.store.fail(fault, lambda seen: "*/*" in seen.header("Accept"))
            self.assertEqual((await self.frames([1], facts))[1], self.expected([1])[1], fault)

    async def test_file_shows_standing(self) -> None:
        """Who was given an instance goes before strangers from then on."""
        self.begin()
        self.store.fail(faults.server_error(), "/frames/", times=None)
        self.assertEqual(self.origin._requests.standings.priority(ANYONE), Priority.UNKNOWN)
        await self.frames([1])
        self.assertEqual(self.origin._requests.standings.priority(ANYONE), Priority.CALLER)

    async def test_only_decompressed(self) -> None:
        """A store that decompresses whatever it is asked gives no frames: they would not be as stored. Its file has them."""
        self.begin(attrs.evolve(DCM4CHEE, root="/hidden"))
        self.store.fail(
            faults.Answer(200, (("Content-Type", "application/octet-stream"),), b"x" * 100), "/frames/", times=None
        )
        self.assertEqual((await self.frames([2]))[2], self.expected([2])[2])
        self.store.fail(faults.Answer(403), lambda seen: seen.path.endswith(self.slide.sop), times=None)
        await self.refuses(OriginBadAnswer)

    async def test_frames_refused(self) -> None:
        """Where a store refuses frames and gives the instance to the same caller, they come out of that, others with them."""
        self.begin()
        self.store.fail(faults.server_error(), "/frames/", times=None)
        found = await self.frames([3, 1])
        self.assertEqual({number: found[number] for number in (1, 3)}, self.expected([1, 3]))
        self.assertEqual(found, self.expected(range(1, 13)))
        asked = len(self.store.seen("/frames/"))
        await self.frames([2])
        self.assertEqual((len(self.store.seen("/frames/")), len(self.store.requests)), (asked, asked + 2))
        other = Caller(b"other")  # whose frames it may give
        await self.origin.frames(
            self.instance, [2], other, InstanceMetadata(12, transfer_syntax=self.slide.transfer_syntax)
        )
        self.assertGreater(len(self.store.seen("/frames/")), asked)
        self.store.heal()
        self.store.fail(faults.Answer(404), lambda seen: seen.path.endswith(self.slide.sop))
        self.assertEqual(await self.frames([2]), self.expected([2]))

    async def test_frames_refused_side_by_side(self) -> None:
        """Of many requests at once the file is read once, for each caller; who leaves does not end it for the others."""
        self.begin()
        self.store.fail(faults.server_error(), "/frames/", times=None)
        gate = self.store.hold(lambda seen: seen.path.endswith(self.slide.sop), after=1000)
        facts = InstanceMetadata(12, transfer_syntax=stored().transfer_syntax)
        others = [Caller(b"other") if number == 7 else ANYONE for number in range(1, 13)]
        asked = [
            Deferred.fromCoroutine(self.origin.frames(self.instance, [number], caller, facts))
            for number, caller in zip(range(1, 13), others)
        ]
        await gate.reached()
        await wait_until(lambda: len(self.origin._files._running) == 2 and sum(
            len(read.waiters._waiting) for read in self.origin._files._running.values()) == 12)  # fmt: skip
        for leaver in (asked[0], asked[4]):
            leaver.cancel()
            await self.assertFailure(leaver, CancelledError)
        gate.release()
        for number in (2, 3, 4, 6, 7, 8, 12):
            self.assertEqual((await asked[number - 1])[number], self.expected([number])[number])
        await gatherResults([one for one in asked if not one.called])
        files = [seen for seen in self.store.requests if seen.path.endswith(self.slide.sop)]
        self.assertEqual((len(files), self.origin._files._running), (2, {}))

    async def test_frames_refused_and_all_leave(self) -> None:
        """When nobody waits any more, the read of the file ends."""
        self.begin()
        self.store.fail(faults.server_error(), "/frames/", times=None)
        gate = self.store.hold(lambda seen: seen.path.endswith(self.slide.sop), after=1000)
        facts = InstanceMetadata(12, transfer_syntax=stored().transfer_syntax)
        asked = Deferred.fromCoroutine(self.origin.frames(self.instance, [1], ANYONE, facts))
        await gate.reached()
        asked.cancel()
        await self.assertFailure(asked, CancelledError)
        self.assertEqual(self.origin._files._running, {})
        gate.release()

    async def test_frames_refused_and_no_file(self) -> None:
        """Where the instance is no help, the refusal comes as it came. The instance is not asked for again soon where that
        would be no help either; what came of it once for another caller, or may pass by itself, says nothing of it."""
        facts = InstanceMetadata(12, transfer_syntax=stored().transfer_syntax)
        for fault, tries, metadata in (
            (faults.Answer(404), 1, facts),
            (faults.Answer(405), 1, facts),
            (faults.Answer(410), 1, facts),
            (faults.html(), 2, facts),
            (faults.Answer(200, (("Content-Type", "application/dicom"),), b"<html>sign in"), 2, facts),
            (faults.server_error(), 4, facts),  # in two ways each time
            (faults.redirect("http://127.0.0.1:1/"), 2, facts),
            (faults.Answer(206, (("Content-Type", "application/dicom"),), b"DICM"), 2, facts),
            (faults.Answer(451), 2, facts),
            (faults.Answer(428), 2, facts),
            (faults.Answer(200, (("Content-Type", "application/dicom"),), _another()), 1, facts),
            (faults.Answer(403), 2, facts),
            (None, 1, attrs.evolve(facts, frames=11)),
            (None, 1, attrs.evolve(facts, transfer_syntax="1.2.840.10008.1.2.4.90")),
        ):
            self.begin()
            self.store.fail(faults.server_error(), "/frames/", times=None)
            if fault is not None:
                self.store.fail(fault, lambda seen: seen.path.endswith(self.slide.sop), times=None)
            for _ in range(2):
                with self.assertRaises(OriginRefused) as raised:
                    await self.frames([1], metadata)
                self.assertEqual(raised.exception.status, 500)
            files = [seen for seen in self.store.requests if seen.path.endswith(self.slide.sop)]
            self.assertEqual(len(files), tries, (fault, metadata))
            self.store.heal()
            self.store.fail(faults.server_error(), "/frames/", times=None)
            other = await self.origin.frames(self.instance, [1], Caller(b"other"), facts)
            self.assertEqual(other[1], self.expected([1])[1], fault)

    async def test_frames_refused_and_another_instance(self) -> None:
        """A file of another instance has no frame of this one."""
        self.begin()
        self.store.fail(faults.server_error(), "/frames/", times=None)
        sop = self.slide.sop.encode()
        other = self.slide.part10.replace(sop, sop[:-1] + (b"1" if sop.endswith(b"2") else b"2"))
        self.store.fail(faults.Answer(200, (("Content-Type", "application/dicom"),), other), times=None)
        await self.refuses(OriginRefused)

    async def test_frames_refused_and_too_large(self) -> None:
        """A file beyond the limit of answers is not read for a few frames."""
        self.begin(max_answer=1000)
        self.store.fail(faults.server_error(), "/frames/", times=None)
        await self.refuses(OriginRefused)

    async def test_denied_frames(self) -> None:
        """Who may not have frames, or comes too often, is not given them out of the instance; nor is a prefetch."""
        for status in (401, 403, 404, 410):
            self.begin()
            self.store.fail(faults.Answer(status), "/frames/", times=None)
            await self.refuses(OriginRefused)
            self.assertEqual(len(self.store.requests), 1)
        self.begin()
        self.store.fail(faults.server_error(), "/frames/", times=None)
        with self.assertRaises(OriginRefused):
            await self.origin.frames(self.instance, [1], ANYONE, await self.facts(), Priority.BLOCK)

    async def test_identity_is_asked_for(self) -> None:
        """Own requests ask for no compression and carry the caller's headers."""
        self.begin()
        caller = Caller(b"x", ((b"Authorization", b"Bearer t"),))
        await self.origin.metadata(self.instance, caller)
        headers = {name.lower(): value for name, value in self.store.requests[0].headers}
        self.assertEqual(
            headers,
            {
                "host": self.store.server.removeprefix("http://"),
                "accept": "application/dicom+json",
                "accept-encoding": "identity",
                "user-agent": "twistedproxy",
                "authorization": "Bearer t",
            },
        )


class FrameTests(StoreTestCase):
    async def test_limit(self) -> None:
        """More bytes than the limit are StreamTooLong, exactly."""
        self.begin()
        size = sum(len(frame) for frame in self.slide.frames)
        numbers = range(1, 13)
        self.assertEqual(len(await self.frames(numbers, limit=size)), 12)
        for limit in (size - 1, 100):
            with self.assertRaises(StreamTooLong):
                await self.frames(numbers, limit=limit)

    async def test_limit_of_an_endless_answer(self) -> None:
        """An answer that never ends is cut at the limit."""
        self.begin()
        body = (b"--x\r\nContent-Type: image/jpeg\r\n\r\n" + b"\xff\xd8\xff" * 40000) * 20
        self.store.fail(faults.Answer(200, (("Content-Type", "multipart/related; boundary=x"),), body))
        with self.assertRaises(StreamTooLong):
            await self.frames([1], limit=1000)

    async def test_none(self) -> None:
        """No numbers, no request."""
        self.begin()
        self.assertEqual(await self.frames([]), {})
        self.assertEqual(self.store.requests, [])

    async def test_missing(self) -> None:
        """Frames that the store doesn't have are a 404, however the store says it."""
        for dialect in (STANDARD, DCM4CHEE, GOOGLE):
            with self.subTest(store=dialect.name):
                self.begin(dialect)
                refused = await self.refuses(OriginRefused, [1, 2, 13])
                assert isinstance(refused, OriginRefused)
                self.assertEqual(refused.status, 404)

    async def test_side_by_side(self) -> None:
        """Frames of a one-frame-a-request store are asked for side by side, within the limit."""
        self.begin(ORTHANC, origin_concurrency=4)
        await self.frames([1])
        gate = self.store.hold("/frames/")
        running = Deferred.fromCoroutine(self.frames(range(1, 13)))
        await gate.reached(4)
        self.assertEqual(len(self.store.seen("/frames/")), 5)
        gate.release()
        self.assertEqual(await running, self.expected(range(1, 13)))

    async def test_cancel(self) -> None:
        """Cancelling ends all requests, at the store too, and leaves every slot free."""
        self.begin(ORTHANC, origin_concurrency=4)
        await self.frames([1])
        gate = self.store.hold("/frames/")
        running = Deferred.fromCoroutine(self.frames(range(1, 13)))
        await gate.reached(4)
        running.cancel()
        with self.assertRaises(CancelledError):
            await running
        self.assertEqual(self.origin.status()["requests"]["running"], 0)  # type: ignore[index]
        gate.release()
        self.assertEqual(await self.frames([2]), self.expected([2]))

    async def test_one_fails(self) -> None:
        """One failed request of many fails the call and ends the others."""
        self.begin(ORTHANC)
        await self.frames([1])
        gate = self.store.hold(lambda seen: "/frames/" in seen.path and not seen.path.endswith("/7"))
        self.store.fail(faults.Reset(), "/frames/7", times=None)
        await self.refuses(OriginUnreachable, range(1, 13))
        self.assertEqual(self.origin.status()["requests"]["running"], 0)  # type: ignore[index]
        gate.release()

    async def test_many_callers(self) -> None:
        """Hundreds of frame lists at once all come through the same few slots."""
        self.begin(ORTHANC, origin_concurrency=3)
        metadata = await self.facts()
        calls = [Deferred.fromCoroutine(self.frames(range(1, 13), metadata)) for _ in range(20)]
        for found in await gatherResults(calls):
            self.assertEqual(found, self.expected(range(1, 13)))
        self.assertEqual(self.origin.status()["requests"]["waiting"], 0)  # type: ignore[index]


class FaultTests(StoreTestCase):
    async def test_bad_answers(self) -> None:
        """What isn't whole, or isn't frames, is OriginBadAnswer, from known stores and from unknown ones."""
        cases = (
            faults.html(),
            faults.HalfMultipart(),
            faults.NoClosingDelimiter(),
            faults.TooFewParts(),
            faults.TooManyParts(),
            faults.WrongPartType(),
            faults.WrongPartType("image/jpeg; transfer-syntax=" + "1" * 130),
            faults.WrongPartType('image/jpeg; transfer-syntax="1.2;\x7f"'),
            faults.redirect("http://127.0.0.1:1/"),
        )
        for fault in cases:
            for known in (False, True):
                for numbers in ([1], [1, 2, 3]):
                    with self.subTest(fault=fault, known=known, numbers=numbers):
                        self.begin()
                        if known:
                            await self.frames([1])
                        self.store.fail(fault, "/frames/", times=None)
                        await self.refuses(OriginBadAnswer, numbers)
                        self.store.heal()
                        self.assertEqual(await self.frames([1, 2]), self.expected([1, 2]))

    async def test_another_part_announced(self) -> None:
        """All parts, and then a delimiter that announces one more, are a whole answer only where its length says so."""
        frame = self.slide_frame()
        body = b"--x\r\nContent-Type: image/jpeg\r\n\r\n" + frame + b"\r\n--x\r\n"
        for framing in ("length", "chunked", "close"):
            self.begin()
            self.store.fail(faults.Answer(200, (("Content-Type", "multipart/related; boundary='x'"),), body, framing))
            if framing == "close":
                await self.refuses(OriginBadAnswer)
            else:
                self.assertEqual(await self.frames([1]), self.expected([1]))
                self.store.fail(faults.Answer(200, (("Content-Type", "multipart/related"),), body), "/frames/")
                await self.refuses(OriginBadAnswer, [1, 2])

    async def test_other_successes(self) -> None:
        """A part that nobody asked for, and what a server in between made of the answer, are no frame and no metadata."""
        for status in (201, 202, 203, 206, 226):
            self.begin()
            self.store.fail(faults.Answer(status, (("Content-Type", "image/jpeg"),), self.slide_frame()), times=None)
            await self.refuses(OriginBadAnswer)
            body = b'[{"00280008": {"vr": "IS", "Value": [12]}}]'
            self.store.heal()
            self.store.fail(faults.Answer(status, (("Content-Type", "application/dicom+json"),), body))
            with self.assertRaises(OriginBadAnswer):
                await self.facts()
            self.store.fail(faults.Answer(status, (("Content-Type", "application/dicom"),), b"a file"))
            with self.assertRaises(OriginBadAnswer):
                await self.origin.stored_instance(self.instance, ANYONE)

    async def test_pieces(self) -> None:
        """A 200 that says to be a piece of something is no frame and no instance."""
        self.begin()
        piece = ("Content-Range", "bytes 0-299/725")
        self.store.fail(faults.Answer(200, (("Content-Type", "image/jpeg"), piece), self.slide_frame()), times=None)
        await self.refuses(OriginBadAnswer)
        self.store.heal()
        self.store.fail(faults.Answer(200, (("Content-Type", "application/dicom"), piece), self.slide.part10))
        with self.assertRaises(OriginBadAnswer):
            await self.origin.stored_instance(self.instance, ANYONE)

    async def test_what_is_only_labelled_as_a_frame(self) -> None:
        """Bytes that cannot be what their label says are no frame, in one part or several."""
        label = f"image/jpeg; transfer-syntax={self.slide_syntax()}"
        for body in (b'{"error": "later"}', b"<html>sign in", self.slide_frame()[2:], b"\0" + self.slide_frame()):
            self.begin()
            self.store.fail(faults.Answer(200, (("Content-Type", label),), body), times=None)
            await self.refuses(OriginBadAnswer)
        self.begin()
        fields = f"Content-Type: {label}\r\nContent-Encoding: gzip".encode()
        body = b"--x\r\n" + fields + b"\r\n\r\n" + self.slide_frame() + b"\r\n--x--"
        self.store.fail(faults.Answer(200, (("Content-Type", "multipart/related; boundary=x"),), body), times=None)
        await self.refuses(OriginBadAnswer)

    async def test_native_frames_of_another_size(self) -> None:
        """Native frames have the size of the image, with a pad byte at most."""
        facts = InstanceMetadata(2, rows=3, columns=3, transfer_syntax=EXPLICIT)
        for size, right in ((9, True), (10, True), (8, False), (11, False), (27, False)):
            self.begin()
            headers = (("Content-Type", f"application/octet-stream; transfer-syntax={EXPLICIT}"),)
            self.store.fail(faults.Answer(200, headers, b"p" * size), times=None)
            if right:
                self.assertEqual(len((await self.frames([1], facts))[1].data), size)
            else:
                with self.assertRaises(OriginBadAnswer):
                    await self.frames([1], facts)

    async def test_tiles_without_data(self) -> None:
        """A tile may be stored as a frame of no bytes; elsewhere an empty frame is a failure."""
        body = b"--x\r\nContent-Type: image/jpeg\r\n\r\n\r\n--x--"
        headers = (("Content-Type", "multipart/related; boundary=x"),)
        tiled = InstanceMetadata(
            2, rows=8, columns=8, total_rows=8, total_columns=16, transfer_syntax=self.slide_syntax()
        )
        self.begin()
        self.store.fail(faults.Answer(200, headers, body), times=None)
        self.assertEqual(await self.frames([1], tiled), {1: Frame(b"", self.slide_syntax())})
        for facts in (attrs.evolve(tiled, total_rows=None), attrs.evolve(tiled, transfer_syntax=EXPLICIT)):
            with self.assertRaises(OriginBadAnswer):
                await self.frames([1], facts)

    async def test_single_part(self) -> None:
        """A frame may come as a single part, if its length shows that it is whole; a page may not."""
        self.begin()
        frame = self.slide.frames[0]
        self.store.fail(faults.Answer(200, (("Content-Type", "image/jpeg"),), frame))
        self.assertEqual(await self.frames([1]), self.expected([1]))
        self.store.fail(faults.Answer(200, (("Content-Type", "image/jpeg"),), b""))
        await self.refuses(OriginBadAnswer)

    async def test_broken_connections(self) -> None:
        """Resets and closed connections at any point are OriginUnreachable."""
        for fault in (faults.Reset(), faults.Close(), faults.Reset(100), faults.Close(100)):
            with self.subTest(fault=fault):
                self.begin()
                self.store.fail(fault, "/frames/", times=None)
                await self.refuses(OriginUnreachable)

    async def test_stalls(self) -> None:
        """A store that stalls, before or within its answer, is OriginTimeout, and its slot is free again."""
        for fault in (faults.Stall(), faults.Stall(100)):
            with self.subTest(fault=fault):
                self.begin(origin_timeout=0.1, origin_stall_timeout=0.1, origin_concurrency=1)
                self.store.fail(fault, "/frames/")
                await self.refuses(OriginTimeout)
                self.assertEqual(await self.frames([1]), self.expected([1]))

    async def test_refusals(self) -> None:
        """A refusal comes with its status, body and the headers that matter, the body bounded."""
        self.begin()
        headers = (("Content-Type", "text/plain"), ("WWW-Authenticate", "Bearer"), ("Set-Cookie", "a=b"))
        for status in (401, 403, 404, 500):
            with self.subTest(status=status):
                self.store.fail(faults.Answer(status, headers, b"x" * 200_000), times=None)
                for work in (lambda: self.frames([1]), lambda: self.origin.metadata(self.instance, ANYONE)):
                    with self.assertRaises(OriginRefused) as caught:
                        await work()
                    refused = caught.exception
                    self.assertEqual((refused.status, refused.body), (status, b"x" * 65536))
                    self.assertEqual(
                        sorted(refused.headers), [(b"Content-Type", b"text/plain"), (b"WWW-Authenticate", b"Bearer")]
                    )
                self.store.heal()

    async def test_busy(self) -> None:
        """429 and 503 are asked again, for own requests and for passed-on GETs; never a POST."""
        self.begin()
        metadata = await self.facts()
        for fault in (faults.Answer(429, (("Retry-After", "0"),), b"later"), faults.unavailable(0)):
            self.store.fail(fault)
            self.assertEqual(await self.frames([1], metadata), self.expected([1]))
            self.store.fail(fault)
            answer = await self.origin.forward(OriginRequest(b"GET", b"/studies"))
            self.assertEqual(answer.status, 200)
            await read_all(answer.body, MB)
            self.store.fail(fault)
            answer = await self.origin.forward(OriginRequest(b"POST", b"/studies", body=BytesStream(b"x"), length=1))
            self.assertIn(answer.status, (429, 503))
            await read_all(answer.body, MB)

    async def test_busy_for_too_long(self) -> None:
        """An origin that wants us later than the deadline gets its refusal handed on."""
        self.begin()
        self.store.fail(faults.unavailable(60), times=None)
        refused = await self.refuses(OriginRefused)
        assert isinstance(refused, OriginRefused)
        self.assertEqual((refused.status, refused.headers), (503, ((b"Retry-After", b"60"),)))
        answer = await self.origin.forward(OriginRequest(b"GET", b"/studies"))
        self.assertEqual((answer.status, await read_all(answer.body, MB)), (503, b"later"))

    async def test_nothing_leaks_a_slot(self) -> None:
        """After every kind of failure all slots are free."""
        self.begin(origin_timeout=0.1, origin_stall_timeout=0.1)
        cases = [faults.html(), faults.Reset(), faults.Reset(10), faults.Stall(), faults.Stall(10), faults.Answer(500)]
        for fault in cases:
            self.store.fail(fault, times=None)
            for work in (
                self.frames([1, 2, 3]),
                self.origin.metadata(self.instance, ANYONE),
                self._read_instance(),
            ):
                with self.assertRaises(OriginError):
                    await work
            self.store.heal()
        requests = self.origin.status()["requests"]
        assert isinstance(requests, dict)
        counts = {name: requests[name] for name in requests if name.endswith(("running", "waiting", "transfers"))}
        self.assertEqual((len(counts), set(counts.values())), (5, {0}))

    async def test_slots_after_refusals(self) -> None:
        """Frames and metadata for which the store is too busy leave fewer slots; what else it refuses says nothing of its load."""
        self.begin(origin_timeout=0.1)
        works: list[Any] = [self._read_instance, self._search, lambda: self.frames([1]), self.facts]
        slots = []
        for status, work in ((503, works[0]), (503, works[1]), (404, works[2]), (429, works[2]), (503, works[3])):
            self.store.fail(faults.Answer(status), times=None)
            with contextlib.suppress(OriginError):
                await work()
            self.store.heal()
            slots.append(self.origin.status()["requests"]["slots"])  # type: ignore[index]
        self.assertEqual(slots, [20, 20, 20, 15, 11])

    async def test_slots_after_timeout(self) -> None:
        """So do those that are not answered in time."""
        self.begin(origin_timeout=0.1)
        self.store.fail(faults.Stall(), times=None)
        with self.assertRaises(OriginTimeout):
            await self.facts()
        self.assertEqual(self.origin.status()["requests"]["slots"], 15)  # type: ignore[index]

    async def _search(self) -> None:
        await read_all((await self.origin.forward(OriginRequest(b"GET", b"/studies"))).body, MB)

    async def _read_instance(self) -> None:
        await read_all(await self.origin.stored_instance(self.instance, ANYONE), 64 * MB)


class MetadataTests(StoreTestCase):
    async def test_facts(self) -> None:
        """Metadata are read at every kind of store."""
        for dialect in DIALECTS.values():
            with self.subTest(store=dialect.name):
                self.begin(dialect)
                metadata = await self.facts()
                self.assertEqual((metadata.frames, metadata.columns, metadata.total_columns), (12, 64, 256))
                said = self.slide.transfer_syntax if dialect.syntax_tag else None
                self.assertEqual(metadata.transfer_syntax, said)

    async def test_bad_metadata(self) -> None:
        """What is no metadata, or only half of it, is an error."""
        self.begin()
        for fault in (
            faults.html(),
            faults.Answer(200, (("Content-Type", "application/dicom+json"),), b"[]"),
            faults.Answer(200, (("Content-Type", "application/dicom+json"),), b'[{"00280010": {"vr"'),
            faults.Answer(200, (("Content-Type", "application/dicom+json"), ("Content-Encoding", "gzip")), b"x"),
            faults.Answer(200, (("Content-Type", "application/dicom+json"), ("Content-Encoding", "br")), b"x"),
            faults.Answer(204),
        ):
            with self.subTest(fault=fault):
                self.store.fail(fault)
                with self.assertRaises(OriginBadAnswer):
                    await self.facts()

    async def test_not_the_metadata_asked_for(self) -> None:
        """Only a 200 of DICOM JSON that names this very instance is its metadata, and so a proof."""
        self.begin()
        right = json.dumps([metadata_of(self.instance)]).encode()
        other = json.dumps([metadata_of(attrs.evolve(self.instance, sop="1.2.3"))]).encode()
        headers = (("Content-Type", "application/dicom+json"),)
        for fault in (
            faults.Answer(200, headers, b'{"error":"access denied","code":403}'),
            faults.Answer(200, headers, b"[{}]"),
            faults.Answer(200, headers, other),
            faults.Answer(200, headers, right[:-1] + b"," + other[1:]),
            faults.Answer(203, headers, right),
            faults.Answer(206, (*headers, ("Content-Range", f"bytes 0-9/{len(right)}")), right),
            faults.Answer(200, (("Content-Type", "text/html"),), right),
            faults.Answer(200, (), right),
            faults.Answer(200, (*headers, ("Content-Type", "text/html")), right),
            faults.Answer(200, (("Content-Type", "text/html"), *headers), right),
            faults.Answer(200, headers, right + b"<html>denied"),
            faults.Answer(200, headers, right + b'[{"error":1}]'),
        ):
            with self.subTest(fault=fault):
                self.store.fail(fault)
                with self.assertRaises(OriginBadAnswer):
                    await self.facts()
        self.store.fail(faults.Answer(200, (("Content-Type", "application/json; charset=utf-8"),), right))
        self.assertEqual((await self.facts()).frames, 12)

    async def test_a_cache_on_the_way(self) -> None:
        """What a cache answers (RFC 9111 section 5.1) is facts, and no proof of the rights of a caller who has credentials."""
        self.begin()
        right = json.dumps([metadata_of(self.instance)]).encode()
        headers = (("Content-Type", "application/dicom+json"), ("Age", "0"))
        self.store.fail(faults.Answer(200, headers, right), times=None)
        self.assertEqual((await self.facts()).frames, 12)
        for caller in (Caller(b"x", ((b"Authorization", b"Bearer t"),)), Caller(b"y", (), b"access_token=t")):
            with self.assertRaises(AnsweredByCache) as caught:
                await self.origin.metadata(self.instance, caller)
            self.assertEqual(caught.exception.metadata.frames, 12)
            self.assertEqual(self.origin._requests.standings.priority(caller), Priority.UNKNOWN)
        self.assertEqual(self.counts.operations, [("metadata", "ok")] * 3)

    async def test_packed(self) -> None:
        """A store of ready-made files that packs what it was asked not to pack is understood, if all of it comes."""
        self.begin()
        text = {**metadata_of(self.instance), "00081111": {"vr": "LO", "Value": ["x" * MB]}}
        packed = gzip.compress(json.dumps([text]).encode())
        headers = (("Content-Type", "application/dicom+json"), ("Content-Encoding", "gzip"))
        self.store.fail(faults.Answer(200, headers, packed))
        self.assertEqual((await self.facts()).frames, 12)
        frame = self.slide.frames[0]
        headers = (("Content-Type", "image/jpeg"), ("Content-Encoding", "gzip"))
        self.store.fail(faults.Answer(200, headers, gzip.compress(frame)))
        self.assertEqual(await self.frames([1]), self.expected([1]))
        self.store.fail(faults.Answer(200, headers, gzip.compress(frame)[:-9]))
        await self.refuses(OriginBadAnswer)
        for codings, packed in (
            (("gzip",), gzip.compress(frame[:300]) + gzip.compress(frame[300:])),
            (("gzip", "gzip"), gzip.compress(gzip.compress(frame))),
            (("deflate, x-gzip",), gzip.compress(zlib.compress(frame))),
            (("deflate",), zlib.compress(frame, wbits=-15)),
            (("gzip",), gzip.compress(frame) + bytes(70)),
            *(
                [(("zstd",), ZSTD_LIBRARY.compress(frame[:300]) + ZSTD_LIBRARY.compress(frame[300:]))]
                if ZSTD_LIBRARY
                else []
            ),
        ):
            fields = tuple(("Content-Encoding", coding) for coding in codings)
            self.store.fail(faults.Answer(200, (("Content-Type", "image/jpeg"), *fields), packed))
            self.assertEqual(await self.frames([1]), self.expected([1]), codings)
        for coding, packed in (
            ("gzip", gzip.compress(frame) + b"more"),
            ("deflate", zlib.compress(frame) + b"more"),
            ("gzip", frame),
            ("gzip,gzip,gzip,gzip", gzip.compress(gzip.compress(gzip.compress(gzip.compress(frame))))),
            ("br", frame),
        ):
            headers = (("Content-Type", "image/jpeg"), ("Content-Encoding", coding))
            self.store.fail(faults.Answer(200, headers, packed))
            await self.refuses(OriginBadAnswer)

    async def test_packed_bomb(self) -> None:
        """Packed bytes that unpack to far more than the limit are cut there."""
        self.begin()
        headers = (("Content-Type", "image/jpeg"), ("Content-Encoding", "gzip"))
        self.store.fail(faults.Answer(200, headers, gzip.compress(bytes(256 * MB), 1)))
        with self.assertRaises(StreamTooLong):
            await self.frames([1], limit=MB)


class StoredInstanceTests(StoreTestCase):
    async def test_every_store(self) -> None:
        """The file comes out byte for byte, from multipart and single-part stores."""
        for name, dialect in DIALECTS.items():
            with self.subTest(store=name):
                self.begin(dialect)
                stream = await self.origin.stored_instance(self.instance, ANYONE)
                self.assertEqual(await read_all(stream, 64 * MB), self.slide.part10)

    async def test_not_whole(self) -> None:
        """The end of a file that isn't whole is an error, not an end."""
        self.begin()
        for fault in (faults.HalfMultipart(), faults.NoClosingDelimiter(), faults.TooFewParts(), faults.TooManyParts()):
            with self.subTest(fault=fault):
                self.store.fail(fault, times=None)
                with self.assertRaises(OriginBadAnswer):
                    await read_all(await self.origin.stored_instance(self.instance, ANYONE), 64 * MB)
                self.store.heal()

    async def test_two_at_a_time(self) -> None:
        """A third whole-instance load waits for the end of one of two; small requests don't."""
        self.begin(origin_concurrency=1)
        gate = self.store.hold(f"/{self.slide.sop}", after=1000)
        first = await self.origin.stored_instance(self.instance, ANYONE)
        second = await self.origin.stored_instance(self.instance, ANYONE)
        third = Deferred.fromCoroutine(self.origin.stored_instance(self.instance, ANYONE))
        (await self.origin.forward(OriginRequest(b"GET", b"/studies"))).body.close()
        self.assertFalse(third.called)
        second.close()
        stream = await third
        gate.release()
        for one in (first, stream):
            self.assertEqual(await read_all(one, 64 * MB), self.slide.part10)


class ForwardTests(StoreTestCase):
    async def test_as_it_came(self) -> None:
        """Status, headers and body of any answer come back; path, query and headers go out; hop-by-hop fields of the answer stay."""
        self.begin()
        answer_headers = (("Content-Type", "a/b"), ("X-Y", "z"), ("Keep-Alive", "timeout=3"), ("Location", "/else"))
        self.store.fail(faults.Answer(302, answer_headers, b"moved"))
        headers: Headers = (
            (b"Authorization", b"Basic eA=="),
            (b"Accept-Encoding", b"gzip"),
            (b"X-Keep", b"2"),
            (b"Host", b"proxy.example"),
            (b"User-Agent", b"viewer"),
        )
        answer = await self.origin.forward(OriginRequest(b"PROPFIND", b"/studies/%2F/a", b"x=%20&y", headers))
        self.assertEqual((answer.status, await read_all(answer.body, MB)), (302, b"moved"))
        self.assertEqual(sorted(answer.headers), [(b"Content-Type", b"a/b"), (b"Location", b"/else"), (b"X-Y", b"z")])
        (seen,) = self.store.requests
        self.assertEqual(seen.line, "PROPFIND /dicomweb/studies/%2F/a?x=%20&y")
        self.assertEqual(
            {name.lower(): value for name, value in seen.headers},
            {
                "authorization": "Basic eA==",
                "accept-encoding": "gzip",
                "x-keep": "2",
                "host": self.store.server.removeprefix("http://"),
                "user-agent": "viewer",
                "connection": "close",
            },
        )

    async def test_forward_decoded(self) -> None:
        """What is to be looked into comes without codings, and is asked for so; a coding that cannot be undone is refused."""
        self.begin()
        asked = OriginRequest(b"GET", b"/studies", headers=((b"Accept-Encoding", b"br"),), decoded=True)
        headers = (("Content-Type", "a/b"), ("Content-Encoding", "gzip"))
        self.store.fail(faults.Answer(200, headers, gzip.compress(b"text")))
        answer = await self.origin.forward(asked)
        self.assertEqual((answer.headers, answer.length), (((b"Content-Type", b"a/b"),), None))
        self.assertEqual(await read_all(answer.body, MB), b"text")
        self.assertEqual(self.store.requests[0].header("Accept-Encoding"), "identity")
        self.store.fail(faults.Answer(200, headers, b""))
        head = await self.origin.forward(attrs.evolve(asked, method=b"HEAD"))
        self.assertEqual((head.headers, await head.body.read()), (((b"Content-Type", b"a/b"),), b""))
        self.store.fail(faults.Answer(404, headers, b"as it came"))
        self.assertEqual(await read_all((await self.origin.forward(asked)).body, MB), b"as it came")
        self.store.fail(faults.Answer(200, (("Content-Encoding", "br"),), b"x"))
        with self.assertRaises(OriginBadAnswer):
            await self.origin.forward(asked)

    async def test_framed(self) -> None:
        """Whether an answer's length or chunks showed that it is whole is known at its end, with a content coding or without."""
        from twisted.internet import reactor

        self.begin()
        for field, tail, framed in (
            (b"Content-Length: %d", b"%s", True),
            (b"Transfer-Encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n", True),
            (b"X: y", b"%s", False),
        ):
            for coding, body in ((b"identity", b"text"), (b"gzip", gzip.compress(b"text"))):
                size = len(body)
                head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Encoding: " + coding + b"\r\n"
                head += field % size if b"%" in field else field
                sent = head + b"\r\n\r\n" + (tail % (size, body) if b"%x" in tail else tail % body)

                async def script(wire: Wire, _: Head, sent: bytes = sent) -> None:
                    wire.send(sent)
                    wire.close()

                server = WireServer(script)
                origin = HTTPOrigin(reactor, server.listen(reactor), Settings(origin_timeout=5.0), self.counts)
                try:
                    answer = await origin.forward(OriginRequest(b"GET", b"/x", decoded=True))
                    self.assertEqual(await read_all(answer.body, MB), b"text")
                    self.assertEqual(answer.framed(), framed, sent)
                finally:
                    await origin.stop()
                    await server.stop()

    async def test_uploads(self) -> None:
        """An upload reaches the store with and without a known length, and is counted."""
        self.begin()
        for length in (3 * MB, None):
            stream = BytesStream(*[b"x" * MB] * 3)
            answer = await self.origin.forward(OriginRequest(b"POST", b"/studies", body=stream, length=length))
            await read_all(answer.body, MB)
            self.assertEqual((answer.status, self.store.requests[-1].body_bytes), (200, 3 * MB))
        self.assertEqual(self.counts.bytes["out"], 6 * MB)

    async def test_unspeakable(self) -> None:
        """What HTTP cannot carry is refused before anything is sent."""
        self.begin()
        for request in (
            OriginRequest(b"GET", b"/\xff"),
            OriginRequest(b"GET ME", b"/"),
            OriginRequest(b"GET", b"/a b"),
        ):
            with self.assertRaises(OriginRefused) as caught:
                await self.origin.forward(request)
            self.assertEqual(caught.exception.status, 400)
        self.assertEqual((self.store.requests, self.store.factory.accepted), ([], 0))

    async def test_big_and_slow(self) -> None:
        """A body in pieces comes whole, its length known from the start."""
        self.begin()
        answer = await self.origin.forward(OriginRequest(b"GET", b"/big", b"size=20000001"))
        self.assertEqual(answer.length, 20000001)
        self.assertEqual(len(await read_all(answer.body, 64 * MB)), 20000001)
        self.assertEqual(self.counts.operations, [("forward", "ok")])

    async def test_long_transfer_lends_its_slot(self) -> None:
        """A download that its client reads slowly doesn't keep others from the origin for long."""
        self.patch(requests, "LONG_TRANSFER_SECONDS", 0.05)
        self.begin(origin_concurrency=1)
        gate = self.store.hold("/big", after=1000)
        answer = await self.origin.forward(OriginRequest(b"GET", b"/big", b"size=200000"))
        self.assertEqual(await self.frames([1]), self.expected([1]))
        self.assertEqual(self.origin.status()["requests"]["long_transfers"], 1)  # type: ignore[index]
        gate.release()
        self.assertEqual(len(await read_all(answer.body, MB)), 200000)
        self.assertEqual(self.origin.status()["requests"]["long_transfers"], 0)  # type: ignore[index]

    async def test_hanging_upload_lends_its_slot(self) -> None:
        """Nor does an upload whose sender hangs."""
        self.patch(requests, "LONG_TRANSFER_SECONDS", 0.05)
        self.begin(origin_concurrency=1)
        stream = HandStream()
        stream.feed(b"x")
        running = Deferred.fromCoroutine(self.origin.forward(OriginRequest(b"POST", b"/studies", body=stream)))
        self.assertEqual(await self.frames([1]), self.expected([1]))
        stream.end()
        await read_all((await running).body, MB)

    async def test_stop(self) -> None:
        """Stopping ends what runs and what waits."""
        self.begin(origin_concurrency=1)
        gate = self.store.hold("/studies")
        running = [Deferred.fromCoroutine(self.origin.forward(OriginRequest(b"GET", b"/studies"))) for _ in range(2)]
        await gate.reached()
        await self.origin.stop()
        for request in running:
            with self.assertRaises((OriginError, CancelledError)):
                await request


class PingTests(StoreTestCase):
    async def test_any_answer(self) -> None:
        """Any HTTP answer is a sign of life; without one it raises, and status says so."""
        self.begin()
        await self.origin.ping()
        self.store.fail(faults.Answer(401, (), b"who?"))
        await self.origin.ping()
        self.store.fail(faults.Reset(), times=None)
        with self.assertRaises(OriginError):
            await self.origin.ping()
        self.assertIn("closed", str(self.origin.status()["last_ping_error"]))

    async def test_nothing_there(self) -> None:
        """A URL below which all answers are 404 is doubtful, until there is another."""
        self.begin()
        self.store.fail(faults.Answer(404), times=None)
        doubt = await self.origin.ping()
        self.assertIn(f"{self.store.url}/studies answered 404", str(doubt))
        self.assertEqual(self.origin.status()["last_ping_error"], doubt)
        self.store.heal()
        await read_all((await self.origin.forward(OriginRequest(b"GET", b"/studies"))).body, MB)
        self.store.fail(faults.Answer(404), times=None)
        self.assertIsNone(await self.origin.ping())

    async def test_gone(self) -> None:
        """A store that has stopped is unreachable."""
        self.begin()
        await self.store.stop()
        with self.assertRaises(OriginUnreachable):
            await self.origin.ping()
