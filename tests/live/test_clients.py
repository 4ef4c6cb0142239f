"""dicomweb-client and wsidicom do what they can do through a proxy process, on Orthanc and on a folder.

- The same tests on both stores: `ClientSuite`.
- Frames are those that pydicom reads from the file; data sets are the file's.
"""

from __future__ import annotations

import base64
import io
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

import numpy
import pydicom
from PIL import Image
from pydicom.dataset import Dataset

from tests.live.support import LiveCase, Session, dicomweb, uids
from tests.slides import ENCODINGS, Made, loop, slide
from tests.waiting import DEADLINE

if TYPE_CHECKING:
    Base = LiveCase
else:
    Base = object

AS_STORED = (("application/dicom", "*"),)
STORED_FRAMES = (("application/octet-stream", "*"),)
HIT = (200, "twistedproxy; hit")
LOOP = "1.2.840.10008.5.1.4.1.1.3.1"
KINDS = ("jpeg", "jpeg2000-lossless", "raw", "rle", "jpegls")


class ClientSuite(Base):
    """What clients do with a store. `serve` puts files into one and a proxy in front, whose mount is *url*."""

    url: str

    async def serve(self, *made: Made) -> None:
        """Have *made* in the store."""
        raise NotImplementedError

    def path(self) -> Path:
        """Where the next file goes, and others not."""
        self.folder = getattr(self, "folder", None) or Path(self.mktemp())
        self.folder.mkdir(exist_ok=True)
        return self.folder / f"{len(list(self.folder.iterdir()))}.dcm"

    async def test_searches(self) -> None:
        """Studies, series and instances are found by what they are, page by page, and lead back to the proxy; once
        frames of an instance were asked for, they tell their transfer syntax."""
        first = slide(self.path(), 1, 2, 32)
        second = slide(self.path(), 1, 1, 32, study=first.study, series=first.series)
        third = loop(self.path(), 2)
        await self.serve(first, second, third)
        await self.threaded(self._search, first, second, third)

    def _search(self, first: Made, second: Made, third: Made) -> None:
        client = dicomweb(self.url)

        def studies(**more: Any) -> list[str]:
            return sorted(found["0020000D"]["Value"][0] for found in client.search_for_studies(**more))

        def instances(*args: str, **more: Any) -> list[str]:
            return sorted(found["00080018"]["Value"][0] for found in client.search_for_instances(*args, **more))

        self.assertEqual(studies(), sorted([first.study, third.study]))
        self.assertEqual(studies(search_filters={"PatientID": "SLIDE"}), [first.study])
        self.assertEqual(studies(search_filters={"StudyDate": "20260101-20260103"}), studies())
        self.assertEqual(studies(search_filters={"StudyDate": "20250101-20250103"}), [])
        self.assertEqual(studies(search_filters={"StudyInstanceUID": third.study}), [third.study])
        pages = [studies(limit=1, offset=offset) for offset in range(3)]
        self.assertEqual((sorted(pages[0] + pages[1]), pages[2]), (studies(), []))
        self.assertEqual(studies(limit=1, get_remaining=True), studies())
        series = client.search_for_series(search_filters={"Modality": "US"})
        self.assertEqual([found["0020000E"]["Value"] for found in series], [[third.series]])
        self.assertEqual(len(client.search_for_series(first.study)), 1)
        self.assertEqual(instances(), sorted(made.sop for made in (first, second, third)))
        self.assertEqual(instances(first.study), sorted([first.sop, second.sop]))
        self.assertEqual(
            instances(first.study, first.series, search_filters={"SOPInstanceUID": first.sop}), [first.sop]
        )
        self.assertEqual(instances(search_filters={"SOPClassUID": LOOP}), [third.sop])
        self.assertEqual(instances(first.study, third.series), [])
        (found,) = client.search_for_instances(*uids(third)[:2], fields=["SOPClassUID"])
        self.assertEqual(found["00081190"]["Value"], [f"{self.url}/{third.resource}"])
        client.retrieve_instance_frames(*uids(third), [1])
        end = time.monotonic() + DEADLINE
        while "00083002" not in found and time.monotonic() < end:  # the frame is not held back until that is noted
            (found,) = client.search_for_instances(*uids(third)[:2])
        self.assertEqual(found["00083002"]["Value"], [third.encoding.transfer_syntax])

    async def test_metadata(self) -> None:
        """Metadata of an instance, a series and a study is the file's, and says the transfer syntax: on its own the
        instance's, the others' of instances that were asked for."""
        first = slide(self.path(), 2, 3, 32, "jpeg2000-lossless", focal_planes=2)
        second = slide(self.path(), 1, 1, 32, study=first.study, series=first.series)
        await self.serve(first, second)
        client = dicomweb(self.url)
        metadata = await self.threaded(client.retrieve_instance_metadata, *uids(first))
        with pydicom.config.disable_value_validation():
            found = Dataset.from_json({tag: each for tag, each in metadata.items() if "BulkDataURI" not in each})
        expected = pydicom.dcmread(first.path, stop_before_pixels=True)
        for keyword in expected.dir():
            if expected[keyword].VR != "SQ":
                self.assertEqual(found[keyword].value, expected[keyword].value, keyword)
        self.assertEqual(found.AvailableTransferSyntaxUID, first.encoding.transfer_syntax)
        self.assertEqual(found.TotalPixelMatrixOriginSequence, expected.TotalPixelMatrixOriginSequence)
        await self.threaded(client.retrieve_instance_metadata, *uids(second))
        series = await self.threaded(client.retrieve_series_metadata, *uids(first)[:2])
        study = await self.threaded(client.retrieve_study_metadata, first.study)
        for all_of_it in (series, study):
            sops = {one["00080018"]["Value"][0]: one["00083002"]["Value"] for one in all_of_it}
            self.assertEqual(sops, {made.sop: [made.encoding.transfer_syntax] for made in (first, second)})

    async def test_bulk_data(self) -> None:
        """What the metadata leaves out, pixel data at least, is found where it says; an ICC profile there or within."""
        made = slide(self.path(), 1, 2, 32, "raw")
        await self.serve(made)
        client = dicomweb(self.url)
        metadata = await self.threaded(client.retrieve_instance_metadata, *uids(made))
        found = {}
        for tag, element in bulk_data(metadata):
            if "InlineBinary" in element:
                found[tag] = base64.b64decode(element["InlineBinary"])
                continue
            self.assertTrue(element["BulkDataURI"].startswith(f"{self.url}/{made.resource}/"), element)
            ask = client.retrieve_bulkdata, element["BulkDataURI"], ("application/octet-stream",)
            (found[tag],) = await self.threaded(*ask)
        expected = pydicom.dcmread(made.path)
        self.assertEqual(found["00282000"], expected.OpticalPathSequence[0].ICCProfile)
        self.assertEqual(found["7FE00010"], expected.PixelData)

    async def test_frames(self) -> None:
        """In whatever way the client asks, in any order, it gets the frames as pydicom reads them."""
        made = [slide(self.path(), 3, 4, 32, encoding) for encoding in KINDS]
        made.append(loop(self.path()))
        await self.serve(*made)
        session = Session()
        for one in made:
            await self.threaded(self._ask_for_frames, dicomweb(self.url, session), one)
        again = Session()
        for one in made:
            await self.threaded(self._ask_for_frames, dicomweb(self.url, again), one)
        self.assertEqual({status for status, _ in session.frame_answers()}, {200})
        self.assertEqual(set(again.frame_answers()), {HIT})

    def _ask_for_frames(self, client: Any, made: Made) -> None:
        stored = made.stored_frames()
        kind = made.encoding
        for media_types in (None, ("*/*",), STORED_FRAMES, ((kind.media_type, kind.transfer_syntax),)):
            for numbers in ([3], [1, 2], [12, 1, 7, 3], list(range(1, 13))):
                expected = [stored[number - 1] for number in numbers]
                frames = client.retrieve_instance_frames(*uids(made), numbers, media_types=media_types)
                self.assertEqual(frames, expected, (kind.name, media_types, numbers))
        several = tuple((mine.media_type, mine.transfer_syntax) for mine in (ENCODINGS[kind] for kind in KINDS))
        frames = list(client.iter_instance_frames(*uids(made), [5, 4], media_types=several))
        self.assertEqual(frames, [stored[4], stored[3]])

    async def test_other_names_of_rle(self) -> None:
        """RLE is answered whichever of its names is asked for, by the standard's."""
        made = slide(self.path(), 1, 2, 32, "rle")
        await self.serve(made)
        session = Session()
        client = dicomweb(self.url, session)
        for name in ("image/dicom-rle", "image/x-dicom-rle"):
            asked = ((name, made.encoding.transfer_syntax),)
            frames = await self.threaded(client.retrieve_instance_frames, *uids(made), [1, 2], media_types=asked)
            self.assertEqual(frames, made.stored_frames())
            self.assertIn('type="image/dicom-rle"', session.answers[-1].headers["Content-Type"])

    async def test_not_acceptable(self) -> None:
        """A syntax that frames are not stored in is a 406; a frame that is not there a 404."""
        made = slide(self.path(), 1, 2, 32, "jpeg")
        await self.serve(made)
        client = dicomweb(self.url)
        for numbers, media_types, status in (
            ([1], (("image/jp2", "1.2.840.10008.1.2.4.90"),), 406),
            ([3], STORED_FRAMES, 404),
        ):
            asked = {"frame_numbers": numbers, "media_types": media_types}
            answer = await self.http_error(client.retrieve_instance_frames, *uids(made), **asked)
            self.assertEqual(answer.status_code, status)

    async def test_instances(self) -> None:
        """An instance, a series and a study come as they were stored."""
        first = slide(self.path(), 1, 3, 32)
        second = slide(self.path(), 2, 2, 32, "rle", study=first.study, series=first.series)
        third = loop(self.path(), 3, study=first.study, patient="SLIDE")
        await self.serve(first, second, third)
        client = dicomweb(self.url)
        one = await self.threaded(client.retrieve_instance, *uids(first), media_types=AS_STORED)
        self.assert_same([one], [first])
        series = await self.threaded(client.retrieve_series, *uids(first)[:2], media_types=AS_STORED)
        self.assert_same(series, [first, second])
        study = await self.threaded(client.retrieve_study, first.study, media_types=AS_STORED)
        self.assert_same(study, [first, second, third])

    def assert_same(self, found: list[Dataset], expected: list[Made]) -> None:
        """The data sets are those of the files, whatever their order."""
        by_sop = {dataset.SOPInstanceUID: dataset for dataset in found}
        self.assertEqual(len(found), len(expected))
        for made in expected:
            dataset, original = by_sop[made.sop], pydicom.dcmread(made.path)
            self.assertEqual(dataset.file_meta.TransferSyntaxUID, made.encoding.transfer_syntax)
            self.assertEqual(dataset.PixelData, original.PixelData)
            self.assertEqual(dataset, original)

    async def unknown(self, folder: Path) -> tuple[Made, Any]:
        """A slide in *folder* whose frames nobody knows yet, and a client of a store that holds another one."""
        await self.serve(slide(self.path(), 1, 1, 32))
        new = slide(folder, 3, 4, 32)
        client = dicomweb(self.url)
        refused = await self.http_error(client.retrieve_instance_frames, *uids(new), [1])
        self.assertEqual(refused.status_code, 404)
        return new, client

    async def assert_known(self, client: Any, new: Made, found: list[Any], expected: Sequence[bytes]) -> None:
        """It is what a search *found*, and its frames are the *expected* ones."""
        self.assertEqual([one["00080018"]["Value"] for one in found], [[new.sop]])
        frames = await self.threaded(client.retrieve_instance_frames, *uids(new), [12, 1])
        self.assertEqual(frames, [expected[11], expected[0]])

    async def test_store(self) -> None:
        """What is stored through the proxy is found at once, and so are its frames, which nobody knew before."""
        elsewhere = Path(self.mktemp())
        new, client = await self.unknown(elsewhere)
        answer = await self.threaded(client.store_instances, [pydicom.dcmread(new.path)])
        (stored,) = answer.ReferencedSOPSequence
        self.assertEqual(stored.ReferencedSOPInstanceUID, new.sop)
        self.assertEqual(stored.RetrieveURL, f"{self.url}/{new.resource}")
        found = await self.threaded(client.search_for_instances, *uids(new)[:2])
        await self.assert_known(client, new, found, new.stored_frames())

    async def test_rendered(self) -> None:
        """A JPEG frame as a picture is the frame, or shows nothing else: a store may encode it anew."""
        made = slide(self.path(), 1, 2, 32)
        await self.serve(made)
        client = dicomweb(self.url)
        for media_types in (("image/jpeg",), None):
            picture = await self.threaded(
                client.retrieve_instance_frames_rendered, *uids(made), [2], media_types=media_types
            )
            difference = pixels(picture).astype(int) - pixels(made.stored_frames()[1])
            self.assertLess(numpy.abs(difference).mean(), 3)
        frames = await self.threaded(client.retrieve_instance_frames, *uids(made), [1])
        picture = await self.threaded(client.retrieve_instance_frames_rendered, *uids(made), [1])
        self.assertEqual(picture, frames[0])

    async def test_rendered_without_loss(self) -> None:
        """A PNG of what is no picture as stored shows the very pixels."""
        made = [slide(self.path(), 1, 2, 32, encoding) for encoding in ("raw", "rle", "jpeg2000-lossless")]
        await self.serve(*made)
        ask = dicomweb(self.url).retrieve_instance_frames_rendered
        for one in made:
            picture = await self.threaded(ask, *uids(one), [2], media_types=("image/png",))
            if one.encoding.name == "jpeg2000-lossless":
                expected = pixels(one.stored_frames()[1])
            else:
                expected = pydicom.dcmread(one.path).pixel_array[1]
            self.assertEqual(pixels(picture).tolist(), expected.tolist(), one.encoding.name)

    async def test_wsidicom(self) -> None:
        """wsidicom sees in a slide what it sees in the file; a second time nothing comes from the store."""
        # Not native frames: wsidicom 0.36 fails on the bytearray that dicomweb-client 0.61 gives it for one.
        made = [slide(self.path(), 3, 4, 64, encoding) for encoding in ("jpeg", "jpeg2000-lossless", "rle", "jpegls")]
        await self.serve(*made)
        for one in made:
            sessions = [Session(), Session()]
            for session in sessions:
                await self.threaded(self._compare_regions, one, session)
            again = sessions[1].frame_answers()
            self.assertEqual({answer for answer in again if answer[0] != 406}, {HIT}, one.encoding.name)
            self.assertIn(HIT, again)

    def _compare_regions(self, made: Made, session: Session) -> None:
        try:
            from wsidicom import WsiDicom
            from wsidicom.web import WsiDicomWebClient
        except ImportError:
            raise SkipTest("wsidicom is not installed") from None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            client = WsiDicomWebClient.create_client(self.url, auth=session)
            with WsiDicom.open_web(client, made.study, made.series) as seen, WsiDicom.open(made.path) as file:
                for corner, size in (((0, 0), (256, 192)), ((50, 40), (150, 100)), ((200, 150), (56, 42))):
                    regions = [numpy.asarray(one.read_region(corner, 0, size)) for one in (seen, file)]
                    self.assertTrue((regions[0] == regions[1]).all(), (made.encoding.name, corner))
                    self.assertGreater(regions[0].std(), 1.0)


def bulk_data(metadata: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Tag and element of all binary values, in sequences too."""
    for tag, element in metadata.items():
        if element.keys() & {"BulkDataURI", "InlineBinary"}:
            yield tag, element
        for item in element.get("Value", []) if element["vr"] == "SQ" else []:
            yield from bulk_data(item)


def pixels(picture: bytes) -> Any:
    """The pixels of a JPEG or PNG file."""
    return numpy.asarray(Image.open(io.BytesIO(picture)))


class OnOrthanc(ClientSuite, LiveCase):
    """Debian's Orthanc."""

    async def serve(self, *made: Made) -> None:
        store = await self.orthanc(*(one.path for one in made))
        self.url = (await self.proxy("--origin", store.url)).url + "/dicomweb"


class OnAFolder(ClientSuite, LiveCase):
    """A folder of files."""

    async def serve(self, *made: Made) -> None:
        self.url = (await self.proxy("--origin", f"/files=file:{self.folder.absolute()}")).url + "/files"

    async def test_store(self) -> None:
        """A folder takes no uploads; a file that is put there is found, and so are its frames, which were not known before."""
        elsewhere = Path(self.mktemp())
        new, client = await self.unknown(elsewhere)
        refused = await self.http_error(client.store_instances, [pydicom.dcmread(new.path)])
        self.assertEqual((refused.status_code, refused.headers["allow"]), (405, "GET, HEAD, OPTIONS"))
        expected = new.stored_frames()
        os.rename(elsewhere, self.path())
        found: list[Any] = []
        while not found:
            found = await self.threaded(client.search_for_instances, *uids(new)[:2])
        await self.assert_known(client, new, found, expected)
