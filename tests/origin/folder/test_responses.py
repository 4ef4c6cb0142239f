"""The folder's answers to DICOMweb requests."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy
import pydicom
from PIL import ImageCms
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items

from tests.origin.folder.support import Answer, FolderTestCase, ask
from tests.slides import loop, slide
from twistedproxy.dicom.media_types import parse_media_type
from twistedproxy.dicom.multipart import Part, PartCollector
from twistedproxy.dicom.transfer_syntaxes import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    JPEG_2000,
    JPEG_BASELINE,
)
from twistedproxy.origin.errors import OriginBadAnswer
from twistedproxy.origin.folder.json_model import MAX_INLINE

STOW = 'multipart/related; type="application/dicom"; boundary=x'
STORED = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'


def parts_of(answer: Answer) -> list[Part]:
    collector = PartCollector(parse_media_type(answer.headers["content-type"]).boundary, 1000)
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
        wrong_places = ("00480105/2/00282000", "00480105/0/00282000", "x", "00280010", "00280008", "00480105", "")
        for wrong in ("/bulkdata", *(f"/bulkdata/{place}" for place in wrong_places)):  # numbers and sequences, too
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
        unknown = await ask(self.origin, "/studies", "Nonsense=1&%22%0d%0aX-Evil:1=%C3%A4&PatientComments=x")
        self.assertEqual((unknown.status, len(unknown.json)), (200, 1))
        expected = (
            '299 twistedproxy "These parameters are not supported and were ignored: Nonsense, XEvil1, PatientComments"'
        )
        self.assertEqual(unknown.headers["warning"], expected)
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


class PixelDataTests(FolderTestCase):
    """Pixel data of every kind, and some that are not what their files say."""

    def write(self, name: str, syntax: str, pixels: bytes, vr: str = "OB", **attributes: object) -> str:
        """Write a file whose pixel data has defined length if native; its resource, with a leading slash."""
        made = loop(self.folder / name, 1, 8, 8)
        data = pydicom.dcmread(made.path)
        data.file_meta.TransferSyntaxUID = syntax
        for keyword, value in attributes.items():
            setattr(data, keyword, value)
        data.PixelData = pixels
        data["PixelData"].VR = vr
        little = syntax != EXPLICIT_VR_BIG_ENDIAN
        native = data.file_meta.TransferSyntaxUID.is_encapsulated is False
        data["PixelData"].is_undefined_length = not native
        pydicom.dcmwrite(made.path, data, implicit_vr=False, little_endian=little, force_encoding=True)
        return f"/{made.resource}"

    async def parts(self, path: str, accept: str = STORED) -> list[Part]:
        answer = await ask(self.origin, path, accept=accept)
        self.assertEqual(answer.status, 200, answer.body)
        return parts_of(answer)

    async def test_big_endian(self) -> None:
        """Frames, pixel data as a whole and other binary values of a big endian file come in little endian."""
        random = numpy.random.default_rng(1)
        written = []
        for vr, bits, kind in (("OB", 8, "u1"), ("OW", 8, "u2"), ("OW", 16, "u2"), ("OW", 32, "u4"), ("OW", 1, "u2")):
            size = 35 * bits if bits == 1 else 35 * bits // 8 * 8  # bits; frames of 1-bit samples are not whole bytes
            value = random.integers(0, 256, -(-3 * size // 64) * 8, numpy.uint8).tobytes()
            stored = numpy.frombuffer(value, kind).byteswap().tobytes()
            path = self.write(
                f"{vr}{bits}.dcm",
                EXPLICIT_VR_BIG_ENDIAN,
                stored[: -(-3 * size // 16) * 2],
                vr,
                Rows=5,
                Columns=7,
                NumberOfFrames=3,
                SamplesPerPixel=1,
                PhotometricInterpretation="MONOCHROME2",
                BitsAllocated=bits,
                BitsStored=bits,
                HighBit=bits - 1,
                RedPaletteColorLookupTableData=bytes(range(256)) * 8,
            )
            written.append((path, size, value))
        self.origin = await self.serve()
        for path, size, value in written:
            number = int.from_bytes(value, "little")
            frames = [(number >> n * size & (1 << size) - 1).to_bytes(-(-size // 8), "little") for n in range(3)]
            found = await self.parts(f"{path}/frames/1,2,3")
            self.assertEqual([part.data for part in found], frames, path)
            self.assertIn("transfer-syntax=1.2.840.10008.1.2.1", found[0].headers["content-type"])
            (whole,) = await self.parts(f"{path}/bulkdata/7FE00010", "")
            self.assertEqual(whole.data, value[: len(whole.data)])
            (table,) = await self.parts(f"{path}/bulkdata/00281201", "")
            self.assertEqual(table.data, numpy.frombuffer(bytes(range(256)) * 8, "u2").byteswap().tobytes())

    async def test_wrong_transfer_syntax(self) -> None:
        """Compressed pixels that are said to be none, the reverse, and another codec than is said are errors."""
        made = slide(self.folder / "jpeg.dcm", 1, 1, tile=32)
        jpeg = made.stored_frames()[0]
        sizes = {"Rows": 32, "Columns": 32, "SamplesPerPixel": 3, "NumberOfFrames": 1, "PlanarConfiguration": 0}
        paths = []
        for name, syntax, said, pixels in (
            ("native", EXPLICIT_VR_LITTLE_ENDIAN, JPEG_BASELINE, bytes(32 * 32 * 3)),
            ("other", JPEG_BASELINE, JPEG_2000, encapsulate([jpeg])),
            ("encapsulated", JPEG_BASELINE, EXPLICIT_VR_LITTLE_ENDIAN, encapsulate([jpeg])),
        ):
            paths.append(self.write(f"{name}.dcm", syntax, pixels, PhotometricInterpretation="RGB", **sizes))
            file = self.folder / f"{name}.dcm"
            old, new = (b"UI" + (len(uid) + 1 & -2).to_bytes(2, "little") + uid.encode() for uid in (syntax, said))
            content = file.read_bytes().replace(old + bytes(len(old) % 2), new + bytes(len(new) % 2), 1)
            size = (
                int.from_bytes(content[140:144], "little")
                + len(new + bytes(len(new) % 2))
                - len(old + bytes(len(old) % 2))
            )
            file.write_bytes(content[:140] + size.to_bytes(4, "little") + content[144:])
        self.origin = await self.serve()
        for path in paths:
            for below in ("/frames/1", "/bulkdata/7FE00010"):
                if (below, path) != ("/bulkdata/7FE00010", paths[1]):
                    with self.assertRaises(OriginBadAnswer):
                        await ask(self.origin, path + below, accept=STORED)
            self.assertEqual((await ask(self.origin, f"{path}/metadata")).status, 200)

    async def test_length_that_does_not_fit(self) -> None:
        """Native pixel data of another length than the attributes make are refused; those with all samples are not."""
        said = {
            "Rows": 4,
            "Columns": 6,
            "SamplesPerPixel": 3,
            "NumberOfFrames": 2,
            "PhotometricInterpretation": "YBR_FULL_422",
            "PlanarConfiguration": 0,
        }
        written = {}
        for size in (48, 72, 60, 96, 30):
            pixels = bytes([1]) * size + bytes([2]) * size
            written[size] = self.write(f"{size}.dcm", EXPLICIT_VR_LITTLE_ENDIAN, pixels, **said)
        self.origin = await self.serve()
        for size, path in written.items():
            if size in (48, 72):
                found = await self.parts(f"{path}/frames/1,2")
                self.assertEqual([part.data for part in found], [bytes([1]) * size, bytes([2]) * size])
            else:
                with self.assertRaises(OriginBadAnswer) as caught:
                    await ask(self.origin, f"{path}/frames/1", accept=STORED)
                self.assertIn(f"{2 * size} bytes of pixel data for 2 frames of 48 bytes", str(caught.exception))

    async def test_video(self) -> None:
        """A video is one frame, and one piece of bulk data, however many pictures and fragments it has."""
        stream = bytes(range(256)) * 5
        for name, pixels in (("one", [stream]), ("three", [stream[:400], stream[400:500], stream[500:]])):
            path = self.write(f"{name}.dcm", "1.2.840.10008.1.2.4.102", encapsulate(pixels), NumberOfFrames=100)
            self.origin = await self.serve()
            uri = (await ask(self.origin, f"{path}/metadata")).json[0]["7FE00010"]["BulkDataURI"]
            for place in (f"{path}/frames/1", uri.removeprefix(self.origin.url)):
                (part,) = await self.parts(place, 'multipart/related; type="video/mp4"')
                self.assertEqual(part.data, stream)
                bare = await ask(self.origin, place, accept="video/mp4")
                self.assertEqual((bare.body, bare.headers["content-length"]), (stream, str(len(stream))))
                self.assertEqual(bare.headers["content-type"], "video/mp4; transfer-syntax=1.2.840.10008.1.2.4.102")
            self.assertEqual((await ask(self.origin, f"{path}/frames/2")).status, 404)

    async def test_every_reference(self) -> None:
        """Each reference to bulk data in the metadata gives the value: documents, tables, profiles, icons, private ones."""
        icon = Dataset()
        icon.Rows = icon.Columns = 64
        icon.PixelData = bytes(range(256)) * 16
        icon["PixelData"].VR = "OB"
        table = Dataset()
        table.LUTData = bytes(range(256)) * 8
        table["LUTData"].VR = "OW"
        more = {
            "EncapsulatedDocument": b"%PDF" + bytes(2000),
            "ICCProfile": bytes(3000),
            "IconImageSequence": Items([icon]),
            "ModalityLUTSequence": Items([table]),
            "SpectroscopyData": bytes(4000),
        }
        path = self.write("a.dcm", EXPLICIT_VR_LITTLE_ENDIAN, bytes(192), **more)
        data = pydicom.dcmread(self.folder / "a.dcm")
        data.private_block(0x99, "TEST", create=True).add_new(1, "UN", bytes(range(256)) * 6)
        data.save_as(self.folder / "a.dcm")
        self.origin = await self.serve()
        found = (await ask(self.origin, f"{path}/metadata")).json[0]
        references = list(_references(found))
        self.assertEqual(len(references), 7)
        for tags, uri in references:
            value: Any = data
            for tag in tags:
                value = (value if isinstance(value, Dataset) else value[0])[int(tag, 16)].value
            (part,) = await self.parts(uri.removeprefix(self.origin.url), "")
            self.assertEqual(part.data, value, tags)


def _references(found: dict[str, Any], *place: str) -> Iterator[tuple[tuple[str, ...], str]]:
    for tag, element in found.items():
        if "BulkDataURI" in element:
            yield (*place, tag), element["BulkDataURI"]
        if element["vr"] == "SQ":
            for item in element.get("Value", ()):
                yield from _references(item, *place, tag)
