"""What ``--cache`` may say.

Rules kept here: pure, and without txredisapi (which installs a reactor when imported), for the options
use it; passwords are in no repr, no ``where`` and no error.
"""

from __future__ import annotations

from typing import Optional, Union
from urllib.parse import SplitResult, unquote, urlsplit

import attrs

from twistedproxy.options.sizes import read_size, show_size

LEAST_LOCAL = 16 << 20  # bytes
DEFAULT_PORT = 6379  # IANA: redis
DEFAULT_SENTINEL_PORT = 26379
ACCEPTED = (
    "local[:FOLDER][?size=SIZE], memory, none, redis://[user:pass@]host:port/db, rediss://[user:pass@]host:port/db, "
    "unix:PATH, sentinel://host[:port],host[:port]/name, redis-cluster://[user:pass@]host:port[,host:port], rediss-cluster://...; "
    "in the place of user:pass@, ?username-file=PATH&password-file=PATH"
)
NEAR_ACCEPTED = "SIZE or FOLDER?size=SIZE, such as 20G or /var/cache/twistedproxy?size=20G"


@attrs.frozen
class LocalAddress:
    """In files of this host, in *folder* (None: a private one). *size*: bytes at most (None: by what is free)."""

    folder: Optional[str] = None
    size: Optional[int] = None

    @property
    def where(self) -> str:
        """The address as it may be shown."""
        return (
            "local"
            + (f":{self.folder}" if self.folder else "")
            + (f"?size={show_size(self.size)}" if self.size else "")
        )


@attrs.frozen
class SharedFolder:
    """A folder that another process of this proxy has prepared for a cache of *size* bytes."""

    folder: str
    size: int

    @property
    def where(self) -> str:
        """The address as it may be shown."""
        return f"local:{self.folder}"


@attrs.frozen
class MemoryAddress:
    """In this process."""

    where = "memory"


@attrs.frozen
class NoAddress:
    """No cache."""

    where = "none"


@attrs.frozen
class Login:
    """Who we are at a server. *username* None: the default user (Redis ACL)."""

    username: Optional[str]
    password: str = attrs.field(repr=False)


@attrs.frozen
class LoginFiles:
    """Files with the name of the user (None: the default user) and the password, which are read at each connect: others renew
    them."""

    username: Optional[str]
    password: str


AnyLogin = Union[Login, LoginFiles]


@attrs.frozen
class RedisAddress:
    """A server over TCP; with *tls* its certificate and name are verified."""

    host: str
    port: int = DEFAULT_PORT
    database: int = 0
    tls: bool = False
    login: Optional[AnyLogin] = attrs.field(default=None, repr=False)

    @property
    def where(self) -> str:
        """The address as it may be shown."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.database}"


@attrs.frozen
class UnixAddress:
    """A server on a unix socket."""

    path: str

    @property
    def where(self) -> str:
        """The address as it may be shown."""
        return f"unix:{self.path}"


@attrs.frozen
class SentinelAddress:
    """The master called *name* as the sentinels at *hosts* tell it. *login* is for the master."""

    hosts: tuple[tuple[str, int], ...]
    name: str
    login: Optional[AnyLogin] = attrs.field(default=None, repr=False)

    @property
    def where(self) -> str:
        """The address as it may be shown."""
        return "sentinel://" + ",".join(f"{host}:{port}" for host, port in self.hosts) + f"/{self.name}"


@attrs.frozen
class ClusterAddress:
    """The cluster that the nodes at *hosts* belong to; any of them tells of the others. *tls* and *login* are for all nodes."""

    hosts: tuple[tuple[str, int], ...]
    tls: bool = False
    login: Optional[AnyLogin] = attrs.field(default=None, repr=False)

    @property
    def where(self) -> str:
        """The address as it may be shown."""
        places = ",".join(self.node(*place).where.partition("://")[2].rpartition("/")[0] for place in self.hosts)
        return f"{'rediss' if self.tls else 'redis'}-cluster://{places}"

    def node(self, host: str, port: int) -> RedisAddress:
        """One of its nodes."""
        return RedisAddress(host, port, 0, self.tls, self.login)


ServerAddress = Union[RedisAddress, UnixAddress, SentinelAddress, ClusterAddress]


@attrs.frozen
class NearAddress:
    """A folder of this host, *near*, in front of a cache that other hosts use, too."""

    near: SharedFolder
    far: SharedAddress

    @property
    def where(self) -> str:
        """The address as it may be shown."""
        return f"{self.far.where}, near {self.near.where}"


SharedAddress = Union[SharedFolder, ServerAddress, NearAddress]
"""Where several processes find the same entries."""

CacheAddress = Union[LocalAddress, MemoryAddress, NoAddress, SharedAddress]

_WORDS: dict[str, CacheAddress] = {"embedded": LocalAddress(), "memory": MemoryAddress(), "none": NoAddress()}


def parse_cache(text: str) -> CacheAddress:
    """Read the value of ``--cache``. ValueError says what came, without its password, and what is accepted.

    ``embedded``, the default of the last release, is ``local`` now."""
    if text in _WORDS:
        return _WORDS[text]
    try:
        if text == "local" or text.startswith(("local:", "local?")):
            return _local(text[len("local") :])
        if text.startswith("unix:"):
            return _unix(text[len("unix:") :])
        url = urlsplit(text)
        if url.scheme in ("redis", "rediss"):
            return _redis(url)
        if url.scheme == "sentinel":
            return _sentinel(url)
        if url.scheme in ("redis-cluster", "rediss-cluster"):
            return _cluster(url)
    except ValueError as error:
        raise ValueError(f"{_shown(text)!r}: {error}; expected one of {ACCEPTED}") from None
    raise ValueError(f"{_shown(text)!r} is not a cache; expected one of {ACCEPTED}")


def _shown(text: str) -> str:
    """*text* without what may be a login."""
    before, at, after = text.rpartition("@")
    scheme, slashes, _ = before.partition("://")
    return (f"{scheme}://" if slashes else "") + f"...@{after}" if at else text


def parse_near(text: str) -> LocalAddress:
    """Read the value of ``--near-cache``. ValueError says what came, and what is accepted."""
    try:
        near = _local(f":{text}" if text.startswith("/") else f"?size={text}")
        if near.size is None:
            raise ValueError("the size is missing")
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}; expected {NEAR_ACCEPTED}") from None
    return near


def _local(text: str) -> LocalAddress:
    folder, mark, query = text.removeprefix(":").partition("?")
    name, equals, size_text = query.partition("=")
    if (mark and (name, equals) != ("size", "=")) or (text.startswith(":") and not folder.startswith("/")):
        raise ValueError("local takes the absolute path of a folder, and ?size=SIZE")
    if not mark:
        return LocalAddress(folder or None)
    try:
        size = read_size(size_text)
    except ValueError:
        raise ValueError(f"{size_text!r} is no size, such as 500M or 100G") from None
    if size < LEAST_LOCAL:
        raise ValueError(f"{size_text!r} is less than {show_size(LEAST_LOCAL)}")
    return LocalAddress(folder or None, size)


def _unix(path: str) -> UnixAddress:
    if not path.startswith("/"):
        raise ValueError("the path of the socket must be absolute")
    return UnixAddress(path)


def _redis(url: SplitResult) -> RedisAddress:
    if not url.hostname:
        raise ValueError("the host is missing")
    try:
        port = url.port
    except ValueError:
        raise ValueError("the port is not a number from 1 to 65535") from None
    if port == 0:
        raise ValueError("the port is not a number from 1 to 65535")
    database = url.path.strip("/") or "0"
    if not (database.isascii() and database.isdigit()):
        raise ValueError(f"the database {database!r} is not a number")
    return RedisAddress(url.hostname, port or DEFAULT_PORT, int(database), url.scheme == "rediss", _login(url))


def _sentinel(url: SplitResult) -> SentinelAddress:
    name = unquote(url.path.strip("/"))
    if not name:
        raise ValueError("the master's name is missing")
    return SentinelAddress(_hosts(url, DEFAULT_SENTINEL_PORT), name, _login(url))


def _cluster(url: SplitResult) -> ClusterAddress:
    if url.path not in ("", "/"):
        raise ValueError("a cluster has no databases")
    return ClusterAddress(_hosts(url, DEFAULT_PORT), url.scheme == "rediss-cluster", _login(url))


def _hosts(url: SplitResult, default: int) -> tuple[tuple[str, int], ...]:
    return tuple(_host_and_port(place, default) for place in url.netloc.rpartition("@")[2].split(","))


def _host_and_port(place: str, default: int) -> tuple[str, int]:
    try:
        one = urlsplit(f"//{place}")
        host, port = one.hostname, one.port
    except ValueError:
        raise ValueError(f"{place!r} is not HOST:PORT") from None
    if not host or port == 0:
        raise ValueError(f"{place!r} is not HOST:PORT")
    return host, port or default


def _login(url: SplitResult) -> Optional[AnyLogin]:
    if url.fragment:
        raise ValueError("a fragment is not accepted")
    files = _login_files(url.query) if url.query else None
    login, at, _ = url.netloc.rpartition("@")
    if not at:
        return files
    if files is not None:
        raise ValueError("a login and files of one exclude each other")
    username, colon, password = login.partition(":")
    if not colon:
        raise ValueError("a user needs a password")
    return Login(unquote(username) or None, unquote(password))


def _login_files(query: str) -> LoginFiles:
    names = [field.partition("=") for field in query.split("&")]
    files = {name: unquote(path) for name, _, path in names}
    if (
        not files.keys() <= {"username-file", "password-file"}
        or len(files) < len(names)
        or "password-file" not in files
    ):
        raise ValueError("a query other than ?password-file=PATH and &username-file=PATH is not accepted")
    if not all(path.startswith("/") for path in files.values()):
        raise ValueError("the paths of the files must be absolute")
    return LoginFiles(files.get("username-file"), files["password-file"])
