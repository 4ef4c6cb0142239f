"""The command line of twistedproxy warm."""

from __future__ import annotations

from pathlib import Path

from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase

from twistedproxy.warm.options import WarmOptions

URL = "http://h/dicomweb/studies/1.2"


def parsed(*arguments: str, **environment: str) -> WarmOptions:
    options = WarmOptions(environment)
    options.parseOptions(arguments)
    return options


class OptionsTests(SynchronousTestCase):
    """What is accepted, and what is refused."""

    def test_defaults(self) -> None:
        """One at a time, ten minutes of patience, no headers."""
        options = parsed(URL)
        self.assertEqual((options["jobs"], options["patience"], options.headers), (1, 600.0, []))
        self.assertEqual([target.url for target in options.targets], [URL])

    def test_headers(self) -> None:
        """Headers come from the command line, from files and from the environment, in that order given."""
        path = Path(self.mktemp())
        path.write_text("Authorization: Bearer a:b\n\nX-One: 1\n")
        options = parsed("-H", "X-Zero: 0", "--header-file", str(path), "--header-env", "MINE", URL, MINE="Cookie: c=d")
        self.assertEqual(
            options.headers, [("X-Zero", "0"), ("Authorization", "Bearer a:b"), ("X-One", "1"), ("Cookie", "c=d")]
        )

    def test_refused(self) -> None:
        """An error names the option, and a header's value is not repeated."""
        for arguments, expected in (
            ([], "missing URL"),
            (["http://h/x"], "http://h/x"),
            (["-j", "0", URL], "1 to 64"),
            (["--patience", "-1", URL], "seconds"),
            (["--header-env", "NONE", URL], "NONE"),
            (["--header-file", "/no/such/file", URL], "/no/such/file"),
            (["--header", "Bearer secret", URL], "Name: value"),
            (["--header", "A b: secret", URL], "Name: value"),
            (["--header", "A: sec\nret", URL], "Name: value"),
        ):
            error = self.assertRaises(UsageError, parsed, *arguments)
            self.assertIn(expected, str(error))
            self.assertNotIn("secret", str(error))
