"""Which part of the package may import which: the layering that keeps each readable by itself.

Imports are read from the sources, those inside functions and for type checking too.
"""

from __future__ import annotations

import ast
import functools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import twistedproxy

PACKAGE = Path(twistedproxy.__file__).parent

DICOM = {"dicom"}
STORES = DICOM | {"cache", "origin"}
READING = STORES | {"series", "frames"}
BELOW = {
    "dicom": set(),
    "series": DICOM,
    "imaging": DICOM,
    "cache": DICOM,
    "origin": DICOM,
    "frames": STORES | {"series"},
    "prefetch": READING,
    "rendering": READING | {"imaging"},
    "server": set(),
    "hot": READING | {"server"},
    "dicomweb": READING | {"prefetch", "imaging", "rendering", "server", "hot"},
    "page": READING | {"prefetch", "server", "dicomweb"},
    "proxy": READING | {"prefetch", "rendering", "server", "hot", "dicomweb", "page"},
    "workers": READING | {"server", "proxy"},
    "options": set(),
    "service": {"server", "proxy", "workers", "options"},
    "warm": DICOM | {"options"},
    "__main__": {"options", "warm"},
}
"""What each layer may import, itself and what all share apart."""

SHARED = {"deferreds", "processes", "settings", "streams", "system"}
"""Layers that any other may import, and that import none but each other."""

EXCEPTIONS = {
    # Settings hold the cache's address as a value, and options make it.
    ("twistedproxy.settings", "twistedproxy.cache.address"),
    ("twistedproxy.options.command", "twistedproxy.cache.address"),
    ("twistedproxy.cache.address", "twistedproxy.options.sizes"),
    # Each setting is declared once, with the kind of value that its option takes.
    ("twistedproxy.settings", "twistedproxy.options.addresses"),
    ("twistedproxy.settings", "twistedproxy.options.values"),
}

PURE = tuple(
    f"twistedproxy.{name}."
    for name in (
        "dicom",
        "series",
        "imaging",
        "prefetch.plan",
        "prefetch.regions",
        "prefetch.rules",
        "prefetch.ahead.surroundings",
    )
)
"""Values in, values out: no Twisted, and nothing that waits."""

INPUT_OUTPUT = {
    "twisted",
    "klein",
    "treq",
    "txredisapi",
    "socket",
    "asyncio",
    "subprocess",
    "threading",
    "http",
    "urllib3",
}


@functools.cache
def modules() -> dict[str, set[str]]:
    """Every module of the package, by its dotted name, and the modules (or names in them) that it imports."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = (PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts)
        tree = ast.parse(path.read_bytes(), str(path))
        found[".".join(parts).removesuffix(".__init__")] = set(imports(tree))
    return found


def imports(tree: ast.AST) -> Iterator[str]:
    """The names that a module imports. Relative imports have no place here."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None and node.level == 0, ast.unparse(node)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(name: str) -> str:
    """The layer that a module is in; "" for what is not of the package."""
    package, _, rest = name.partition(".")
    return rest.split(".")[0] if package == PACKAGE.name else ""


class LayerTests(SynchronousTestCase):
    """The design's direction of imports."""

    def test_imports_point_down(self) -> None:
        """No layer imports one above or beside it."""
        wrong = []
        for module, imported in modules().items():
            own = layer(module)
            for name in imported:
                other = layer(name)
                allowed = SHARED | BELOW.get(own, set()) | {own, ""}
                excepted = any(module == user and name.startswith(used + ".") for user, used in EXCEPTIONS)
                if other not in allowed and not excepted:
                    wrong.append(f"{module} imports {name}")
        self.assertEqual([], wrong)

    def test_every_module_has_its_place(self) -> None:
        """A new layer needs a line above before it is imported."""
        self.assertEqual(BELOW.keys() | SHARED, {layer(module) for module in modules()} - {""})

    def test_exceptions_are_needed(self) -> None:
        """An exception that nothing uses any more is taken away."""
        found = modules()
        for user, used in EXCEPTIONS:
            self.assertTrue(any(name.startswith(used + ".") for name in found[user]), (user, used))

    def test_pure_modules(self) -> None:
        """Knowledge and plans do no input or output, and neither does what they import of the package."""
        found = modules()
        for start in (name for name in found if f"{name}.".startswith(PURE)):
            seen, waiting = set(), [start]
            while waiting:
                module = waiting.pop()
                seen.add(module)
                for name in found[module]:
                    self.assertNotIn(name.split(".")[0], INPUT_OUTPUT, f"{start}, by way of {module}")
                    near = {name, name.rpartition(".")[0]} & found.keys() - seen - {PACKAGE.name}
                    waiting.extend(near)


MAX_LINES = 320
MAX_MODULES = 16


class SizeTests(SynchronousTestCase):
    """What a reader can hold in mind."""

    def test_modules_are_short(self) -> None:
        """No module has more than `MAX_LINES` lines."""
        lengths = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
        self.assertEqual(set(), {name for name, length in lengths.items() if length > MAX_LINES})

    def test_folders_are_small(self) -> None:
        """No folder has more than `MAX_MODULES` modules."""
        modules = Counter(
            str(path.parent.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"
        )
        self.assertEqual(set(), {name for name, count in modules.items() if count > MAX_MODULES})

    def test_class_names_are_unique(self) -> None:
        """No two public classes have one name: a name means one thing in the whole product."""
        names = Counter(
            node.name
            for path in PACKAGE.rglob("*.py")
            for node in ast.parse(path.read_bytes()).body
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        )
        self.assertEqual(set(), {name for name, count in names.items() if count > 1})
