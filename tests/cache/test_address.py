"""What ``--cache`` may say."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.cache import open as opening
from twistedproxy.cache.address import (
    ClusterAddress,
    LocalAddress,
    Login,
    LoginFiles,
    MemoryAddress,
    NoAddress,
    RedisAddress,
    SentinelAddress,
    SharedFolder,
    UnixAddress,
    parse_cache,
)
from twistedproxy.cache.local.cache import LocalCache
from twistedproxy.cache.memory import MemoryCache


class ParseCacheTests(SynchronousTestCase):
    """Text to address."""

    def test_every_form_is_read(self) -> None:
        """The forms that the documentation names."""
        for text, address in (
            ("local", LocalAddress()),
            ("local:/var/cache/x", LocalAddress("/var/cache/x")),
            ("local?size=1G", LocalAddress(None, 1 << 30)),
            ("local:/x?size=16M", LocalAddress("/x", 16 << 20)),
            ("embedded", LocalAddress()),
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
            ("redis-cluster://a,b:7", ClusterAddress((("a", 6379), ("b", 7)))),
            ("rediss-cluster://u:p%2C@[::1]:7/", ClusterAddress((("::1", 7),), True, Login("u", "p,"))),
            ("redis-cluster://a?password-file=/p", ClusterAddress((("a", 6379),), False, LoginFiles(None, "/p"))),
            (
                "rediss://a/1?username-file=/u&password-file=/p%20x",
                RedisAddress("a", 6379, 1, True, LoginFiles("/u", "/p x")),
            ),
            ("sentinel://a/m?password-file=/p", SentinelAddress((("a", 26379),), "m", LoginFiles(None, "/p"))),
        ):
            self.assertEqual(parse_cache(text), address, text)

    def test_what_is_not_accepted_is_named_without_its_password(self) -> None:
        """The error says what came and what is accepted, and keeps the password to itself."""
        for text in (
            "",
            "embeded",
            "embedded:/x",
            "locale",
            "local:",
            "local:x",
            "local:?size=1G",
            "local/x",
            "local?",
            "local?size",
            "local?size=",
            "local?size=0",
            "local?size=15M",
            "local?size=x",
            "local:/x?",
            "local:/x?age=1",
            "local:/x?size=1G&size=2G",
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
            "redis-cluster://",
            "redis-cluster://a,",
            "redis-cluster://u:secret@a:x",
            "redis-cluster://u:secret@a/0",
            "redis-cluster://u:secret@a?password-file=/p",
            "redis://cache/0?username-file=/u",
            "redis://cache/0?password-file=p",
            "redis://cache/0?password-file=/p&password-file=/q",
            "redis://cache/0?password-file=/p&x=/q",
            "redis://cache/0?password-file=",
        ):
            error = self.assertRaises(ValueError, parse_cache, text)
            self.assertIn("redis://[user:pass@]host:port/db", str(error), text)
            self.assertIn(text.rpartition("@")[2], str(error))
            self.assertNotIn("secret", str(error))

    def test_addresses_are_shown_without_passwords(self) -> None:
        """Neither in the status nor in a repr."""
        for text, where in (
            ("local", "local"),
            ("local:/x?size=1536M", "local:/x?size=1536M"),
            ("local?size=2G", "local?size=2G"),
            ("rediss://u:secret@cache:7/1", "rediss://cache:7/1"),
            ("redis://:secret@[::1]/1", "redis://[::1]:6379/1"),
            ("sentinel://u:secret@a,b:7/main", "sentinel://a:26379,b:7/main"),
            ("rediss-cluster://u:secret@a,[::1]:7", "rediss-cluster://a:6379,[::1]:7"),
            ("redis-cluster://a:1?password-file=/p", "redis-cluster://a:1"),
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

    def test_local_addresses_open_a_local_cache(self) -> None:
        """What the user wrote, and what another process has prepared; only the latter is known before the start."""
        own = opening.open_cache(Clock(), LocalAddress("/x"), 1000)
        self.assertIsInstance(own, LocalCache)
        self.assertIsNone(own.address)
        prepared = SharedFolder("/x", 1 << 30)
        shared = opening.open_cache(Clock(), prepared, 1000)
        self.assertIsInstance(shared, LocalCache)
        self.assertEqual(prepared, shared.address)
