"""``twistd twistedproxy``'s options: from the command line, else the environment, else the default, to `Settings`.

Rules:
- everything is checked here, at the start; what comes out needs no second look;
- an error is one line that names the option (or the variable), what came and what is accepted;
- what came is shown without passwords.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Optional

from twisted.python import usage

from twistedproxy.cache.address import MemoryAddress
from twistedproxy.options import addresses
from twistedproxy.options.table import ENVIRONMENT_PREFIX, OPTIONS, Option
from twistedproxy.options.values import Explained, Rejected, show_size
from twistedproxy.settings import MIB, Settings
from twistedproxy.system.logs import check_destination
from twistedproxy.system.resources import MemoryReading, read_memory

SHOWN_LENGTH = 120  # characters of a bad value in an error
# What Kubernetes and Docker links set for a service that is named twistedproxy: not meant for us.
_FOREIGN_VARIABLE = re.compile(ENVIRONMENT_PREFIX + r"(?:SERVICE_(?:HOST|PORT)|PORT|NAME|ENV)(?:_.*)?")


def print_versions() -> None:
    """What ``--version`` says."""
    try:
        own = version("twistedproxy")
    except PackageNotFoundError:  # run from the source tree
        own = "not installed"
    print(f"twistedproxy: {own}\nTwisted: {version('twisted')}")


class Options(usage.Options):
    """All options of the proxy. After parsing, `settings` holds the outcome."""

    synopsis = "--origin [PREFIX=]URL [options]"
    longdesc = (
        "Each option may also come from the environment: --frame-ttl as TWISTEDPROXY_FRAME_TTL, repeatable ones "
        "separated by spaces; the command line wins, and an empty variable counts as unset. k, M and G are powers "
        "of 1024. Options of twistd itself, such as --pidfile= and --logfile, stand before the word twistedproxy."
    )

    optParameters = [
        [option.name, None, None, f"{option.help}. [{option.facts}]"] for option in OPTIONS if not option.repeatable
    ]

    def __init__(
        self,
        environ: Optional[Mapping[str, str]] = None,
        memory: Callable[[], MemoryReading] = read_memory,
    ) -> None:
        super().__init__()
        self._environ = os.environ if environ is None else environ
        self._memory = memory
        self._repeated: dict[str, list[str]] = {}
        self._settings: Optional[Settings] = None

    @property
    def settings(self) -> Settings:
        """The validated settings; only after `parseOptions`."""
        if self._settings is None:
            raise RuntimeError("the options were not parsed yet")
        return self._settings

    def parseOptions(self, options: Optional[Sequence[str]] = None) -> None:
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            raise usage.UsageError(_explained(str(error))) from None

    def opt_version(self) -> None:
        """Display the versions of twistedproxy and Twisted and exit."""
        print_versions()
        sys.exit(0)

    def parseArgs(self, *arguments: str) -> None:
        if arguments:
            raise usage.UsageError(f"{_shown(arguments[0])} came, and only options are accepted: see --help")

    def postOptions(self) -> None:
        self._check_variables()
        values = {option.field: value for option in OPTIONS if (value := self._value(option)) is not _ABSENT}
        self._settings = self._checked(values)
        if self.parent is not None:
            check_destination(self._settings.log_format, self.parent)

    def _check_variables(self) -> None:
        """Refuse variables that look like ours and are none: most likely misspelt."""
        known = [option.variable for option in OPTIONS]
        for name in sorted(self._environ):
            if not name.startswith(ENVIRONMENT_PREFIX) or name in known or _FOREIGN_VARIABLE.fullmatch(name):
                continue
            close = difflib.get_close_matches(name, known, 1, 0)[0]
            raise usage.UsageError(f"{name}: no option has this variable; the nearest one is {close}")

    def _given(self, option: Option) -> tuple[str, list[str]]:
        """Where values of *option* came from, and their texts."""
        texts = self._repeated.get(option.name, []) if option.repeatable else [self[option.name]]
        if texts and texts[0] is not None:
            return option.flag, texts
        text = self._environ.get(option.variable, "").strip()
        return option.variable, (text.split() if option.repeatable else [text] if text else [])

    def _value(self, option: Option) -> Any:
        source, texts = self._given(option)
        if not texts:
            return _ABSENT
        values = [_parsed(option, source, text) for text in texts]
        if not option.repeatable:
            return values[0]
        return tuple(dict.fromkeys(values))

    def _checked(self, values: dict[str, Any]) -> Settings:
        """Settings from single values, each of them good, that must also go together."""
        mounts = values.get("origin", ())
        if not mounts:
            raise usage.UsageError(f"--origin: nothing came; at least one is required: {addresses.ORIGIN_ACCEPTED}")
        prefixes = [mount.prefix for mount in mounts]
        for prefix in prefixes:
            if prefixes.count(prefix) > 1:
                raise usage.UsageError(
                    f"--origin: {prefixes.count(prefix)} origins came for {prefix}; each needs a PREFIX of its own"
                )
        settings = Settings(**{**self._cache_memory(), **values, **_secret(values)})
        self._check_memory(values)
        if isinstance(settings.cache, MemoryAddress) and settings.workers > 1:
            raise usage.UsageError(
                f"--cache: 'memory' came with --workers {settings.workers}; workers share no memory: "
                "embedded or a server is accepted, or --workers 1"
            )
        if settings.admin_listen in settings.listen:
            raise usage.UsageError(
                f"--admin-listen: {_shown(str(settings.admin_listen))} came; an endpoint that --listen does not have "
                "is accepted"
            )
        return settings

    def _cache_memory(self) -> dict[str, int]:
        """What the embedded cache gets if nobody says otherwise."""
        return {"cache_memory": max(MIB, self._memory().available // 2)}

    def _check_memory(self, values: Mapping[str, Any]) -> None:
        """Refuse to promise memory that the machine, or the container, does not have."""
        total = self._memory().total
        for option in OPTIONS:
            given = values.get(option.field)
            if option.field in ("cache_memory", "hot_memory") and given is not None and given > total:
                raise usage.UsageError(
                    f"{option.flag}: {show_size(given)} came; this machine has {total // MIB}M, and no more is accepted"
                )


class _Absent:
    """No value came."""


_ABSENT = _Absent()


def _parsed(option: Option, source: str, text: str) -> Any:
    try:
        return option.kind.parse(text)
    except Explained as error:
        raise usage.UsageError(f"{source}: {error}") from None
    except ValueError as error:
        reason = f" ({error})" if isinstance(error, Rejected) and str(error) else ""
        raise usage.UsageError(f"{source}: {_shown(text)} came{reason}; accepted: {option.kind.accepted}") from None


def _explained(error: str) -> str:
    """getopt's errors name the option only: say what is accepted too."""
    if match := re.fullmatch(r"option --(\S+) requires argument", error):
        accepted = next((option.kind.accepted for option in OPTIONS if option.name == match[1]), "a value")
        return f"--{match[1]}: no value came; accepted: {accepted}"
    if match := re.fullmatch(r"option --(\S+) not recognized", error):
        close = difflib.get_close_matches(match[1], [option.name for option in OPTIONS], 1, 0)
        return f"--{match[1]}: there is no such option; the nearest one is --{close[0]}"
    return error


def _secret(values: Mapping[str, Any]) -> dict[str, bytes]:
    """The key from the secret file: read now, while the process may still have the rights to."""
    path: Optional[str] = values.get("secret_file")
    if path is None:
        return {}
    try:
        return {"secret": addresses.read_secret(path)}
    except Rejected as error:
        accepted = next(option.kind.accepted for option in OPTIONS if option.name == "secret-file")
        raise usage.UsageError(f"--secret-file: {_shown(path)} came ({error}); accepted: {accepted}") from None


def _shown(text: str) -> str:
    """A value for an error: one line, no password, not too long."""
    hidden = re.sub(r"//.*@", "//...@", text, flags=re.DOTALL)
    return repr(hidden if len(hidden) <= SHOWN_LENGTH else hidden[:SHOWN_LENGTH] + "...")


def _collector(option: Option) -> Callable[[Options, str], None]:
    """The handler of a repeatable option, as `usage.Options` finds it by its name and describes it by its docstring."""

    def collect(self: Options, text: str) -> None:
        self._repeated.setdefault(option.name, []).append(text)

    collect.__doc__ = f"{option.help}. [{option.facts}]"
    return collect


for _option in OPTIONS:
    if _option.repeatable:
        setattr(Options, f"opt_{_option.field}", _collector(_option))


def parse(arguments: Sequence[str], environ: Optional[Mapping[str, str]] = None) -> Settings:
    """Settings from command line *arguments* and *environ* (none unless given), for tests and tools."""
    options = Options({} if environ is None else environ)
    options.parseOptions(list(arguments))
    return options.settings
