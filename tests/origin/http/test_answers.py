"""What the parts of an answer say that they are."""

from __future__ import annotations

from typing import Optional

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.dicom.frame import Frame
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.dicom.transfer_syntaxes import EXPLICIT_VR_BIG_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN
from twistedproxy.origin.errors import OriginBadAnswer
from twistedproxy.origin.http.answers import Budget, read_frames
from twistedproxy.origin.http.exchange import Answer
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
        body.framed = True  # type: ignore[attr-defined]
        metadata = InstanceMetadata(len(labels), transfer_syntax=stored)
        answer = Answer(200, ((b"Content-Type", RELATED),), body, None)  # type: ignore[arg-type]
        return Deferred.fromCoroutine(read_frames(answer, len(labels), metadata, Budget(None, len(labels))))

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
