"""Options that name places: origins, endpoints, web origins, files.

Rules:
- nothing is opened for long, listened on or connected to here: a place is only looked at;
- relative paths become absolute, for twistd may change its folder after the options were read;
- credentials have no place in an origin's URL: all callers would use them, and logs would show them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import attrs

from twistedproxy.options.values import Rejected, ValueKind, reject_if

DEFAULT_PREFIX = "/dicomweb"
# The proxy's own paths, and words of DICOMweb's (PS3.18 table 10.1-1): a mount below one would hide other resources.
_OWN_PATHS = frozenset({"healthz", "readyz", "metrics", "status.json"})
_RESERVED = frozenset({".", "..", "studies", "series", "instances", "frames", "rendered", "metadata", "bulkdata"})
SECRET_BYTES = 32  # as long as the digests that are made with it (RFC 2104 section 3: no shorter than the hash)
MAX_SECRET_FILE = 64 * 1024
MAX_SOCKET_PATH = 107  # bytes, unix(7); what fits only as a relative path stays one
# Which arguments of endpoints are paths, by their names and by their places behind the kind.
_ENDPOINT_PATHS: dict[str, Collection[object]] = {
    "unix": ("address", 0),
    "ssl": ("privateKey", 1, "certKey", 2, "extraCertChain", "dhParameters"),
}

_ARGUMENT = re.compile(r"(?:\\.|[^:\\])+", re.DOTALL)  # of an endpoint's description


@attrs.frozen
class Mount:
    """A URL prefix of the proxy, and the origin that it proxies.

    *prefix* starts with a slash and ends without one. *url* is ``http(s)://host[:port][/path]`` without a
    trailing slash and without credentials, ``file:`` and an absolute path, or ``sample:``.
    """

    prefix: str
    url: str


def _origin(text: str) -> Mount:
    """``[PREFIX=]URL`` as a mount."""
    if not text.startswith("/"):
        reject_if("=" in text.partition(":")[0], "PREFIX must start with /")
        text = f"{DEFAULT_PREFIX}={text}"
    prefix, equals, url = text.partition("=")
    segments = prefix.split("/")[1:]
    reserved = _RESERVED.intersection(segments) | _OWN_PATHS.intersection(segments[:1])
    reject_if(not equals, "the URL is missing")
    reject_if(prefix.endswith("/"), "PREFIX must name something below /, and not end with /")
    reject_if(
        not re.fullmatch("(?:/[A-Za-z0-9._~-]+)+", prefix),
        "PREFIX takes letters, digits and . _ ~ - between single slashes",
    )
    reject_if(reserved, f"PREFIX must not contain {' or '.join(reserved)}, which is reserved")
    return Mount(prefix, _origin_url(url))


def _followed(text: str) -> Mount:
    """``[PREFIX=]URL`` as a mount whose URL is that of a REST interface."""
    mount = _origin(text)
    reject_if(not mount.url.startswith("http"), "only what an Orthanc says of its changes can be followed")
    return mount


@attrs.frozen
class FollowLogin:
    """What the proxy itself identifies with at the store of a mount: ``user:password``."""

    prefix: str
    login: bytes = attrs.field(repr=False)


def _follow_login(text: str) -> FollowLogin:
    """``[PREFIX=]PATH`` as the login in the file at PATH, which is read now, while the process may still have the right to."""
    prefix, equals, path = text.partition("=")
    if not equals:
        prefix, path = DEFAULT_PREFIX, text
    try:
        with open(_file(path), "rb") as file:
            login = file.read(MAX_SECRET_FILE).strip()
    except OSError as error:
        raise Rejected(error.strerror or "unreadable") from None
    reject_if(b":" not in login or len(login.splitlines()) != 1, "the file does not hold user:password on one line")
    return FollowLogin(prefix, login)


def _origin_url(url: str) -> str:
    scheme, _, rest = url.partition(":")
    if url in ("sample", "sample:"):
        return "sample:"
    if scheme == "file":
        rest = re.sub("^//(?=/)", "", rest)  # RFC 8089: an empty host
        reject_if(rest.startswith("//"), "file: takes a path on this machine")
        return "file:" + _folder(rest)
    reject_if(scheme not in ("http", "https"))
    # Anywhere: a password may hold a slash, and would then end the host for a parser.
    reject_if("@" in url, "credentials do not belong in the URL: each caller's own are forwarded")
    segments = _split(url).path.lower().replace("%2e", ".").split("/")
    reject_if("?" in url or "#" in url, "the URL must have no query and no fragment")
    reject_if({".", ".."}.intersection(segments), "the URL must not contain a segment . or ..")
    return url.rstrip("/")


def _split(url: str) -> SplitResult:
    """The parts of a URL with a host."""
    reject_if(not re.fullmatch(r"[\x21-\x7e]+", url), "the URL must be printable ASCII without spaces")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Rejected("the host or port is malformed") from None
    reject_if(not parts.hostname or "://" not in url, "the host is missing")
    reject_if(port == 0 or parts.netloc.endswith(":"), "the port is malformed")
    return parts


def _file(text: str) -> str:
    reject_if(not text or "\0" in text)
    return os.path.abspath(os.path.expanduser(text))


def _folder(path: str) -> str:
    """The path of a folder that is there, absolute."""
    path = _file(path)
    reject_if(not os.path.isdir(path), "no such folder")
    reject_if(not os.access(path, os.R_OK | os.X_OK), "the folder cannot be read")
    return path


def _cors_origin(text: str) -> str:
    """A web origin as browsers write it (RFC 6454 section 6.2): lower case, no default port."""
    if text == "*":
        return text
    reject_if(not re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE))
    parts = _split(text)
    reject_if("@" in parts.netloc or parts.path or "?" in text or "#" in text, "nothing follows the host and port")
    default_port = {"http": ":80", "https": ":443"}.get(parts.scheme, "no port")
    return f"{parts.scheme}://{parts.netloc.lower().removesuffix(default_port)}"


def _endpoint(text: str) -> str:
    """A Twisted server endpoint with absolute paths, checked by building it, without listening.

    Certificates of ``ssl:`` are read on the way, and descriptors of ``systemd:`` looked up.
    """
    from twisted.internet import endpoints, reactor

    # Twisted itself finds a port that is out of range only when it listens.
    if match := re.match(r"(?:tcp|tcp6|ssl|tls):(?:port=)?([^:]*)", text):
        port = int(match[1]) if re.fullmatch("[0-9]{1,5}", match[1]) else -1
        reject_if(not 0 <= port <= 65535, "the port must be a number from 0 to 65535")
    try:
        endpoints.serverFromString(reactor, text)
    except OSError as error:
        raise Rejected(f"{error.strerror or 'unreadable'}: {error.filename or text}") from None
    except Exception as error:  # each parser, plugins among them, fails in its own way
        raise Rejected(_no_pem(text) or " ".join(str(error).split()) or type(error).__name__) from None
    parts = _ARGUMENT.findall(text)
    begin = next(place for place, part in enumerate(parts) if part != "haproxy") + 1
    arguments = [_with_absolute_path(parts[begin - 1], *each) for each in enumerate(parts[begin:])]
    return ":".join([*parts[:begin], *arguments])


def _no_pem(endpoint: str) -> str:
    """Which file of *endpoint* holds no certificate or key; "" if none. OpenSSL's errors name no file."""
    for argument in _ARGUMENT.findall(endpoint):
        path = Path(_unquoted(argument.partition("=")[2] or argument))
        text = path.read_bytes() if path.is_file() else b"-----BEGIN "
        if b"-----BEGIN " not in text:
            return f"{path} is not a PEM file"
        if b"ENCRYPTED" in text:
            return f"{path} is encrypted, and a service cannot ask for the passphrase"
    return ""


def _with_absolute_path(kind: str, place: int, argument: str) -> str:
    """An argument of an endpoint; the path of a socket or certificate is made absolute."""
    name, equals, value = argument.partition("=") if "=" in argument else ("", "", argument)
    path = os.path.abspath(_unquoted(value))
    too_long = kind == "unix" and len(os.fsencode(path)) > MAX_SOCKET_PATH
    if too_long or (name or place) not in _ENDPOINT_PATHS.get(kind, ()):
        return argument
    return name + equals + re.sub(r"([:\\=])", r"\\\1", path)


def _unquoted(argument: str) -> str:
    return re.sub(r"\\(.)", r"\1", argument, flags=re.DOTALL)


def read_secret(path: str) -> bytes:
    """The key in the file at *path*, all of it. Raises `Rejected`."""
    try:
        with open(path, "rb") as file:
            secret = file.read(MAX_SECRET_FILE + 1)
    except OSError as error:
        raise Rejected(error.strerror or "unreadable") from None
    size = "too many" if len(secret) > MAX_SECRET_FILE else len(secret)
    reject_if(not SECRET_BYTES <= len(secret) <= MAX_SECRET_FILE, f"it has {size} bytes")
    return secret


ORIGIN = ValueKind(
    _origin, "[PREFIX=]URL, where URL is http(s)://HOST[:PORT][/PATH], file:FOLDER or sample:", "[PREFIX=]URL"
)
ENDPOINT = ValueKind(_endpoint, "a Twisted server endpoint such as tcp:8080:interface=127.0.0.1", "ENDPOINT")
CORS_ORIGIN = ValueKind(_cors_origin, "SCHEME://HOST[:PORT] such as https://viewer.example, or *", "ORIGIN")
FOLLOWED = ValueKind(
    _followed, "[PREFIX=]URL, where URL is http(s)://HOST[:PORT][/PATH] of an Orthanc's REST interface", "[PREFIX=]URL"
)
FOLLOW_LOGIN = ValueKind(
    _follow_login, "[PREFIX=]PATH, the path of a readable file with user:password on one line", "[PREFIX=]PATH"
)
FOLDER = ValueKind(_folder, "the path of a folder that can be read", "FOLDER")
KEY_FILE = ValueKind(_file, "the path of a readable file of 32 bytes to 64 kB", "PATH")
