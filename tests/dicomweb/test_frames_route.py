"""Frames over real sockets: forms, headers, conditions, refusals."""

from __future__ import annotations

import attrs
from twisted.internet.defer import Deferred, gatherResults

from tests.clients import Answer, RawConnection
from tests.dicomweb.support import STORED, ProxyCase
from tests.slides import slide
from tests.stores.dialects import GOOGLE, NO_SYNTAX, ORTHANC, STANDARD
from twistedproxy.dicom.multipart_writer import build
from twistedproxy.settings import Mount

JPEG = "1.2.840.10008.1.2.4.50"
SINGLE = f"image/jpeg; transfer-syntax={JPEG}"
MISS, HIT = "twistedproxy; fwd=uri-miss; stored", "twistedproxy; hit"


class FormTests(ProxyCase):
    """The form of an answer is the negotiated one, to the letter."""

    async def test_multipart(self) -> None:
        """Frames come in the order asked for, repeats included, in the exact form that clients read."""
        store = self.store()
        client = (await self.proxy(store)).client()
        answer = await client.frames(self.slide.resource, [3, 1, 3])
        expected = [self.stored[2], self.stored[0], self.stored[2]]
        self.assertEqual(answer.frames(), expected)
        body = build(expected, "image/jpeg", JPEG)
        self.assertEqual(answer.body, b"".join(body.chunks))
        self.assertEqual(
            answer.headers["content-type"],
            f'multipart/related; type="image/jpeg"; transfer-syntax={JPEG}; boundary={body.digest}',
        )
        self.assertEqual(answer.parts()[0].headers["content-type"], SINGLE)
        self.assertEqual(answer.headers["content-length"], str(len(answer.body)))
        self.assertEqual(store.lines("/frames/"), [f"GET /{self.slide.resource}/frames/1",
                                                   f"GET /{self.slide.resource}/frames/3"])  # fmt: skip

    async def test_single_part(self) -> None:
        """A bare media type gets one frame as it is, and a list of frames is not acceptable so."""
        client = (await self.proxy(self.store())).client()
        answer = await client.frames(self.slide.resource, [2], "image/jpeg")
        self.assertEqual((answer.status, answer.headers["content-type"], answer.body), (200, SINGLE, self.stored[1]))
        self.assertEqual((await client.frames(self.slide.resource, [1, 2], "image/jpeg")).status, 406)

    async def test_accept_in_the_query(self) -> None:
        """An ``accept=`` in the query replaces the header; Accept may be missing altogether."""
        client = (await self.proxy(self.store())).client()
        path = f"/{self.slide.resource}/frames/1"
        answer = await client.get(f"{path}?accept=image/jpeg", {"Accept": "text/html"})
        self.assertEqual((answer.status, answer.headers["content-type"]), (200, SINGLE))
        self.assertEqual((await client.get(path)).frames(), [self.stored[0]])

    async def test_other_query_parameters(self) -> None:
        """What the origin is asked for by further parameters is the origin's to answer, every time."""
        store = self.store()
        client = (await self.proxy(store)).client()
        for _ in range(2):
            answer = await client.get(f"/{self.slide.resource}/frames/1?imageSetId=3", {"Accept": STORED})
            self.assertEqual(answer.frames(), [self.stored[0]])
            self.assertEqual(answer.headers["cache-status"], "twistedproxy; fwd=bypass")
        self.assertEqual(store.lines(), [f"GET /{self.slide.resource}/frames/1?imageSetId=3"] * 2)

    async def test_not_acceptable(self) -> None:
        """What cannot be given is a 406 that lists what there is; a frame was fetched at most once to see that."""
        store = self.store()
        client = (await self.proxy(store)).client()
        wanted = 'multipart/related; type="image/jp2"; transfer-syntax=1.2.840.10008.1.2.4.90'
        answer = await client.frames(self.slide.resource, [1], wanted)
        self.assertEqual((answer.status, answer.headers["content-type"]), (406, "application/problem+json"))
        made = (
            ("image/jpeg", JPEG),
            ("image/jxl", f"{JPEG[:-2]}111"),
            ("application/octet-stream", "1.2.840.10008.1.2.1"),
        )
        forms = ('multipart/related; type="{}"; transfer-syntax={}', "{}; transfer-syntax={}")
        self.assertEqual(answer.json()["available"], [form.format(*one) for one in made for form in forms])
        self.assertEqual(len(store.lines("/frames/")), 1)
        self.assertEqual((await client.frames(self.slide.resource, [2], wanted)).status, 406)
        self.assertEqual(len(store.lines("/frames/")), 1, "by then it is known")

    async def test_transfer_syntax_unknown_beforehand(self) -> None:
        """Where the metadata do not say the transfer syntax, the frame decides."""
        store = self.store(NO_SYNTAX)
        client = (await self.proxy(store)).client()
        self.assertEqual((await client.frames(self.slide.resource, [1], "image/jp2")).status, 406)
        self.assertEqual((await client.frames(self.slide.resource, [1], "image/jpeg")).body, self.stored[0])
        self.assertEqual(len(store.lines("/frames/")), 1)


class CacheTests(ProxyCase):
    """What came once is not asked for again, and the answer says where it came from."""

    async def test_cache_status(self) -> None:
        """A miss, a hit, and a list with both say so; the origin sees each frame once."""
        store = self.store()
        client = (await self.proxy(store)).client()
        said = [
            (await client.frames(self.slide.resource, numbers)).headers["cache-status"]
            for numbers in ([1], [1], [1, 2], [2, 1])
        ]
        self.assertEqual(said, [MISS, HIT, "twistedproxy; fwd=partial; stored", HIT])
        self.assertEqual([line.rpartition("/")[2] for line in store.lines("/frames/")], ["1", "2"])
        self.assertEqual(len(store.lines("/metadata")), 1)

    async def test_collapsed(self) -> None:
        """Who shares a fetch is told so."""
        store = self.store()
        proxy = await self.proxy(store)
        await proxy.client().frames(self.slide.resource, [6])
        gate = store.hold("/frames/1")
        asked = [Deferred.fromCoroutine(proxy.client().frames(self.slide.resource, [1])) for _ in range(2)]
        await gate.reached()
        await self._waiting(proxy, 2)
        gate.release()
        answers = await gatherResults(asked)
        self.assertEqual({answer.headers["cache-status"] for answer in answers}, {MISS, f"{MISS}; collapsed"})
        self.assertEqual(len(store.lines("/frames/1")), 1)

    async def test_200_callers(self) -> None:
        """200 callers of one uncached frame make one origin request; half of them hang up, and the others get it."""
        store = self.store()
        proxy = await self.proxy(store)
        await proxy.client().frames(self.slide.resource, [6])
        gate = store.hold("/frames/1")
        line = f"GET /dicomweb/{self.slide.resource}/frames/1 HTTP/1.1\r\nHost: p\r\nAccept: image/jpeg\r\n\r\n"
        connections = [await RawConnection.open(proxy.port) for _ in range(200)]
        for connection in connections:
            connection.send(line.encode())
        await self._waiting(proxy, 200)
        for connection in connections[::2]:
            await connection.close()
        await self._waiting(proxy, 100)
        gate.release()
        for connection in connections[1::2]:
            self.assertIn(b"200 OK", await connection.until(self.stored[0]))
            await connection.close()
        self.assertEqual(len(store.lines("/frames/1")), 1)

    async def test_no_cache(self) -> None:
        """Without a cache nothing claims to be stored, and each request is answered all the same."""
        from twistedproxy.cache.address import NoAddress

        store = self.store()
        client = (await self.proxy(store, cache=NoAddress())).client()
        for _ in range(2):
            answer = await client.frames(self.slide.resource, [1])
            self.assertEqual(
                (answer.frames(), answer.headers["cache-status"]), ([self.stored[0]], "twistedproxy; fwd=uri-miss")
            )

    async def _waiting(self, proxy: object, count: int) -> None:
        from tests.waiting import wait_until

        components = proxy.components  # type: ignore[attr-defined]
        fetches = components.reader._flights._flights
        await wait_until(
            lambda: {len(fetch._waiters._waiting) for fetch in fetches.values()} == {count}, f"{count} waiting"
        )


class ConditionTests(ProxyCase):
    """Validators, ranges, and what may keep an answer."""

    async def asked(self) -> tuple[Answer, Answer]:
        """A proxy, and one frame's answer from the origin and from the cache."""
        self.origin = self.store()
        self.running = await self.proxy(self.origin)
        self.client = self.running.client()
        self.path = f"/{self.slide.resource}/frames/1"
        return await self.get(), await self.get()

    async def get(self, **headers: str) -> Answer:
        """The frame again."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.get(self.path, {"Accept": "image/jpeg", **given})

    async def test_headers(self) -> None:
        """Hit and miss have the same strong ETag, may be kept by the client alone, and say what they depend on."""
        miss, hit = await self.asked()
        self.assertEqual((miss.headers["cache-status"], hit.headers["cache-status"]), (MISS, HIT))
        for answer in (miss, hit):
            self.assertEqual(answer.headers["etag"], miss.headers["etag"])
            self.assertRegex(answer.headers["etag"], '^"[0-9a-f]{32}"$')
            self.assertEqual(answer.headers["cache-control"], "private, max-age=3600")
            self.assertEqual(answer.headers["vary"], "Accept, Authorization, Cookie")
            self.assertEqual(answer.headers["accept-ranges"], "bytes")
        other = await (await self.proxy(self.origin)).client().get(self.path, {"Accept": "image/jpeg"})
        self.assertEqual(other.headers["etag"], miss.headers["etag"], "another worker makes the same")

    async def test_not_modified(self) -> None:
        """Who has the frame gets a 304 without a body; who has another gets the frame."""
        _, hit = await self.asked()
        again = await self.get(If_None_Match=f'"other", {hit.headers["etag"]}')
        self.assertEqual((again.status, again.body, again.headers["etag"]), (304, b"", hit.headers["etag"]))
        self.assertEqual((await self.get(If_None_Match='"other"')).status, 200)

    async def test_range(self) -> None:
        """A range of one frame is a 206 of those bytes; one past the end a 416 that says the size."""
        _, hit = await self.asked()
        part = await self.get(Range="bytes=10-19")
        self.assertEqual((part.status, part.body), (206, self.stored[0][10:20]))
        self.assertEqual(part.headers["content-range"], f"bytes 10-19/{len(self.stored[0])}")
        self.assertEqual(part.headers["content-length"], "10")
        past = await self.get(Range="bytes=9999999-")
        self.assertEqual((past.status, past.headers["content-range"]), (416, f"bytes */{len(self.stored[0])}"))
        self.assertNotIn("etag", past.headers)
        self.assertEqual((await self.get(Range="bytes=0-1", If_Range='"other"')).body, self.stored[0])

    async def test_range_of_a_part(self) -> None:
        """A range of one frame in multipart goes over the bytes of the whole body."""
        await self.asked()
        whole = (await self.client.frames(self.slide.resource, [1])).body
        first = whole.index(self.stored[0])
        for start, stop in ((0, 7), (first - 5, first + 5), (first, len(whole)), (len(whole) - 9, len(whole))):
            headers = {"Accept": STORED, "Range": f"bytes={start}-{stop - 1}"}
            part = await self.client.get(self.path, headers)
            self.assertEqual((part.status, part.body), (206, whole[start:stop]))

    async def test_head(self) -> None:
        """HEAD has the headers of GET and no body; a Range is not for it."""
        await self.asked()
        full = await self.raw("GET")
        self.assertEqual(full[1], self.stored[0])
        self.assertEqual(await self.raw("HEAD"), (full[0], b""))
        self.assertEqual(await self.raw("HEAD", "Range: bytes=0-3\r\n"), (full[0], b""))

    async def raw(self, method: str, more: str = "") -> tuple[list[bytes], bytes]:
        """All header lines of an answer but its date and id, and its body, as they came."""
        connection = await RawConnection.open(self.running.port)
        line = f"{method} /dicomweb{self.path} HTTP/1.1\r\nHost: p\r\nAccept: image/jpeg\r\n{more}Connection: close\r\n\r\n"
        connection.send(line.encode())
        head, _, body = (await connection.end()).partition(b"\r\n\r\n")
        return [line for line in head.split(b"\r\n") if not line.startswith((b"Date:", b"X-Request-Id:"))], body


class RefusalTests(ProxyCase):
    """What cannot be answered is refused, in so many words, and the origin hears no more than it must."""

    async def test_bad_lists(self) -> None:
        """Malformed, zero, negative and too many numbers are a 400; the origin hears nothing."""
        store = self.store()
        client = (await self.proxy(store, max_frames_per_request=5)).client()
        for text in ("0", "-1", "1,,2", "1,", "a", "1.5", "1,2,3,4,5,6", "%31%2C0", "99999999999"):
            answer = await client.get(f"/{self.slide.resource}/frames/{text}")
            self.assertEqual((answer.status, answer.headers["content-type"]), (400, "application/problem+json"), text)
        self.assertIn("limit is 5", (await client.get(f"/{self.slide.resource}/frames/1,1,1,1,1,1")).json()["detail"])
        self.assertEqual(store.lines(), [])

    async def test_past_the_end(self) -> None:
        """A number past NumberOfFrames is a 404 that says how many there are."""
        store = self.store()
        client = (await self.proxy(store)).client()
        answer = await client.frames(self.slide.resource, [1, 7])
        self.assertEqual(answer.status, 404)
        self.assertIn("1 to 6", answer.json()["detail"])
        self.assertEqual(store.lines("/frames/"), [])

    async def test_too_large(self) -> None:
        """Frames of more bytes than allowed together are a 413 that says the limit; one alone is answered."""
        client = (await self.proxy(self.store(), max_answer=1000)).client()
        answer = await client.frames(self.slide.resource, [1, 2, 3])
        self.assertEqual(answer.status, 413)
        self.assertIn("1000 bytes", answer.json()["detail"])
        self.assertEqual((await client.frames(self.slide.resource, [1])).frames(), [self.stored[0]])

    async def test_unknown_instance(self) -> None:
        """The origin's own 404 comes back as it came."""
        client = (await self.proxy(self.store())).client()
        answer = await client.frames("studies/1/series/2/instances/3", [1])
        self.assertEqual((answer.status, answer.json()), (404, {"errorMessage": "nothing there"}))


class PlaceTests(ProxyCase):
    """Mounts, roots and short paths."""

    async def test_short_path(self) -> None:
        """Without a series the instance is found by one search, and the frame is the same as by the long path."""
        store = self.store()
        client = (await self.proxy(store)).client()
        short = f"studies/{self.slide.study}/instances/{self.slide.sop}"
        asked = [Deferred.fromCoroutine(client.frames(short, [2])) for _ in range(3)]
        for answer in await gatherResults(asked):
            self.assertEqual(answer.frames(), [self.stored[1]])
        self.assertEqual((await client.frames(self.slide.resource, [2])).headers["cache-status"], HIT)
        self.assertEqual(len(store.lines(lambda seen: "SOPInstanceUID" in seen.query)), 1)
        missing = await client.frames(f"studies/{self.slide.study}/instances/1.2.3", [1])
        self.assertEqual(missing.status, 404)

    async def test_several_mounts(self) -> None:
        """Two stores that hold different frames under the same UIDs stay apart, and the longer prefix wins."""
        first = self.store()
        twin = slide(self.mktemp(), 2, 3, 32, study=self.slide.study, series=self.slide.series, sop=self.slide.sop)
        second = self.store(STANDARD, twin)
        proxy = await self.proxy(first, second, origin=(Mount("/a", first.url), Mount("/a/b", second.url)))
        for _ in range(2):
            for prefix, store in (("/a", first), ("/a/b", second)):
                answer = await proxy.client(prefix=prefix).frames(self.slide.resource, [1])
                self.assertEqual(answer.frames(), [store.instances[self.slide.sop].frames[0]])

    async def test_above_the_root(self) -> None:
        """Below a mount of something above DICOMweb roots, each root is a store of its own."""
        store = self.store(GOOGLE)
        proxy = await self.proxy(store, origin=(Mount("/tile", f"{store.server}/v1"),))
        root = GOOGLE.root.removeprefix("/v1")
        client = proxy.client(prefix=f"/tile{root}")
        self.assertEqual((await client.frames(self.slide.resource, [1])).frames(), [self.stored[0]])
        self.assertEqual((await client.frames(self.slide.resource, [1])).headers["cache-status"], HIT)
        elsewhere = proxy.client(prefix=f"/tile{root.replace('projects/p', 'projects/q')}")
        self.assertEqual((await elsewhere.frames(self.slide.resource, [1])).status, 404)

    async def test_every_dialect(self) -> None:
        """Stores of each kind give the stored frames, as one list and one by one."""
        for dialect in (ORTHANC, attrs.evolve(STANDARD, framing="chunked")):
            client = (await self.proxy(self.store(dialect))).client()
            self.assertEqual((await client.frames(self.slide.resource, [1, 2, 3])).frames(), self.stored[:3])
            self.assertEqual((await client.frames(self.slide.resource, range(1, 7))).frames(), self.stored)
