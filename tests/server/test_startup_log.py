"""What is said once the listeners are there."""

from __future__ import annotations

from typing import Optional

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.server.startup_log import Served, announce
from twistedproxy.settings import Settings

EVERYWHERE = IPv4Address("TCP", "0.0.0.0", 80)
HERE = IPv4Address("TCP", "127.0.0.1", 81)


class AnnounceTests(SynchronousTestCase):
    """`announce`."""

    def logged(
        self,
        hosts: list[object],
        listen: tuple[str, ...] = ("tcp:80",),
        admin: Optional[str] = None,
        page: bool = True,
    ) -> list[LogEvent]:
        """The events for listeners at *hosts*."""
        events: list[LogEvent] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        served = [Served("/dicomweb", "http://store", ["studies"])]
        announce(Settings(listen=listen, admin_listen=admin, page=page), hosts, served)
        return events

    def test_warning(self) -> None:
        """Pages on a listener beyond loopback are warned of; elsewhere there is nothing to warn of."""
        admin = "tcp:9100"
        for hosts, given, warned in (
            ([EVERYWHERE], None, True),
            ([IPv6Address("TCP", "::", 80)], None, True),
            ([HERE], None, False),
            ([IPv6Address("TCP", "::1", 80)], None, False),
            ([UNIXAddress("/run/socket")], None, False),
            ([EVERYWHERE, HERE], admin, False),
            ([HERE, EVERYWHERE], admin, True),
        ):
            events = self.logged(list(hosts), admin=given)
            self.assertEqual(any(event["event"] == "pages_exposed" for event in events), warned, (hosts, given))

    def test_page(self) -> None:
        """The page's address comes before all that mounts are, and can be opened on this machine; a socket has none."""
        ipv6 = IPv6Address("TCP", "::1", 443)
        events = self.logged([EVERYWHERE, ipv6, HERE], ("tcp:80", "ssl:443"), admin="tcp:81")
        pages = [event["url"] for event in events if event["event"] == "page"]
        self.assertEqual(pages, ["http://localhost:80/", "https://[::1]:443/", "http://127.0.0.1:81/"])
        self.assertEqual([event["event"] for event in events[:3]], ["page"] * 3)
        events = self.logged([UNIXAddress("/run/socket")])
        self.assertNotIn("page", {event["event"] for event in events})
        self.assertNotIn("page", {event["event"] for event in self.logged([HERE], page=False)})

    def test_urls(self) -> None:
        """Each listener's URLs are told by its own scheme; the admin's listener serves no frames."""
        ipv6 = IPv6Address("TCP", "::1", 443)
        events = self.logged([HERE, ipv6, HERE], ("tcp:81", "ssl:443"), admin="tcp:9100")
        mounts = [(event["base"], event["origin"]) for event in events if event["event"] == "mount"]
        bases = ["http://127.0.0.1:81/dicomweb", "https://[::1]:443/dicomweb"]
        self.assertEqual(mounts, [(base, "http://store") for base in bases])
        examples = [event["url"] for event in events if event["event"] == "example"]
        self.assertEqual(examples, [f"{base}/studies" for base in bases])
