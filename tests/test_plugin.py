"""The command ``twistd twistedproxy``: found, light to find, and clear about mistakes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
from twisted.trial.unittest import SynchronousTestCase

import twistedproxy

TWISTD = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()")
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

    def test_bad_value(self) -> None:
        """A bad value ends the start with one last line that says what was wrong, and no traceback."""
        done = run(*TWISTD, "-n", "--pidfile=", "twistedproxy", "--origin", "nonsense")
        self.assertEqual(1, done.returncode)
        last = (done.stdout + done.stderr).rstrip().splitlines()[-1]
        for part in ("--origin", "'nonsense'", "sample:"):
            self.assertIn(part, last)
        self.assertNotIn("Traceback", done.stdout + done.stderr)

    def test_impossible_log(self) -> None:
        """What does not go together with twistd's own options is said in the same way."""
        done = run(*TWISTD, "-n", "--syslog", "--pidfile=", "twistedproxy", "--origin=sample:", "--log-format=json")
        self.assertEqual(1, done.returncode)
        self.assertIn("--log-format: 'json' came", (done.stdout + done.stderr).rstrip().splitlines()[-1])
        self.assertNotIn("Traceback", done.stdout + done.stderr)
