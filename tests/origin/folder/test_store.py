"""Uploads into a folder."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from twisted.internet.defer import Deferred

from tests.origin.folder.support import Answer, FolderTestCase, ask
from tests.origin.provider_suite import CALLER, Known
from tests.slides import Made, slide
from twistedproxy.origin.folder import FolderOrigin
from twistedproxy.origin.folder.store import CANNOT_UNDERSTAND, DUPLICATE_INSTANCE, INCOMING, NOT_THIS_STUDY, sweep
from twistedproxy.origin.interface import OriginRequest

DICOM = 'multipart/related; type="application/dicom"; boundary=xyz'


def upload(
    contents: Sequence[bytes], content_type: str = "application/dicom", end: bytes = b"\r\n--xyz--\r\n"
) -> bytes:
    head = f"\r\n--xyz\r\nContent-Type: {content_type}\r\n\r\n".encode()
    return b"".join(head + content for content in contents) + end


class StoreTests(FolderTestCase):
    """STOW-RS."""

    def setUp(self) -> None:
        super().setUp()
        self.elsewhere = Path(self.mktemp())
        self.elsewhere.mkdir()

    def make(self, name: str = "one", **more: str) -> Made:
        return slide(self.elsewhere / f"{name}.dcm", 1, 2, tile=32, **more)

    async def send(self, origin: FolderOrigin, body: bytes, path: str = "/studies", cut: int = 0) -> Answer:
        chunks = [body[at : at + cut] for at in range(0, len(body), cut)] if cut else [body]
        return await ask(origin, path, method="POST", content_type=DICOM, chunks=chunks)

    def names(self) -> list[str]:
        return sorted(os.path.join(where, name) for where, _, files in os.walk(self.folder) for name in files)

    async def test_stored(self) -> None:
        """An instance is in its place, byte by byte, and served at once, however its bytes came in."""
        origin = await self.serve()
        for number, cut in enumerate((0, 7, 1000)):
            made = self.make(f"{number}")
            answer = await self.send(origin, upload([made.path.read_bytes()]), cut=cut)
            self.assertEqual((answer.status, answer.headers["content-type"]), (200, "application/dicom+json"))
            reference = answer.json["00081199"]["Value"][0]
            self.assertEqual(reference["00081155"]["Value"], [made.sop])
            self.assertEqual(reference["00081190"]["Value"], [f"{origin.url}/{made.resource}"])
            place = self.folder / made.study / made.series / f"{made.sop}.dcm"
            self.assertTrue(filecmp.cmp(place, made.path, shallow=False))
            self.assertEqual((await origin.metadata(Known.of(made).at(origin), CALLER)).frames, 2)
        self.assertEqual(len(self.names()), 3)

    async def test_answer_for_pydicom(self) -> None:
        """pydicom reads the answer, as dicomweb-client does."""
        origin = await self.serve()
        made = self.make()
        answer = await self.send(origin, upload([made.path.read_bytes(), b"nonsense"]))
        self.assertEqual(answer.status, 202)
        read = Dataset.from_json(answer.json)
        self.assertEqual(read.ReferencedSOPSequence[0].ReferencedSOPInstanceUID, made.sop)
        self.assertEqual(read.FailedSOPSequence[0].FailureReason, CANNOT_UNDERSTAND)

    async def test_again(self) -> None:
        """The same bytes again are a success; other bytes of the same instance fail and change nothing."""
        origin = await self.serve()
        made = self.make()
        for _ in range(2):
            self.assertEqual((await self.send(origin, upload([made.path.read_bytes()]))).status, 200)
        other = self.make("other", study=made.study, series=made.series, sop=made.sop, patient="OTHER")
        answer = await self.send(origin, upload([other.path.read_bytes()]))
        self.assertEqual(answer.status, 409)
        self.assertEqual(answer.json["00081198"]["Value"][0]["00081197"]["Value"], [DUPLICATE_INSTANCE])
        (path,) = self.names()
        self.assertTrue(filecmp.cmp(path, made.path, shallow=False))

    async def test_there_under_another_name(self) -> None:
        """An instance that lies in the folder under a name of its own is not stored twice."""
        made = slide(self.folder / "mine.dcm", 1, 1, tile=32)
        origin = await self.serve()
        self.assertEqual((await self.send(origin, upload([made.path.read_bytes()]))).status, 200)
        self.assertEqual(self.names(), [str(self.folder / "mine.dcm")])

    async def test_other_study(self) -> None:
        """To a study only instances of that study can be stored."""
        origin = await self.serve()
        made = self.make()
        content = upload([made.path.read_bytes()])
        answer = await self.send(origin, content, "/studies/1.2.3")
        self.assertEqual(answer.status, 409)
        self.assertEqual(answer.json["00081198"]["Value"][0]["00081197"]["Value"], [NOT_THIS_STUDY])
        self.assertEqual((await self.send(origin, content, f"/studies/{made.study}")).status, 200)
        self.assertEqual((await self.send(origin, content, "/studies/x")).status, 400)

    async def test_nasty_uids(self) -> None:
        """A file whose UIDs would lead out of the folder is refused."""
        origin = await self.serve()
        made = self.make()
        data = pydicom.dcmread(made.path)
        data.StudyInstanceUID = "../../../tmp/x"
        out = BytesIO()
        data.save_as(out)
        answer = await self.send(origin, upload([out.getvalue()]))
        self.assertEqual(answer.status, 409)
        self.assertEqual(self.names(), [])

    async def test_symlink_out(self) -> None:
        """A folder of a study that is a symlink is not written through."""
        origin = await self.serve()
        made = self.make()
        (self.folder / made.study).symlink_to(self.elsewhere.absolute())
        answer = await self.send(origin, upload([made.path.read_bytes()]))
        self.assertEqual(answer.status, 409)
        self.assertEqual([path.name for path in self.elsewhere.rglob("*.dcm")], ["one.dcm"])

    async def test_wrong_type(self) -> None:
        """Other types of body are 415, other types of part fail."""
        origin = await self.serve()
        content = upload([self.make().path.read_bytes()])
        for content_type in (
            "application/dicom",
            'multipart/related; type="application/dicom+json"',
            "",
            "multipart/form-data",
        ):
            answer = await ask(origin, "/studies", method="POST", content_type=content_type, chunks=[content])
            self.assertEqual(answer.status, 415, content_type)
        self.assertEqual((await self.send(origin, upload([b"{}"], "application/json"))).status, 409)

    async def test_broken_body(self) -> None:
        """A body that ends early leaves what was whole, and no piece of what wasn't."""
        origin = await self.serve()
        first, second = self.make("first"), self.make("second")
        body = upload([first.path.read_bytes(), second.path.read_bytes()])[:-200]
        self.assertEqual((await self.send(origin, body)).status, 400)
        self.assertEqual([os.path.basename(name) for name in self.names()], [f"{first.sop}.dcm"])
        self.assertEqual((await self.send(origin, upload([]))).status, 400)

    async def test_sender_gone(self) -> None:
        """When the sender goes, no file of what was half there stays."""
        origin = await self.serve()
        content = upload([self.make().path.read_bytes()])

        class Broken:
            pieces = [content[: len(content) // 2]]

            async def read(self) -> bytes:
                if not self.pieces:
                    raise ConnectionError("gone")
                return self.pieces.pop()

            def close(self) -> None:
                pass

        request = OriginRequest(b"POST", b"/studies", b"", ((b"Content-Type", DICOM.encode()),), Broken())
        with self.assertRaises(ConnectionError):
            await origin.forward(request)
        self.assertEqual(self.names(), [])

    async def test_two_at_once(self) -> None:
        """Two who store the same instance at once both succeed, and one file is there."""
        origin = await self.serve()
        content = upload([self.make().path.read_bytes()])
        waits = [Deferred.fromCoroutine(self.send(origin, content, cut=50)) for _ in range(2)]
        self.assertEqual([(await wait).status for wait in waits], [200, 200])
        self.assertEqual(len(self.names()), 1)

    def test_sweep(self) -> None:
        """What an upload left behind that was killed long ago is removed; one that may still run is not."""
        old, new = self.folder / f"{INCOMING}old", self.folder / f"{INCOMING}new"
        for path in (old, new):
            path.write_bytes(b"half")
        os.utime(old, (1, 1))
        sweep(str(self.folder))
        self.assertEqual(self.names(), [str(new)])
