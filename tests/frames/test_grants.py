"""Who asks."""

from __future__ import annotations

import attrs
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers

from tests.frames.support import INSTANCE
from twistedproxy.dicom.metadata import InstanceMetadata
from twistedproxy.frames.grants import Credentials, Grant, Grants, normal_key
from twistedproxy.origin.interface import Caller

SECRET = b"k" * 32


def caller(credentials: Credentials, **headers: list[bytes]) -> Caller:
    """The caller of a request with *headers*."""
    given = Headers({name.replace("_", "-").encode(): values for name, values in headers.items()})
    return credentials.caller(given.getRawHeaders)


class CallerTests(SynchronousTestCase):
    """Callers are told apart by all that the origin may judge by, and by nothing else."""

    def setUp(self) -> None:
        self.credentials = Credentials(SECRET)

    def test_same_and_other(self) -> None:
        """The same headers are the same caller; any other value, a missing one, or one more is another."""
        alice = caller(self.credentials, Authorization=[b"Bearer a"])
        self.assertEqual(alice, caller(self.credentials, Authorization=[b"Bearer a"], Accept=[b"x"], X_Other=[b"y"]))
        others = [
            caller(self.credentials),
            caller(self.credentials, Authorization=[b""]),
            caller(self.credentials, Authorization=[b"Bearer b"]),
            caller(self.credentials, Authorization=[b"Bearer a", b"Bearer b"]),
            caller(self.credentials, Authorization=[b"Bearer aBearer b"]),
            caller(self.credentials, Authorization=[b"Bearer a"], Cookie=[b"s=1"]),
            caller(self.credentials, Cookie=[b"Bearer a"]),
        ]
        digests = {one.credential for one in [alice, *others]}
        self.assertEqual(len(digests), len(others) + 1)

    def test_values_do_not_run_together(self) -> None:
        """Where one header ends and the next begins is part of the digest."""
        both = Credentials(SECRET, (b"A", b"B"))
        pairs = ({"A": [b"1"], "B": [b"2"]}, {"A": [b"1B2"]}, {"A": [b"1", b"2"]}, {"A": [b"1A2"]}, {"B": [b"1", b"2"]})
        self.assertEqual(len({caller(both, **pair).credential for pair in pairs}), len(pairs))

    def test_key(self) -> None:
        """Without the key nobody can tell whose digest it is; a key of any length serves."""
        digests = {
            caller(Credentials(normal_key(secret)), Authorization=[b"Bearer a"]).credential
            for secret in (SECRET, b"short", b"l" * 1000, b"l" * 1001)
        }
        self.assertEqual(len(digests), 4)

    def test_query(self) -> None:
        """A token in the query makes the caller, whatever stands beside it, and travels as it came; it is not shown."""
        nobody: dict[bytes, list[bytes]] = {}

        def of(query: bytes) -> Caller:
            _, token = self.credentials.split(query)
            return self.credentials.caller(nobody.get, token)

        alice = of(b"access_token=a%20b")
        self.assertEqual(alice, of(b"viewport=1,2&access_token=a%20b&accept=image/png"))
        self.assertEqual(alice, self.credentials.caller(nobody.get, alice.query))
        self.assertEqual(alice.asking(b"limit=1"), b"limit=1&access_token=a%20b")
        self.assertEqual((alice.asking(b""), of(b"").asking(b"a=b")), (b"access_token=a%20b", b"a=b"))
        self.assertNotIn("a%20b", repr(alice))
        others = [
            of(query) for query in (b"", b"access_token=b", b"access_token=", b"access_token=a%20b&access_token=c")
        ]
        self.assertEqual(len({one.credential for one in [alice, *others]}), 5)
        self.assertEqual(of(b""), of(b"token=a&x_access_token=b"))

    def test_query_is_split(self) -> None:
        """What makes the caller is taken out of a query, however its name is written; all else stays as it came."""
        split = Credentials(SECRET, parameters=(b"access_token", b"Key")).split
        for query, rest, token in (
            (b"a=b&&c", b"a=b&&c", b""),
            (b"access_token=x", b"", b"access_token=x"),
            (b"a=b&access%5Ftoken=x&c=&KEY=y&key", b"a=b&c=", b"access%5Ftoken=x&KEY=y&key"),
        ):
            self.assertEqual(split(query), (rest, token))

    def test_headers_that_travel(self) -> None:
        """What makes the caller goes to the origin as it came, and is not shown."""
        alice = caller(self.credentials, Authorization=[b"Bearer a"], Cookie=[b"s=1", b"t=2"], Accept=[b"x"])
        self.assertEqual(alice.headers, ((b"Authorization", b"Bearer a"), (b"Cookie", b"s=1; t=2")))
        self.assertNotIn("Bearer", repr(alice))
        self.assertNotIn(repr(SECRET)[2:-1], repr(self.credentials))

    def test_named_cookies(self) -> None:
        """Where cookies are named, others neither make a caller nor travel."""
        named = Credentials(SECRET, cookies=(b"session",))
        first = caller(named, Cookie=[b"session=1; seen=5"])
        self.assertEqual(first, caller(named, Cookie=[b"seen=6", b"session=1"]))
        self.assertEqual(first.headers, ((b"Cookie", b"session=1"),))
        self.assertNotEqual(first, caller(named, Cookie=[b"session=2"]))
        self.assertEqual(caller(named, Cookie=[b"seen=6; sessions=1"]), caller(named))

    def test_are_all(self) -> None:
        """Which headers make the caller is known in any letter case."""
        self.assertTrue(self.credentials.are_all([b"AUTHORIZATION", b"cookie"]))
        self.assertFalse(self.credentials.are_all([b"Authorization", b"X-Api-Key"]))
        self.assertFalse(Credentials(SECRET, (b"X-Api-Key",)).are_all([b"Authorization"]))


class GrantsTests(SynchronousTestCase):
    """Grants by series."""

    def test_of_series(self) -> None:
        """Those of one caller and series are found, whichever way others have gone."""
        grants, who, other = Grants(limit=4), Caller(b"who"), Caller(b"other")
        one, two, three = [attrs.evolve(INSTANCE, sop=f"1.{number}") for number in range(3)]
        elsewhere = attrs.evolve(INSTANCE, series="1.9")
        facts = InstanceMetadata(frames=1)
        for caller_, instance in ((who, one), (who, two), (other, three), (who, elsewhere)):
            grants.add(caller_, instance, Grant(facts, 10.0, b""))
        series = INSTANCE.of_series
        self.assertEqual(set(grants.of_series(who, series)), {one, two})
        grants.add(who, three, Grant(facts, 20.0, b""))  # in the place of the oldest one
        self.assertEqual(set(grants.of_series(who, series)), {two, three})
        grants.revoke(who, three)
        grants.revoke(who, three)
        self.assertIsNone(grants.find(who, two, 11.0))
        self.assertEqual(set(grants.of_series(who, series)), set())
        grants.invalidate(lambda instance: instance == three)
        self.assertEqual((set(grants.of_series(other, series)), len(grants)), (set(), 1))
        self.assertEqual(set(grants.of_series(who, elsewhere.of_series)), {elsewhere})
        self.assertEqual(len(grants._of_series), 1)
