"""Every setting of the proxy, declared once: default, kind of value, help. `twistedproxy.options` makes a value of it.

Rules:
- a field is named like its option, with underscores for dashes, and its default is the option's default;
- sizes are ints of bytes, times are floats of seconds, networks are `ipaddress` objects;
- the command line, the environment, ``--help`` and the documentation's table are loops over these fields;
- values are validated before they come here, and never change afterwards.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Optional

import attrs

from twistedproxy.cache.address import ACCEPTED, CacheAddress, LocalAddress, parse_cache
from twistedproxy.options.addresses import CORS_ORIGIN, ENDPOINT, FOLDER, KEY_FILE, ORIGIN, SECRET_BYTES, Mount
from twistedproxy.options.values import (
    HEADER,
    NETWORK,
    PARAMETER,
    PERCENT,
    SHARE,
    SWITCH,
    TIMEOUT,
    Network,
    ValueKind,
    choice,
    seconds,
    seconds_or_forever,
    setting,
    size,
    token,
    whole,
)

MIB = 1 << 20
MAX_PROCESSES = 256
PIXELS = "pixels"


@attrs.frozen(kw_only=True)
class Settings:
    """What an operator may decide. None and an empty tuple: nothing of the kind."""

    origin: tuple[Mount, ...] = setting(
        ORIGIN,
        (),
        "Store to proxy. http(s)://...: a DICOMweb root, or anything above it (the rest of the path up to /studies is "
        "forwarded). file:FOLDER: a folder of DICOM files, served read-only as DICOMweb. sample:: a small pyramid that "
        "the package generates. PREFIX is the path below which clients find it, /dicomweb if left out",
        "required",
        group="Origins and listeners",
    )
    # Loopback by default: medical images are not for every host that can connect.
    listen: tuple[str, ...] = setting(
        ENDPOINT, ("tcp:8080:interface=127.0.0.1",), "Twisted server endpoint to listen on: tcp:, ssl:, unix:, systemd:"
    )
    admin_listen: Optional[str] = setting(
        ENDPOINT,
        None,
        "Endpoint for /metrics and /status.json, which name instances; the other listeners then do not serve them",
        "none",
    )
    page: bool = setting(
        SWITCH,
        True,
        "Serve a page at / of every listener: studies, a viewer, what is cached; on the admin listener the state of the proxy",
    )
    workers: int = setting(
        whole(1, MAX_PROCESSES), 1, "Number of processes that share the listening ports; each uses one core"
    )

    cache: CacheAddress = setting(
        ValueKind(parse_cache, ACCEPTED, "WHERE", show=lambda address: str(address.where)),
        LocalAddress(),
        "Where frames are cached. local: in files of this host, which all workers share and the kernel's page cache speeds "
        "up; those in FOLDER are kept when the proxy stops, others are removed. An external server: "
        "redis://[user:pass@]host:port/db, rediss:// (certificates are verified), unix:PATH, sentinel://host,host/name. "
        "memory: this process, one worker only. none: no cache and no prefetch",
        group="Caches",
    )
    cache_memory: int = setting(
        size(MIB),
        256 * MIB,
        "Size of the cache in memory, at most what the machine has. Where it is given, also the size of a local cache "
        "without ?size=",
        "half of the available memory; local: half of the free disk space, at most 16G without FOLDER",
    )
    hot_memory: int = setting(
        size(),
        256 * MIB,
        "Memory for complete responses, per worker: pictures; frames with a Redis server; 0 disables it",
    )
    # An hour is about one sitting at the microscope; stored frames hardly ever change.
    frame_ttl: Optional[float] = setting(
        seconds_or_forever(1),
        3600.0,
        "Lifetime of a cached frame; a local cache then compares the metadata and keeps it; below 0 means no expiry",
    )
    client_max_age: int = setting(whole(0, 366 * 24 * 3600, "seconds"), 3600, "Cache-Control max-age of frames")

    # How late a withdrawn right takes effect.
    grant_ttl: float = setting(
        seconds(60, 3600),
        600.0,
        "How long one response of the origin proves a caller's right to an instance; from 60 to 3600",
        group="Callers",
    )
    # Stores exist that give metadata and pixels by separate permissions.
    proof: str = setting(
        choice({"metadata": "metadata", PIXELS: PIXELS}),
        "metadata",
        "What proves a caller's right to the pixels of an instance: its metadata, a frame or the object; or, with pixels, only a "
        "frame or the object, for stores that give metadata by another permission",
    )
    credential_header: tuple[str, ...] = setting(
        HEADER,
        ("Authorization",),
        "Request header that identifies a caller; forwarded to the origin; replaces the default",
    )
    credential_cookie: tuple[str, ...] = setting(
        token("cookie"),
        (),
        "Cookie that identifies a caller; forwarded to the origin; needed if other cookies change with every response",
        "all cookies",
    )
    # An <img> cannot send Authorization.
    credential_parameter: tuple[str, ...] = setting(
        PARAMETER,
        ("access_token",),
        "Query parameter that identifies a caller; forwarded to the origin; replaces the default",
    )
    secret: bytes = attrs.field(factory=lambda: secrets.token_bytes(SECRET_BYTES), repr=False)
    """The key of the credential digests, from the secret file or random for this run."""
    secret_file: Optional[str] = setting(
        KEY_FILE,
        None,
        "File with the key (32 bytes or more) of the credential digests; hosts that share a cache must share it",
        "random",
    )
    # None by default: any client could claim to be another.
    trusted_proxy: tuple[Network, ...] = setting(
        NETWORK, (), "Network whose Forwarded and X-Forwarded-* headers are trusted", "none"
    )
    cors_origin: tuple[str, ...] = setting(
        CORS_ORIGIN, (), "Web origin whose pages may read responses: SCHEME://HOST[:PORT], or * for any", "none"
    )

    # Some clients request 400 frames at once.
    max_frames_per_request: int = setting(
        whole(1, 100_000), 500, "Maximum number of frames per request", group="Limits of requests"
    )
    max_answer: int = setting(
        size(MIB), 256 * MIB, "Maximum size of a response with several frames; above it, 413 or a response cut short"
    )
    answer_memory: int = setting(
        size(MIB),
        512 * MIB,
        "Memory for responses above 64 kB until clients have received them, per worker; beyond it requests wait, then get 503",
    )
    # Slow senders hold connections.
    client_timeout: float = setting(
        TIMEOUT,
        30.0,
        "Read timeout for the request head, and per 64 kB of the body; also the write timeout for each piece of a response",
    )
    stop_deadline: float = setting(seconds(0), 30.0, "Time for responses in progress to finish during a graceful stop")

    # Measured, within this bound: stores slow down or refuse beyond their own limits, which differ.
    origin_concurrency: int = setting(
        whole(1, 10_000),
        256,
        "Upper bound of concurrent requests to one origin, per worker; how many there are is found by measuring its latency",
        group="Requests to origins",
    )
    # A store that is up accepts at once; some take a minute for a frame; one that has begun to answer continues.
    origin_connect_timeout: float = setting(TIMEOUT, 5.0, "Timeout for connecting to an origin")
    origin_timeout: float = setting(TIMEOUT, 120.0, "Timeout for the first byte of an origin's response")
    origin_stall_timeout: float = setting(
        TIMEOUT, 30.0, "Timeout between two pieces of an origin's response; 64 kB may take four times as long"
    )

    prefetch: bool = setting(SWITCH, True, "Load frames before they are requested", group="Prefetch")
    prefetch_min_frames: int = setting(whole(0), 10, "Minimum number of frames of an instance to prefetch it")
    prefetch_trigger: float = setting(
        SHARE, 0.5, "Share of a request's frames from the origin, at or above which a prefetch is considered"
    )
    whole_instance: bool = setting(SWITCH, True, "Prefetch whole instances; off means blocks only")
    # A larger instance would evict everything else.
    whole_instance_max_frames: int = setting(
        whole(0),
        500_000,
        "Maximum number of frames of an instance to prefetch it whole; of larger ones only parts are prefetched",
    )
    whole_instance_max_cpu: float = setting(
        PERCENT, 80.0, "Load average per CPU above which only parts of instances are prefetched; 100 disables the check"
    )
    whole_instance_max_memory: float = setting(
        PERCENT, 70.0, "Memory in use above which only parts of instances are prefetched; 100 disables the check"
    )
    block_pixels: int = setting(whole(1, unit="pixels"), 8000, "Side of the square that a block load covers")
    # About one screen. The block of a smaller instance is there soon enough.
    display_pixels: int = setting(whole(1, unit="pixels"), 3000, "Side of the square that a display load covers")
    display_min_frames: int = setting(whole(0), 10_000, "Minimum number of frames of an instance for display loads")
    max_jobs: int = setting(
        whole(1, 1000),
        1,
        "Maximum number of concurrent loads of whole instances and of blocks, per worker; small ones are not counted",
    )
    # A load holds its lock for as long.
    recache_after: float = setting(seconds(1), 300.0, "Minimum interval between two loads of a whole instance")
    reap_interval: float = setting(seconds(1), 60.0, "Interval at which finished jobs are removed")

    render_workers: int = setting(
        whole(0, MAX_PROCESSES),
        2,
        "Number of render workers (processes that make pictures), per worker; one is always running (55 MB). With 0 the "
        "origin makes pictures",
        group="Pictures",
    )
    # About as many as a viewer requests at once.
    render_queue: int = setting(
        whole(1, 100_000),
        64,
        "Maximum number of pictures that wait for a render worker, per worker; beyond it 503 is returned",
    )
    # A decoder that hangs is killed.
    render_timeout: float = setting(TIMEOUT, 60.0, "Timeout for one job of a render worker")
    # 200 MB as RGB.
    render_max_pixels: int = setting(
        whole(1, unit="pixels"), 64_000_000, "Maximum size of a picture, and of a stored frame; larger ones are refused"
    )
    render_max_frames: int = setting(
        whole(1, 100_000), 500, "Maximum number of stored frames for one request for downsampled frames"
    )
    render_max_whole_frames: int = setting(
        whole(1), 20_000, "Maximum number of stored frames for a picture of a whole instance"
    )
    icc_profiles: Optional[str] = setting(
        FOLDER,
        None,
        "Folder of additional ICC profiles, NAME.icc for iccprofile=NAME; srgb.icc and the like replace the built-in ones",
        "none",
    )

    log_format: str = setting(
        choice({"text": "text", "json": "json"}),
        "text",
        "Log format: text, or one JSON object per line without secrets",
        group="Logs",
    )


REMOVED: Mapping[str, str] = {}
"""Options of the last release that are gone, by name (``frame-ttl``), and why. For one release they are accepted with a
warning and ignored: a service comes back from an upgrade."""
