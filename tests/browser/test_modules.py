"""The page's modules that need no browser, by node's own test runner; and its texts, which have a twin in the documentation."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from twistedproxy.page.files import STATIC

HERE = Path(__file__).parent
VIEWERS = HERE.parents[1] / "docs" / "viewers.md"


class ModuleTests(SynchronousTestCase):
    """`modules/*.test.mjs`."""

    def test_modules(self) -> None:
        """All of them pass."""
        node = shutil.which("node")
        if node is None:
            raise SkipTest("node is not installed")
        folder = Path(self.mktemp())
        shutil.copytree(STATIC, folder / "static")
        shutil.copytree(HERE / "modules", folder / "modules")
        (folder / "package.json").write_text('{"type": "module"}')  # as browsers take them
        command = [node, "--test", *(str(path) for path in sorted((folder / "modules").iterdir()))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(done.returncode, 0, done.stdout[-5000:] + done.stderr[-2000:])


class TextTests(SynchronousTestCase):
    """What the page says is said once."""

    def test_configurations(self) -> None:
        """The configurations to copy are those of docs/viewers.md."""
        if not VIEWERS.exists():
            raise SkipTest("the tests are run without their tree")
        source = (STATIC / "connect.js").read_text("utf-8")
        shown = dict(re.findall(r'name: "(.+?)",\n.*?code: `(.*?)(?<!\\)`', source, re.DOTALL))
        self.assertEqual(list(shown), ["OHIF", "Slim", "cornerstone3D", "OpenSeadragon", "dicomweb-client"])
        for name, text in shown.items():
            part = VIEWERS.read_text("utf-8").split(f"\n## {name}\n")[1].split("\n## ")[0]
            [block] = re.findall(r"^```(?:js|python)\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
            self.assertEqual(re.sub(r"\\([`$\\])", r"\1", text), block, name)

    def test_preloaded(self) -> None:
        """The document names each module, so that none is found only when another has come."""
        document = (STATIC / "index.html").read_text("utf-8")
        named = set(re.findall(r'"@ASSETS@/(\w+\.\w+)"', document))
        self.assertEqual(named, {path.name for path in STATIC.iterdir()} - {"index.html"})

    def test_imports(self) -> None:
        """Modules import what is there, and what they import is exported."""
        for path in STATIC.glob("*.js"):
            for names, module in re.findall(r'import \{([^}]*)\} from "\./(.+?)";', path.read_text("utf-8")):
                exported = set(
                    re.findall(
                        r"^export (?:async )?(?:class|const|function) (\w+)", (STATIC / module).read_text("utf-8"), re.M
                    )
                )
                self.assertEqual(
                    {name.strip() for name in names.split(",")} - exported, set(), f"{path.name}: {module}"
                )
