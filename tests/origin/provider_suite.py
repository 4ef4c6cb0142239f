"""What every origin must do, whatever stands behind it.

Mix `OriginSuite` into a `twisted.trial.unittest.TestCase` and say in `start_origin` which origin it is and what
it holds. The origin is stopped after each test.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BytesIO
from typing import Any, Optional

import attrs
import pydicom
from twisted.internet.defer import CancelledError, Deferred

from tests.slides import Made
from twistedproxy.dicom.media_types import parse_media_type
from twistedproxy.dicom.multipart import PartCollector
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicom.transfer_syntaxes import frame_uid, lookup
from twistedproxy.origin.errors import OriginError, OriginRefused
from twistedproxy.origin.interface import Caller, Origin, OriginRequest, OriginResponse
from twistedproxy.streams import StreamTooLong, read_all

CALLER = Caller(b"a caller")
MUCH = 256 * 1024 * 1024  # bytes; more than any answer here
UNKNOWN = "2.25.1234567890"


@attrs.frozen
class Known:
    """An instance that the origin holds. *frames*: as stored; *transfer_syntax*: the UID that labels a frame."""

    study: str
    series: str
    sop: str
    rows: int
    columns: int
    transfer_syntax: str
    frames: list[bytes] = attrs.field(repr=False)

    @classmethod
    def of(cls, made: Made) -> Known:
        syntax = lookup(made.encoding.transfer_syntax)
        assert syntax is not None
        return cls(
            made.study, made.series, made.sop, made.rows, made.columns, frame_uid(syntax.uid), made.stored_frames()
        )

    def at(self, origin: Origin) -> Instance:
        return Instance(origin.url, "", self.study, self.series, self.sop)

    @property
    def path(self) -> bytes:
        return f"/studies/{self.study}/series/{self.series}/instances/{self.sop}".encode("ascii")


class OriginSuite:
    """Tests of the `Origin` contract."""

    async def start_origin(self) -> tuple[Origin, Sequence[Known]]:
        """A started origin, and some of what it holds: at least one instance, all frames known."""
        raise NotImplementedError

    async def started(self) -> tuple[Origin, Sequence[Known]]:
        origin, known = await self.start_origin()
        self.addCleanup(lambda: Deferred.fromCoroutine(origin.stop()))
        return origin, known

    async def test_frames_are_as_stored(self) -> None:
        """Every frame of every instance comes with the stored bytes and the UID of its transfer syntax."""
        origin, known = await self.started()
        for one in known:
            metadata = await origin.metadata(one.at(origin), CALLER)
            numbers = list(range(1, len(one.frames) + 1))
            frames = await origin.frames(one.at(origin), numbers, CALLER, metadata)
            self.assertEqual({number: frame.data for number, frame in frames.items()}, dict(enumerate(one.frames, 1)))
            self.assertEqual({frame.transfer_syntax for frame in frames.values()}, {one.transfer_syntax})

    async def test_only_the_frames_asked_for(self) -> None:
        """Some frames, asked for out of order, come alone and under their own numbers."""
        origin, known = await self.started()
        one = max(known, key=lambda one: len(one.frames))
        count = len(one.frames)
        metadata = await origin.metadata(one.at(origin), CALLER)
        frames = await origin.frames(one.at(origin), [count, 1], CALLER, metadata)
        self.assertEqual({n: frame.data for n, frame in frames.items()}, {count: one.frames[-1], 1: one.frames[0]})

    async def test_metadata(self) -> None:
        """The metadata tells the number of frames and their size in pixels."""
        origin, known = await self.started()
        for one in known:
            metadata = await origin.metadata(one.at(origin), CALLER)
            self.assertEqual(
                (metadata.frames, metadata.rows, metadata.columns), (len(one.frames), one.rows, one.columns)
            )

    async def test_unknown_instance(self) -> None:
        """An instance that is not there is refused with the origin's own answer."""
        origin, known = await self.started()
        absent = attrs.evolve(known[0], sop=UNKNOWN).at(origin)
        with self.assertRaises(OriginRefused) as caught:
            await origin.metadata(absent, CALLER)
        self.assertIn(caught.exception.status, (400, 404))

    async def test_frame_past_the_end(self) -> None:
        """A frame that the instance does not have is an error, whatever else is asked for."""
        origin, known = await self.started()
        one = known[0]
        metadata = await origin.metadata(one.at(origin), CALLER)
        with self.assertRaises(OriginError):
            await origin.frames(one.at(origin), [1, len(one.frames) + 1], CALLER, metadata)

    async def test_limit(self) -> None:
        """More bytes than the caller is ready to keep are not kept."""
        origin, known = await self.started()
        one = known[0]
        metadata = await origin.metadata(one.at(origin), CALLER)
        size = len(one.frames[0])
        with self.assertRaises(StreamTooLong):
            await origin.frames(one.at(origin), [1], CALLER, metadata, limit=size - 1)
        frames = await origin.frames(one.at(origin), [1], CALLER, metadata, limit=size)
        self.assertEqual(frames[1].data, one.frames[0])

    async def test_stored_instance(self) -> None:
        """The whole instance is a DICOM file with the very pixel data."""
        origin, known = await self.started()
        for one in known:
            stored = await read_all(await origin.stored_instance(one.at(origin), CALLER), MUCH)
            data = pydicom.dcmread(BytesIO(stored))
            self.assertEqual(data.SOPInstanceUID, one.sop)
            self.assertIn(one.frames[0], data.PixelData)
            self.assertIn(one.frames[-1], data.PixelData)

    async def test_two_at_once(self) -> None:
        """Two who ask for the same frame at the same time both get it."""
        origin, known = await self.started()
        one = known[0]
        metadata = await origin.metadata(one.at(origin), CALLER)
        both = [Deferred.fromCoroutine(origin.frames(one.at(origin), [1], CALLER, metadata)) for _ in range(2)]
        for wait in both:
            self.assertEqual((await wait)[1].data, one.frames[0])

    async def test_cancelled(self) -> None:
        """Who stops waiting is told so, and whoever asked for the same still gets it."""
        origin, known = await self.started()
        one = known[0]
        metadata = await origin.metadata(one.at(origin), CALLER)
        first, second = (Deferred.fromCoroutine(origin.frames(one.at(origin), [1], CALLER, metadata)) for _ in range(2))
        first.cancel()
        with self.assertRaises(CancelledError):
            await first
        self.assertEqual((await second)[1].data, one.frames[0])

    async def test_forwarded_search(self) -> None:
        """A search by UID goes through and finds the instance."""
        origin, known = await self.started()
        query = f"SOPInstanceUID={known[0].sop}".encode("ascii")
        path = f"/studies/{known[0].study}/series/{known[0].series}/instances".encode("ascii")
        status, found = await self.get_json(origin, path, query)
        self.assertEqual(status, 200)
        self.assertEqual([one["00080018"]["Value"] for one in found], [[known[0].sop]])

    async def test_forwarded_metadata(self) -> None:
        """A request for metadata goes through and is answered in the DICOM JSON Model."""
        origin, known = await self.started()
        for one in known:
            status, found = await self.get_json(origin, one.path + b"/metadata")
            self.assertEqual(status, 200)
            self.assertEqual(found[0]["00280010"]["Value"], [one.rows])

    async def test_forwarded_frames(self) -> None:
        """A request for stored frames goes through and is answered with one part a frame."""
        origin, known = await self.started()
        one = known[0]
        accept = b'multipart/related; type="application/octet-stream"; transfer-syntax=*'
        response = await self.get(origin, one.path + b"/frames/1", headers=((b"Accept", accept),))
        self.assertEqual(response.status, 200)
        headers = {name.lower(): value for name, value in response.headers}
        collector = PartCollector(parse_media_type(headers[b"content-type"]).boundary, 1000)
        parts = collector.feed(await read_all(response.body, MUCH))
        collector.close()
        self.assertEqual([part.data for part in parts], [one.frames[0]])

    async def test_forwarded_refusal(self) -> None:
        """An error is an answer too: its status comes back instead of an exception."""
        origin, known = await self.started()
        path = attrs.evolve(known[0], sop=UNKNOWN).path + b"/metadata"
        response = await self.get(origin, path)
        response.body.close()
        self.assertIn(response.status, (400, 404))

    async def test_reached(self) -> None:
        """A started origin can be reached, and its status can be shown as JSON."""
        origin, _ = await self.started()
        await origin.ping()
        self.assertIsInstance(json.dumps(origin.status()), str)

    async def get(
        self, origin: Origin, path: bytes, query: bytes = b"", headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> OriginResponse:
        return await origin.forward(OriginRequest(b"GET", path, query, headers))

    async def get_json(self, origin: Origin, path: bytes, query: bytes = b"") -> tuple[int, Any]:
        response = await self.get(origin, path, query, ((b"Accept", b"application/dicom+json"),))
        body: Optional[bytes] = await read_all(response.body, MUCH)
        return response.status, json.loads(body) if body else []
