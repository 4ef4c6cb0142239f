"""docs/openapi.yaml is valid, and has the routes of the proxy: all of them, with their methods, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from openapi_spec_validator import validate
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.hot.support import HotProxy
from twistedproxy.dicomweb import paths
from twistedproxy.dicomweb.mounts import OWN
from twistedproxy.dicomweb.paths import ResourceKind, parse_resource
from twistedproxy.dicomweb.routes import ProxyRoutes
from twistedproxy.imaging.parameters import FRAMES, RENDERED

FILE = Path(__file__).parents[2] / "docs" / "openapi.yaml"
METHODS = frozenset(("get", "head", "post", "put", "delete", "options"))
ANYTHING = "/<path:anything>"
OF_STORES = frozenset(("accept",))
"""Parameters that frames and pictures have besides those of their making."""


class OpenAPITests(SynchronousTestCase):
    """The description and the routes."""

    def setUp(self) -> None:
        if not FILE.exists():
            raise SkipTest("the tests are run without their tree")
        self.described: dict[str, Any] = yaml.safe_load(FILE.read_text("utf-8"))

    def methods(self, template: str) -> set[str]:
        """The methods of a path, in capitals."""
        return {method.upper() for method in METHODS & self.described["paths"][template].keys()}

    def example(self, template: str) -> str:
        """A path with an example of each parameter."""
        known = self.described["components"]["parameters"]
        return re.sub(r"\{(\w+)\}", lambda name: str(known[name[1]]["example"]), template)

    def resources(self) -> dict[str, paths.Resource]:
        """What the paths below a mount are, by their templates."""
        below = [template for template in self.described["paths"] if template.encode() not in OWN]
        return {template: parse_resource(self.example(template).encode()) for template in below}

    def parameters(self, template: str, method: str = "get") -> set[str]:
        """The names of the query parameters of an operation."""
        known = self.described["components"]["parameters"]
        named = [
            known[one["$ref"].rpartition("/")[2]] for one in self.described["paths"][template][method]["parameters"]
        ]
        return {one["name"] for one in named if one["in"] == "query"}

    def test_valid(self) -> None:
        """It is OpenAPI 3.1, each parameter of a path is declared, and each reference leads somewhere."""
        self.assertTrue(self.described["openapi"].startswith("3.1"))
        validate(self.described)
        text = FILE.read_text("utf-8")
        for reference in set(re.findall(r'\$ref: "#/([\w/-]+)"', text)):
            place: Any = self.described
            for part in reference.split("/"):
                place = place[part]
        for template, item in self.described["paths"].items():
            declared = [one["$ref"].rpartition("/")[2] for one in item.get("parameters", ())]
            self.assertEqual(re.findall(r"\{(\w+)\}", template), declared, template)

    def test_methods(self) -> None:
        """Each path below a mount is a resource, with the methods that it has."""
        for template, resource in self.resources().items():
            self.assertEqual(set(resource.methods), self.methods(template), template)

    def test_all_resources(self) -> None:
        """No resource is left out: at no level, and of no kind."""
        study, series, instance = "/studies/1.2", "/series/1.2.3", "/instances/1.2.3.4"
        levels = {
            study: paths._OF_STUDY,
            study + series: paths._OF_SERIES,
            study + series + instance: paths._OF_INSTANCE,
            study + series + instance + "/frames/1": paths._OF_FRAMES,
            study + instance + "/frames/1": paths._OF_FRAMES,
        }
        wanted = {f"{base}/{name}".rstrip("/") for base, names in levels.items() for name in names}
        wanted |= {"/", "/studies", "/series", "/instances", *(f"/{service}" for service in paths._OTHER_SERVICES)}
        found = {self.example(template).replace("/frames/3,1,2", "/frames/1") for template in self.resources()}
        services = self.described["components"]["parameters"]["service"]["schema"]["enum"]
        found |= {f"/{service}" for service in services}
        self.assertEqual(set(), wanted - found)
        self.assertEqual(set(ResourceKind), {resource.kind for resource in self.resources().values()})

    def test_klein(self) -> None:
        """Each route of the Klein app is reached by a path, with all its methods, and each path reaches one."""
        rules = {rule.rule: rule for rule in ProxyRoutes.app.url_map.iter_rules()}
        reached: dict[str, set[str]] = {}
        for template, resource in self.resources().items():
            name = f"/{resource.kind.value}"
            reached.setdefault(name if name in rules else ANYTHING, set()).update(self.methods(template))
        for page in OWN:
            reached[page.decode()] = self.methods(page.decode())
        self.assertEqual(rules.keys(), reached.keys())
        for name, rule in rules.items():
            allowed = set(rule.methods or ())
            self.assertEqual(set(), allowed - reached[name], name)
            if name.encode() in OWN:
                self.assertEqual(allowed, reached[name])

    def test_answers(self) -> None:
        """A whole proxy answers 405 to the methods that a path does not have, and to no other, and names those that it has."""
        proxy = HotProxy(self, 0)
        everything = {method.upper() for method in METHODS}
        for template, resource in self.resources().items():
            target = "/dicomweb" + self.example(template).rstrip("/")
            for method in sorted(everything):
                reply = proxy.ask(f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
                if resource.kind is ResourceKind.CACHE:  # of another listener
                    self.assertEqual(404, reply.status, (method, target))
                    continue
                if method in self.methods(template):
                    self.assertNotEqual(405, reply.status, (method, target))
                    continue
                self.assertEqual(405, reply.status, (method, target))
                allow = re.search(rb"\r\nAllow: ([A-Z, ]+)", reply.head)
                assert allow is not None
                self.assertEqual(self.methods(template), set(allow[1].decode().split(", ")), target)

    def test_parameters(self) -> None:
        """Frames and pictures have the parameters that are understood there, and loads theirs."""
        for template, resource in self.resources().items():
            if resource.kind is ResourceKind.FRAMES:
                self.assertEqual(FRAMES | OF_STORES, self.parameters(template), template)
            elif resource.kind in (
                ResourceKind.FRAMES_RENDERED,
                ResourceKind.INSTANCE_RENDERED,
                ResourceKind.THUMBNAIL,
            ):
                self.assertEqual(RENDERED | OF_STORES, self.parameters(template), template)
            elif resource.kind is ResourceKind.PREFETCH:
                self.assertEqual({"again", "follow"}, self.parameters(template, "post"), template)
