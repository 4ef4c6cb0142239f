"""Options that name places: origins, endpoints, web origins, files.

Rules:
- nothing is opened for long, listened on or connected to here: a place is only looked at;
- relative paths become absolute, for twistd changes its folder after the options were read;
- credentials have no place in an origin's URL: everybody would use them, and logs would show them.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Collection
from urllib.parse import SplitResult, urlsplit

from twistedproxy.cache.address import CacheAddress, parse_cache
from twistedproxy.options.values import Explained, Rejected
from twistedproxy.settings import SECRET_BYTES, Mount

DEFAULT_PREFIX = "/dicomweb"
OWN_PATHS = ("healthz", "readyz", "metrics", "status.json")
# Words of DICOMweb's own paths (PS3.18 table 10.1-1): a mount below them would hide resources of another.
_DICOMWEB_WORDS = ("studies", "series", "instances", "frames", "rendered", "metadata", "bulkdata")
MAX_SECRET_FILE = 64 * 1024
MAX_PEM = 64 * 1024  # bytes of a certificate or key that are looked at
MAX_SOCKET_PATH = 107  # bytes, unix(7); what fits only as a relative path stays one
# Which arguments of endpoints are paths, by their names and by their places behind the kind.
_ENDPOINT_PATHS: dict[str, Collection[object]] = {
    "unix": ("address", 0),
    "ssl": ("privateKey", 1, "certKey", 2, "extraCertChain", "dhParameters"),
}

_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]+)+", re.ASCII)
_CLEAN = re.compile(r"[\x21-\x7e]+", re.ASCII)
_DEFAULT_PORTS = {"http": 80, "https": 443}

ORIGIN_ACCEPTED = "[PREFIX=]URL, where URL is http(s)://HOST[:PORT][/PATH], file:FOLDER or sample:"
CORS_ACCEPTED = "SCHEME://HOST[:PORT] such as https://viewer.example, or *"


def parse_origin(text: str) -> Mount:
    """``[PREFIX=]URL`` as a mount. Raises `Rejected`."""
    if text.startswith("/"):
        prefix, equals, url = text.partition("=")
        if not equals:
            raise Rejected("there is no URL")
    else:
        prefix, url = DEFAULT_PREFIX, text
        if "=" in text.partition(":")[0]:
            raise Rejected("PREFIX must start with /")
    check_prefix(prefix)
    return Mount(prefix, _origin_url(url))


def check_prefix(prefix: str) -> None:
    """Raise `Rejected` unless *prefix* can be the beginning of a mount's paths."""
    if prefix.endswith("/"):
        raise Rejected("PREFIX must not end with /" if prefix != "/" else "PREFIX must name something below /")
    if not _PREFIX.fullmatch(prefix):
        raise Rejected("PREFIX takes letters, digits and . _ ~ - between single slashes")
    segments = prefix.split("/")[1:]
    if "." in segments or ".." in segments:
        raise Rejected("PREFIX must not hold . or .. as a segment")
    if segments[0] in OWN_PATHS:
        raise Rejected(f"PREFIX would hide the proxy's own /{segments[0]}")
    for word in _DICOMWEB_WORDS:
        if word in segments:
            raise Rejected(f"PREFIX must not hold {word}, a word of DICOMweb's own paths")


def _origin_url(url: str) -> str:
    scheme, _, rest = url.partition(":")
    if scheme == "sample":
        if rest:
            raise Rejected("nothing follows sample:")
        return "sample:"
    if scheme == "file":
        return "file:" + _folder(rest)
    if scheme in ("http", "https"):
        return _http_url(url)
    raise Rejected


def _http_url(url: str) -> str:
    if "@" in url:  # anywhere: a password may hold a slash, and would then end the host for a parser
        raise Rejected("credentials do not belong in the URL: each caller's own are passed on")
    parts = _split(url)
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise Rejected("the URL must have no query and no fragment")
    segments = parts.path.lower().replace("%2e", ".").split("/")
    if "." in segments or ".." in segments:
        raise Rejected("the URL must hold no . or .. as a segment")
    return url.rstrip("/")


def _split(url: str) -> SplitResult:
    """The parts of a URL with a host; `Rejected` for what is none."""
    if not _CLEAN.fullmatch(url):
        raise Rejected("the URL must be printable ASCII without spaces")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Rejected("the host or port is malformed") from None
    if not parts.hostname or "://" not in url:
        raise Rejected("the host is missing")
    if port == 0 or parts.netloc.endswith(":"):
        raise Rejected("the port is malformed")
    return parts


def _folder(path: str) -> str:
    if path.startswith("//"):  # RFC 8089: an empty host
        path = path[2:]
        if not path.startswith("/"):
            raise Rejected("file: takes a path of this machine")
    return parse_folder(path)


def parse_folder(path: str) -> str:
    """The path of a folder that is there, absolute. Raises `Rejected`."""
    if not path or "\0" in path:
        raise Rejected("the folder is missing")
    path = os.path.abspath(os.path.expanduser(path))
    if not os.path.exists(path):
        raise Rejected("there is no such folder")
    if not os.path.isdir(path):
        raise Rejected("that is no folder")
    if not os.access(path, os.R_OK | os.X_OK):
        raise Rejected("the folder cannot be read")
    return path


def parse_cors_origin(text: str) -> str:
    """A web origin as browsers write it (RFC 6454 section 6.2): lower case, no default port. Raises `Rejected`."""
    if text == "*":
        return text
    if not re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE):
        raise Rejected
    parts = _split(text)
    if "@" in parts.netloc or parts.path or parts.query or parts.fragment or text[-1] in "?#":
        raise Rejected("nothing follows the host and port")
    port = f":{parts.port}" if parts.port and parts.port != _DEFAULT_PORTS.get(parts.scheme) else ""
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}{port}"


def parse_cache_address(text: str) -> CacheAddress:
    """Where frames wait. Raises `Explained`: the cache's own parser says what came and what is accepted."""
    try:
        return parse_cache(text)
    except ValueError as error:
        raise Explained(str(error)) from None


def parse_endpoint(text: str) -> str:
    """Check a Twisted server endpoint by building it, without listening, and give it back. Raises `Rejected`.

    Certificates of ``ssl:`` are read on the way, and descriptors of ``systemd:`` looked up. Paths become absolute.
    """
    # Twisted itself finds a port that is out of range only when it listens.
    match = re.match(r"(tcp|tcp6|ssl|tls):(?:port=)?([^:]*)", text)
    if match and not (re.fullmatch(r"[0-9]{1,5}", match[2], re.ASCII) and int(match[2]) <= 65535):
        raise Rejected("the port must be a number from 0 to 65535")
    build_endpoint(text)
    return _with_absolute_paths(text)


def _with_absolute_paths(endpoint: str) -> str:
    """*endpoint* with the paths of sockets and certificates made absolute."""
    parts = re.findall(r"(?:\\.|[^:\\])+", endpoint, re.DOTALL)
    wrappers = sum(1 for _ in itertools.takewhile("haproxy".__eq__, parts))
    kind, arguments = parts[wrappers], parts[wrappers + 1 :]
    places = _ENDPOINT_PATHS.get(kind, {})
    for place, argument in enumerate(arguments):
        name, equals, _ = argument.partition("=")
        path = argument[len(name) + 1 :] if equals else argument
        if (name if equals else place) in places:
            arguments[place] = name * bool(equals) + equals + _absolute(kind, path)
    return ":".join([*parts[: wrappers + 1], *arguments])


def _absolute(kind: str, quoted: str) -> str:
    path = os.path.abspath(re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL))
    if kind == "unix" and len(os.fsencode(path)) > MAX_SOCKET_PATH:
        return quoted
    return re.sub(r"([:\\=])", r"\\\1", path)


def build_endpoint(text: str) -> object:
    """Build the endpoint on the running reactor. Raises `Rejected` with the reason."""
    from twisted.internet import reactor
    from twisted.internet.endpoints import serverFromString

    build: Callable[[object, str], object] = serverFromString  # type: ignore[assignment]
    try:
        return build(reactor, text)
    except OSError as error:
        raise Rejected(f"{error.strerror or 'unreadable'}: {error.filename or text}") from None
    except Exception as error:  # each parser, plugins among them, fails in its own way
        reason = _no_pem(text) or " ".join(str(error).split()) or type(error).__name__
        raise Rejected(reason) from None


def _no_pem(endpoint: str) -> str:
    """Which file of *endpoint* holds no certificate or key; "" if none. OpenSSL names no file, and speaks of routines."""
    for argument in re.findall(r"(?:\\.|[^:\\])+", endpoint, re.DOTALL):
        path = re.sub(r"\\(.)", r"\1", argument.partition("=")[2] or argument, flags=re.DOTALL)
        if not os.path.isfile(path):
            continue
        with open(path, "rb") as file:
            text = file.read(MAX_PEM)
        if b"-----BEGIN " not in text:
            return f"{path} is no PEM file"
        if b"ENCRYPTED" in text:
            return f"{path} is encrypted, and a service cannot ask for the passphrase"
    return ""


def read_secret(path: str) -> bytes:
    """The key in the file at *path*, all of it. Raises `Rejected`."""
    try:
        with open(path, "rb") as file:
            secret = file.read(MAX_SECRET_FILE + 1)
    except (OSError, ValueError) as error:
        raise Rejected(getattr(error, "strerror", None) or "unreadable") from None
    if not SECRET_BYTES <= len(secret) <= MAX_SECRET_FILE:
        raise Rejected(f"it holds {len(secret) if len(secret) <= MAX_SECRET_FILE else 'too many'} bytes")
    return secret


def parse_file(text: str) -> str:
    """The path of a file, absolute. Raises `Rejected`."""
    if not text or "\0" in text:
        raise Rejected
    return os.path.abspath(os.path.expanduser(text))
