"""What a store left out of metadata and searches, put back. A whole proxy between real sockets, with render workers."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Optional

import attrs
import pydicom
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.clients import Client
from tests.dicomweb.support import ALICE, MALLORY, ProxyCase, RunningProxy, logged, token
from tests.frames.support import INSTANCE
from tests.slides import Made, slide
from tests.stores import faults
from tests.stores.dialects import AZURE, GOOGLE, STANDARD, Dialect
from tests.stores.simulated import SimulatedStore
from tests.waiting import wait_until
from twistedproxy.dicom.json_events import BadMetadata
from twistedproxy.dicom.resource import Instance
from twistedproxy.dicomweb.repairs import metadata as repairs
from twistedproxy.dicomweb.repairs.members import objects_in
from twistedproxy.dicomweb.repairs.searches import MAX_SERIES, MAX_STUDIES, asked_for, summary_of
from twistedproxy.imaging import object_header
from twistedproxy.imaging.object_header import HeldBack, ObjectHeader
from twistedproxy.imaging.parameters import Rendering
from twistedproxy.origin.interface import Caller
from twistedproxy.rendering.descriptions import _header
from twistedproxy.rendering.planner import Request
from twistedproxy.streams import BytesStream, read_all

GROUPS, PATHS, PROFILE = "52009230", "00480105", "00282000"
NO_GROUPS = attrs.evolve(GOOGLE, omitted_tags=(GROUPS,))
NO_PROFILE = attrs.evolve(AZURE, root="/v2")
SECONDS = 50.0
OCTETS = {"Accept": "application/octet-stream"}


class RepairCase(ProxyCase):
    """ALICE may read a store that leaves something out. Answers wait for what it takes, however busy the machine is."""

    timeout = 150

    def setUp(self) -> None:
        for name in ("WAIT_SECONDS", "PROFILE_SECONDS"):
            self.patch(repairs, name, SECONDS)

    async def begin(self, dialect: Dialect, *made: Made, **settings: Any) -> Client:
        self.origin: SimulatedStore = self.store(dialect, *made)
        self.origin.allow(token(ALICE))
        self.running: RunningProxy = await self.proxy(self.origin, **settings)
        self.metadata = f"/{self.slide.resource}/metadata"
        self.series = f"/studies/{self.slide.study}/series/{self.slide.series}"
        return self.running.client(ALICE, seconds=2 * SECONDS)

    def sparse(self, **more: Any) -> Made:
        return slide(self.mktemp(), 3, 4, 64, sparse=True, **more)

    def expected(self, made: Optional[Made] = None) -> Any:
        """The functional groups in the file, as DICOM JSON."""
        path = (made or self.slide).path
        return pydicom.dcmread(path, stop_before_pixels=True).to_json_dict()[GROUPS]

    def objects_of(self, made: Optional[Made] = None) -> Sequence[str]:
        """The requests for an object that the store has seen."""
        sop = (made or self.slide).sop
        return self.origin.lines(lambda seen: seen.path.endswith(sop))


class GroupsTests(RepairCase):
    """PerFrameFunctionalGroupsSequence."""

    async def test_instance(self) -> None:
        """The metadata of a sparse slide have what stands in its file, the rest as it was; the object is read once, up to its
        pixels."""
        client = await self.begin(NO_GROUPS, self.sparse())
        answer = await client.get(self.metadata)
        (found,) = answer.json()
        self.assertEqual(found.pop(GROUPS), self.expected())
        direct = self.origin.instances[self.slide.sop].metadata
        self.assertEqual(found.keys() - direct.keys(), {"00020010", "00081190", "00083002"})
        self.assertEqual(answer.headers["cache-status"], "twistedproxy; fwd=uri-miss; stored")
        again = await client.get(self.metadata)
        self.assertEqual((again.body, again.headers["etag"]), (answer.body, answer.headers["etag"]))
        self.assertEqual(len(self.objects_of()), 1)

    async def test_in_order(self) -> None:
        """Tags ascend as they did (PS3.18 section F.2.2)."""
        client = await self.begin(NO_GROUPS, self.sparse())
        self.origin.fail(faults.MetadataSays({"7FE00010": {"vr": "OB", "BulkDataURI": "x"}, "00081190": None}), "/meta")
        (found,) = (await client.get(self.metadata)).json()
        self.assertEqual([tag for tag in found if tag >= "52"], ["52009229", GROUPS, "7FE00010"])

    async def test_series_and_study(self) -> None:
        """So do those of a series and a study, object by object: what the store said stays."""
        first = self.sparse()
        same = {"study": first.study, "series": first.series}
        full = slide(self.mktemp(), 2, 3, 64, **same)
        second = slide(self.mktemp(), 2, 2, 64, sparse=True, **same)
        client = await self.begin(STANDARD, first, full, second)
        del self.origin.instances[first.sop].metadata[GROUPS]
        for path in (self.series, f"/studies/{first.study}"):
            found = {one["00080018"]["Value"][0]: one for one in (await client.get(f"{path}/metadata")).json()}
            self.assertEqual(found[first.sop][GROUPS], self.expected(first), path)
            self.assertEqual(found[second.sop][GROUPS], self.expected(second), path)
            self.assertNotIn(GROUPS, found[full.sop], path)
        self.assertEqual([len(self.objects_of(made)) for made in (first, full, second)], [1, 0, 0])

    async def test_not_needed(self) -> None:
        """Where TILED_FULL says how frames lie, or there is one frame, or no shared groups, no object is read."""
        client = await self.begin(NO_GROUPS, self.sparse())
        for element in (
            {"00209311": {"vr": "CS", "Value": ["TILED_FULL"]}},
            {"00280008": {"vr": "IS", "Value": ["1"]}},
            {"52009229": None},
        ):
            self.origin.fail(faults.MetadataSays(element), "/metadata")
            (found,) = (await client.get(self.metadata, {"Cache-Control": "no-cache"})).json()
            self.assertNotIn(GROUPS, found)
        self.assertEqual(self.objects_of(), [])

    async def test_condition(self) -> None:
        """The tag is that of the completed answer: a client that has it gets a 304, one that has an incomplete one does not."""
        client = await self.begin(NO_GROUPS, self.sparse())
        self.origin.fail(faults.server_error(), lambda seen: seen.path.endswith(self.slide.sop), None)
        incomplete = await client.get(self.metadata)
        self.assertEqual((incomplete.status, GROUPS in incomplete.json()[0]), (200, False))
        self.origin.heal()
        self.running.components._routes.pass_through.descriptions.repairs._failed._until.clear()
        complete = await client.get(self.metadata, {"If-None-Match": incomplete.headers["etag"]})
        self.assertEqual((complete.status, complete.json()[0][GROUPS]), (200, self.expected()))
        held = await client.get(self.metadata, {"If-None-Match": complete.headers["etag"]})
        self.assertEqual((held.status, held.body), (304, b""))

    async def test_origins_validators(self) -> None:
        """An answer that is not kept here has no tag of the store's, which would be the same without what was put back."""
        client = await self.begin(NO_GROUPS, self.sparse())
        body = json.dumps([self.origin.instances[self.slide.sop].metadata]).replace(GROUPS, "52009231")
        headers = (("Content-Type", "application/dicom+json"), ("ETag", '"theirs"'), ("Cache-Control", "no-store"))
        self.origin.fail(faults.Answer(200, headers, body.encode()), "/metadata")
        answer = await client.get(self.metadata)
        self.assertEqual((GROUPS in answer.json()[0], "etag" in answer.headers), (True, False))

    async def test_kept_as_the_store_sent_it(self) -> None:
        """What is in the cache is the store's answer: it is completed on the way out."""
        client = await self.begin(NO_GROUPS, self.sparse())
        await client.get(self.metadata)
        cache: Any = self.running.components.cache
        contents = [bytes(value) for key, value in _entries(cache) if key.partition(b"}")[2][:1] == b"D"]
        self.assertEqual([GROUPS.encode() in content for content in contents], [False])

    async def test_another_caller(self) -> None:
        """Another caller gets what was read, after the store's own answers to them; whom it refuses gets nothing."""
        alice = await self.begin(NO_GROUPS, self.sparse())
        mallory = self.running.client(MALLORY, seconds=2 * SECONDS)
        await alice.get(self.metadata)
        self.assertEqual((await mallory.get(self.metadata)).status, 401)
        self.origin.allow(token(MALLORY))
        found = (await mallory.get(self.metadata)).json()
        self.assertEqual((found[0][GROUPS], len(self.objects_of())), (self.expected(), 1))

    async def test_grant_is_needed(self) -> None:
        """Metadata that are no grant, for a cache on the way gave them, show nothing of the object to a caller whom the store
        refuses it, though it was read for another."""
        alice = await self.begin(NO_GROUPS, self.sparse())
        await alice.get(self.metadata)
        body = json.dumps([self.origin.instances[self.slide.sop].metadata]).replace(GROUPS, "52009231")
        headers = (("Content-Type", "application/dicom+json"), ("Age", "5"))
        self.origin.fail(faults.Answer(200, headers, body.encode()), "/metadata")
        answer = await self.running.client(MALLORY, seconds=2 * SECONDS).get(self.metadata)
        self.assertEqual((answer.status, GROUPS in answer.json()[0]), (200, False))

    async def test_fence(self) -> None:
        """A change of the instance ends what was read of the object."""
        client = await self.begin(NO_GROUPS, self.sparse())
        await client.get(self.metadata)
        await client.request("DELETE", f"/{self.slide.resource}")
        changed = self.sparse(
            study=self.slide.study, series=self.slide.series, sop=self.slide.sop, positions=[(0, 0), (2, 3)]
        )
        self.origin.add(changed.path)
        found = (await client.get(self.metadata)).json()
        self.assertEqual(found[0][GROUPS], self.expected(changed))
        self.assertEqual(len(found[0][GROUPS]["Value"]), 2)

    async def test_object_is_refused(self) -> None:
        """Where the store does not give the object, the metadata come as they are, and it is not asked again for a while."""
        client = await self.begin(NO_GROUPS, self.sparse())
        self.origin.fail(faults.Answer(403), lambda seen: seen.path.endswith(self.slide.sop), None)
        with logged() as events:
            for _ in range(3):
                (found,) = (await client.get(self.metadata)).json()
                self.assertNotIn(GROUPS, found)
        self.assertEqual(len(self.objects_of()), 1)
        self.assertEqual([event.get("event") for event in events].count("metadata_incomplete"), 1)

    async def test_another_object(self) -> None:
        """An object of another instance gives nothing."""
        client = await self.begin(NO_GROUPS, self.sparse())
        other = self.sparse().path.read_bytes()
        self.origin.fail(
            faults.Answer(200, (("Content-Type", "application/dicom"),), other),
            lambda seen: seen.path.endswith(self.slide.sop),
        )
        self.assertNotIn(GROUPS, (await client.get(self.metadata)).json()[0])

    async def test_deadline(self) -> None:
        """An object that takes too long does not hold the metadata up; the next answer has what it gave."""
        self.patch(repairs, "WAIT_SECONDS", 0.05)
        client = await self.begin(NO_GROUPS, self.sparse())
        gate = self.origin.hold(lambda seen: seen.path.endswith(self.slide.sop))
        self.assertNotIn(GROUPS, (await client.get(self.metadata)).json()[0])
        gate.release()
        imaging: Any = self.running.components.imaging
        await wait_until(lambda: not imaging._descriptions._headers._in_flight.under_way())
        self.patch(repairs, "WAIT_SECONDS", SECONDS)
        self.assertEqual((await client.get(self.metadata)).json()[0][GROUPS], self.expected())
        self.assertEqual(len(self.objects_of()), 1)

    async def test_only_the_header_is_read(self) -> None:
        """Of a large object no more comes than what stands in front of its pixels, and what was on its way."""
        client = await self.begin(NO_GROUPS, slide(self.mktemp(), 20, 20, 128, "raw", sparse=True))
        size = self.slide.path.stat().st_size
        self.origin.fail(faults.Slow(1 << 20, 1 << 16), lambda seen: seen.path.endswith(self.slide.sop))
        self.assertEqual((await client.get(self.metadata)).json()[0][GROUPS], self.expected())
        (seen,) = self.origin.seen(lambda seen: seen.path.endswith(self.slide.sop))
        self.assertLess(seen.sent, size // 2)

    async def test_without_workers(self) -> None:
        """Without render workers nothing is put back."""
        client = await self.begin(NO_GROUPS, self.sparse(), render_workers=0)
        self.assertNotIn(GROUPS, (await client.get(self.metadata)).json()[0])
        self.assertEqual(self.objects_of(), [])


class ProfileTests(RepairCase):
    """ICC profiles."""

    async def referenced(self, client: Client, path: str) -> str:
        """Where the metadata at *path* say that the profile is, below the mount."""
        (item,) = (await client.get(path)).json()[0][PATHS]["Value"]
        uri: str = item[PROFILE]["BulkDataURI"]
        base = f"{self.running.url}/dicomweb"
        self.assertTrue(uri.startswith(f"{base}/{self.slide.resource}/bulkdata/"), uri)
        return uri.removeprefix(base)

    @property
    def profile(self) -> bytes:
        """The profile in the file."""
        data: bytes = pydicom.dcmread(self.slide.path).OpticalPathSequence[0].ICCProfile
        return data

    async def test_offered_and_served(self) -> None:
        """Metadata without any binary value name the profile at the proxy, which has it, bare or as the part of a multipart
        answer; the store is asked for it first."""
        client = await self.begin(NO_PROFILE)
        for path in (self.metadata, f"{self.series}/metadata"):
            uri = await self.referenced(client, path)
        bare = await client.get(uri, OCTETS)
        self.assertEqual((bare.status, bare.headers["content-type"]), (200, "application/octet-stream"))
        self.assertEqual((bare.body, bare.headers["cache-control"]), (self.profile, "private, no-cache"))
        many = await client.get(uri, {"Accept": 'multipart/related; type="application/octet-stream"'})
        self.assertEqual([part.body for part in many.parts()], [self.profile])
        held = await client.get(uri, {**OCTETS, "If-None-Match": bare.headers["etag"]})
        self.assertEqual((held.status, held.body), (304, b""))
        head = await client.request("HEAD", uri, OCTETS)
        self.assertEqual((head.status, head.body, head.headers["etag"]), (200, b"", bare.headers["etag"]))
        self.assertEqual(len(self.objects_of()), 1)

    async def test_rest_of_the_paths(self) -> None:
        """The other attributes of the optical paths stay as they came, byte for byte."""
        client = await self.begin(NO_PROFILE)
        said = '{"vr":"SQ", "Value":[{"00480106":{"vr":"SH","Value":["\\u00fc\u00e9"]}}]}'
        stored = dict(self.origin.instances[self.slide.sop].metadata)
        del stored["7FE00010"]
        body = json.dumps({**stored, PATHS: "HERE"}).replace('"HERE"', said)
        headers = (("Content-Type", "application/dicom+json"),)
        self.origin.fail(faults.Answer(200, headers, f"[{body}]".encode()), "/metadata")
        answer = await client.get(self.metadata)
        self.assertIn('"Value":["\\u00fc\u00e9"]}'.encode(), answer.body)
        self.assertIn("BulkDataURI", answer.json()[0][PATHS]["Value"][0][PROFILE])

    async def test_stores_own(self) -> None:
        """A store that has the profile in its metadata, or names another binary value there, is left alone; and its own bulk
        data are served."""
        client = await self.begin(STANDARD)
        await client.get(self.metadata)
        self.origin.fail(faults.MetadataSays({PATHS: {"vr": "SQ", "Value": [{}]}}), "/metadata")
        (found,) = (await client.get(self.metadata, {"Cache-Control": "no-cache"})).json()
        self.assertEqual(found[PATHS]["Value"], [{}])
        self.origin.fail(faults.Answer(200, (("Content-Type", "application/octet-stream"),), b"own"), "/bulkdata/")
        self.assertEqual((await client.get(f"/{self.slide.resource}/bulkdata/{PATHS}/1/{PROFILE}")).body, b"own")
        self.assertEqual(self.objects_of(), [])

    async def test_no_profile(self) -> None:
        """An instance without a profile gets no reference, and its object is read once; that of no other at such a store."""
        made = [slide(self.mktemp(), 2, 3, 64, icc_profile=False) for _ in range(2)]
        client = await self.begin(NO_PROFILE, *made)
        for one in (*made, *made):
            (found,) = (await client.get(f"/{one.resource}/metadata", {"Cache-Control": "no-cache"})).json()
            self.assertNotIn(PROFILE, found[PATHS]["Value"][0])
        self.assertEqual([len(self.objects_of(one)) for one in made], [1, 0])
        answer = await client.get(f"/{made[0].resource}/bulkdata/{PATHS}/1/{PROFILE}")
        self.assertEqual((answer.status, answer.body), (404, b'{"errorMessage": "no such bulk data"}'))

    async def test_label_without_profile(self) -> None:
        """Of a series one image of the slide shows whether the store leaves out profiles: then the others are read, too."""
        label = slide(
            self.mktemp(), 1, 1, 64, icc_profile=False, extra={"ImageType": ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]}
        )
        same = {"study": label.study, "series": label.series}
        levels = [slide(self.mktemp(), side, side, 64, **same) for side in (4, 2)]
        client = await self.begin(NO_PROFILE, label, *levels)
        for _ in range(2):
            found = (await client.get(f"{self.series}/metadata", {"Cache-Control": "no-cache"})).json()
            self.assertEqual([PROFILE in one[PATHS]["Value"][0] for one in found], [False, True, True])
        self.assertEqual([len(self.objects_of(made)) for made in (label, *levels)], [1, 1, 1])
        objects = self.origin.seen(lambda seen: seen.path.rpartition("/")[0].endswith("/instances"))
        self.assertTrue(objects[0].path.endswith(levels[1].sop))

    async def test_label_alone(self) -> None:
        """A label without a profile says nothing of the store."""
        label = slide(
            self.mktemp(), 1, 1, 64, icc_profile=False, extra={"ImageType": ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]}
        )
        level = slide(self.mktemp(), 2, 2, 64)
        client = await self.begin(NO_PROFILE, level, label)
        await client.get(f"/{label.resource}/metadata")
        await self.referenced(client, self.metadata)

    async def test_series_without_profiles(self) -> None:
        """Of a series without profiles one object is read, not all."""
        first = slide(self.mktemp(), 2, 2, 64, icc_profile=False)
        same = {"study": first.study, "series": first.series}
        second = slide(self.mktemp(), 4, 4, 64, icc_profile=False, **same)
        sparse = slide(self.mktemp(), 4, 4, 64, icc_profile=False, sparse=True, **same)
        client = await self.begin(attrs.evolve(NO_PROFILE, omitted_tags=(PROFILE, GROUPS, "7FE00010")), first, second)
        await client.get(f"{self.series}/metadata")
        self.assertEqual([len(self.objects_of(made)) for made in (first, second)], [1, 0])
        self.origin.add(sparse.path)  # what is missing otherwise is read all the same
        found = (await client.get(f"/{sparse.resource}/metadata")).json()
        self.assertEqual((GROUPS in found[0], len(self.objects_of(sparse))), (True, 1))

    async def test_rights(self) -> None:
        """Whom the store refuses gets its refusal in place of the profile, also where the profile is in the cache."""
        alice = await self.begin(NO_PROFILE)
        uri = await self.referenced(alice, self.metadata)
        self.assertEqual((await alice.get(uri, OCTETS)).status, 200)
        mallory = self.running.client(MALLORY, seconds=2 * SECONDS)
        self.assertEqual((await mallory.get(uri, OCTETS)).status, 401)
        self.origin.allow(token(MALLORY), "1.2.3")
        self.assertEqual((await mallory.get(uri, OCTETS)).status, 403)
        self.origin.fail(faults.Answer(404), "/bulkdata/", None)  # it says so to everybody
        self.assertEqual((await mallory.get(uri, OCTETS)).status, 403)


class SearchTests(RepairCase):
    """RetrieveURL, and what a search asked for."""

    async def test_retrieve_url(self) -> None:
        """Studies, series and instances say where the proxy has them; what the store says stays."""
        client = await self.begin(STANDARD)
        base = f"{self.running.url}/dicomweb"
        study = f"/studies/{self.slide.study}"
        for path, url in (
            ("/studies", f"{base}{study}"),
            (f"{study}/series", f"{base}{self.series}"),
            ("/series", f"{base}{self.series}"),
            (f"{self.series}/instances", f"{base}/{self.slide.resource}"),
            ("/instances", f"{base}/{self.slide.resource}"),
        ):
            self.origin.fail(faults.MetadataSays({"00081190": None}), path)
            for _ in range(2):
                found = (await client.get(path)).json()[0]
                self.assertEqual(found["00081190"], {"vr": "UR", "Value": [url]}, path)
                self.assertNotIn("00080056", found)
        self.origin.fail(
            faults.MetadataSays({"00081190": {"vr": "UR", "Value": ["http://elsewhere.test/1"]}}), "/studies"
        )
        self.assertEqual((await client.get("/studies")).json()[0]["00081190"]["Value"], ["http://elsewhere.test/1"])

    async def test_availability(self) -> None:
        """InstanceAvailability is added where it was asked for, by keyword, tag or all, and not there."""
        client = await self.begin(STANDARD)
        for query in ("includefield=InstanceAvailability", "includefield=00081190,00080056", "includefield=all"):
            found = (await client.get(f"{self.series}/instances?{query}")).json()[0]
            self.assertEqual(found["00080056"], {"vr": "CS", "Value": ["ONLINE"]}, query)
        self.origin.fail(faults.MetadataSays({"00080056": {"vr": "CS", "Value": ["NEARLINE"]}}), "/instances")
        found = (await client.get(f"{self.series}/instances?includefield=all")).json()[0]
        self.assertEqual(found["00080056"]["Value"], ["NEARLINE"])

    async def test_studies(self) -> None:
        """What was asked for of studies comes from one search of their series, with the caller's own headers."""
        client = await self.begin(STANDARD)
        fields = "includefield=ModalitiesInStudy,00201206&includefield=NumberOfStudyRelatedInstances"
        self.origin.fail(faults.MetadataSays({"00201209": {"vr": "IS", "Value": ["3"]}}), "/series")
        found = (await client.get(f"/studies?{fields}")).json()[0]
        self.assertEqual([found[tag]["Value"] for tag in ("00080061", "00201206", "00201208")], [["SM"], [1], [3]])
        (seen,) = self.origin.seen("/series")
        self.assertEqual(seen.header("Authorization"), ALICE["Authorization"])
        found = (await client.get("/studies?includefield=00080060")).json()[0]
        self.assertNotIn("00080061", found)
        self.assertEqual(len(self.origin.seen("/series")), 1)

    async def test_many_studies(self) -> None:
        """Of more studies than may be searched nothing is added."""
        made = [slide(self.mktemp(), 1, 1, 16) for _ in range(MAX_STUDIES + 1)]
        client = await self.begin(STANDARD, *made)
        for query, counted in (("", False), (f"&limit={MAX_STUDIES}", True)):
            found = (await client.get(f"/studies?includefield=00080061{query}")).json()
            self.assertEqual(["00080061" in one for one in found], [counted] * len(found))
        self.assertEqual(len(self.origin.seen("/series")), MAX_STUDIES)

    async def test_search_of_series_fails(self) -> None:
        """What the store does not say stays away, whatever it answers, and the search is answered."""
        client = await self.begin(STANDARD)
        for fault in (faults.server_error(), faults.html(), faults.Answer(403), faults.Reset(None)):
            self.origin.fail(fault, "/series", None)
            answer = await client.get("/studies?includefield=ModalitiesInStudy")
            self.assertEqual((answer.status, "00080061" in answer.json()[0]), (200, False), fault)
            self.origin.heal()


class SummaryTests(SynchronousTestCase):
    """What series say of their study."""

    def test_summary(self) -> None:
        """Modalities each once; numbers of instances only where all series have one."""
        series = [_series("SM", 3), _series("SR", "4"), _series("SM", 1)]
        found = {tag: json.loads(element)["Value"] for tag, element in summary_of(series).items()}
        self.assertEqual(found, {"00080061": ["SM", "SR"], "00201206": [3], "00201208": [8]})
        self.assertEqual(set(summary_of([*series, _series("SM", None)])), {"00080061", "00201206"})
        self.assertEqual(set(summary_of([_series(None, "1.5")])), {"00201206"})

    def test_not_all(self) -> None:
        """What may be one page of more, or is no list of series, says nothing."""
        for series in ([], {}, None, [_series("CT", 1)] * MAX_SERIES):
            self.assertEqual(summary_of(series), {})
        self.assertTrue(summary_of([_series("CT", 1)] * (MAX_SERIES - 1)))

    def test_asked_for(self) -> None:
        """Fields are read as in any search: several parameters, commas, either letter case, percent signs."""
        for query, tags in (
            (b"", set()),
            (b"ModalitiesInStudy=CT", set()),
            (b"includefield=00080060", set()),
            (b"IncludeField=modalitiesinstudy%2C00201208", {"00080061", "00201208"}),
            (b"includefield=00080056&includefield=NumberOfStudyRelatedSeries", {"00080056", "00201206"}),
            (b"includefield=all", {"00080056", "00080061", "00201206", "00201208"}),
        ):
            self.assertEqual(asked_for(query), tags, query)


class BoundsTests(SynchronousTestCase):
    """What an answer may say, and how much is added to it, where objects are in memory."""

    def added(self, *frames: int) -> list[bool]:
        """Whether objects with so many frames, in one answer, get their functional groups."""
        groups = b'{"vr":"SQ","Value":[{}]}'

        class Objects:
            async def held_back(self, *_: object) -> HeldBack:
                return HeldBack(zlib.compress(groups), len(groups))

        answer = json.dumps([_lacking(number, count) for number, count in enumerate(frames)]).encode()
        where = SimpleNamespace(url="http://store.test")
        target: Any = SimpleNamespace(origin=where, resource=SimpleNamespace(study="1", series="1.2", root=""))
        found = repairs.MetadataRepairs(Objects(), Clock())  # type: ignore[arg-type]
        members, _ = self.successResultOf(Deferred.fromCoroutine(found.members(answer, target, Caller(b"alice"))))
        return [GROUPS in members[at] for at in sorted(members)]

    def test_groups_of_one_answer(self) -> None:
        """The functional groups that are added to one answer have a bound: many objects of 32 MB would be all memory."""
        self.assertEqual(self.added(2, 2, 2), [True] * 3)
        self.patch(repairs, "MAX_ADDED", 50)
        self.assertEqual(self.added(2, 2, 2), [True, True, False])

    def test_any_number_of_frames(self) -> None:
        """A number of frames that makes no sense costs nothing but that object's order."""
        answer = json.dumps([{**_lacking(1, 10**400), PATHS: {"vr": "SQ", "Value": [{}]}}]).encode()
        ((_, _, attributes),) = [one for one in objects_in(answer) if one[1]]
        assert isinstance(attributes, dict)
        self.assertEqual(repairs.Missing(0, 1, INSTANCE, attributes, False, True).frames, 1)


def _lacking(number: int, frames: int) -> dict[str, Any]:
    return {
        "00080018": {"vr": "UI", "Value": [f"1.2.{number}"]},
        "00280008": {"vr": "IS", "Value": [frames]},
        "52009229": {"vr": "SQ", "Value": [{}]},
    }


class HeaderTests(SynchronousTestCase):
    """`ObjectHeader`."""

    def read(self, made: Made, size: Optional[int] = None) -> HeldBack:
        header = ObjectHeader()
        data = made.path.read_bytes()
        for start in range(0, size or len(data), 1000):
            header.feed(data[start : start + 1000])
        packed, missing = header.packed({})
        self.assertEqual(missing, [])
        return HeldBack.from_bytes(packed)

    def test_encodings(self) -> None:
        """Explicit and implicit VR, either byte order, items and sequences of defined and undefined length."""
        for syntax in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"):
            for undefined in (False, True):
                made = slide(self.mktemp(), 2, 3, 16, "raw", sparse=True, optical_paths=2)
                data = pydicom.dcmread(made.path)
                expected = data.to_json_dict()[GROUPS]
                profile = data.OpticalPathSequence[0].ICCProfile
                del data.PixelData
                data["PerFrameFunctionalGroupsSequence"].is_undefined_length = undefined
                data["OpticalPathSequence"].is_undefined_length = undefined
                for item in data.PerFrameFunctionalGroupsSequence:
                    item.is_undefined_length_sequence_item = undefined
                data.file_meta.TransferSyntaxUID = syntax
                implicit, little = syntax == "1.2.840.10008.1.2", syntax != "1.2.840.10008.1.2.2"
                pydicom.dcmwrite(made.path, data, implicit_vr=implicit, little_endian=little)
                held = self.read(made)
                text = zlib.decompress(held.groups)
                self.assertEqual((json.loads(text), len(text)), (expected, held.groups_size), (syntax, undefined))
                self.assertEqual(
                    held.profiles, {f"{PATHS}/{number}/{PROFILE}": profile for number in (1, 2)}, (syntax, undefined)
                )

    def test_nothing_left_out(self) -> None:
        """An object without either has nothing, and that is a result, too."""
        held = self.read(slide(self.mktemp(), 2, 3, 16, icc_profile=False))
        self.assertEqual((held, HeldBack.from_bytes(held.to_bytes())), (HeldBack(), HeldBack()))

    def test_deflated(self) -> None:
        """A deflated object is not inflated: a few bytes of it may be gigabytes."""
        made = slide(self.mktemp(), 2, 3, 16, "raw", sparse=True)
        data = pydicom.dcmread(made.path)
        data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
        pydicom.dcmwrite(made.path, data)

        def inflate(*_arguments: object) -> bytes:
            raise AssertionError("it was inflated")

        self.patch(zlib, "decompress", inflate)
        self.assertEqual(self.read(made), HeldBack())

    def test_deflated_is_not_looked_through(self) -> None:
        """Nor is it in the proxy itself, to find where its pixels begin: no more of it is read than says so."""
        made = slide(self.mktemp(), 2, 3, 16, "raw")
        data = pydicom.dcmread(made.path)
        data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
        pydicom.dcmwrite(made.path, data)
        content = made.path.read_bytes()
        pieces = [content[start : start + 100] for start in range(0, len(content), 100)]

        class Origin:
            async def stored_instance(self, *_: object) -> BytesStream:
                return BytesStream(*pieces)

        instance = Instance("http://store.test", "", made.study, made.series, made.sop)
        request = Request(Origin(), instance, Caller(b"alice"), Rendering())  # type: ignore[arg-type]

        async def read() -> bytes:
            return await read_all(await _header(request), 1 << 20)

        found = self.successResultOf(Deferred.fromCoroutine(read()))
        self.assertLess(len(found), 600)
        self.assertIn(b"1.2.840.10008.1.2.1.99", found)

    def test_profile_at_the_top(self) -> None:
        """A photograph's profile stands at the top."""
        made = slide(self.mktemp(), 2, 3, 16, icc_profile=False, extra={"ICCProfile": b"at the top"})
        self.assertEqual(self.read(made).profiles, {PROFILE: b"at the top"})

    def test_not_an_object(self) -> None:
        """What is no DICOM file, or ends within the functional groups, is refused."""
        header = ObjectHeader()
        header.feed(b"<html>")
        self.assertRaises(BadMetadata, header.packed, {})
        made = slide(self.mktemp(), 20, 20, 16, sparse=True)
        at = made.path.read_bytes().index(b"\x00\x52\x30\x92")
        self.assertRaises(BadMetadata, self.read, made, at - at % 1000 + 1000)

    def test_bounds(self) -> None:
        """Neither the object in front of its pixels nor the text that is made of it is larger than may be."""
        made = slide(self.mktemp(), 20, 20, 16, sparse=True)
        self.patch(object_header, "MAX_GROUPS", 1000)
        self.assertRaises(BadMetadata, self.read, made)
        self.patch(object_header, "MAX_HEADER", 1000)
        self.assertRaises(BadMetadata, ObjectHeader().feed, bytes(1001))

    def test_packed(self) -> None:
        """What comes back is what was packed; anything else is refused."""
        held = HeldBack(b"groups\n", 20, {"a": b"1\n2", "b": b"3"})
        packed = held.to_bytes()
        self.assertEqual(HeldBack.from_bytes(packed), held)
        for wrong in (b"", b"[]\n", b"[1,2]\n", packed[:-1], packed + b"0", b'{"a":1}\n', b"[1,1,[]]\n1"):
            self.assertRaises(ValueError, HeldBack.from_bytes, wrong)


def _series(modality: Optional[str], count: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if modality is not None:
        found["00080060"] = {"vr": "CS", "Value": [modality]}
    if count is not None:
        found["00201209"] = {"vr": "IS", "Value": [count]}
    return found


def _entries(cache: Any) -> list[tuple[bytes, bytes]]:
    return [(key, b"".join(_flat(value))) for key, value in cache._store._items.items() if key.startswith(b"tpf")]


def _flat(value: Any) -> list[bytes]:
    if isinstance(value, (bytes, memoryview)):
        return [bytes(value)]
    return [piece for one in value for piece in _flat(one)] if isinstance(value, (tuple, list)) else []
