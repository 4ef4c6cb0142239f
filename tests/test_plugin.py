"""The commands ``twistd twistedproxy`` and ``twistedproxy``: found, light to find, and clear about mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
from twisted.trial.unittest import SynchronousTestCase

import twistedproxy
from tests.running import Proxy
from twistedproxy.options.command import OPTIONS
from twistedproxy.settings import REMOVED

TWISTD = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()")
CONSOLE = (sys.executable, "-m", "twistedproxy")
LIGHT = ("--origin", "file:.", "--cache", "memory", "--render-workers", "0")
PACKAGE = Path(twistedproxy.__file__).parent


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run *command* with this twistedproxy on the path, and without settings from the environment."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TWISTEDPROXY_")}
    environ["PYTHONPATH"] = str(PACKAGE.parent)
    return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60, check=False)


class PluginTests(SynchronousTestCase):
    """The plugin."""

    def test_found(self) -> None:
        """Twisted finds one service maker of our name."""
        [maker] = [plugin for plugin in getPlugins(IServiceMaker) if plugin.tapname == "twistedproxy"]
        self.assertEqual("twistedproxy.service", maker.module)

    def test_imports_nothing(self) -> None:
        """Reading the plugin imports neither a reactor nor the proxy: every twistd command does it."""
        done = run(
            sys.executable,
            "-c",
            "import sys; import twisted.plugins.twistedproxy_plugin; "
            "print([name for name in ('twistedproxy', 'twisted.internet.reactor', 'klein') if name in sys.modules])",
        )
        self.assertEqual("[]\n", done.stdout, done.stderr)


class CommandTests(SynchronousTestCase):
    """A real twistd."""

    def test_help(self) -> None:
        """``twistd --help`` shows the command."""
        self.assertIn("twistedproxy", run(*TWISTD, "--help").stdout)

    def test_own_help(self) -> None:
        """``twistd twistedproxy --help`` explains the options and ends well."""
        done = run(*TWISTD, "-n", "twistedproxy", "--help")
        self.assertEqual(0, done.returncode, done.stderr)
        self.assertIn("--whole-instance-max-frames=", done.stdout)

    def test_mistakes(self) -> None:
        """A mistake ends the start with one line: what was wrong, what is accepted, and where help is."""
        twistd = (*TWISTD, "-n", "twistedproxy")
        for command, arguments, parts in (
            (twistd, ("--origin", "nonsense"), ("--origin", "'nonsense'", "sample:")),
            (twistd, ("--origin=sample:", "--frame-tll=3"), ("--frame-tll", "--frame-ttl")),
            (twistd, ("--origin=sample:", "--workers", "0"), ("--workers", "'0'", "from 1")),
            (twistd, ("--origin=sample:", "--workers"), ("--workers", "missing value", "from 1")),
            (twistd, (), ("--origin", "required", "(help: twistd twistedproxy --help)")),
            (CONSOLE, (), ("--origin", "required", "(help: twistedproxy --help)")),
        ):
            done = run(*command, *arguments)
            self.assertEqual((1, "", 1), (done.returncode, done.stdout, done.stderr.count("\n")), done)
            for part in ("twistedproxy: ", *parts):
                self.assertIn(part, done.stderr)

    def test_impossible_log(self) -> None:
        """What does not go together with twistd's own options is refused in the same way."""
        done = run(*TWISTD, "-n", "--syslog", "--pidfile=", "twistedproxy", "--origin=sample:", "--log-format=json")
        self.assertEqual((1, 1), (done.returncode, (done.stdout + done.stderr).count("\n")))
        self.assertIn("--log-format: 'json' cannot be used", done.stderr)


class ConsoleProxy(Proxy):
    """The proxy as the console script starts it."""

    command = CONSOLE


class ConsoleTests(SynchronousTestCase):
    """The console script, as ``python -m twistedproxy``."""

    def test_version(self) -> None:
        """The version is that of the package."""
        done = run(*CONSOLE, "--version")
        self.assertEqual(
            (0, f"twistedproxy: {twistedproxy.__version__}"), (done.returncode, done.stdout.splitlines()[0])
        )

    def test_help(self) -> None:
        """Help is that of the proxy's options, without twistd's."""
        done = run(*CONSOLE, "--help")
        self.assertEqual((0, ""), (done.returncode, done.stderr))
        self.assertTrue(done.stdout.startswith("Usage: twistedproxy --origin [PREFIX=]URL [options]\n"), done.stdout)
        self.assertNotIn("--nodaemon", done.stdout)

    def test_serves_until_a_signal(self) -> None:
        """It serves, and ends by the signal that stops it, as twistd does, without a file in its folder."""
        # A shell has what it starts in the background ignore SIGINT, and children inherit that.
        self.addCleanup(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler))
        for number in (signal.SIGTERM, signal.SIGINT):
            proxy = ConsoleProxy(*LIGHT)
            self.addCleanup(proxy.remove)
            proxy.wait_until_ready()
            self.assertEqual({"cache", "output"}, {path.name for path in proxy.folder.iterdir()} | {"cache"})
            proxy.send(number)
            self.assertEqual(-number, proxy.process.wait(15), proxy.output())

    def test_failed_start(self) -> None:
        """A start that fails has the exit code of twistd's."""
        taken = ConsoleProxy(*LIGHT)
        self.addCleanup(taken.remove)
        taken.wait_until_ready()
        done = run(*CONSOLE, *LIGHT, "--listen", f"tcp:{taken.port}:interface=127.0.0.1")
        self.assertEqual(1, done.returncode, done)
        self.assertIn("twistedproxy could not start: ", done.stderr.splitlines()[-1])

    def test_warm(self) -> None:
        """``twistedproxy warm`` is the command that loads instances."""
        done = run(*CONSOLE, "warm", "--no-such-option")
        self.assertEqual((2, 1), (done.returncode, done.stderr.count("\n")), done)
        self.assertIn("twistedproxy warm", done.stderr)

    def test_completion(self) -> None:
        """zsh's function for Twisted's commands completes options, ``warm`` and the options of that."""
        for words, expected in (
            (("--wor",), "'--workers=["),
            (("--origin", "sample:", "--ori"), "'*--origin=["),
            (("wa",), '"warm:'),
            (("warm", "--hea"), "'--header-file=["),
        ):
            done = run(*CONSOLE, *words, "--_shell-completion", f"zsh:{len(words) + 1}")
            self.assertTrue(done.stdout.startswith("#compdef "), done)
            self.assertIn(expected, done.stdout)


class UpgradedProxy(Proxy):
    """The proxy of a release that has removed two options."""

    program = f"import twistedproxy.settings as s; s.REMOVED = {{'old-one': 'why', 'new-one': 'so'}}; {Proxy.program}"
    command = (sys.executable, "-c", program, "-n", "--pidfile=", "twistedproxy")


class RemovedTests(SynchronousTestCase):
    """Options that were removed."""

    def test_ignored_with_a_warning(self) -> None:
        """A removed option, on the command line or in the environment, is ignored for a release, with one warning."""
        environment = {"TWISTEDPROXY_NEW_ONE": "3", "TWISTEDPROXY_OLD_ONE": "4"}
        proxy = UpgradedProxy(*LIGHT, "--old-one=5", "--old-one", "6", "--log-format=json", environment=environment)
        self.addCleanup(proxy.remove)
        proxy.wait_until_ready()
        proxy.stop()
        events = [json.loads(line) for line in proxy.output().splitlines()]
        warnings = [event for event in events if event.get("event") == "option_removed"]
        self.assertEqual(
            [("old-one", "why", "warn"), ("new-one", "so", "warn")],
            [(event["option"], event["reason"], event["level"]) for event in warnings],
        )

    def test_table(self) -> None:
        """What is in the table is no option any more, and has a reason."""
        self.assertEqual(set(), REMOVED.keys() & {option.name for option in OPTIONS})
        self.assertTrue(all(REMOVED.values()))
