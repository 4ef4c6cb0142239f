"""``twistd twistedproxy``'s options: from the command line, else the environment, else the default, to `Settings`.

Rules:
- everything is checked here, at the start; what comes out needs no second look;
- an error is one line that names the option (or the variable), what came and what is accepted;
- what came is shown without passwords;
- an option that was removed is ignored with a warning for one release: services come back from an upgrade.

The table of options for the documentation: ``python -m twistedproxy.options.command`` prints it.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Optional

import attrs
from twisted.logger import Logger
from twisted.python import usage

import twistedproxy
from twistedproxy.cache.address import LEAST_LOCAL, LocalAddress, MemoryAddress, NoAddress
from twistedproxy.options.addresses import KEY_FILE, ORIGIN, read_secret
from twistedproxy.options.sizes import show_size
from twistedproxy.options.values import Rejected, ValueKind, reject_if
from twistedproxy.settings import MIB, REMOVED, Settings
from twistedproxy.system.logs import check_destination
from twistedproxy.system.machine_load import MemoryReading, read_memory

ENVIRONMENT_PREFIX = "TWISTEDPROXY_"
SHOWN_LENGTH = 120  # characters of a bad value in an error
# What Kubernetes and Docker links set for a service that is named twistedproxy: not meant for the proxy.
_FOREIGN_VARIABLE = re.compile(ENVIRONMENT_PREFIX + r"(?:SERVICE_(?:HOST|PORT)|PORT|NAME|ENV)(?:_.*)?")

_log = Logger()


@attrs.frozen
class Option:
    """One option, see `twistedproxy.options.values.setting`. *field*: of `Settings`; *words*: shown for a default that cannot
    be typed; *described*: for ``--help``."""

    field: str
    name: str
    group: str
    kind: ValueKind
    help: str
    repeatable: bool
    words: str
    shown_default: str
    described: str


def _option(field: str, default: Any, kind: ValueKind, help: str, shown: str, group: str) -> Option:
    clause, semicolon, rest = help.partition(";")
    sentence = f"{clause} ({kind.unit}){semicolon}{rest}" if kind.unit else help
    repeatable = isinstance(default, tuple)
    typed = shown or " ".join(map(kind.show, default if repeatable else [default]))
    described = f"{sentence}. [{'repeatable; ' * repeatable}{'default: ' * (shown != 'required')}{typed}]"
    return Option(field, field.replace("_", "-"), group, kind, sentence, repeatable, shown, typed, described)


OPTIONS = tuple(_option(each.name, each.default, **each.metadata) for each in attrs.fields(Settings) if each.metadata)


def variable(name: str) -> str:
    """The environment variable of the option *name*."""
    return ENVIRONMENT_PREFIX + name.replace("-", "_").upper()


class Command(usage.Options):
    """The options of a command of this package."""

    def opt_version(self) -> None:
        """Display the versions of twistedproxy and Twisted and exit."""
        print(f"twistedproxy: {twistedproxy.__version__}\nTwisted: {version('twisted')}")
        sys.exit(0)


class Options(Command):
    """All options of the proxy. *settings*: the outcome, after `parseOptions`; *program*: what was started, for help."""

    settings: Settings
    program = "twistd twistedproxy"
    synopsis = "--origin [PREFIX=]URL [options]"
    longdesc = (
        "Each option can also be set in the environment: --frame-ttl as TWISTEDPROXY_FRAME_TTL, repeatable ones "
        "separated by spaces; the command line takes precedence, and an empty variable counts as unset. k, M, G and T are powers of "
        "1024. twistd's own options come before the word twistedproxy: twistd -n --logfile=FILE twistedproxy [options]. "
        "Loading instances into the cache of a running proxy: twistedproxy warm --help."
    )
    optParameters = [
        *([option.name, None, None, option.described] for option in OPTIONS),
        *([name, None, None, f"Removed: {reason}. [ignored]"] for name, reason in REMOVED.items()),
    ]
    compData = usage.Completions(multiUse=[option.name for option in OPTIONS if option.repeatable])

    def __init__(
        self, environ: Mapping[str, str] = os.environ, memory: Callable[[], MemoryReading] = read_memory
    ) -> None:
        super().__init__()
        self._environ = environ
        self._memory = memory
        self._typed: dict[str, list[str]] = {}

    def __setitem__(self, name: str, text: str) -> None:
        """Called for each option on the command line. All values are kept: some options are repeatable."""
        self._typed.setdefault(name, []).append(text)

    def getSynopsis(self) -> str:
        return f"Usage: {self.program} {self.synopsis}"

    def parseOptions(self, options: Optional[Sequence[str]] = None) -> None:
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            message = _explained(str(error))
            if self.parent is None:
                raise usage.UsageError(message) from None
            # For a UsageError, twistd would print all of the help first.
            sys.exit(f"twistedproxy: {message} (help: {self.program} --help)")

    def parseArgs(self, *arguments: str) -> None:
        reject_if(arguments, f"unexpected argument {_shown(' '.join(arguments))}; only options are accepted")

    def postOptions(self) -> None:
        self._check_variables()
        self._warn_of_removed()
        values: dict[str, Any] = {}
        for option in OPTIONS:
            source, texts = self._given(option)
            if each := [parsed(option.kind, source, text) for text in texts]:
                values[option.field] = tuple(dict.fromkeys(each)) if option.repeatable else each[0]
        self.settings = self._checked(values)
        if self.parent is not None:
            check_destination(self.settings.log_format, self.parent)

    def _given(self, option: Option) -> tuple[str, list[str]]:
        """Where values of *option* come from, and their texts."""
        if texts := self._typed.get(option.name):
            return f"--{option.name}", texts if option.repeatable else texts[-1:]
        text = self._environ.get(variable(option.name), "").strip()
        return variable(option.name), text.split() if option.repeatable else [text] * bool(text)

    def _check_variables(self) -> None:
        """Refuse variables that look like options and are none: most likely misspelled."""
        known = [variable(option.name) for option in OPTIONS]
        for name in sorted(self._environ.keys() - {*known, *map(variable, REMOVED)}):
            if name.startswith(ENVIRONMENT_PREFIX) and not _FOREIGN_VARIABLE.fullmatch(name):
                raise Rejected(f"{name}: no option has this variable{_suggestion(name, known)}")

    def _warn_of_removed(self) -> None:
        for name, reason in REMOVED.items():
            if name in self._typed or self._environ.get(variable(name)):
                _log.warn(
                    "--{option} ({variable}) was removed: {reason}. It is ignored, and the next release will refuse it",
                    event="option_removed",
                    option=name,
                    variable=variable(name),
                    reason=reason,
                )

    def _checked(self, values: dict[str, Any]) -> Settings:
        """Settings from values that are good by themselves, and must also go together."""
        prefixes = Counter(mount.prefix for mount in values.get("origin", ()))
        reject_if(not prefixes, f"--origin: at least one is required; expected {ORIGIN.accepted}")
        for prefix, count in prefixes.items():
            reject_if(count > 1, f"--origin: {count} origins have the prefix {prefix}; each needs a PREFIX of its own")
        _check_prefixes("--follow-changes", values.get("follow_changes", ()), "--origin", values["origin"])
        logins = values.get("follow_changes_login", ())
        _check_prefixes("--follow-changes-login", logins, "--follow-changes", values.get("follow_changes", ()))
        memory = self._memory()
        for field in ("cache_memory", "hot_memory"):
            given, had = values.get(field, 0), f"more than the {memory.total // MIB}M that this machine has"
            reject_if(given > memory.total, f"--{field.replace('_', '-')}: {show_size(given)} is {had}")
        if path := values.get("secret_file"):
            # Now, while the process may still have the rights to read it.
            values["secret"] = parsed(attrs.evolve(KEY_FILE, parse=read_secret), "--secret-file", path)
        cache = values.get("cache", LocalAddress())
        if isinstance(cache, LocalAddress) and cache.size is None and "cache_memory" in values:
            values["cache"] = attrs.evolve(cache, size=max(LEAST_LOCAL, values["cache_memory"]))
        settings = Settings(**{"cache_memory": max(MIB, memory.available // 2), **values})
        reject_if(
            isinstance(settings.cache, MemoryAddress) and settings.workers > 1,
            f"--cache: 'memory' cannot be used with --workers {settings.workers}, because workers share no memory; "
            "use 'local' or a server, or --workers 1",
        )
        reject_if(
            settings.near_cache is not None and isinstance(settings.cache, (LocalAddress, MemoryAddress, NoAddress)),
            f"--near-cache: it stands in front of a cache on a server, and --cache is {settings.cache.where!r}; "
            "expected a server there, or no near cache",
        )
        reject_if(
            settings.admin_listen in settings.listen,
            f"--admin-listen: {settings.admin_listen!r} is also given to --listen; expected another endpoint",
        )
        return settings


def _check_prefixes(option: str, given: Sequence[Any], other: str, among: Sequence[Any]) -> None:
    """Refuse values of *option* for prefixes that *other* does not have, and several for one."""
    prefixes = Counter(each.prefix for each in given)
    for prefix, count in prefixes.items():
        reject_if(prefix not in [each.prefix for each in among], f"{option}: no {other} has the prefix {prefix}")
        reject_if(count > 1, f"{option}: {count} values have the prefix {prefix}; expected one")


def parsed(kind: ValueKind, source: str, text: str) -> Any:
    """The value of *text*, which came from the option or variable *source*. Raises `usage.UsageError`."""
    try:
        return kind.parse(text)
    except ValueError as error:  # of the cache's own parser: it names the value and what is accepted
        raise Rejected(f"{source}: {error}") from None
    except Rejected as error:
        reason = f" ({error})" if str(error) else ""
        raise Rejected(f"{source}: invalid value {_shown(text)}{reason}; expected {kind.accepted}") from None


def _explained(error: str) -> str:
    """getopt's errors name the option only: add what is accepted."""
    accepted = {option.name: option.kind.accepted for option in OPTIONS}
    if match := re.fullmatch(r"option --(\S+) requires argument", error):
        return f"--{match[1]}: missing value; expected {accepted.get(match[1], 'any value')}"
    if match := re.fullmatch(r"option --(\S+) not recognized", error):
        return f"--{match[1]}: unknown option{_suggestion(match[1], list(accepted), '--')}"
    return error


def _suggestion(name: str, known: Sequence[str], dashes: str = "") -> str:
    """What may have been meant, if anything is close."""
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {dashes}{close[0]}?" if close else ""


def _shown(text: str) -> str:
    """A value for an error: one line, no password, not too long."""
    hidden = re.sub(r"//.*@", "//...@", text, flags=re.DOTALL)
    return repr(hidden if len(hidden) <= SHOWN_LENGTH else hidden[:SHOWN_LENGTH] + "...")


BEGIN = "<!-- options: made by python -m twistedproxy.options.command -->"
END = "<!-- /options -->"


def markdown() -> str:
    """The table, between its two markers."""
    lines = [BEGIN, "| option | default | |", "|---|---|---|"]
    for option in OPTIONS:
        if option.group:
            lines.append(f"| **{option.group}** | | |")
        name = f"`--{option.name} {option.kind.placeholder}`{', repeatable' * option.repeatable}"
        # Words that stand for a default are not shown as if they could be typed.
        cells = (name, option.words or f"`{option.shown_default}`", option.help)
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join([*lines, END])


if __name__ == "__main__":
    print(markdown())
