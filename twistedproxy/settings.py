"""Every setting of the proxy, validated by whoever builds it (`twistedproxy.options`), never changed afterwards.

A field is named like its option, with underscores for dashes. Sizes are ints of bytes, times are floats
of seconds, networks are `ipaddress` objects. A field's default is the option's default.
"""

from __future__ import annotations

import secrets
from ipaddress import IPv4Network, IPv6Network
from typing import Optional, Union

import attrs

from twistedproxy.cache.address import CacheAddress, EmbeddedAddress

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

SECRET_BYTES = 32  # as long as the digests that are made with it (RFC 2104 section 3: no shorter than the hash)

Network = Union[IPv4Network, IPv6Network]


def _random_secret() -> bytes:
    return secrets.token_bytes(SECRET_BYTES)


@attrs.frozen
class Mount:
    """A URL prefix of the proxy, and the origin that it stands for.

    *prefix* starts with a slash and ends without one. *url* is ``http(s)://host[:port][/path]`` without a
    trailing slash and without credentials, ``file:`` and an absolute path, or ``sample:``.
    """

    prefix: str
    url: str


@attrs.frozen(kw_only=True)
class Settings:
    """What an operator may decide."""

    # What is served, and where.

    origin: tuple[Mount, ...] = ()
    """The stores behind the proxy; prefixes are unique, the longest that fits a request wins."""

    listen: tuple[str, ...] = ("tcp:8080:interface=127.0.0.1",)
    """Twisted server endpoints. Loopback unless said otherwise: medical images are nobody else's business."""

    admin_listen: Optional[str] = None
    """Endpoint that alone serves metrics and status; None: every listener does. They name instances."""

    workers: int = 1
    """Processes that share the listening ports: one reactor uses one core."""

    # Caches.

    cache: CacheAddress = EmbeddedAddress()
    """Where frames wait. Its `where` is what may be shown: the address may hold a password."""

    cache_memory: int = 256 * MIB
    """Bytes of frames in the embedded server or in this process. On the command line: half of the available memory."""

    hot_memory: int = 256 * MIB
    """Bytes of whole answers that each worker keeps in its own memory; 0: none."""

    frame_ttl: Optional[float] = 3600.0
    """Seconds that a frame stays cached; None: no expiry. An hour is about one sitting at the microscope."""

    client_max_age: int = 3600
    """Seconds for ``Cache-Control: max-age`` on frames: stored frames hardly ever change."""

    # Callers.

    grant_ttl: float = 600.0
    """Seconds for which one origin answer proves a caller's right to read: how late a withdrawn right is felt."""

    credential_header: tuple[str, ...] = ("Authorization",)
    """Request headers that identify a caller; forwarded to the origin."""

    credential_cookie: tuple[str, ...] = ()
    """Cookies that identify a caller; empty: all of them. Some change with every answer, and would make a new caller each time."""

    credential_parameter: tuple[str, ...] = ("access_token",)
    """Query parameters that identify a caller; forwarded to the origin: an ``<img>`` cannot send Authorization."""

    secret: bytes = attrs.field(factory=_random_secret, repr=False)
    """The key of the credential digests, from the secret file or random for this run."""

    secret_file: Optional[str] = None
    """The file that the secret was read from, for hosts that share a cache; None: random."""

    trusted_proxy: tuple[Network, ...] = ()
    """Networks from which Forwarded and X-Forwarded-* are believed. None: anybody could claim to be anyone."""

    cors_origin: tuple[str, ...] = ()
    """Web origins (RFC 6454) whose pages may read answers, ``*`` for any; empty: none."""

    # Limits of a request.

    max_frames_per_request: int = 500
    """Frames in one list: some clients ask for 400."""

    max_answer: int = 256 * MIB
    """Bytes of one answer of several frames. A long list is sent in pieces; pictures are put together in memory."""

    answer_memory: int = 512 * MIB
    """Bytes of answers that each worker holds at once until clients have taken them; small answers are not counted. Who
    finds no room waits, and gets a 503 in the end. An answer larger than all of it is given when no other is held."""

    client_timeout: float = 30.0
    """Seconds for a request's head, and for each 64 kB of its body: slow senders hold connections."""

    stop_deadline: float = 30.0
    """Seconds that running answers have to finish at an orderly stop."""

    # Origins.

    origin_concurrency: int = 20
    """Requests at one origin at once: stores slow down or refuse beyond their own limits."""

    origin_connect_timeout: float = 5.0
    """Seconds to a connection: a store that is up accepts at once."""

    origin_timeout: float = 120.0
    """Seconds to the first byte of an answer: stores that take a minute for a frame exist."""

    origin_stall_timeout: float = 30.0
    """Seconds between two pieces of an answer: a store that has begun to answer keeps going."""

    # Prefetch.

    prefetch: bool = True
    """Whether frames are loaded that nobody has asked for yet."""

    prefetch_min_frames: int = 10
    """Frames; a smaller instance is not worth a load."""

    prefetch_trigger: float = 0.5
    """Share of a request's frames that came from the origin, at or above which prefetch is considered."""

    whole_instance: bool = True
    """Whether instances may be loaded whole; else by blocks only."""

    whole_instance_max_frames: int = 500_000
    """Frames; a larger instance is loaded by blocks, or it would push out everything else."""

    whole_instance_max_cpu: float = 80.0
    """Percent of load average over CPUs above which blocks are loaded instead; 100: never looked at."""

    whole_instance_max_memory: float = 70.0
    """Percent of memory in use above which blocks are loaded instead; 100: never looked at."""

    block_pixels: int = 8000
    """Pixels along the side of the square that a block load covers."""

    display_pixels: int = 3000
    """Pixels along the side of the square that a display load covers: about one screen."""

    display_min_frames: int = 10_000
    """Frames; a smaller instance gets no display load: its block is there soon enough."""

    max_jobs: int = 1
    """Whole-instance and block jobs at once, per worker; display loads are not counted."""

    recache_after: float = 300.0
    """Seconds before a whole-instance load is repeated: it holds its lock so long."""

    reap_interval: float = 60.0
    """Seconds between two rounds that drop finished jobs."""

    # Pictures.

    render_workers: int = 2
    """Processes that decode and encode pictures, of each worker, at once; 0: none, pictures are the origin's to make."""

    render_queue: int = 64
    """Pictures that wait for a process, in each worker; beyond: 503. About as many as a viewer asks for at once."""

    render_timeout: float = 60.0
    """Seconds for one piece of work in a process: a decoder that does not come back ends with it."""

    render_max_pixels: int = 64_000_000
    """Pixels of one picture, and of one stored frame: 200 MB as RGB."""

    render_max_frames: int = 500
    """Stored frames that one downsampled frame, or a list of them, may need."""

    render_max_whole_frames: int = 20_000
    """Stored frames that a picture of a whole instance may need: more is what smaller levels are for."""

    icc_profiles: Optional[str] = None
    """The folder of ICC profiles of one's own, by name; None: those that are made here."""

    # Logs.

    log_format: str = "text"
    """``text`` for people, ``json`` for machines: one object a line."""
