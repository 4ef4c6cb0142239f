"""The command ``twistedproxy``: runs the proxy in the foreground as ``twistd -n twistedproxy`` does, or ``twistedproxy warm``.

Signals and exit codes are twistd's. There is no pid file, which only a daemon needs: two proxies may run in one folder.
"""

from __future__ import annotations

import sys

from twisted.scripts import twistd

from twistedproxy.options.command import Options
from twistedproxy.warm.options import WarmOptions


class _Completed(Options):
    """What a shell completes; Twisted writes the completions of zsh (its function ``_twisted``), and of no other."""

    subCommands = [("warm", None, WarmOptions, "Load instances into the cache of a running proxy")]


def main() -> None:
    """The console script."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["warm"]:
        from twistedproxy.warm.command import main as warm

        return warm(arguments[1:])
    if arguments[-2:-1] == ["--_shell-completion"]:
        _Completed({}).parseOptions(arguments)  # and exit
    Options.program = "twistedproxy"
    sys.argv[1:] = ["--nodaemon", "--pidfile=", "twistedproxy", *arguments]
    twistd.run()


if __name__ == "__main__":
    main()
