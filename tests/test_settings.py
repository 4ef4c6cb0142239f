"""Settings: frozen values with the options' defaults."""

from __future__ import annotations

import ast
from pathlib import Path

import attrs
from twisted.trial.unittest import SynchronousTestCase

import twistedproxy
from twistedproxy.cache.address import parse_cache
from twistedproxy.options.addresses import SECRET_BYTES
from twistedproxy.options.command import OPTIONS
from twistedproxy.settings import Settings

# The specification's defaults, written out a second time: an accidental change of one shows here.
DEFAULTS = {
    "admin_listen": None,
    "block_pixels": 8000,
    "client_max_age": 3600,
    "client_timeout": 30.0,
    "cors_origin": (),
    "credential_cookie": (),
    "credential_header": ("Authorization",),
    "credential_parameter": ("access_token",),
    "display_min_frames": 10_000,
    "display_pixels": 3000,
    "frame_ttl": 3600.0,
    "grant_ttl": 600.0,
    "hot_memory": 268_435_456,
    "listen": ("tcp:8080:interface=127.0.0.1",),
    "icc_profiles": None,
    "log_format": "text",
    "max_answer": 268_435_456,
    "answer_memory": 536_870_912,
    "max_frames_per_request": 500,
    "max_jobs": 1,
    "origin": (),
    "origin_concurrency": 256,
    "origin_connect_timeout": 5.0,
    "origin_stall_timeout": 30.0,
    "page": True,
    "origin_timeout": 120.0,
    "prefetch": True,
    "prefetch_min_frames": 10,
    "prefetch_trigger": 0.5,
    "proof": "metadata",
    "reap_interval": 60.0,
    "recache_after": 300.0,
    "render_max_frames": 500,
    "render_max_pixels": 64_000_000,
    "render_max_whole_frames": 20_000,
    "render_queue": 64,
    "render_timeout": 60.0,
    "render_workers": 2,
    "secret_file": None,
    "stop_deadline": 30.0,
    "trusted_proxy": (),
    "whole_instance": True,
    "whole_instance_max_cpu": 80.0,
    "whole_instance_max_frames": 500_000,
    "whole_instance_max_memory": 70.0,
    "workers": 1,
}


class SettingsTests(SynchronousTestCase):
    """Values and their defaults."""

    def test_defaults(self) -> None:
        """Every default is the documented one."""
        settings = Settings()
        fields = {field.name for field in attrs.fields(Settings)} - {"cache", "cache_memory", "secret"}
        self.assertEqual(DEFAULTS, {name: getattr(settings, name) for name in fields})
        self.assertEqual("local", settings.cache.where)

    def test_every_field_has_its_option(self) -> None:
        """Fields and options are the same, but for the key itself, which comes from a file."""
        fields = {field.name for field in attrs.fields(Settings)}
        self.assertEqual(fields - {"secret"}, {option.field for option in OPTIONS})

    def test_every_field_is_read(self) -> None:
        """No setting is without effect; the secret file's is on the key, when options are read."""
        read: set[str] = set()
        for path in Path(twistedproxy.__file__).parent.rglob("*.py"):
            if path.name != "settings.py" and path.parent.name != "options":
                nodes = list(ast.walk(ast.parse(path.read_bytes())))
                read |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
                read |= {str(node.value) for node in nodes if isinstance(node, ast.Constant)}
        self.assertEqual({"secret_file"}, {field.name for field in attrs.fields(Settings)} - read)

    def test_frozen(self) -> None:
        """A setting cannot change after the start."""
        with self.assertRaises(attrs.exceptions.FrozenInstanceError):
            Settings().workers = 2  # type: ignore[misc]

    def test_secret_is_random(self) -> None:
        """Without a secret file each run has a key of its own."""
        self.assertNotEqual(Settings().secret, Settings().secret)
        self.assertEqual(SECRET_BYTES, len(Settings().secret))

    def test_repr_holds_no_secret(self) -> None:
        """Neither the key nor the cache's password can be logged by accident."""
        settings = Settings(secret=b"k" * 32, cache=parse_cache("redis://me:hunter2@cache:6379/0"))
        self.assertNotIn("kkkk", repr(settings))
        self.assertNotIn("hunter2", repr(settings))
