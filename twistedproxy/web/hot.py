"""Hot responses: whole answers in one worker's memory, given before a request is parsed in full.

- An answer is given only to a caller whose grant for that very instance holds now; the grant is looked up each time.
- It is gone with the instance: every answer belongs to an `_Instance`, which carries the fence that the cache had when
  it was last asked. What was last checked more than `CHECK_SECONDS` ago is answered the ordinary way, which checks.
- Only a request that is understood in full is answered here: one complete GET or HEAD without a body and without any
  header field that could change the answer, other than those the answer is kept under. All else goes the ordinary way.
- The bytes that are kept are bounded: keys, heads and bookkeeping counted; least recently used goes first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Optional

import attrs

from twistedproxy.cache.interface import Fence
from twistedproxy.dicom.address import Instance, Scope
from twistedproxy.frames.access import Access
from twistedproxy.frames.credentials import Credentials
from twistedproxy.frames.forgetting import covers
from twistedproxy.origin.interface import Caller

CHECK_SECONDS = 4.0
"""How old the knowledge of an instance's fence may be: another host's STOW is felt within 5 s."""

OVERHEAD = 900
"""Bytes that one answer takes besides its own: objects, hash tables, the key's tuple. Measured: 850."""

MAX_SHARE = 16
"""An answer larger than this part of all is not kept: it would push out too many."""

MAX_HEADS = 4096
"""Request heads (without their first line) that are remembered as understood; a client repeats its own."""

_GET = b"GET "
_HEAD = b"HEAD "
_VERSION = b" HTTP/1.1"
_END = b"\r\n\r\n"
MAX_HEAD = 8192
"""Bytes of a request that is looked at here. The ordinary way takes 16 KiB."""

# Fields that change nothing about a frame's answer. What is not named here takes the ordinary way.
_HARMLESS = frozenset(
    (
        *(b"host", b"user-agent", b"accept-encoding", b"accept-language", b"accept-charset", b"referer", b"dnt"),
        *(b"sec-fetch-mode", b"sec-fetch-site", b"sec-fetch-dest", b"sec-fetch-user", b"sec-gpc", b"priority"),
        *(b"sec-ch-ua", b"sec-ch-ua-mobile", b"sec-ch-ua-platform", b"cache-control", b"pragma"),
        *(b"x-requested-with", b"traceparent", b"tracestate", b"x-request-id"),
    )
)
_FORWARDED = frozenset(
    (b"forwarded", b"via", b"x-real-ip", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto")
    + (b"x-forwarded-port", b"x-forwarded-prefix")
)


@attrs.define(eq=False)
class _Instance:
    """What is known of an instance: the fence of its answers, and until when that may be relied on."""

    instance: Instance
    fence: Fence
    checked_until: float
    valid: bool = True


@attrs.frozen(eq=False)
class HotAnswer:
    """One answer with status 200. *head*: the fields behind Date, and the blank line."""

    of: _Instance
    route: str
    head: bytes
    body: bytes
    expires: float
    size: int


Key = tuple[bytes, bytes, bytes]
"""Request target, Accept, Origin: as they came."""


@attrs.frozen
class _Facts:
    """What a head says besides its first line. *caller* is None where it must go the ordinary way."""

    accept: bytes = b""
    origin: bytes = b""
    caller: Optional[Caller] = None


_NOT_HERE = _Facts()


class HotResponses:
    """The answers of one worker. *max_bytes*: 0 keeps none. *clock*: seconds that only go forward.

    *ignore_forwarded*: whether nobody is trusted to say whom he asks for; else the ordinary way must read it.
    """

    def __init__(
        self,
        max_bytes: int,
        access: Access,
        credentials: Credentials,
        clock: Callable[[], float],
        ignore_forwarded: bool = True,
    ) -> None:
        self._max_bytes = max_bytes
        self._access = access
        self._credentials = credentials
        self._clock = clock
        self._harmless = _HARMLESS | _FORWARDED if ignore_forwarded else _HARMLESS
        self._special = frozenset(
            (b"accept", b"origin", b"cookie", b"connection", *(name.lower() for name in credentials.headers))
        )
        self._answers: OrderedDict[Key, HotAnswer] = OrderedDict()
        self._instances: OrderedDict[Instance, _Instance] = OrderedDict()
        self._heads: OrderedDict[bytes, _Facts] = OrderedDict()
        self._forgotten = 0
        self.used = 0

    def __len__(self) -> int:
        return len(self._answers)

    # Finding.

    def find(self, data: bytes) -> Optional[tuple[HotAnswer, bytes, bytes]]:
        """The answer to the one complete request that *data* is, its method and its target; None for the ordinary way."""
        target = _target(data)
        if target is None:
            return None
        facts = self._facts(data[data.index(b"\r\n") :])
        if facts.caller is None:
            return None
        answer = self._answers.get((target, facts.accept, facts.origin))
        if answer is None or not self._holds(answer, facts.caller):
            return None
        self._answers.move_to_end((target, facts.accept, facts.origin))
        return answer, data[: data.index(b" ")], target

    def _holds(self, answer: HotAnswer, caller: Caller) -> bool:
        """Whether *answer* may be given to *caller* now, without asking anybody."""
        now = self._clock()
        if not answer.of.valid or answer.of.checked_until < now or answer.expires < now:
            return False
        grant = self._access.known(caller, answer.of.instance)
        if grant is None or grant.fence != answer.of.fence:
            return False
        return not grant.spent(self._access.wall_clock(), self._access.ttl)

    def _facts(self, rest: bytes) -> _Facts:
        """What a head says. Heads are remembered by their digest: they hold what no memory should."""
        digest = hashlib.blake2b(rest, digest_size=16).digest()
        facts = self._heads.get(digest)
        if facts is None:
            facts = self._heads[digest] = self._read(rest)
            if len(self._heads) > MAX_HEADS:
                self._heads.popitem(last=False)
        return facts

    def _read(self, rest: bytes) -> _Facts:
        if rest.count(b"\n") != rest.count(b"\r\n") or rest.count(b"\r") != rest.count(b"\n") or b"\0" in rest:
            return _NOT_HERE
        found: dict[bytes, bytes] = {}
        for line in rest[2:-4].split(b"\r\n") if len(rest) > len(_END) else ():
            name, colon, value = line.partition(b":")
            name = name.lower()
            if not colon or (name not in self._harmless and name not in self._special) or name in found:
                return _NOT_HERE
            found[name] = value.strip(b" \t")
        if found.get(b"connection", b"keep-alive").lower() != b"keep-alive":
            return _NOT_HERE
        caller = self._credentials.caller(lambda name: [found[name.lower()]] if name.lower() in found else None)
        return _Facts(found.get(b"accept", b""), found.get(b"origin", b""), Caller(caller.credential))

    # Keeping.

    def ticket(self) -> int:
        """See `FenceWatch`: what was read before something was forgotten counts for nothing after it."""
        return self._forgotten

    def checked(self, instance: Instance, fence: Optional[Fence], ticket: int) -> None:
        """See `FenceWatch`."""
        if fence is None or ticket != self._forgotten:
            return
        known = self._instances.get(instance)
        if known is not None and known.fence == fence:
            known.checked_until = self._clock() + CHECK_SECONDS
            return
        if known is not None:
            known.valid = False
        self._instances[instance] = _Instance(instance, fence, self._clock() + CHECK_SECONDS)
        if len(self._instances) > MAX_HEADS:
            _, oldest = self._instances.popitem(last=False)
            oldest.valid = False

    def keep(
        self, key: Key, instance: Instance, fence: Fence, route: str, head: bytes, body: bytes, seconds: float
    ) -> None:
        """Keep an answer for *seconds*, if the instance still has that *fence*."""
        of = self._instances.get(instance)
        size = len(head) + len(body) + sum(map(len, key)) + OVERHEAD
        if of is None or of.fence != fence or size > self._max_bytes // MAX_SHARE:
            return
        old = self._answers.pop(key, None)
        if old is not None:
            self.used -= old.size
        self._answers[key] = HotAnswer(of, route, head, body, self._clock() + seconds, size)
        self.used += size
        while self.used > self._max_bytes:
            _, least = self._answers.popitem(last=False)
            self.used -= least.size

    def forget(self, scope: Scope) -> None:
        """Give no answer of *scope* any more. What they take is freed as others come."""
        self._forgotten += 1
        for instance in [instance for instance in self._instances if covers(scope, instance)]:
            self._instances.pop(instance).valid = False

    def clear(self) -> None:
        """Give back all memory."""
        for known in self._instances.values():
            known.valid = False
        self._instances.clear()
        self._answers.clear()
        self._heads.clear()
        self.used = 0


def _target(data: bytes) -> Optional[bytes]:
    """The target of the one complete GET or HEAD of HTTP/1.1 without a body that *data* is, as far as its first and
    last bytes tell."""
    if len(data) > MAX_HEAD or data.find(_END) != len(data) - len(_END):
        return None
    if data.startswith(_GET):
        start = len(_GET)
    elif data.startswith(_HEAD):
        start = len(_HEAD)
    else:
        return None
    end = data.index(b"\r\n")
    if data[end - len(_VERSION) : end] != _VERSION:
        return None
    return data[start : end - len(_VERSION)]
