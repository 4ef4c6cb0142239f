"""README.md, docs/ and deploy/ agree with each other and with the product."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import twistedproxy
from twistedproxy.options import command
from twistedproxy.options.command import Options

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
README_LINES = 200

FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^()\s]+)\)")
SPAN = re.compile(r"`([^`\n]+)`")
FOREIGN_FLAGS = frozenset("again build-arg follow format header-env help logfile pidfile stay uid version".split())
"""Options of other commands that the pages mention: twistd's, `twistedproxy warm`'s, the browser page's, podman's."""


def deployed_files() -> list[Path]:
    """The files of deploy/ and of its folders."""
    return [path for path in DEPLOY.rglob("*") if path.is_file()]


class PagesCase(SynchronousTestCase):
    """Tests that read the tree; skipped where they run without it."""

    def setUp(self) -> None:
        if not (ROOT / "docs").exists():
            raise SkipTest("the tests are run without their tree")
        self.pages = {
            path: path.read_text("utf-8")
            for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md"))
        }


def anchors(text: str) -> Iterator[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    for heading in re.findall(r"^#+ +(.*)$", FENCED.sub("", text), re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def links(text: str) -> Iterator[tuple[str, str]]:
    """File and anchor of each link that stays in the tree; "" for the page itself."""
    for target in LINK.findall(FENCED.sub("", text)):
        if not re.match(r"[a-z]+:", target):
            name, _, anchor = target.partition("#")
            yield name, anchor


class ReadmeTests(PagesCase):
    """README.md."""

    def test_short(self) -> None:
        """It stays short: the rest is in docs/."""
        self.assertLessEqual(len(self.pages[ROOT / "README.md"].splitlines()), README_LINES)

    def test_commands(self) -> None:
        """The two marked commands are there once, each in a fenced block right after its marker."""
        for marker in ("run", "tests"):
            found = re.findall(rf"^<!-- command: {marker} -->\n```\n(.+)\n```$", self.pages[ROOT / "README.md"], re.M)
            self.assertEqual(len(found), 1, marker)

    def test_every_page_is_linked(self) -> None:
        """README.md leads to every page."""
        named = {name for name, _ in links(self.pages[ROOT / "README.md"])}
        self.assertEqual({f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} - named, set())


class LinkTests(PagesCase):
    """Links between the pages, and to files."""

    def test_resolve(self) -> None:
        """Every link leads to a file that exists, and to a heading of it."""
        broken = []
        for page, text in self.pages.items():
            for name, anchor in links(text):
                target = (page.parent / name).resolve() if name else page
                there = self.pages.get(target, "")
                if not target.is_file() or (anchor and anchor not in set(anchors(there))):
                    broken.append(f"{page.relative_to(ROOT)}: {name}#{anchor}")
        self.assertEqual(broken, [])


class OptionTests(PagesCase):
    """Options as the pages and deploy/ name them."""

    def test_table(self) -> None:
        """docs/options.md has the table that the options make."""
        text = self.pages[ROOT / "docs" / "options.md"]
        table = text[text.index(command.BEGIN) : text.index(command.END) + len(command.END)]
        self.assertEqual(command.markdown(), table)

    def test_flags_exist(self) -> None:
        """Every option that begins a piece of code in the text is one."""
        known = {option.name for option in command.OPTIONS} | FOREIGN_FLAGS
        current = {page: text for page, text in self.pages.items() if page.name not in ("CHANGELOG.md", "upgrading.md")}
        for page, text in current.items():
            for span in SPAN.findall(FENCED.sub("", text)):
                if match := re.match(r"--([a-z][a-z-]*)", span):
                    self.assertIn(match[1], known, page.name)

    def test_variables_exist(self) -> None:
        """Every variable in the pages and in deploy/ is that of an option."""
        known = {command.variable(option.name) for option in command.OPTIONS}
        texts = [*self.pages.values(), *(path.read_text("utf-8") for path in deployed_files())]
        found = {name for text in texts for name in re.findall(r"TWISTEDPROXY_[A-Z][A-Z_]*[A-Z]", text)}
        self.assertEqual(found - known, set())


class DeployTests(PagesCase):
    """The files of deploy/. `tests.deploy`, `tests.live.test_nginx` and `tests.cache.test_own_redis` run most of them."""

    def deployed(self, name: str) -> str:
        return (DEPLOY / name).read_text("utf-8")

    def test_linked(self) -> None:
        """docs/operating.md links to every file."""
        linked = {name for name, _ in links(self.pages[ROOT / "docs" / "operating.md"])}
        self.assertEqual({f"../deploy/{path.relative_to(DEPLOY)}" for path in deployed_files()} - linked, set())

    def test_environment(self) -> None:
        """The environment file is accepted as it is."""
        lines = [line for line in self.deployed("environment").splitlines() if line and not line.startswith("#")]
        options = Options(dict(line.split("=", 1) for line in lines))
        options.parseOptions([])
        self.assertEqual(len(options.settings.listen), 1)

    def test_environment_decides(self) -> None:
        """The unit passes no option as an argument, which would override the environment file."""
        [start] = re.findall(r"^ExecStart=(.*)$", self.deployed("twistedproxy.service"), re.MULTILINE)
        self.assertTrue(start.endswith(" twistedproxy"), start)

    def test_one_socket(self) -> None:
        """nginx connects to where the proxy listens, with and without the socket unit."""
        path = "/run/twistedproxy/http.sock"
        self.assertIn(f"server unix:{path};", self.deployed("nginx.conf"))
        self.assertIn(f"\nTWISTEDPROXY_LISTEN=unix:{path}:", self.deployed("environment"))
        self.assertIn(f"\nListenStream={path}\n", self.deployed("twistedproxy.socket"))


class MapTests(PagesCase):
    """The map in docs/architecture.md."""

    def test_complete(self) -> None:
        """It names every folder and module at the top of the package."""
        rows = re.findall(r"^\|(.*?)\|", self.pages[ROOT / "docs" / "architecture.md"].split("\n## ")[1], re.MULTILINE)
        named = {span.rstrip("/") for row in rows for span in SPAN.findall(row)}
        package = Path(twistedproxy.__file__).parent
        there = {path.name for path in package.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
        there |= {path.name for path in package.glob("*.py")} - {"__init__.py"}
        self.assertEqual(there - named, set())
        self.assertEqual(named - there - {"twistedproxy", "tests"}, set())
