"""deploy/Containerfile, compose.yaml and kubernetes/: valid by the published schemas, and fitting the proxy and each other."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from jsonschema import Draft202012Validator
from twisted.trial.unittest import SkipTest, SynchronousTestCase

import twistedproxy
from twistedproxy.options.command import Options
from twistedproxy.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES_VERSIONS = ("1.27", "1.37")
LABELS = {"app.kubernetes.io/name": "twistedproxy"}
SECONDS = re.compile(r"(\d+)s")


class DeployedCase(SynchronousTestCase):
    """Tests that read deploy/; skipped where they run without it."""

    def setUp(self) -> None:
        if not DEPLOY.exists():
            raise SkipTest("the tests are run without their tree")
        self.image = (DEPLOY / "Containerfile").read_text("utf-8")

    def image_environment(self) -> dict[str, str]:
        """The options that the image sets."""
        return dict(re.findall(r"\b(TWISTEDPROXY_[A-Z_]+)=(\S+)", self.image))

    @staticmethod
    def settings(environment: Mapping[str, str]) -> Settings:
        """What the proxy makes of it. Raises where it would not start."""
        options = Options(environment, lambda: _PLENTY)
        options.parseOptions([])
        return options.settings

    def image_user(self) -> int:
        [user] = re.findall(r"^USER (\d+):\1$", self.image, re.MULTILINE)
        return int(user)


class _Plenty:
    """The memory of a large machine."""

    total = available = 64 << 30


_PLENTY: Any = _Plenty()


class ContainerfileTests(DeployedCase):
    """Containerfile; `tests.deploy.image` builds and runs it."""

    def test_environment(self) -> None:
        """The image needs but an origin to start, listens where it says, and keeps all that it writes in the volume."""
        settings = self.settings({**self.image_environment(), "TWISTEDPROXY_ORIGIN": "http://store/dicom-web"})
        ports = [int(endpoint.split(":")[1]) for endpoint in (*settings.listen, settings.admin_listen or "")]
        [exposed] = re.findall(r"^EXPOSE (.*)$", self.image, re.MULTILINE)
        self.assertEqual(ports, [int(port) for port in exposed.split()])
        [volume] = re.findall(r"^VOLUME (\S+)$", self.image, re.MULTILINE)
        self.assertTrue(str(settings.cache.folder).startswith(volume + "/"), settings.cache)  # type: ignore[union-attr]
        self.assertEqual([volume] * 2, re.findall(r"^ *(?:TMPDIR|XDG_CACHE_HOME)=(\S+)", self.image, re.MULTILINE))
        self.assertIn(f"HTTPConnection('127.0.0.1', {ports[0]}, ", self.image)


class ComposeTests(DeployedCase):
    """compose.yaml."""

    def setUp(self) -> None:
        super().setUp()
        self.project = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
        self.proxy = self.project["services"]["proxy"]

    def test_schema(self) -> None:
        """It is a project by the Compose Specification."""
        errors = Draft202012Validator(get_builtin_schema("vendor.compose-spec")).iter_errors(self.project)
        self.assertEqual([], [f"{error.json_path}: {error.message}" for error in errors])

    def test_environment(self) -> None:
        """The proxy starts with it, in front of services that are there."""
        settings = self.settings({**self.image_environment(), **self.proxy["environment"]})
        hosts = {
            re.findall(r"//(\w+):", text)[0]
            for text in (settings.origin[0].url, self.proxy["environment"]["TWISTEDPROXY_CACHE"])
        }
        self.assertEqual(hosts, set(self.proxy["depends_on"]))
        self.assertLessEqual(hosts, self.project["services"].keys())

    def test_images(self) -> None:
        """All images have a version; the proxy's is that of the package, and is made from the Containerfile."""
        images = {name: service["image"].rpartition(":")[2] for name, service in self.project["services"].items()}
        for tag in images.values():
            self.assertRegex(tag, r"^\d+\.\d+\.\d+$")
        self.assertEqual(twistedproxy.__version__, images["proxy"])
        build = self.proxy["build"]
        self.assertTrue((DEPLOY / build["context"] / build["dockerfile"]).is_file())

    def test_locked(self) -> None:
        """The proxy can write to its volume only, and is given the time that it takes to stop."""
        self.assertEqual((True, ["ALL"]), (self.proxy["read_only"], self.proxy["cap_drop"]))
        [mount] = self.proxy["volumes"]
        self.assertIn(f"VOLUME {mount.split(':')[1]}\n", self.image)
        self.assertIn(mount.split(":")[0], self.project["volumes"])
        self.assertGreater(float(SECONDS.fullmatch(self.proxy["stop_grace_period"])[1]), _stop_deadline())  # type: ignore[index]

    def test_ports(self) -> None:
        """Only this host reaches any of it."""
        ports = [port for service in self.project["services"].values() for port in service.get("ports", ())]
        self.assertEqual([], [port for port in ports if not port.startswith("127.0.0.1:")])


class KubernetesTests(DeployedCase):
    """kubernetes/."""

    def setUp(self) -> None:
        super().setUp()
        paths = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
        self.objects = [each for path in paths for each in yaml.safe_load_all(path.read_text("utf-8"))]
        self.by_kind = {each["kind"]: each for each in self.objects}
        self.pod = self.by_kind["Deployment"]["spec"]["template"]["spec"]
        [self.container] = self.pod["containers"]

    def test_schemas(self) -> None:
        """All are what Kubernetes' own schemas describe, and nothing else."""
        kinds = {"ConfigMap", "Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget", "Secret"}
        self.assertEqual((kinds, len(kinds)), (set(self.by_kind), len(self.objects)))
        for version in KUBERNETES_VERSIONS:
            for each in self.objects:
                kubernetes_validate.validate(each, version, strict=True)

    def test_environment(self) -> None:
        """The proxy starts with the ConfigMap and the Secret."""
        secret = self.by_kind["Secret"]
        key = self.mktemp()
        Path(key).write_bytes(base64.b64decode(secret["data"]["secret"]))
        path = Path(self._mount("secret")) / self._volume("secret")["secret"]["items"][0]["path"]
        environment = {**self.image_environment(), **self.by_kind["ConfigMap"]["data"]}
        self.assertEqual(str(path), environment["TWISTEDPROXY_SECRET_FILE"])
        for entry in self.container["env"]:
            environment[entry["name"]] = secret["stringData"][entry["valueFrom"]["secretKeyRef"]["key"]]
        settings = self.settings({**environment, "TWISTEDPROXY_SECRET_FILE": key})
        limit = int(self.container["resources"]["limits"]["memory"].removesuffix("Gi")) << 30
        self.assertGreater(limit, settings.workers * (settings.hot_memory + settings.answer_memory) * 1.5)
        replicas = self.by_kind["Deployment"]["spec"]["replicas"]
        self.assertTrue(replicas == 1 or "redis" in environment["TWISTEDPROXY_CACHE"], "pods share no local cache")

    def test_names(self) -> None:
        """What one names, another one is."""
        name = "twistedproxy"
        self.assertEqual({name}, {each["metadata"]["name"] for each in self.objects})
        self.assertEqual([{"configMapRef": {"name": name}}], self.container["envFrom"])
        self.assertEqual(name, self._volume("secret")["secret"]["secretName"])
        deployment, service = self.by_kind["Deployment"]["spec"], self.by_kind["Service"]["spec"]
        constraints = [each["labelSelector"] for each in self.pod["topologySpreadConstraints"]]
        selectors = [deployment["selector"], self.by_kind["PodDisruptionBudget"]["spec"]["selector"], *constraints]
        self.assertEqual(
            [LABELS] * 6,
            [
                *(each["matchLabels"] for each in selectors),
                service["selector"],
                deployment["template"]["metadata"]["labels"],
            ],
        )
        ports = {port["name"]: port["containerPort"] for port in self.container["ports"]}
        self.assertIn(f"EXPOSE {ports['http']} {ports['metrics']}\n", self.image)
        self.assertEqual(["http"], [port["targetPort"] for port in service["ports"]])
        self.assertTrue(self.container["image"].endswith(f":{twistedproxy.__version__}"))

    def test_probes(self) -> None:
        """A start waits for cache and store; their failure neither restarts a pod nor takes all out of the Service."""
        probes = {kind: self.container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")}
        paths = {kind: (probe["httpGet"]["path"], probe["httpGet"]["port"]) for kind, probe in probes.items()}
        self.assertEqual(
            {"startup": ("/readyz", "http"), "readiness": ("/healthz", "http"), "liveness": ("/healthz", "http")}, paths
        )

    def test_metrics_are_for_monitoring(self) -> None:
        """From anywhere only the port for viewers is reached: at the other one instances are named and purged."""
        policy = self.by_kind["NetworkPolicy"]["spec"]
        self.assertEqual((["Ingress"], {"matchLabels": LABELS}), (policy["policyTypes"], policy["podSelector"]))
        rules = [(port["port"], bool(rule.get("from"))) for rule in policy["ingress"] for port in rule["ports"]]
        self.assertEqual([("http", False), ("metrics", True)], sorted(rules))

    def test_stop(self) -> None:
        """A pod has the time to stop in order."""
        [_, seconds] = self.container["lifecycle"]["preStop"]["exec"]["command"]
        self.assertGreater(self.pod["terminationGracePeriodSeconds"], float(seconds) + _stop_deadline())

    def test_locked(self) -> None:
        """It is not root, may do nothing special, and can write to its own limited volume only."""
        security = self.container["securityContext"]
        self.assertEqual((True, ["ALL"]), (security["readOnlyRootFilesystem"], security["capabilities"]["drop"]))
        self.assertFalse(security["allowPrivilegeEscalation"])
        user = self.image_user()
        context = self.pod["securityContext"]
        self.assertEqual(
            (True, user, user, user),
            tuple(context[name] for name in ("runAsNonRoot", "runAsUser", "runAsGroup", "fsGroup")),
        )
        self.assertIn(f"VOLUME {self._mount('cache')}\n", self.image)
        self.assertIn("sizeLimit", self._volume("cache")["emptyDir"])
        read_only = [mount["name"] for mount in self.container["volumeMounts"] if mount.get("readOnly")]
        self.assertEqual({"cache"}, {volume["name"] for volume in self.pod["volumes"]} - set(read_only))

    def _volume(self, name: str) -> Any:
        [volume] = [volume for volume in self.pod["volumes"] if volume["name"] == name]
        return volume

    def _mount(self, name: str) -> str:
        [mount] = [mount for mount in self.container["volumeMounts"] if mount["name"] == name]
        return str(mount["mountPath"])


def _stop_deadline() -> float:
    """How long the proxy itself waits for answers (seconds)."""
    return DeployedCase.settings({"TWISTEDPROXY_ORIGIN": "sample:"}).stop_deadline
