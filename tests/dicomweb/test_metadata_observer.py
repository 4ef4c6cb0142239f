"""Metadata, searches and STOW answers on their way through."""

from __future__ import annotations

import gzip
import itertools
import json
from ipaddress import ip_network
from typing import Any

from twisted.internet.defer import Deferred

from tests.clients import Client, RawConnection
from tests.dicomweb.support import ALICE, MALLORY, ProxyCase, RunningProxy
from tests.slides import slide
from tests.stores import faults
from tests.stores.dialects import NO_SYNTAX, STANDARD, Dialect
from tests.stores.simulated import SimulatedStore
from tests.waiting import wait_until
from twistedproxy.dicom.metadata import MetadataParser
from twistedproxy.dicomweb import description_answers, metadata_observer
from twistedproxy.dicomweb.paths import ResourceKind

JPEG = "1.2.840.10008.1.2.4.50"
SYNTAX = "00083002"
FRESH = {"Cache-Control": "no-cache"}
JSON = (("Content-Type", "application/dicom+json"),)


class DescribedCase(ProxyCase):
    """A proxy in front of a store with one slide."""

    async def started(self, dialect: Dialect = STANDARD, **settings: Any) -> tuple[SimulatedStore, Client]:
        """The store, and a client of the proxy."""
        self.origin = self.store(dialect)
        self.running: RunningProxy = await self.proxy(self.origin, **settings)
        self.metadata = f"/{self.slide.resource}/metadata"
        return self.origin, self.running.client()

    async def knowing(self, **settings: Any) -> tuple[SimulatedStore, Client]:
        """The same, of a store that does not tell transfer syntaxes, after a frame told it."""
        store, client = await self.started(NO_SYNTAX, **settings)
        await client.frames(self.slide.resource, [1])
        return store, client


class UrlTests(DescribedCase):
    """Answers name the proxy."""

    async def test_metadata(self) -> None:
        """BulkDataURI and RetrieveURL lead to the proxy, and can be followed there."""
        _, client = await self.started()
        answer = await client.get(self.metadata)
        found = answer.json()[0]
        base = f"{self.running.url}/dicomweb/{self.slide.resource}"
        self.assertEqual(found["00081190"]["Value"], [base])
        self.assertEqual(found["7FE00010"]["BulkDataURI"], f"{base}/bulkdata/7FE00010")
        self.assertNotIn(self.origin.server.encode(), answer.body)
        bulk = await client.get(f"/{self.slide.resource}/bulkdata/7FE00010")
        self.assertEqual(bulk.body, b"".join(self.stored))

    async def test_search(self) -> None:
        """So do the RetrieveURLs of searches, of every level."""
        _, client = await self.started()
        for path in ("/studies", f"/studies/{self.slide.study}/series", "/instances"):
            found = (await client.get(path)).json()
            self.assertTrue(found[0]["00081190"]["Value"][0].startswith(f"{self.running.url}/dicomweb/studies/"), path)

    async def test_nothing_found(self) -> None:
        """A search that finds nothing stays a 204."""
        _, client = await self.started()
        answer = await client.get("/studies?PatientID=NOBODY")
        self.assertEqual((answer.status, answer.body), (204, b""))

    async def test_untrusted_forwarding_headers(self) -> None:
        """Anybody's X-Forwarded-* change nothing."""
        _, client = await self.started()
        told = {"X-Forwarded-Host": "evil.test", "X-Forwarded-Proto": "https", "Forwarded": "host=evil.test"}
        answer = await client.get(self.metadata, told)
        self.assertNotIn(b"evil.test", answer.body)
        self.assertIn(self.running.url.encode(), answer.body)

    async def test_trusted_forwarding_headers(self) -> None:
        """A trusted proxy's decide what the URLs say."""
        _, client = await self.started(trusted_proxy=(ip_network("127.0.0.0/8"),))
        told = {"X-Forwarded-Host": "pacs.example", "X-Forwarded-Proto": "https", "X-Forwarded-Prefix": "/web"}
        found = (await client.get(self.metadata, told)).json()[0]
        self.assertEqual(found["00081190"]["Value"], [f"https://pacs.example/web/dicomweb/{self.slide.resource}"])

    async def test_stow(self) -> None:
        """What a STOW answers names the proxy, whether all, some or nothing was stored."""
        store, client = await self.started()
        item = {"00081155": {"vr": "UI", "Value": ["1.2"]}, "00081190": {"vr": "UR", "Value": []}}
        item["00081190"]["Value"] = [f"{store.url}/studies/1/series/2/instances/1.2"]  # type: ignore[index]
        body = json.dumps({"00081199": {"vr": "SQ", "Value": [item]}}).encode()
        for status in (200, 202, 409):
            store.fail(faults.Answer(status, JSON, body), "/studies")
            answer = await client.request("POST", "/studies", {"Content-Type": "multipart/related"}, b"x")
            url = answer.json()["00081199"]["Value"][0]["00081190"]["Value"][0]
            self.assertEqual(
                (answer.status, url), (status, f"{self.running.url}/dicomweb/studies/1/series/2/instances/1.2")
            )

    async def test_xml(self) -> None:
        """XML names the proxy too; parts no longer claim a length that they don't have."""
        store, client = await self.started()
        url = f"{store.url}/{self.slide.resource}/bulkdata/1"
        xml = f'<NativeDicomModel><BulkData uri="{url}"/></NativeDicomModel>'
        expected = xml.replace(store.url, f"{self.running.url}/dicomweb")
        head = f"--b\r\nContent-Type: application/dicom+xml\r\nContent-Length: {len(xml)}\r\n\r\n"
        body = f"{head}{xml}\r\n--b--\r\n".encode()
        kind = 'multipart/related; type="application/dicom+xml"; boundary=b'
        store.fail(faults.Answer(200, (("Content-Type", kind),), body), "/metadata")
        answer = await client.get(self.metadata, {"Accept": kind})
        (part,) = answer.parts()
        self.assertEqual(part.body.decode(), expected)
        self.assertNotIn("content-length", part.headers)
        store.fail(faults.Answer(200, (("Content-Type", "application/dicom+xml"),), xml.encode()), "/metadata")
        self.assertEqual((await client.get(self.metadata)).body.decode(), expected)

    async def test_untouched(self) -> None:
        """What is no description at all passes as it came, with its length; a description that came compressed does not."""
        store, client = await self.started()
        url = f'[{{"00081190": {{"vr": "UR", "Value": ["{store.url}"]}}}}]'.encode()
        packed = gzip.compress(url)
        store.fail(faults.Answer(200, (*JSON, ("Content-Encoding", "gzip")), packed), "/metadata")
        self.assertNotIn(store.url.encode(), (await client.get(self.metadata)).body)
        for kind, body in (
            ((("Content-Type", "text/html"),), url),
            ((("Content-Type", "application/octet-stream"),), url),
        ):
            store.fail(faults.Answer(200, kind, body), "/metadata")
            answer = await client.get(self.metadata, FRESH)
            self.assertEqual((answer.body, answer.headers["content-length"]), (body, str(len(body))), kind)

    async def test_head(self) -> None:
        """HEAD does not promise the length that the origin's own answer has, and makes no grant."""
        await self.started()
        connection = await RawConnection.open(self.running.port)
        connection.send(f"HEAD /dicomweb{self.metadata} HTTP/1.1\r\nHost: p\r\nConnection: close\r\n\r\n".encode())
        head = await connection.end()
        self.assertTrue(head.startswith(b"HTTP/1.1 200 ") and head.endswith(b"\r\n\r\n"), head)
        self.assertNotIn(b"content-length", head.lower())
        self.assertEqual(len(self.running.components.access.grants), 0)

    async def test_no_compression_is_asked_for(self) -> None:
        """The origin is asked for what can be looked into, whatever the client could take."""
        store, client = await self.started()
        await client.get(self.metadata, {"Accept-Encoding": "gzip, br"})
        self.assertEqual(store.seen("/metadata")[0].header("Accept-Encoding"), "identity")


class SyntaxTests(DescribedCase):
    """(0008,3002) is there."""

    async def test_said_by_the_origin(self) -> None:
        """What the origin says is left as it is, and no frame is asked for."""
        store, client = await self.started()
        self.assertEqual((await client.get(self.metadata)).json()[0][SYNTAX]["Value"], [JPEG])
        self.assertEqual(store.lines("/frames/"), [])

    async def test_probed(self) -> None:
        """Where the origin leaves it out, one frame tells, which is then cached."""
        store, client = await self.started(NO_SYNTAX)
        self.assertEqual((await client.get(self.metadata)).json()[0][SYNTAX]["Value"], [JPEG])
        self.assertEqual(len(store.lines("/frames/1")), 1)
        self.assertEqual((await client.get(self.metadata)).json()[0][SYNTAX]["Value"], [JPEG])
        self.assertEqual((await client.frames(self.slide.resource, [1])).frames(), self.stored[:1])
        self.assertEqual(len(store.lines("/frames/")), 1)

    async def test_probe_has_a_deadline(self) -> None:
        """A frame that takes too long does not hold the metadata up; the next time it is known."""
        self.patch(metadata_observer, "PROBE_SECONDS", 0.05)
        store, client = await self.started(NO_SYNTAX)
        gate = store.hold("/frames/1")
        self.assertNotIn(SYNTAX, (await client.get(self.metadata)).json()[0])
        gate.release()
        await wait_until(lambda: not self.running.components.reader._flights.under_way())
        self.assertEqual((await client.get(self.metadata)).json()[0][SYNTAX]["Value"], [JPEG])
        self.assertEqual(len(store.lines("/frames/")), 1)

    async def test_probe_fails(self) -> None:
        """An origin that gives no frame gives its metadata all the same."""
        store, client = await self.started(NO_SYNTAX)
        store.fail(faults.server_error(), "/frames/", None)
        store.fail(faults.Answer(404), lambda seen: seen.path.endswith(self.slide.sop), None)
        answer = await client.get(self.metadata)
        self.assertEqual((answer.status, SYNTAX in answer.json()[0]), (200, False))

    async def test_no_probe_for_video(self) -> None:
        """Frame 1 of a video may be all of it: it is not asked for."""
        store = self.store(NO_SYNTAX, slide(self.mktemp(), 1, 2, 32))
        stored = next(iter(store.instances.values()))
        stored.metadata["00080016"]["Value"] = ["1.2.840.10008.5.1.4.1.1.77.1.1.1"]
        client = (await self.proxy(store)).client()
        await client.get(f"/{self.slide.resource}/metadata")
        self.assertEqual(store.lines("/frames/"), [])

    async def test_search(self) -> None:
        """A search answer says it for the instances that somebody has read, and asks for none."""
        store, client = await self.knowing()
        other = store.add(slide(self.mktemp(), 1, 1, 32).path)
        found = {item["00080018"]["Value"][0]: item for item in (await client.get("/instances")).json()}
        self.assertEqual(found[self.slide.sop][SYNTAX]["Value"], [JPEG])
        self.assertNotIn(SYNTAX, found[other.sop])
        self.assertEqual(len(store.lines("/frames/")), 1)

    async def test_own_transfer_syntax(self) -> None:
        """An object that has (0002,0010) gets that, in a search and in the metadata of a series, and no frame is asked for."""
        store, client = await self.started()
        first = (await client.get("/instances")).json()[0]
        first.pop(SYNTAX, None)
        answer = json.dumps([{"00020010": {"vr": "UI", "Value": [JPEG]}, **first}]).encode()
        for path in ("/instances", f"/{self.slide.resource.rpartition('/instances/')[0]}/metadata"):
            store.fail(faults.Answer(200, JSON, answer), path)
            self.assertEqual((await client.get(path)).json()[0][SYNTAX]["Value"], [JPEG], path)
        self.assertEqual(store.lines("/frames/"), [])

    async def test_malformed_elsewhere(self) -> None:
        """A byte order mark, Latin-1 and control characters do not keep instances from being found in an answer."""
        store, client = await self.knowing()
        first = (await client.get("/instances")).json()[0]
        first.pop(SYNTAX)
        answer = b"\xef\xbb\xbf[" + json.dumps(first).encode().replace(
            b"{", b'{"00091001":{"vr":"LO","Value":["\xfc\t"]},', 1
        )
        store.fail(faults.Answer(200, JSON, answer + b"]"), "/instances")
        found = await client.get("/instances")
        self.assertIn(b'"00083002":{"vr":"UI","Value":["%s"]}' % JPEG.encode(), found.body)

    async def test_long_search(self) -> None:
        """Of a long answer the first instances are looked up, and nothing of it is lost."""
        store, client = await self.knowing()
        first = (await client.get("/instances")).json()[0]
        first.pop(SYNTAX)
        others = [{"00080018": {"vr": "UI", "Value": [f"1.2.{n}"]}, "x": "y" * 900} for n in range(1000)]
        store.fail(faults.Answer(200, JSON, json.dumps([first, *others]).encode()), "/instances")
        found = (await client.get("/instances")).json()
        self.assertEqual(found[0].pop(SYNTAX)["Value"], [JPEG])
        self.assertEqual(found, [first, *others])

    async def test_another_callers_metadata_keep_it(self) -> None:
        """What one caller's frame told is not lost when the next caller's metadata come without it."""
        store, _ = await self.started(NO_SYNTAX)
        await self.running.client(ALICE).frames(self.slide.resource, [1])
        await self.running.client(MALLORY).frames(self.slide.resource, [1])
        self.assertEqual((await self.running.client(MALLORY).get("/instances")).json()[0][SYNTAX]["Value"], [JPEG])


class LargeTests(DescribedCase):
    """Metadata too large to be held."""

    async def test_streams(self) -> None:
        """They pass with their URLs rewritten before the last byte has come, and make a grant at their end."""
        self.patch(metadata_observer, "HELD", 1 << 16)
        self.patch(description_answers, "LIMITS", {ResourceKind.METADATA: 1 << 17})
        store, client = await self.started()
        found = (await client.get(self.metadata)).json()[0]
        found["00081190"]["Value"] = [f"{store.url}/{self.slide.resource}"]
        found["52009230"] = {"vr": "SQ", "Value": [{"00189073": {"vr": "FD", "Value": [n]}} for n in range(30_000)]}
        store.fail(faults.Answer(200, JSON, json.dumps([found]).encode()), "/metadata")
        self.running.components.access.grants.invalidate(lambda _instance: True)
        gate = store.hold("/metadata", after=800_000)
        connection = await RawConnection.open(self.running.port)
        line = f"GET /dicomweb{self.metadata} HTTP/1.1\r\nHost: p.test\r\nCache-Control: no-cache\r\nConnection: close\r\n\r\n"
        connection.send(line.encode())
        await connection.until(f'"http://p.test/dicomweb/{self.slide.resource}"'.encode())
        self.assertEqual(len(self.running.components.access.grants), 0)
        gate.release()
        body = await connection.end()
        self.assertGreater(body.count(b'"00189073"'), 29_900)  # chunks cut some of them
        self.assertTrue(body.endswith(b"\r\n0\r\n\r\n"))
        asked = len(store.lines("/metadata"))
        self.assertEqual((await client.frames(self.slide.resource, [1])).status, 200)
        self.assertEqual(len(store.lines("/metadata")), asked)

    async def test_parsed_in_pieces(self) -> None:
        """What was held is parsed a little at a time, too: the reactor gets its turns."""
        self.patch(metadata_observer, "HELD", 1 << 20)
        longest = 0

        class Parser(MetadataParser):
            def feed(self, chunk: bytes) -> None:
                nonlocal longest
                longest = max(longest, len(chunk))
                super().feed(chunk)

        self.patch(metadata_observer, "MetadataParser", Parser)
        store, client = await self.started()
        found = (await client.get(self.metadata)).json()[0]
        found["52009230"] = {"vr": "SQ", "Value": [{"00189073": {"vr": "FD", "Value": [n]}} for n in range(30_000)]}
        store.fail(faults.Answer(200, JSON, json.dumps([found]).encode()), "/metadata")
        self.assertEqual((await client.get(self.metadata, FRESH)).json(), [found])
        self.assertTrue(0 < longest <= metadata_observer.PIECE, longest)


class GrantTests(DescribedCase):
    """Metadata that pass are a grant, for what was asked with what makes the caller alone."""

    async def after(self, *, path: str = "", **headers: str) -> int:
        """How many metadata requests the origin has seen after metadata, asked for so, and then a frame."""
        store, client = await self.started()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        await client.get(path or self.metadata, given)
        self.assertEqual((await client.frames(self.slide.resource, [1])).status, 200)
        return len(store.lines("/metadata"))

    async def test_no_second_request(self) -> None:
        """A viewer that has read the metadata gets frames without the origin being asked for them again."""
        self.assertEqual(await self.after(Accept="application/dicom+json", User_Agent="x", Referer="y"), 1)

    async def test_other_headers(self) -> None:
        """A header that may have moved the origin, and makes no caller, makes no grant: others don't send it."""
        for name in ("X-Api-Key", "X-Remote-User"):
            self.assertEqual(await self.after(**{name.replace("-", "_"): "10.0.0.1"}), 2, name)

    async def test_headers_that_stay_behind(self) -> None:
        """A header that does not go on has moved nobody."""
        self.assertEqual(await self.after(X_Forwarded_For="192.0.2.9", X_HTTP_Method_Override="DELETE"), 1)

    async def test_parts_of_metadata(self) -> None:
        """An answer to a request for a part of the metadata makes no grant and leaves nothing wrong behind."""
        store, client = await self.started()
        part = faults.MetadataSays({"00280008": None, SYNTAX: None})
        store.fail(part, lambda seen: "includefield" in seen.query)
        answer = await client.get(f"{self.metadata}?includefield=00280010")
        self.assertNotIn("00280008", answer.json()[0])
        self.assertEqual((await client.frames(self.slide.resource, [6])).frames(), self.stored[5:6])

    async def test_a_page_for_people(self) -> None:
        """An answer that is no metadata makes no grant, nor is one that may be something else to others."""
        store, client = await self.started()
        right = json.dumps([next(iter(store.instances.values())).metadata]).encode()
        html = ("Content-Type", "text/html")
        for headers, body in (
            (JSON, b"[]"),
            (JSON, right + b"<html>"),
            ((*JSON, html), right),
            ((html, *JSON), right),
        ):
            store.fail(faults.Answer(200, headers, body), "/metadata")
            await client.get(self.metadata)
            self.assertEqual(len(self.running.components.access.grants), 0, headers)
        store.fail(faults.Answer(200, JSON, right), "/metadata")
        await client.get(self.metadata)
        self.assertEqual(len(self.running.components.access.grants), 1)

    async def test_a_cache_on_the_way(self) -> None:
        """What a cache in front of the origin answers makes no grant for a caller with credentials, however long it is."""
        for held in (metadata_observer.HELD, 16):
            self.patch(metadata_observer, "HELD", held)
            store, anyone = await self.started()
            right = {**next(iter(store.instances.values())).metadata, SYNTAX: {"vr": "UI", "Value": [JPEG]}}
            answer = json.dumps([right]).encode()
            store.fail(faults.Answer(200, (*JSON, ("Age", "100")), answer), "/metadata", None)
            grants = self.running.components.access.grants
            for client, count in ((self.running.client(ALICE), 0), (anyone, 1)):
                found = (await client.get(self.metadata)).json()
                self.assertEqual(found[0]["00080018"], right["00080018"])
                self.assertEqual(len(grants), count)

    async def test_series(self) -> None:
        """The metadata of a series or study are the grant for its instances, the first one too; those of a part of it, or with a
        header that may have moved the origin are none."""
        store, client = await self.started()
        study = f"/studies/{self.slide.study}/metadata"
        series = f"/studies/{self.slide.study}/series/{self.slide.series}/metadata"
        for path, headers, asked in (
            (f"{series}?includefield=00280010", {}, 1),
            (series, {"X-Api-Key": "1"}, 1),
            (series, {}, 0),
            (f"{study}?includefield=00280010", {}, 1),
            (study, {"X-Api-Key": "1"}, 1),
            (f"{study}?accept=application/dicom%2Bjson", {}, 0),
            (study, {}, 0),
        ):
            running = await self.proxy(store)
            client = running.client()
            self.assertEqual((await client.get(path, headers)).status, 200)
            before = len(store.lines(f"{self.slide.sop}/metadata"))
            self.assertEqual((await client.frames(self.slide.resource, [1])).frames(), self.stored[:1])
            self.assertEqual(len(store.lines(f"{self.slide.sop}/metadata")) - before, asked, path)
        before = len(store.lines(f"{self.slide.sop}/metadata"))
        mallory = running.client(MALLORY)
        await mallory.frames(self.slide.resource, [1])
        self.assertEqual(len(store.lines(f"{self.slide.sop}/metadata")) - before, 1)

    async def test_series_of_a_cache(self) -> None:
        """A series' or study's metadata from a cache on the way, or cut off, are no grant."""
        store, _ = await self.started()
        right = json.dumps([next(iter(store.instances.values())).metadata]).encode()
        study = f"/studies/{self.slide.study}"
        for (headers, body), whole in itertools.product(
            (((*JSON, ("Age", "3")), right), (JSON, right[:-1]), (JSON, right + b"[]")),
            (study, f"{study}/series/{self.slide.series}"),
        ):
            client = (await self.proxy(store)).client(ALICE)
            store.fail(faults.Answer(200, headers, body), f"{whole}/metadata")
            await client.get(f"{whole}/metadata")
            before = len(store.lines(f"{self.slide.sop}/metadata"))
            await client.frames(self.slide.resource, [1])
            self.assertEqual(len(store.lines(f"{self.slide.sop}/metadata")) - before, 1, headers)

    async def test_series_refused(self) -> None:
        """When the store refuses a series or study that it has shown, what it said then proves nothing any more."""
        for shown, whole in itertools.product(("series", "study"), repeat=2):
            store, _ = await self.started()
            study = f"/studies/{self.slide.study}"
            series = f"{study}/series/{self.slide.series}"
            client = self.running.client(ALICE)
            self.assertEqual((await self.running.client(MALLORY).frames(self.slide.resource, [1])).status, 200)
            self.assertEqual((await client.get(f"{series if shown == 'series' else study}/metadata")).status, 200)
            store.fail(faults.Answer(403, (), b""), "", None)  # a frame that is cached by now, too
            refused = f"{series if whole == 'series' else study}/metadata"
            self.assertEqual((await client.get(refused, FRESH)).status, 403)
            self.assertEqual((await client.frames(self.slide.resource, [1])).status, 403)

    async def test_study_changes(self) -> None:
        """A STOW or DELETE below a study while its metadata pass leaves no grant, and what comes afterwards ends it."""
        for during in (True, False):
            store, client = await self.started()
            path = f"/studies/{self.slide.study}/metadata"
            gate = store.hold(path, after=10)
            passing = Deferred.fromCoroutine(client.get(path))
            await gate.reached()
            gone = f"/studies/{self.slide.study}/series/1.9"
            if during:
                store.fail(faults.Answer(204), gone)
                self.assertEqual((await client.request("DELETE", gone)).status, 204)
            gate.release()
            self.assertEqual((await passing).status, 200)
            if not during:
                self.assertEqual((await client.request("DELETE", f"/studies/{self.slide.study}")).status, 204)
                store.add(self.slide.path)
            before = len(store.lines(f"{self.slide.sop}/metadata"))
            self.assertEqual((await client.frames(self.slide.resource, [1])).status, 200)
            self.assertEqual(len(store.lines(f"{self.slide.sop}/metadata")) - before, 1, during)

    async def test_study_of_our_cache(self) -> None:
        """A study's metadata that the proxy has kept are no new grant."""
        store, client = await self.started()
        study = f"/studies/{self.slide.study}"
        await client.get(f"{study}/metadata")
        answers = self.running.components.access.series
        assert answers is not None
        self.assertEqual(len(answers._held), 1)
        answers._held.clear()
        await client.get(f"{study}/metadata")
        self.assertEqual((len(store.lines(f"{study}/metadata")), len(answers._held)), (1, 0))

    async def test_large_study(self) -> None:
        """The metadata of a large study pass, and are no grant."""
        self.patch(metadata_observer, "MAX_ANSWER", 100)
        store, client = await self.started()
        self.assertEqual((await client.get(f"/studies/{self.slide.study}/metadata")).status, 200)
        await client.frames(self.slide.resource, [1])
        self.assertEqual(len(store.lines(f"{self.slide.sop}/metadata")), 1)
