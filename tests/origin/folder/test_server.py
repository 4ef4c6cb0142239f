"""The folder's answers to DICOMweb requests."""

from __future__ import annotations

from io import BytesIO

import pydicom
from PIL import ImageCms
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items

from tests.origin.folder.support import MUCH, Answer, FolderTestCase, ask
from tests.slides import loop, slide
from twistedproxy.dicom.media_types import parse_media_type
from twistedproxy.dicom.multipart import Part, PartCollector
from twistedproxy.origin.folder.json_model import MAX_INLINE

STOW = 'multipart/related; type="application/dicom"; boundary=x'
STORED = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'


def parts_of(answer: Answer) -> list[Part]:
    collector = PartCollector(parse_media_type(answer.headers["content-type"]).boundary, MUCH)
    parts = collector.feed(answer.body)
    collector.close()
    return parts


class ServerTests(FolderTestCase):
    """Resources of a folder with a slide of two levels."""

    async def ready(self) -> None:
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        self.profile = profile + bytes(MAX_INLINE + len(profile) % 2)
        path = Dataset()
        path.OpticalPathIdentifier = "1"
        path.ICCProfile = self.profile
        self.first = slide(self.folder / "a.dcm", 2, 3, tile=32, extra={"OpticalPathSequence": Items([path])})
        self.second = slide(
            self.folder / "b.dcm", 1, 1, tile=32, encoding="raw", study=self.first.study, series=self.first.series
        )
        self.origin = await self.serve()

    async def test_metadata_levels(self) -> None:
        """Metadata come for an instance, a series and a study, with the transfer syntax and places of bulk data."""
        await self.ready()
        for path, count in (
            (f"/{self.first.resource}/metadata", 1),
            (f"/studies/{self.first.study}/series/{self.first.series}/metadata", 2),
            (f"/studies/{self.first.study}/metadata", 2),
        ):
            answer = await ask(self.origin, path, accept="application/dicom+json")
            self.assertEqual((answer.status, answer.headers["content-type"]), (200, "application/dicom+json"))
            found = answer.json
            self.assertEqual(len(found), count)
            self.assertEqual(found[0]["00083002"]["Value"], ["1.2.840.10008.1.2.4.50"])
            self.assertEqual(list(found[0]), sorted(found[0]))

    async def test_metadata_are_the_header(self) -> None:
        """pydicom reads from the JSON what it reads from the file."""
        await self.ready()
        found = (await ask(self.origin, f"/{self.first.resource}/metadata")).json[0]
        read = Dataset.from_json(found, bulk_data_uri_handler=lambda tag, vr, uri: b"")
        header = pydicom.dcmread(self.first.path, stop_before_pixels=True)
        for element in header:
            if element.keyword not in ("OpticalPathSequence", "SharedFunctionalGroupsSequence"):
                self.assertEqual(read[element.tag].value, element.value, element.keyword)
        spacing = header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
        self.assertEqual(read.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing, spacing)

    async def test_bulk_data(self) -> None:
        """A long value is referred to by a URL below the origin's own, and comes from there, in parts or bare."""
        await self.ready()
        found = (await ask(self.origin, f"/{self.first.resource}/metadata")).json[0]
        uri = found["00480105"]["Value"][0]["00282000"]["BulkDataURI"]
        self.assertTrue(uri.startswith(self.origin.url + "/studies/"))
        path = uri.removeprefix(self.origin.url)
        self.assertEqual([part.data for part in parts_of(await ask(self.origin, path))], [self.profile])
        bare = await ask(self.origin, path, accept="application/octet-stream")
        self.assertEqual((bare.headers["content-type"], bare.body), ("application/octet-stream", self.profile))
        self.assertEqual((await ask(self.origin, path, accept="image/png")).status, 406)
        for wrong in ("/bulkdata/00480105/2/00282000", "/bulkdata/00480105/0/00282000", "/bulkdata/x", "/bulkdata"):
            self.assertEqual((await ask(self.origin, f"/{self.first.resource}{wrong}")).status, 404, wrong)

    async def test_pixels_as_bulk_data(self) -> None:
        """Pixel data come as one value if native, as one part a frame if encapsulated."""
        await self.ready()
        for made in (self.first, self.second):
            found = (await ask(self.origin, f"/{made.resource}/metadata")).json[0]
            path = found["7FE00010"]["BulkDataURI"].removeprefix(self.origin.url)
            parts = parts_of(await ask(self.origin, path))
            self.assertEqual(b"".join(part.data for part in parts), b"".join(made.stored_frames()))
        self.assertEqual(len(parts), 1)

    async def test_instances(self) -> None:
        """Instances come as the very files: all of a study or series, or one."""
        await self.ready()
        both = [self.first.path.read_bytes(), self.second.path.read_bytes()]
        study, series = f"/studies/{self.first.study}", f"/series/{self.first.series}"
        for path, expected in ((study, both), (study + series, both), (f"/{self.first.resource}", both[:1])):
            answer = await ask(self.origin, path, accept='multipart/related; type="application/dicom"')
            parts = parts_of(answer)
            self.assertEqual([part.data for part in parts], expected)
            self.assertEqual(
                parts[0].headers["content-type"], "application/dicom; transfer-syntax=1.2.840.10008.1.2.4.50"
            )

    async def test_bare_instance(self) -> None:
        """One instance comes without multipart where that is asked for."""
        await self.ready()
        answer = await ask(self.origin, f"/{self.second.resource}", accept="application/dicom; transfer-syntax=*")
        self.assertEqual(answer.headers["content-type"], "application/dicom; transfer-syntax=1.2.840.10008.1.2.1")
        self.assertEqual(answer.body, self.second.path.read_bytes())

    async def test_other_syntax(self) -> None:
        """A transfer syntax that the instance is not stored in is refused, naming the one that there is."""
        await self.ready()
        for path in (f"/{self.first.resource}", f"/{self.first.resource}/frames/1"):
            accept = "multipart/related; type=application/dicom; transfer-syntax=1.2.840.10008.1.2.1"
            answer = await ask(self.origin, path, accept=accept)
            self.assertEqual(answer.status, 406)
            self.assertIn("1.2.840.10008.1.2.4.50", answer.json["detail"])

    async def test_frames(self) -> None:
        """Frames come in the order asked for, repeats too, labelled with their true type."""
        await self.ready()
        stored = self.first.stored_frames()
        for accept in (STORED, "", 'multipart/related; type="image/jpeg"', "multipart/related; type=*/*", "*/*"):
            answer = await ask(self.origin, f"/{self.first.resource}/frames/3,1,3", accept=accept)
            self.assertEqual(answer.status, 200, accept)
            self.assertEqual([part.data for part in parts_of(answer)], [stored[2], stored[0], stored[2]])
            self.assertIn('type="image/jpeg"; transfer-syntax=1.2.840.10008.1.2.4.50', answer.headers["content-type"])
        bare = await ask(self.origin, f"/{self.first.resource}/frames/2", accept="image/jpeg")
        self.assertEqual(bare.body, stored[1])

    async def test_wrong_frames(self) -> None:
        """A frame list that is none is 400, a frame that is not there 404, uncompressed octets of JPEG 406."""
        await self.ready()
        path = f"/{self.first.resource}/frames/"
        for numbers, status in (("0", 400), ("x", 400), ("1,", 400), ("-1", 400), ("7", 404), ("1,7", 404)):
            self.assertEqual((await ask(self.origin, path + numbers)).status, status, numbers)
        octets = await ask(self.origin, path + "1", accept='multipart/related; type="application/octet-stream"')
        self.assertEqual(octets.status, 406)

    async def test_rendered(self) -> None:
        """Nothing is rendered."""
        await self.ready()
        for path in ("/rendered", "/frames/1/rendered", "/thumbnail"):
            answer = await ask(self.origin, f"/{self.first.resource}{path}", accept="image/jpeg")
            self.assertEqual((answer.status, answer.headers["content-type"]), (406, "application/problem+json"))

    async def test_not_there(self) -> None:
        """What is not there is 404, what is no resource too, a UID that is none 400."""
        await self.ready()
        for path, status in (
            ("/studies/1.2.3/metadata", 404),
            (f"/studies/{self.first.study}/series/1.2.3", 404),
            ("/elsewhere", 404),
            ("/studies/..%2f..%2fetc/metadata", 400),
            ("/studies/x", 400),
            (f"/{self.first.resource}/elsewhere", 404),
        ):
            answer = await ask(self.origin, path)
            self.assertEqual((answer.status, answer.json["status"]), (status, status), path)

    async def test_methods(self) -> None:
        """HEAD answers without a body; uploads and DELETE are refused with what is allowed; OPTIONS says it."""
        await self.ready()
        head = await ask(self.origin, f"/{self.first.resource}", method="HEAD", accept="application/dicom")
        self.assertEqual((head.status, head.body), (200, b""))
        self.assertEqual(head.headers["content-length"], str(self.first.path.stat().st_size))
        before = sorted(self.folder.rglob("*"))
        for path in (f"/{self.first.resource}", f"/studies/{self.first.study}", "/studies"):
            for method in ("DELETE", "POST", "PUT"):
                more = {"content_type": STOW, "chunks": [b"--x\r\n\r\n" + self.first.path.read_bytes(), b"\r\n--x--"]}
                refused = await ask(self.origin, path, method=method, **more)
                self.assertEqual((refused.status, refused.headers["allow"]), (405, "GET, HEAD, OPTIONS"))
        self.assertEqual(sorted(self.folder.rglob("*")), before)
        options = await ask(self.origin, "/studies", method="OPTIONS")
        self.assertEqual(options.headers["allow"], "GET, HEAD, OPTIONS")

    async def test_search(self) -> None:
        """Searches are answered in DICOM JSON; nothing found is an empty list; other forms are refused."""
        await self.ready()
        self.assertEqual(len((await ask(self.origin, "/instances", "Modality=SM")).json), 2)
        nothing = await ask(self.origin, "/studies", "PatientID=NOBODY", accept="application/dicom+json")
        self.assertEqual((nothing.status, nothing.body), (200, b"[]"))
        self.assertEqual((await ask(self.origin, "/studies", accept="application/dicom+xml")).status, 406)
        wrong = await ask(self.origin, "/studies", "limit=x")
        self.assertEqual((wrong.status, wrong.headers["content-type"]), (400, "application/problem+json"))

    async def test_no_pixels(self) -> None:
        """An instance without pixels has metadata and no frames."""
        made = loop(self.folder / "report.dcm", 1, 8, 8)
        data = pydicom.dcmread(made.path)
        del data.PixelData, data.NumberOfFrames
        data.save_as(made.path)
        origin = await self.serve()
        found = (await ask(origin, f"/{made.resource}/metadata")).json[0]
        self.assertNotIn("7FE00010", found)
        self.assertEqual((await ask(origin, f"/{made.resource}/frames/1")).status, 404)

    async def test_sparse_slide(self) -> None:
        """Per-frame groups come whole in the metadata."""
        made = slide(self.folder / "sparse.dcm", 20, 20, tile=16, sparse=True)
        origin = await self.serve()
        found = (await ask(origin, f"/{made.resource}/metadata")).json[0]
        self.assertEqual(len(found["52009230"]["Value"]), made.frames)

    async def test_broken_attributes(self) -> None:
        """An attribute that JSON cannot express is left out, the others stay."""
        made = slide(self.folder / "one.dcm", 2, 2, tile=16)
        data = pydicom.dcmread(made.path)
        data.ImagedVolumeDepth = float("nan")
        data.save_as(made.path)
        content = made.path.read_bytes().replace(b"IS\x02\x001 ", b"IS\x02\x00x ")
        made.path.write_bytes(content)
        origin = await self.serve()
        found = (await ask(origin, f"/{made.resource}/metadata")).json[0]
        self.assertNotIn("00480003", found)
        self.assertIn("00480001", found)
        self.assertNotIn("00200013", found)
        self.assertEqual(pydicom.dcmread(BytesIO(content)).file_meta.MediaStorageSOPInstanceUID, made.sop)
