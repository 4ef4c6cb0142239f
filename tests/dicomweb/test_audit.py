"""Audit events of whole proxies: one for each grant's first use, and for each invalidation."""

from __future__ import annotations

import hashlib
import hmac
import io
import ipaddress
import json
from typing import Any

from twisted.internet.defer import fail
from twisted.logger import LogEvent, globalLogPublisher

from tests.clients import Answer
from tests.dicomweb.support import ALICE, MALLORY, STORED, ProxyCase, RunningProxy, token
from tests.slides import Made, loop
from tests.stores.dialects import STANDARD
from tests.stores.simulated import SimulatedStore
from tests.waiting import wait_until
from twistedproxy.cache.address import LocalAddress
from twistedproxy.dicom.resource import Scope
from twistedproxy.frames.audit import audit_key
from twistedproxy.system.logs import LogOutput

SECRET = b"k" * 40
BOB = {"Authorization": "Basic Ym9iOmI="}


class AuditCase(ProxyCase):
    """A store, a proxy, and what the log gets."""

    origin: SimulatedStore
    running: RunningProxy

    async def begin(self, *more: Made, **settings: Any) -> None:
        self.origin = self.store(STANDARD, *more)
        self.running = await self.proxy(self.origin, secret=SECRET, **settings)
        self.events: list[LogEvent] = []
        globalLogPublisher.addObserver(self._note)
        self.addCleanup(globalLogPublisher.removeObserver, self._note)

    def _note(self, event: LogEvent) -> None:
        if event.get("event") == "audit":
            self.events.append(event)

    def audit(self) -> list[dict[str, Any]]:
        """The fields of the audit events since this was asked last."""
        events, self.events = self.events, []
        return [{name: value for name, value in event.items() if not name.startswith("log_")} for event in events]

    async def get(self, path: str, who: dict[str, str] = ALICE, made: Made | None = None, **headers: str) -> Answer:
        """Ask for *path* below an instance, with *headers* whose dashes are written as underscores."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.running.client({"Accept": STORED, **who, **given}).get(
            f"/{(made or self.slide).resource}/{path}"
        )


class AccessTests(AuditCase):
    """DICOM Instances Accessed."""

    async def test_first_use(self) -> None:
        """The first answer by a grant is an event, with all that an auditor asks for; no further one is."""
        await self.begin()
        await self.get("frames/1", X_Request_Id="a-1")  # the store's own answer: it has no facts before
        await self.running.settled()
        self.audit()
        for number in (1, 2, 3, 1):
            self.assertEqual(200, (await self.get(f"frames/{number}", BOB, X_Request_Id="b-1")).status)
        (event,) = self.audit()
        expected = {
            "event": "audit",
            "event_code": "110103",
            "event_name": "DICOM Instances Accessed",
            "action": "R",
            "outcome": 0,
            "user": hmac.new(audit_key(SECRET), BOB["Authorization"].encode(), hashlib.sha256).hexdigest(),
            "client": "127.0.0.1",
            "store": self.origin.url,
            "study": self.slide.study,
            "series": self.slide.series,
            "instances": [self.slide.sop],
            "grant": "instance",
            "sop_class": "1.2.840.10008.5.1.4.1.1.77.1.6",
            "request_id": "b-1",
        }
        self.assertEqual(expected, {name: event[name] for name in expected})

    async def test_each_caller(self) -> None:
        """Each caller has grants of its own; one whom the store refuses has none."""
        await self.begin()
        self.origin.allow(token(ALICE))
        for who in (ALICE, ALICE, MALLORY, {}):
            await self.get("frames/1,2", who)
        (event,) = self.audit()
        self.assertEqual(self.running.components.audit.user(self.caller(ALICE)), event["user"])

    def caller(self, headers: dict[str, str]) -> Any:
        """The caller that sends these."""
        raw = {name.lower().encode(): [value.encode()] for name, value in headers.items()}
        return self.running.components._credentials.caller(lambda name: raw.get(name.lower()))

    async def test_nobody(self) -> None:
        """A caller without credentials is named by its address alone, as a trusted proxy has it."""
        await self.begin(trusted_proxy=(ipaddress.ip_network("127.0.0.0/8"),))
        await self.get("frames/1,2", {}, X_Forwarded_For="203.0.113.9")
        (event,) = self.audit()
        self.assertEqual((None, "203.0.113.9"), (event["user"], event["client"]))

    async def test_pictures(self) -> None:
        """A picture is an access as a frame is, from the cache too."""
        await self.begin(render_workers=1)
        for who in (ALICE, BOB):
            for path in ("frames/1/rendered", "frames/1/rendered", "rendered"):
                self.assertEqual(200, (await self.get(path, who, Accept="image/jpeg")).status)
            (event,) = self.audit()
            self.assertEqual([self.slide.sop], event["instances"])

    async def test_no_pixels(self) -> None:
        """Metadata are a grant and no access: that is the first frame, also where it would be answered before a request is parsed."""
        for settings in ({"hot_memory": 1 << 24}, {"cache": LocalAddress()}):
            await self.begin(**settings)
            for _again in range(3):
                await self.get("frames/1")
            await self.get("metadata", BOB)
            await self.running.settled()
            self.assertEqual(1, len(self.audit()))
            self.assertEqual(
                ["hit", "hit"], [(await self.get("frames/1", BOB)).headers["cache-status"][-3:] for _ in "12"]
            )
            (event,) = self.audit()
            self.assertEqual([self.slide.sop], event["instances"])
            self.assertEqual(1, len(self.origin.lines("/frames/1")))

    async def test_renewed(self) -> None:
        """A grant that is renewed in time is the same access; one that has ended is followed by another."""
        await self.begin()
        await self.get("frames/1,2")
        self.assertEqual(1, len(self.audit()))
        for _again in range(4):
            self.running.wall.now += 500.0
            await self.get("frames/1,2")
            await wait_until(self.is_renewed, "a renewed grant")
        self.assertEqual([], self.audit())
        self.running.wall.now += 601.0
        await self.get("frames/1,2")
        self.assertEqual(1, len(self.audit()))

    def is_renewed(self) -> bool:
        """Whether the one grant has just begun."""
        (grant,) = self.running.components.access.grants._grants.values()
        return grant.expires == self.running.wall.now + 600.0

    async def test_stack(self) -> None:
        """Scrolling through a series is an event for the first instance, and one for all that the series' metadata let see."""
        stack = [
            loop(self.mktemp(), 1, 16, 16, study="1.2", series="1.3", sop=f"1.3.{n}", extra={"InstanceNumber": n})
            for n in range(8)
        ]
        await self.begin(*stack)
        for made in [*stack, *stack]:
            self.assertEqual(200, (await self.get("frames/1", made=made)).status)
            await self.running.settled()
        seen = [(event["grant"], event["series"], event["instances"]) for event in self.audit()]
        self.assertEqual([("instance", "1.3", ["1.3.0"]), ("series", "1.3", ["1.3.1"])], seen)


class RemovalTests(AuditCase):
    """What is removed from the cache."""

    async def test_delete(self) -> None:
        """A DELETE is an event of the one who asked for it: of a study the deletion of a study, else of instances."""
        for length, code in ((3, "110103"), (2, "110103"), (1, "110105")):
            await self.begin()
            one = self.slide
            path = "".join(f"/{part}" for part in one.resource.split("/")[: 2 * length])
            uids = (one.study, one.series if length > 1 else None, [one.sop] if length > 2 else [])
            await self.running.client({**BOB, "X-Request-Id": "b-2"}).request("DELETE", path)
            (event,) = self.audit()
            self.assertEqual(
                (code, "D", 0, "b-2"), tuple(event[name] for name in ("event_code", "action", "outcome", "request_id"))
            )
            self.assertEqual(uids, (event["study"], event["series"], event["instances"]))
            self.assertEqual(64, len(event["user"]))

    async def test_cache_not_reached(self) -> None:
        """Where the cache cannot be told yet, the outcome is a minor failure."""
        await self.begin()
        self.patch(self.running.components.cache, "invalidate", lambda _scope: fail(RuntimeError("no cache")))
        await self.running.client(BOB).request("DELETE", f"/{self.slide.resource}")
        (event,) = self.audit()
        self.assertEqual(4, event["outcome"])

    async def test_by_the_proxy_itself(self) -> None:
        """What the proxy removes by itself has no user."""
        await self.begin()
        await self.running.components.changed(self.slide_scope())
        (event,) = self.audit()
        self.assertEqual((None, None, None), (event["user"], event["client"], event["request_id"]))

    async def test_why(self) -> None:
        """A purge says how the change is known."""
        await self.begin()
        self.assertTrue(await self.running.components.invalidation.purge(self.slide_scope(), "webhook"))
        await self.running.client(BOB).request("DELETE", f"/{self.slide.resource}")
        self.assertEqual(["webhook", "request"], [event["why"] for event in self.audit()])

    def slide_scope(self) -> Scope:
        """The instance, as what is invalidated."""
        return Scope(self.origin.url, "", self.slide.study, self.slide.series, self.slide.sop)


class LineTests(AuditCase):
    """How events look in logs."""

    async def test_all_fields(self) -> None:
        """Every field of an event is in its line, of whichever kind."""
        for kind in ("json", "text"):
            await self.begin(log_format=kind)
            out = io.StringIO()
            observer = LogOutput(kind, out).observer()
            globalLogPublisher.addObserver(observer)
            await self.get("frames/1,2", BOB)
            scope = Scope(self.origin.url, "", self.slide.study, self.slide.series, self.slide.sop)
            self.assertTrue(await self.running.components.invalidation.purge(scope, "webhook"))
            globalLogPublisher.removeObserver(observer)
            lines = [line for line in out.getvalue().splitlines() if "110103" in line]
            told = [json.loads(line[line.index("{") :]) for line in lines]
            for event, fields in zip(self.audit(), told, strict=True):
                twisted = {"system", "format", "isError", "message"}  # what legacy observers need
                self.assertEqual({}, {name: event[name] for name in event.keys() - fields.keys() - twisted}, kind)

    async def test_lines(self) -> None:
        """One line each: an object in JSON, in text the same behind the usual beginning. Nothing that identifies the caller is in it."""
        for kind in ("json", "text"):
            await self.begin(log_format=kind)
            out = io.StringIO()
            observer = LogOutput(kind, out).observer()
            globalLogPublisher.addObserver(observer)
            await self.get("frames/1,2", BOB, X_Request_Id="b-3")
            globalLogPublisher.removeObserver(observer)
            (line,) = [line for line in out.getvalue().splitlines() if "110103" in line]
            fields = json.loads(line[line.index("{") :])
            self.assertEqual(
                ("audit", "R", [self.slide.sop]), tuple(fields[name] for name in ("event", "action", "instances"))
            )
            self.assertRegex(fields["time"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
            self.assertNotIn("Ym9iOmI", out.getvalue())
            if kind == "text":
                self.assertIn("[twistedproxy.frames.audit.AuditTrail#info b-3] {", line)
