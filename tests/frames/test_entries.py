"""Names and layout of what is kept below an instance."""

from __future__ import annotations

import math

from twisted.trial.unittest import SynchronousTestCase

from tests.frames.support import ALICE, MALLORY
from tests.properties import given, st
from twistedproxy.cache.interface import LARGE, whole
from twistedproxy.cache.keys import is_fact
from twistedproxy.dicom.multipart_writer import content_digest
from twistedproxy.dicom.transfer_syntaxes import Frame
from twistedproxy.frames.entries import (
    METADATA,
    PICTURE_HEAD,
    BadEntry,
    DescriptionProof,
    content_name,
    description_name,
    expires_of,
    expiry,
    frame_name,
    grant_name,
    pack_frame,
    pack_frames,
    pack_grant,
    pack_picture,
    rendered_name,
    token_name,
    unpack_frame,
    unpack_grant,
    unpack_picture,
    was_prefetched,
)

JPEG = "1.2.840.10008.1.2.4.50"


class NameTests(SynchronousTestCase):
    """Kinds never meet."""

    def test_kinds_differ(self) -> None:
        """No two names are the same, of whatever kind."""
        names = [METADATA, grant_name(ALICE), grant_name(MALLORY), rendered_name(b"1"), rendered_name(b"2")]
        names += [frame_name(number) for number in (1, 2, 16, 255, 2**31 - 1)]
        names += [content_name(content_digest([what])) for what in (b"1", b"2")]
        names += [description_name(caller, url) for caller in (ALICE, MALLORY) for url in (b"1", b"2")]
        names += [token_name(ALICE), token_name(MALLORY)]
        self.assertEqual(len(set(names)), len(names))

    def test_no_credentials(self) -> None:
        """A grant's name holds the digest, not what it was made of."""
        for name in (grant_name(ALICE), token_name(ALICE), description_name(ALICE, b"1")):
            self.assertNotIn(ALICE.headers[0][1], name)

    def test_small_ones(self) -> None:
        """Proofs and tokens are facts, what they open is not: it may have megabytes."""
        digest = content_digest([b"1"])
        small = (token_name(ALICE), description_name(ALICE, b"1"), grant_name(ALICE), METADATA)
        self.assertEqual([is_fact(name) for name in (*small, content_name(digest))], [True] * 4 + [False])


class ProofTests(SynchronousTestCase):
    """The proof of a description."""

    def test_round_trip(self) -> None:
        """What was packed is unpacked, headers with colons and none alike; anything else is no proof."""
        digest = content_digest([b"1"])
        for headers in ((), ((b"Content-Type", b"a/b; c=d:e"), (b"Vary", b"Accept"))):
            proof = DescriptionProof(5.5, b"12345678", digest, headers)
            self.assertEqual(DescriptionProof.unpack(proof.pack()), proof)
        self.assertIsNone(DescriptionProof.unpack(b""))
        self.assertIsNone(DescriptionProof.unpack(proof.pack()[:31]))


class FrameTests(SynchronousTestCase):
    """A frame's entry."""

    @given(
        st.binary(max_size=300),
        st.sampled_from([JPEG, "1." + "2" * 62, "1"]),
        st.booleans(),
        st.floats(min_value=0),
    )
    def test_round_trip(self, data: bytes, uid: str, prefetched: bool, expires: float) -> None:
        """What was packed is unpacked, prefetched or not, whatever the bytes and the length of the UID."""
        packed = whole(pack_frames([data], uid, expires, prefetched)[0])
        self.assertEqual(expires_of(packed), expires)
        self.assertEqual(unpack_frame(packed), Frame(data, uid))
        self.assertEqual(was_prefetched(packed), prefetched)

    def test_one_and_many(self) -> None:
        """One frame packed alone is what it is among many."""
        self.assertEqual(pack_frame(Frame(b"a", JPEG), 5.0), pack_frames([b"a", b"b"], JPEG, 5.0)[0])

    def test_no_uid(self) -> None:
        """What is no UID, or would be read as a shorter one, is not packed."""
        for uid in ("", "1" * 65, "1" * 130, "1" * 300, "1.2\n", "\u0661"):
            self.assertRaises(ValueError, pack_frames, [b"a"], uid, 5.0)

    def test_broken(self) -> None:
        """Too few bytes, or a UID that is none, are told, not shown."""
        for end in (b"", b"\x05123", b"\x02\xff\xfe", b"\x85123"):
            self.assertRaises(BadEntry, unpack_frame, b"12345678" + end)
        for value in (b"", b"1234567"):
            self.assertRaises(BadEntry, unpack_frame, value)
            self.assertRaises(BadEntry, expires_of, value)
            self.assertFalse(was_prefetched(value))

    def test_expiry(self) -> None:
        """An entry ends after its seconds, or never."""
        self.assertEqual((expiry(100.0, 0.25), expiry(100.0, None)), (100.25, math.inf))


class LargeTests(SynchronousTestCase):
    """Entries whose bytes are not copied."""

    def test_round_trip(self) -> None:
        """A large frame, and a picture, are written beside their heads, and read as parts of their entries."""
        data = bytes(LARGE) + b"end"
        for packed in (pack_frame(Frame(data, JPEG), 1.0), pack_picture(data, content_digest([data]), 1.0)):
            self.assertIs(packed[1], data)
        frame = unpack_frame(b"".join(pack_frame(Frame(data, JPEG), 1.0)))
        picture, *_ = unpack_picture(b"".join(pack_picture(data, content_digest([data]), 1.0)))
        for part in (frame.data, picture):
            self.assertEqual(part, data)
            self.assertIsInstance(part, memoryview)
        self.assertEqual(frame.transfer_syntax, JPEG)


class PictureTests(SynchronousTestCase):
    """A picture's entry."""

    def test_round_trip(self) -> None:
        """The picture, its digest and its expiry come back; too few bytes are told."""
        digest = content_digest([b"picture"])
        for picture in (b"", b"picture"):
            packed = whole(pack_picture(picture, digest, 5.25))
            self.assertEqual(len(packed), PICTURE_HEAD + len(picture))
            self.assertEqual(unpack_picture(packed), (picture, digest, 5.25))
        self.assertRaises(BadEntry, unpack_picture, bytes(PICTURE_HEAD - 1))
        self.assertRaises(ValueError, pack_picture, b"picture", b"short", 5.25)


class GrantTests(SynchronousTestCase):
    """A grant's entry."""

    def test_round_trip(self) -> None:
        """The expiry comes back; other lengths are no grant."""
        self.assertEqual(unpack_grant(pack_grant(1234567.25)), 1234567.25)
        for value in (b"", b"\0" * 7, b"\0" * 9):
            self.assertIsNone(unpack_grant(value))
