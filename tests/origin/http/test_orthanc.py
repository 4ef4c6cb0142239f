"""What an Orthanc says of its changes, and what something that is no Orthanc does. A real one: `tests.live.test_orthanc_changes`."""

from __future__ import annotations

import json
from typing import Any, Optional

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from tests.origin.http.wire import Head, Wire, WireServer
from tests.waiting import within
from twistedproxy.origin.errors import OriginBadAnswer, OriginError, OriginUnreachable
from twistedproxy.origin.http.orthanc import PAGE, OrthancChanges
from twistedproxy.settings import Settings

RESOURCES: dict[str, list[dict[str, Any]]] = {
    "Instance": [
        {"ID": "i1", "ParentSeries": "s1", "MainDicomTags": {"SOPInstanceUID": "1.3.1"}},
        {"ID": "i2", "ParentSeries": "s1", "MainDicomTags": {"SOPInstanceUID": "1.3.2"}},
        {"ID": "i3", "ParentSeries": "gone", "MainDicomTags": {"SOPInstanceUID": "1.3.3"}},
        {"ID": "i4", "ParentSeries": "s1", "MainDicomTags": {}},
        {"ID": "i5", "ParentSeries": ["s1"], "MainDicomTags": {"SOPInstanceUID": "1.3.5"}},
        {"ID": "i6", "ParentSeries": "s1", "MainDicomTags": {"SOPInstanceUID": {"1.3.6": 1}}},
    ],
    "Series": [{"ID": "s1", "ParentStudy": "t1", "MainDicomTags": {"SeriesInstanceUID": "1.2"}}],
    "Study": [{"ID": "t1", "MainDicomTags": {"StudyInstanceUID": "1.1"}}],
}


class OrthancTests(TestCase):
    """`OrthancChanges`."""

    def source(self, changes: Any, status: bytes = b"200 OK", login: Optional[bytes] = None) -> OrthancChanges:
        """Of a server that answers with *changes*, and knows `RESOURCES`."""
        self.asked: list[dict[str, Any]] = []

        async def script(wire: Wire, head: Head) -> None:
            if head.line.startswith(b"GET"):
                wire.answer(status, changes if isinstance(changes, bytes) else json.dumps(changes).encode())
                return
            asked = json.loads(await wire.until(b"}"))
            self.asked.append(asked)
            known = [one for one in RESOURCES[asked["Level"]] if one["ID"] in asked["Resources"]]
            wire.answer(b"200 OK", json.dumps(known).encode())

        server = self.server = WireServer(script)
        url = server.listen(reactor)
        self.addCleanup(lambda: Deferred.fromCoroutine(server.stop()))
        source = OrthancChanges(reactor, f"{url}/", login, Settings())
        self.addCleanup(lambda: Deferred.fromCoroutine(source.stop()))
        return source

    async def test_page(self) -> None:
        """Of a page the instances are found that are new, each once, with their UIDs; not those that are gone. One request is sent
        for each level."""
        kinds: list[tuple[str, Any]] = [
            ("NewInstance", "i1"),
            ("NewSeries", "s1"),
            ("StableSeries", "s1"),
            ("NewInstance", "i2"),
        ]
        kinds += [("NewInstance", "i1"), ("NewInstance", "deleted"), ("NewInstance", "i3"), ("NewInstance", "i4")]
        kinds += [
            ("NewInstance", "i5"),
            ("NewInstance", "i6"),
            ("NewInstance", ["i1"]),
            ("NewInstance", None),
        ]  # no Orthanc's
        changes = [{"ChangeType": kind, "ID": name} for kind, name in kinds]
        source = self.source({"Changes": changes, "Last": 40, "Done": False}, login=b"ann:a:secret")
        page = await within(source.since(30))
        self.assertEqual(page.instances, [("1.1", "1.2", "1.3.1"), ("1.1", "1.2", "1.3.2")])
        self.assertEqual((page.last, page.done), (40, False))
        self.assertEqual(self.asked[0]["Resources"], ["i1", "i2", "deleted", "i3", "i4", "i5", "i6"])
        self.assertEqual([one["Level"] for one in self.asked], ["Instance", "Series", "Study"])
        targets = [head.target for head in self.server.requests]
        self.assertEqual(targets, [b"/changes?since=30&limit=%d" % PAGE, *[b"/tools/bulk-content"] * 3])
        fields = {head.fields[b"authorization"] for head in self.server.requests}
        self.assertEqual(fields, {b"Basic YW5uOmE6c2VjcmV0"})

    async def test_nothing_new(self) -> None:
        """Nothing is asked for where nothing is new."""
        source = self.source({"Changes": [], "Last": 30, "Done": True})
        page = await within(source.since(30))
        self.assertEqual((page.instances, page.last, page.done, self.asked), ([], 30, True, []))
        self.assertEqual(await within(source.last()), 30)
        self.assertEqual(self.server.requests[-1].target, b"/changes?last")
        self.assertNotIn(b"authorization", self.server.requests[-1].fields)

    async def test_no_orthanc(self) -> None:
        """What is no answer of Orthanc's is an error that says so."""
        wrong = [
            b"<html>",
            b"[" * 100_000,
            [],
            {},
            {"Changes": [1], "Last": 1},
            {"Changes": {}, "Last": 1},
            {"Changes": []},
        ]
        for answer in (
            *wrong,
            {"Changes": [], "Last": -1},
            {"Changes": [], "Last": True},
            {"Changes": [], "Last": 1.5},
        ):
            source = self.source(answer)
            error = await self.assertFailure(Deferred.fromCoroutine(source.since(1)), OriginBadAnswer)
            self.assertRegex(str(error), "not Orthanc's|not JSON|has no Last")

    async def test_refused(self) -> None:
        """A refusal is named."""
        source = self.source(b"", b"401 Unauthorized", b"ann:secret")
        error = await self.assertFailure(Deferred.fromCoroutine(source.last()), OriginError)
        self.assertEqual(str(error), "/changes answered 401")

    async def test_out_of_reach(self) -> None:
        """No connection is an error, and logged by none but whoever asks."""
        source = self.source({})
        await self.server.stop()
        await self.assertFailure(Deferred.fromCoroutine(source.last()), OriginUnreachable)
