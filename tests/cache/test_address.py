"""What ``--cache`` may say."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.cache import open as opening
from twistedproxy.cache.address import (
    EmbeddedAddress,
    Login,
    MemoryAddress,
    NoAddress,
    RedisAddress,
    SentinelAddress,
    UnixAddress,
    parse_cache,
)
from twistedproxy.cache.memory import MemoryCache


class ParseCacheTests(SynchronousTestCase):
    """Text to address."""

    def test_every_form_is_read(self) -> None:
        """The forms that the documentation names."""
        for text, address in (
            ("embedded", EmbeddedAddress()),
            ("memory", MemoryAddress()),
            ("none", NoAddress()),
            ("unix:/run/redis.sock", UnixAddress("/run/redis.sock")),
            ("redis://cache", RedisAddress("cache", 6379, 0)),
            ("redis://cache:7000/3", RedisAddress("cache", 7000, 3)),
            ("redis://[::1]:7000/", RedisAddress("::1", 7000, 0)),
            ("rediss://u:p%40%2F@cache/1", RedisAddress("cache", 6379, 1, True, Login("u", "p@/"))),
            ("redis://:p@cache", RedisAddress("cache", 6379, 0, False, Login(None, "p"))),
            ("sentinel://a,b:7/main", SentinelAddress((("a", 26379), ("b", 7)), "main")),
            ("sentinel://u:p@a/main", SentinelAddress((("a", 26379),), "main", Login("u", "p"))),
        ):
            self.assertEqual(parse_cache(text), address, text)

    def test_what_is_not_accepted_is_named_without_its_password(self) -> None:
        """The error says what came and what is accepted, and keeps the password to itself."""
        for text in (
            "",
            "embeded",
            "unix:relative",
            "http://u:secret@cache",
            "redis://",
            "redis://u:secret@cache:port/0",
            "redis://u:secret@cache:0/0",
            "redis://u:secret@cache:70000/0",
            "redis://u:secret@cache/x",
            "redis://secret@cache/0",
            "redis://u:secret@cache/0?timeout=3",
            "redis://[::1/0",
            "sentinel://a,b",
            "sentinel://a:x/main",
            "sentinel://,/main",
        ):
            error = self.assertRaises(ValueError, parse_cache, text)
            self.assertIn("redis://[user:pass@]host:port/db", str(error), text)
            self.assertIn(text.rpartition("@")[2], str(error))
            self.assertNotIn("secret", str(error))

    def test_addresses_are_shown_without_passwords(self) -> None:
        """Neither in the status nor in a repr."""
        for text, where in (
            ("rediss://u:secret@cache:7/1", "rediss://cache:7/1"),
            ("redis://:secret@[::1]/1", "redis://[::1]:6379/1"),
            ("sentinel://u:secret@a,b:7/main", "sentinel://a:26379,b:7/main"),
        ):
            address = parse_cache(text)
            self.assertEqual(address.where, where)
            self.assertNotIn("secret", repr(address))


class OpenCacheTests(SynchronousTestCase):
    """Address to cache, where no server is spoken to."""

    def test_words_open_their_cache(self) -> None:
        """``memory`` and ``none``."""
        self.assertIsInstance(opening.open_cache(Clock(), MemoryAddress(), 1000), MemoryCache)
        nothing = opening.open_cache(Clock(), NoAddress(), 1000)
        self.assertEqual("none", self.successResultOf(Deferred.fromCoroutine(nothing.status()))["provider"])

    def test_without_a_server_the_embedded_cache_is_in_this_process(self) -> None:
        """And the log says so."""
        self.patch(opening, "find_server", lambda: None)
        self.assertIsInstance(opening.open_cache(Clock(), EmbeddedAddress(), 1000), MemoryCache)
