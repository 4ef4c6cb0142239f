"""Frames of a local cache that are answered before a request is parsed: real files, real connections, real processes."""

from __future__ import annotations

import errno
import os
import re
import socket
from typing import Any

import attrs
from twisted.internet.defer import ensureDeferred

from tests.cache.members import Member
from tests.cache.support import installed_reactor
from tests.clients import RawConnection
from tests.dicomweb.support import ALICE, MALLORY, token
from tests.hot.local import SIZE, TERM, TTL, VIEWER, LocalCase, Reply, cut
from tests.slides import slide
from tests.waiting import wait_until
from twistedproxy.dicom.resource import Scope
from twistedproxy.frames.entries import frame_name, pack_frames
from twistedproxy.origin.interface import Caller

SINGLE = "application/octet-stream; transfer-syntax=*"


class EqualityTests(LocalCase):
    """As the ordinary way would answer."""

    async def assert_same(self, *requests: bytes) -> None:
        """Each is answered early, byte for byte as it is otherwise."""
        hot = self.components.connections.hot
        for data in requests:
            await self.reply(data)
            await self.reply(data)
            self.components.connections.hot = None
            ordinary = await self.reply(data, early=False)
            self.components.connections.hot = hot
            self.assertEqual(await self.reply(data, early=True), ordinary)
            self.assertIn(ordinary.status, (200, 304))

    async def test_frames(self) -> None:
        """One, lists, and lists with repeats, in all forms, with and without a page's origin."""
        await self.assert_same(
            *[self.asking(frames) for frames in ("1", "1,2", "3,3", "6,1,6,2,6", "1,2,3,4,5,6")],
            *[self.asking(frames, Accept='multipart/related; type="image/jpeg"') for frames in ("2", "2,1,2")],
            *[self.asking(frames, Accept="*/*") for frames in ("3", "3,4")],
            *[self.asking(frames, Origin=VIEWER) for frames in ("4", "4,5")],
            self.asking("2", Accept=SINGLE),
            self.asking("5", Accept="image/jpeg"),
        )
        self.assertEqual((await self.get("3")).body.count(self.stored[2]), 1)
        self.assertEqual((await self.get("3,3")).body.count(self.stored[2]), 2)

    async def test_head(self) -> None:
        """HEAD has the head of GET and no body."""
        await self.warm("1", "2,1")
        await self.assert_same(self.asking("1", "HEAD"), self.asking("2,1", "HEAD"))
        for frames in ("1", "2,1"):
            self.assertEqual((await self.get(frames)).head, (await self.get(frames, method="HEAD", early=True)).head)

    async def test_conditions(self) -> None:
        """Who has an answer already gets a 304, others get all of it."""
        await self.get("1")  # may come before it is known what it is a frame of: that makes no early answers
        for frames in ("1", "2,1,2"):
            tag = (await self.get(frames)).tag
            same = [tag, f"W/{tag}", f'"x", {tag}', "*"]
            await self.assert_same(*[self.asking(frames, If_None_Match=one) for one in (*same, '"x"', "x", "")])
            for one in same:
                self.assertEqual((await self.get(frames, early=True, If_None_Match=one)).status, 304)
            self.assertEqual((await self.get(frames, early=True, If_None_Match='"x"')).status, 200)

    async def test_empty_frames(self) -> None:
        """Frames of no bytes, whether they were asked for or loaded ahead."""
        syntax = self.origin.instances[self.slide.sop].transfer_syntax
        await self.get("1")
        fence = (await self.cache.get_many(self.instance, [])).fence
        for number, ahead in ((5, False), (6, True)):
            (entry,) = pack_frames([b""], syntax, self.running.wall() + 3600, prefetched=ahead)
            self.assertTrue(await self.cache.put_many(self.instance, fence, {frame_name(number): entry}, 3600.0))
        await self.assert_same(*[self.asking(frames) for frames in ("5", "6", "5,6", "5,1,5", "1,6", "6,6")])
        await self.assert_same(
            self.asking("5", Accept=SINGLE), self.asking("6", Accept=SINGLE), self.asking("6", "HEAD")
        )
        self.assertEqual(self.fetched(), 1)


class RightTests(LocalCase):
    """Only for whom it may be."""

    async def test_other_callers(self) -> None:
        """Whom the store refuses is refused, also beside callers who are not."""
        await self.warm("1", "1,2")
        for frames in ("1", "1,2"):
            for who, status in ((MALLORY, 403), ({}, 401)):
                refused = await self.get(frames, early=False, who=who)
                self.assertEqual(refused.status, status)
                self.assertNotIn(self.stored[0], refused.body)
            await self.get(frames, early=True)

    async def test_ended(self) -> None:
        """When a grant ends, the store is asked for another one; if it says no, that is the answer."""
        await self.warm("1")
        self.origin.requests.clear()
        self.running.wall.now += TTL
        self.assertEqual((await self.get("1", early=False)).status, 200)
        self.assertEqual([line.rpartition("/")[2] for line in self.origin.lines()], ["metadata"])
        await self.get("1", early=True)
        self.origin.allow(token(ALICE), "1.2.3")
        self.running.wall.now += TTL
        self.assertEqual((await self.get("1", early=False)).status, 403)

    async def test_revoked(self) -> None:
        """A grant that was revoked is worth nothing with the next request."""
        await self.warm("1", "1,2")
        (credential, _instance) = next(iter(self.components.access.grants._grants))
        await self.components.access.revoke(Caller(credential), self.instance)
        self.origin.allow(token(ALICE), "1.2.3")
        for frames in ("1", "1,2"):
            self.assertEqual((await self.get(frames, early=False)).status, 403)


class ChangeTests(LocalCase):
    """Only what is there yet."""

    async def replaced(self) -> list[bytes]:
        """Have the store hold other frames for the instance; what they are."""
        same = {"study": self.slide.study, "series": self.slide.series, "sop": self.slide.sop}
        other = slide(self.mktemp(), 2, 3, 96, **same)
        self.origin.add(other.path)
        self.assertFalse(set(other.stored_frames()) & set(self.stored))
        return other.stored_frames()

    async def test_invalidated(self) -> None:
        """By this process or another one: with the next request the frames come from the store."""
        member = await self.member()
        narrow, broad = self.instance.scope, Scope(self.instance.origin, "", self.instance.study)
        for invalidate in (member.invalidate_scope, self.components.invalidation.invalidate):
            for scope in (narrow, broad):
                await self.warm("1", "1,2")
                new = await self.replaced()
                before = self.fetched()
                await invalidate(scope)
                self.assertIn(new[0], (await self.get("1", early=False)).body)
                self.assertIn(new[1], (await self.get("1,2", early=False)).body)
                self.assertEqual(self.fetched(), before + 2)
                self.origin.add(self.slide.path)
                await invalidate(scope)

    async def test_invalidated_elsewhere_and_fetched_again(self) -> None:
        """A grant from before does not lead to the new frames, which another caller's request has brought."""
        self.origin.allow("bob")
        await self.warm("1", "1,2")
        new = await self.replaced()
        member = await self.member()
        await member.invalidate_scope(self.instance.scope)
        bob = {"Authorization": "Bearer bob"}
        self.assertIn(new[0], (await self.get("1,2", who=bob)).body)
        self.origin.allow(token(ALICE), "1.2.3")
        for frames in ("1", "1,2"):
            self.assertEqual((await self.get(frames, early=False)).status, 403)

    async def test_time_ended(self) -> None:
        """Frames whose time has ended are not given early; those that go on are, those that were replaced never again."""
        await self.warm("1", "1,2")
        for frames in ("1", "1,2", "1"):
            self.origin.requests.clear()
            self.running.wall.now += TERM
            self.assertIn(self.stored[0], (await self.get(frames, early=False)).body)
            self.assertIn(self.stored[1], (await self.get("1,2", early=True)).body)
            self.assertEqual([line.rpartition("/")[2] for line in self.origin.lines()], ["metadata"])
        new = await self.replaced()
        self.running.wall.now += TERM
        self.assertIn(new[0], (await self.get("1", early=False)).body)
        self.assertIn(new[1], (await self.get("1,2", early=False)).body)
        await self.warm("1,2")
        self.assertIn(new[1], (await self.get("1,2", early=True)).body)

    async def member(self) -> Member:
        """Another process with the same cache."""
        member = Member(installed_reactor(), str(self.folder), SIZE)
        self.addCleanup(lambda: ensureDeferred(member.kill()))
        return await member.started()

    async def test_damaged(self) -> None:
        """An entry that is not what was written is fetched anew, and then is at hand again."""
        await self.warm("1", "2", "1,2")
        expected = [await self.get(frames, early=True) for frames in ("1", "1,2")]
        for wanted, frames in zip(expected, ("1", "1,2")):
            before = self.fetched()
            for path in self.folder.glob("*.segment"):
                held = path.read_bytes()
                for found in re.finditer(re.escape(self.stored[0]), held):
                    with path.open("r+b") as file:
                        file.seek(found.end() - 1)
                        file.write(bytes([held[found.end() - 1] ^ 1]))
            self.assertEqual((await self.get(frames, early=False)).body, wanted.body)
            self.assertEqual(self.fetched(), before + 1)
            await self.warm("1", "1,2")
            self.assertEqual(await self.get(frames, early=True), wanted)
            self.assertEqual(self.fetched(), before + 1)


class NotAtHandTests(LocalCase):
    """What has to be waited for."""

    async def test_on_the_disk(self) -> None:
        """What the kernel does not have in memory is read the ordinary way, the same bytes."""
        await self.warm("1", "1,2")
        expected = [await self.get(frames, early=True) for frames in ("1", "1,2")]
        preadv = os.preadv

        def nothing_in_memory(file: int, buffers: Any, offset: int, *flags: int) -> int:
            if flags:
                raise BlockingIOError(errno.EAGAIN, "it would wait")
            return preadv(file, buffers, offset)

        patch = self.patch(os, "preadv", nothing_in_memory)
        self.assertEqual([await self.get(frames, early=False) for frames in ("1", "1,2")], expected)
        patch.restore()
        self.assertEqual([await self.get(frames, early=True) for frames in ("1", "1,2")], expected)
        self.assertEqual(self.fetched(), 2)

    async def test_segment_that_is_not_open(self) -> None:
        """The ordinary way opens the segment; from then on its frames are at hand."""
        await self.warm("1", "1,2")
        expected = await self.get("1,2", early=True)
        for file in self.cache.store.reader.forget(()):
            os.close(file)
        self.assertEqual(await self.get("1,2", early=False), expected)
        self.assertEqual(await self.get("1,2", early=True), expected)


@attrs.define(eq=False)
class Slow:
    """A client that asks for *frames* and takes nothing. *sent*: how often it has asked."""

    connection: RawConnection
    transport: Any
    frames: str
    wanted: Reply
    sent: int = 0

    @property
    def stuck(self) -> bool:
        """Whether there are bytes for it that no socket has taken."""
        return bool(self.transport.dataBuffer or self.transport._tempDataBuffer)

    def taken(self) -> list[Reply]:
        """All answers, once they have come."""
        rest, found = bytes(self.connection.received), []
        while one := cut(rest):
            found.append(one[0])
            rest = one[1]
        return found if len(found) == self.sent and not rest else []


class SlowReaderTests(LocalCase):
    """Clients that take their time. Frames of 48 kB: some answers are tried at once, longer ones are written in pieces."""

    encoding = "raw"
    tile = 128
    lists = ("1", "2", "3,4", "5,6,1", "2,1,3,4", "6", "4,5")

    async def test_stuck(self) -> None:
        """Answers that are stuck half way are right when they are taken at last, whatever was answered in between: all are read
        to the same buffer."""
        await self.warm(*self.lists)
        clients = [await self.slow(frames, await self.get(frames, early=True)) for frames in self.lists]
        while asking := [one for one in clients if not one.stuck]:  # the kernel's buffers hold some
            expected = self.found + len(asking)
            for one in asking:
                one.sent += 1
                one.connection.send(self.asking(one.frames))
            await wait_until(lambda: self.found == expected, "answers that were begun early")  # noqa: B023
            for one in clients[2:5]:
                self.assertEqual(await self.get(one.frames, early=True), one.wanted)
        for one in reversed(clients):
            one.connection.resume()
        for one in clients:
            await wait_until(one.taken, "all answers")
            self.assertEqual(one.taken(), [one.wanted] * one.sent)
            self.assertFalse(one.stuck)

    async def slow(self, frames: str, wanted: Reply) -> Slow:
        """A client whose connection's buffers hold little."""
        others = set(self.components.connections._open)
        connection = await self.connected()
        await wait_until(lambda: set(self.components.connections._open) - others, "a connection")
        (channel,) = set(self.components.connections._open) - others
        connection.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        channel.transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        connection.pause()
        return Slow(connection, channel.transport, frames, wanted)
