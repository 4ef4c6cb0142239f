"""What the parts of an answer say that they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.transfer_syntaxes import EXPLICIT_VR_BIG_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN, Frame
from twistedproxy.origin.errors import OriginBadAnswer
from twistedproxy.origin.http.responses import Budget, read_frames
from twistedproxy.origin.interface import OriginResponse
from twistedproxy.streams import BytesStream

JPEG, JPEG_2000, JPEG_LS = (f"1.2.840.10008.1.2.4.{tail}" for tail in (50, 91, 80))
RELATED = b"multipart/related; boundary=B"


class LabelTests(SynchronousTestCase):
    """Each frame has the transfer syntax that its own part says."""

    def read(self, *labels: str, stored: Optional[str] = None) -> Deferred[list[Frame]]:
        beginnings = {"image/jp2": b"\xff\x4f\xff\x51"}
        parts = [
            b"--B\r\nContent-Type: %b\r\n\r\n%bframe\r\n"
            % (label.encode("ascii"), beginnings.get(label[:9], b"\xff\xd8"))
            for label in labels
        ]
        body = BytesStream(*parts, b"--B--\r\n")
        metadata = InstanceMetadata(len(labels), transfer_syntax=stored)
        answer = OriginResponse(200, ((b"Content-Type", RELATED),), body)
        return self.frames(answer, range(1, len(labels) + 1), metadata)

    def frames(
        self, answer: OriginResponse, numbers: Sequence[int], metadata: InstanceMetadata
    ) -> Deferred[list[Frame]]:
        """The frames, in the order of *numbers*."""
        target = f"/dicom-web/studies/1/series/2/instances/3/frames/{','.join(map(str, numbers))}"
        reading = read_frames(answer, target, numbers, metadata, Budget(None, len(numbers)))
        found = Deferred.fromCoroutine(reading)
        return found.addCallback(lambda frames: [frames[number] for number in numbers])  # type: ignore[return-value]

    def test_each_its_own(self) -> None:
        """Parts of one answer may differ: what one of them said is not taken for what the next one says."""
        first, second = f"image/jpeg; transfer-syntax={JPEG}", f"image/jp2; transfer-syntax={JPEG_2000}"
        found = self.successResultOf(self.read(first, first, second, "image/jls", first, stored=JPEG_LS))
        self.assertEqual([frame.transfer_syntax for frame in found], [JPEG, JPEG, JPEG_2000, JPEG_LS, JPEG])

    def test_big_endian(self) -> None:
        """A frame is in big endian if it says so, and not because the instance is."""
        said = f"application/octet-stream; transfer-syntax={EXPLICIT_VR_BIG_ENDIAN}"
        found = self.successResultOf(self.read(said, "application/octet-stream", stored=EXPLICIT_VR_BIG_ENDIAN))
        labels = [frame.transfer_syntax for frame in found]
        self.assertEqual(labels, [EXPLICIT_VR_BIG_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN])

    def test_what_is_no_frame(self) -> None:
        """A part among good ones that is no frame makes all of the answer bad."""
        good = f"image/jpeg; transfer-syntax={JPEG}"
        for bad in ("text/html", "image/jpeg; transfer-syntax=no-uid"):
            self.failureResultOf(self.read(good, bad, good), OriginBadAnswer)

    def located(self, numbers: Sequence[int], *locations: Optional[str]) -> Deferred[list[bytes]]:
        """The frames *numbers* of an answer whose parts, 0, 1, ..., say these Content-Locations."""
        parts = [
            b"--B\r\nContent-Type: image/jpeg\r\n%b\r\n\xff\xd8%d\r\n"
            % (b"" if location is None else b"Content-Location: %b\r\n" % location.encode(), index)
            for index, location in enumerate(locations)
        ]
        body = BytesStream(*parts, b"--B--\r\n")
        answer = OriginResponse(200, ((b"Content-Type", RELATED),), body)
        found = self.frames(answer, numbers, InstanceMetadata(9, transfer_syntax=JPEG))
        return found.addCallback(lambda frames: [frame.data[2:] for frame in frames])  # type: ignore[return-value]

    def test_order_of_parts(self) -> None:
        """Where parts say which frames they are, that counts: in a URL, a path or what is relative to the request."""
        for place in ("http://other.test/wado/frames/", "/x/frames/", "frames/", "../frames/", "", "FRAMES?/frames/"):
            swapped = place != "FRAMES?/frames/"
            found = self.successResultOf(self.located((2, 3, 5), f"{place}5", f"{place}2", f"{place}3"))
            self.assertEqual(found, [b"1", b"2", b"0"] if swapped else [b"0", b"1", b"2"], place)

    def test_parts_that_do_not_say(self) -> None:
        """What names no single frame changes nothing: a list, bulk data, a path of the store's own, or no Content-Location."""
        for locations in (
            (None, None),
            ("/x", "/x"),
            ("/frames/1,2", "/frames/1,2"),
            ("/bulk/7", "/bulk/6"),
            ("http://[bad/frames/2", "http://[bad/frames/1"),
            ("/frames/1", None),
            ("/frames/1/", "/frames/2#x"),
        ):
            self.assertEqual(self.successResultOf(self.located((1, 2), *locations)), [b"0", b"1"], locations)

    def test_parts_of_other_frames(self) -> None:
        """Parts that say they are other frames than those asked for, or the same one, are a bad answer."""
        for locations in (
            ("/frames/1", "/frames/3"),
            ("/frames/2", "/frames/2"),
            ("/frames/2", None),
            ("/frames/0", "/frames/1"),
        ):
            self.failureResultOf(self.located((1, 2), *locations), OriginBadAnswer)
        self.failureResultOf(self.located((1,), "/frames/2"), OriginBadAnswer)

    def test_single_part_of_another_frame(self) -> None:
        """So is a single part."""
        for location, right in ((b"/frames/1", True), (b"/frames/2", False), (b"/rendered", True)):
            body = BytesStream(b"\xff\xd8frame")
            headers = ((b"Content-Type", b"image/jpeg"), (b"Content-Location", location))
            found = self.frames(OriginResponse(200, headers, body), (1,), InstanceMetadata(9, transfer_syntax=JPEG))
            if right:
                self.assertEqual(len(self.successResultOf(found)), 1)
            else:
                self.failureResultOf(found, OriginBadAnswer)
