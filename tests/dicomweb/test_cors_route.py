"""Pages of other origins: preflights, and permission on every kind of answer."""

from __future__ import annotations

from tests.clients import Client
from tests.dicomweb.support import ALICE, ProxyCase, token

VIEWER = "https://viewer.example"
EXPOSED = "Content-Type, Content-Length, Content-Range, ETag, Cache-Status, X-Request-Id"
PREFLIGHT = {
    "Origin": VIEWER,
    "Access-Control-Request-Method": "GET",
    "Access-Control-Request-Headers": "authorization, range",
}


class CorsTests(ProxyCase):
    """One viewer is allowed."""

    async def started(self, *origins: str) -> Client:
        """A client of a proxy that lets *origins* read."""
        self.origin = self.store()
        self.origin.allow(token(ALICE))
        return (await self.proxy(self.origin, cors_origin=origins)).client()

    async def test_preflight(self) -> None:
        """A preflight is answered here, without credentials, for every resource; the origin hears nothing."""
        client = await self.started(VIEWER)
        for path in (f"/{self.slide.resource}/frames/1", f"/{self.slide.resource}/frames/1/rendered", "/studies"):
            answer = await client.request("OPTIONS", path, PREFLIGHT)
            self.assertEqual((answer.status, answer.body), (204, b""), path)
            headers = answer.headers
            self.assertEqual(headers["access-control-allow-origin"], VIEWER)
            self.assertEqual(headers["access-control-allow-credentials"], "true")
            self.assertEqual(headers["access-control-allow-headers"], "authorization, range")
            self.assertIn("GET", headers["access-control-allow-methods"])
        self.assertEqual(self.origin.lines(), [])

    async def test_every_answer(self) -> None:
        """Hits, misses, 304s, problems, refusals and what passes through give the permission and expose their headers."""
        client = await self.started(VIEWER)
        asked = {**ALICE, "Origin": VIEWER}
        path = f"/{self.slide.resource}/frames/1"
        etag = (await client.get(path, asked)).headers["etag"]
        for status, target, more in (
            (200, path, {}),
            (304, path, {"If-None-Match": etag}),
            (404, path.replace("frames/1", "frames/99"), {}),
            (400, path.replace("frames/1", "frames/0"), {}),
            (401, path, {"Authorization": "Bearer nobody-00000000"}),
            (200, "/studies", {}),
            (404, "/nothing", {}),
        ):
            answer = await client.get(target, {**asked, **more})
            self.assertEqual(answer.status, status, target)
            self.assertEqual(answer.headers["access-control-allow-origin"], VIEWER, target)
            self.assertEqual(answer.headers["access-control-expose-headers"], EXPOSED, target)
            self.assertIn("Origin", answer.headers["vary"].split(", "), target)

    async def test_others(self) -> None:
        """Other pages get no permission, and answers say that they depend on who asks; so for those that are no page."""
        client = await self.started(VIEWER)
        path = f"/{self.slide.resource}/frames/1"
        for more in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {}):
            answer = await client.get(path, {**ALICE, **more})
            self.assertEqual(answer.status, 200)
            self.assertNotIn("access-control-allow-origin", answer.headers)
            self.assertIn("Origin", answer.headers["vary"].split(", "))
        refused = await client.request("OPTIONS", path, {**PREFLIGHT, "Origin": "https://evil.example"})
        self.assertNotIn("access-control-allow-origin", refused.headers)

    async def test_any(self) -> None:
        """With an asterisk every page may read, none with credentials of the browser's own."""
        client = await self.started("*")
        answer = await client.get(f"/{self.slide.resource}/frames/1", {**ALICE, "Origin": "https://any.example"})
        self.assertEqual(answer.headers["access-control-allow-origin"], "*")
        self.assertNotIn("access-control-allow-credentials", answer.headers)

    async def test_off(self) -> None:
        """Nobody named: nothing is said, and OPTIONS is the origin's to answer."""
        client = await self.started()
        answer = await client.get(f"/{self.slide.resource}/frames/1", {**ALICE, "Origin": VIEWER})
        self.assertNotIn("access-control-allow-origin", answer.headers)
        options = await client.request("OPTIONS", "/studies", {**PREFLIGHT, **ALICE})
        self.assertEqual((options.status, options.headers["allow"]), (204, "GET, POST, DELETE, OPTIONS"))
