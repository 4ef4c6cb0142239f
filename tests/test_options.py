"""The command line and the environment: what is accepted, what is refused, and with which error."""

from __future__ import annotations

import os
import re
from ipaddress import ip_network
from pathlib import Path
from typing import Optional

from twisted.python import usage
from twisted.trial.unittest import SynchronousTestCase

from tests.cache.certificates import certificate
from twistedproxy.cache.address import LEAST_LOCAL, LocalAddress
from twistedproxy.options.command import OPTIONS, Options
from twistedproxy.options.values import show_size, size
from twistedproxy.settings import MIB, Mount, Settings
from twistedproxy.system.machine_load import MemoryReading

GIB = 1024 * MIB
SAMPLE = ("--origin", "sample:")


def settings_of(*arguments: str, environ: Optional[dict[str, str]] = None) -> Settings:
    """The settings of a command line, on a machine of 8 GiB of which 6 are available."""
    options = Options(environ or {}, lambda: MemoryReading(8 * GIB, 6 * GIB))
    options.parseOptions(list(arguments))
    return options.settings


class OptionsTestCase(SynchronousTestCase):
    """What these tests share."""

    def refused(self, *arguments: str, environ: Optional[dict[str, str]] = None) -> str:
        """The error, which is one line."""
        error = str(self.assertRaises(usage.UsageError, settings_of, *arguments, environ=environ))
        self.assertNotIn("\n", error)
        return error

    def assert_refused(self, option: str, *values: str) -> None:
        """Each of *values* is refused with a line that names the option and what came."""
        for value in values:
            base = () if option == "origin" else SAMPLE
            error = self.refused(*base, f"--{option}={value}")
            self.assertTrue(error.startswith(f"--{option}: "), error)
            self.assertIn("expected", error)
            self.assertIn(repr(value), error)


class SourceTests(OptionsTestCase):
    """Command line, environment, default."""

    def test_defaults(self) -> None:
        """Without options, the settings are the defaults."""
        settings = settings_of(*SAMPLE)
        expected = Settings(origin=(Mount("/dicomweb", "sample:"),), cache_memory=3 * GIB, secret=settings.secret)
        self.assertEqual(expected, settings)

    def test_shown_defaults_are_the_defaults(self) -> None:
        """What help shows as a default gives the default when it is typed."""
        arguments = [f"--{option.name}={option.shown_default}" for option in OPTIONS if not option.words]
        settings = settings_of(*SAMPLE, *arguments)
        self.assertEqual(settings_of(*SAMPLE, f"--secret-file={__file__}"), _with_key(settings))

    def test_environment(self) -> None:
        """An option may come from the environment."""
        environ = {"TWISTEDPROXY_FRAME_TTL": "17.5", "TWISTEDPROXY_WHOLE_INSTANCE": "off", "PATH": "/bin"}
        settings = settings_of(*SAMPLE, environ=environ)
        self.assertEqual((17.5, False), (settings.frame_ttl, settings.whole_instance))

    def test_environment_of_repeatable(self) -> None:
        """Spaces separate the values of a repeatable option in the environment."""
        environ = {"TWISTEDPROXY_ORIGIN": " /a=sample:  /b=http://b:8042/dicom-web/ "}
        self.assertEqual(
            (Mount("/a", "sample:"), Mount("/b", "http://b:8042/dicom-web")), settings_of(environ=environ).origin
        )

    def test_command_line_wins(self) -> None:
        """The command line replaces what the environment has, all values of a repeatable option at once."""
        environ = {"TWISTEDPROXY_WORKERS": "3", "TWISTEDPROXY_ORIGIN": "/a=sample: /b=sample:"}
        settings = settings_of("--workers", "2", *SAMPLE, environ=environ)
        self.assertEqual((2, (Mount("/dicomweb", "sample:"),)), (settings.workers, settings.origin))

    def test_command_line_spares_the_environment(self) -> None:
        """A bad value in the environment does not matter where the command line has another."""
        environ = {"TWISTEDPROXY_WORKERS": "many"}
        self.assertEqual(2, settings_of(*SAMPLE, "--workers=2", environ=environ).workers)

    def test_environment_error_names_the_variable(self) -> None:
        """An error names the variable where the value came from one."""
        error = self.refused(*SAMPLE, environ={"TWISTEDPROXY_WORKERS": "many"})
        self.assertEqual("TWISTEDPROXY_WORKERS: invalid value 'many'; expected a whole number from 1 to 256", error)

    def test_empty_variable(self) -> None:
        """An empty variable counts as unset."""
        self.assertEqual(1, settings_of(*SAMPLE, environ={"TWISTEDPROXY_WORKERS": ""}).workers)

    def test_misspelt_variable(self) -> None:
        """A variable that belongs to no option is refused, and the nearest one named."""
        error = self.refused(*SAMPLE, environ={"TWISTEDPROXY_FRAMETTL": "5"})
        self.assertIn("TWISTEDPROXY_FRAMETTL", error)
        self.assertIn("TWISTEDPROXY_FRAME_TTL", error)

    def test_variables_of_kubernetes(self) -> None:
        """What Kubernetes sets for a service of our name is left alone."""
        names = ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_8080_TCP", "PORT_8080_TCP_ADDR")
        environ = {f"TWISTEDPROXY_{name}": "tcp://10.0.0.1:8080" for name in names}
        self.assertEqual(1, settings_of(*SAMPLE, environ=environ).workers)

    def test_unknown_option(self) -> None:
        """An unknown option is named, and the nearest one."""
        self.assertEqual(
            "--frame-tll: unknown option; did you mean --frame-ttl?",
            self.refused(*SAMPLE, "--frame-tll=5"),
        )

    def test_value_missing(self) -> None:
        """An option without its value is named, with what is accepted."""
        self.assertEqual(
            "--frame-ttl: missing value; expected seconds from 1, or below 0 for no expiry",
            self.refused(*SAMPLE, "--frame-ttl"),
        )

    def test_stray_argument(self) -> None:
        """Something that is no option is refused."""
        self.assertIn("'http://store/'", self.refused(*SAMPLE, "http://store/"))

    def test_settings_before_parsing(self) -> None:
        """There are no settings before the options were parsed."""
        with self.assertRaises(AttributeError):
            _ = Options({}).settings


def _with_key(settings: Settings) -> Settings:
    """*settings* as if the key had come from this file."""
    import attrs

    return attrs.evolve(settings, secret=Path(__file__).read_bytes(), secret_file=os.path.abspath(__file__))


class OriginTests(OptionsTestCase):
    """``--origin``."""

    def test_required(self) -> None:
        """Without an origin there is nothing to do."""
        self.assertIn("required", self.refused())

    def test_http(self) -> None:
        """URLs of stores, with and without a prefix, lose their last slash."""
        settings = settings_of(
            "--origin=http://127.0.0.1:8042/dicom-web/",
            "--origin=/tile=https://healthcare.googleapis.com/v1",
            "--origin=/tile/more=http://[::1]:80/x=y",
        )
        expected = (
            Mount("/dicomweb", "http://127.0.0.1:8042/dicom-web"),
            Mount("/tile", "https://healthcare.googleapis.com/v1"),
            Mount("/tile/more", "http://[::1]:80/x=y"),
        )
        self.assertEqual(expected, settings.origin)

    def test_folder(self) -> None:
        """A folder's path becomes absolute, for twistd changes its own."""
        folder = self.mktemp()
        os.makedirs(folder)
        absolute = os.path.abspath(folder)
        for text in (f"file:{folder}", f"file:{absolute}/", f"file://{absolute}"):
            self.assertEqual((Mount("/dicomweb", f"file:{absolute}"),), settings_of("--origin", text).origin)

    def test_folder_refused(self) -> None:
        """A folder that is not there, or is none, is refused."""
        self.assert_refused("origin", "file:", "file:/no/such/folder", f"file:{__file__}", "file://host/path")

    def test_url_refused(self) -> None:
        """What is no usable URL is refused."""
        self.assert_refused(
            "origin",
            "",
            "nonsense",
            "127.0.0.1:8042",
            "ftp://store/",
            "http:store",
            "http://",
            "http:///path",
            "http://store:port/",
            "http://store:99999/",
            "http://store:/",
            "http://[::1/",
            "http://store/?a=b",
            "http://store/?",
            "http://store/#f",
            "http://store/a b",
            "http://store/ü",
            "http://store/a/../b",
            "http://store/%2e%2E/b",
            "sample:more",
            "/x=",
            "/x",
        )

    def test_credentials_refused(self) -> None:
        """Credentials in a URL are refused, and the error does not repeat them."""
        error = self.refused("--origin=http://me:hun/ter@2@store/path")
        self.assertIn("credentials", error)
        self.assertNotIn("me:", error)
        self.assertNotIn("hun", error)

    def test_prefix_refused(self) -> None:
        """A prefix that cannot be one, or would hide something, is refused."""
        prefixes = ("/", "/a/", "//a", "/a//b", "/a/../b", "/./a", "/a b", "/a%2fb", "/a?b", "/ü")
        hiding = ("/healthz", "/readyz", "/metrics/x", "/status.json", "/studies", "/x/series", "/x/instances/y")
        self.assert_refused("origin", *(f"{prefix}=sample:" for prefix in prefixes + hiding), "a=sample:")

    def test_prefix_twice(self) -> None:
        """Two origins cannot have one prefix."""
        error = self.refused(*SAMPLE, "--origin=/dicomweb=http://store")
        self.assertIn("/dicomweb", error)


class ListenTests(OptionsTestCase):
    """``--listen`` and ``--admin-listen``."""

    def test_accepted(self) -> None:
        """Any endpoint that Twisted can build is accepted, without listening on it."""
        endpoints = ("tcp:0", "tcp:port=8081:interface=\\:\\:1", "unix:/run/x.sock", "tcp6:8080")
        settings = settings_of(*SAMPLE, *(f"--listen={endpoint}" for endpoint in endpoints))
        self.assertEqual(endpoints, settings.listen)

    def test_paths(self) -> None:
        """Paths become absolute, however they are written, for twistd changes its folder; what is too long for a
        socket's path then is left alone."""
        here = os.path.abspath("a b").replace(":", "\\:")
        given = ("unix:a b:mode=600", "unix:address=a b", "haproxy:unix:a b", r"unix:/c\:d\=e", "unix:" + "x" * 107)
        meant = (f"unix:{here}:mode=600", f"unix:address={here}", f"haproxy:unix:{here}", *given[3:])
        if len(os.path.abspath("a b")) > 107:
            meant = given
        settings = settings_of(*SAMPLE, *(f"--listen={endpoint}" for endpoint in given))
        self.assertEqual(meant, settings.listen)

    def test_refused(self) -> None:
        """What Twisted cannot build is refused."""
        self.assert_refused(
            "listen", "", "tcp", "tcp:", "tcp:http", "tcp:99999", "tcp:-1", "bogus:1", "ssl:8443:privateKey=/no/key.pem"
        )
        self.assert_refused("admin-listen", "tcp:x", "systemd:domain=INET:index=0")

    def test_files_of_tls(self) -> None:
        """A file that holds no certificate or key, or an encrypted one, is named, not what OpenSSL makes of it."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        certificate(folder, "localhost")
        (folder / "text.pem").write_text("no key")
        (folder / "encrypted.pem").write_text(
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"
        )
        for key, cert, expected in (
            ("text", "cert", f"{folder}/text.pem is not a PEM file"),
            ("key", "text", f"{folder}/text.pem is not a PEM file"),
            ("encrypted", "cert", f"{folder}/encrypted.pem is encrypted"),
        ):
            for endpoint in ("ssl:0:privateKey={}/{}.pem:certKey={}/{}.pem", "ssl:0:{}/{}.pem:{}/{}.pem"):
                error = self.refused(*SAMPLE, "--listen=" + endpoint.format(folder, key, folder, cert))
                self.assertIn(expected, error)

    def test_admin_is_apart(self) -> None:
        """Metrics cannot be kept apart on an endpoint that serves everything."""
        self.assertIn("--admin-listen", self.refused(*SAMPLE, "--listen=tcp:1", "--admin-listen=tcp:1"))


class CacheTests(OptionsTestCase):
    """``--cache`` and ``--cache-memory``."""

    def test_accepted(self) -> None:
        """Each form is read by the cache's own parser."""
        for text in ("local", "local:/x?size=1G", "memory", "none", "redis://h:6379/1", "rediss://h:1/0", "unix:/x"):
            self.assertEqual(text, settings_of(*SAMPLE, "--cache", text).cache.where)

    def test_refused(self) -> None:
        """Other forms are refused, naming those that are not."""
        self.assert_refused("cache", "", "yes", "http://h/", "redis://", "redis://h:x/0", "unix:", "sentinel://h")

    def test_password_is_not_repeated(self) -> None:
        """The error about a bad address holds no password."""
        error = self.refused(*SAMPLE, "--cache=redis://:hunter2@h:x/0")
        self.assertNotIn("hunter2", error)

    def test_memory_is_for_one_worker(self) -> None:
        """Workers share no memory."""
        self.assertIn("--workers 2", self.refused(*SAMPLE, "--cache=memory", "--workers=2"))

    def test_size_of_a_local_cache(self) -> None:
        """``--cache-memory`` is that of a local cache that has none of its own, and never less than one needs."""
        for given, expected in (
            ((), None),
            (("--cache-memory=2G",), 2 * GIB),
            (("--cache-memory=1M",), LEAST_LOCAL),
            (("--cache-memory=2G", "--cache=local:/x"), 2 * GIB),
            (("--cache-memory=2G", "--cache=local:/x?size=3G"), 3 * GIB),
        ):
            cache = settings_of(*SAMPLE, *given).cache
            assert isinstance(cache, LocalAddress)
            self.assertEqual((cache.size, cache.folder), (expected, "/x" if len(given) > 1 else None), given)

    def test_memory_of_the_machine(self) -> None:
        """More memory than the machine has is refused; all of it is the operator's decision."""
        self.assertEqual(8 * GIB, settings_of(*SAMPLE, "--cache-memory=8G").cache_memory)
        error = self.refused(*SAMPLE, "--cache-memory=8193M")
        self.assertIn("8193M", error)
        self.assertIn("8192M", error)
        self.assertIn("8192M", self.refused(*SAMPLE, "--hot-memory=9G"))


class ValueTests(OptionsTestCase):
    """The kinds of value."""

    def test_sizes(self) -> None:
        """Sizes take units that are powers of 1024."""
        values = {"0": 0, "64k": 65536, "256M": 256 * MIB, "1G": GIB, "1.5G": 3 * GIB // 2, "2MiB": 2 * MIB, "7b": 7}
        self.assertEqual(values, {text: size().parse(text) for text in values})

    def test_shown_sizes(self) -> None:
        """A size is shown so that it reads back as itself."""
        for value in (0, 1, 1023, 1024, 1025, 256 * MIB, 3 * GIB // 2, 1 << 40):
            self.assertEqual(value, size().parse(show_size(value)))

    def test_sizes_refused(self) -> None:
        """What is no size is refused."""
        self.assert_refused("hot-memory", "", "-1", "1X", "M", "1e9", "1 000", "0x10", "9999999G", "٣", "1M1")

    def test_endless_numbers(self) -> None:
        """A number that no float can hold is refused like any, and shown in part."""
        for option in ("hot-memory", "origin-timeout", "frame-ttl", "workers", "prefetch-trigger"):
            error = self.refused(*SAMPLE, f"--{option}={'9' * 5000}")
            self.assertIn("999...'", error)
            self.assertLess(len(error), 300)

    def test_seconds(self) -> None:
        """Seconds take decimals, and limits hold."""
        settings = settings_of(*SAMPLE, "--grant-ttl=60", "--origin-timeout=0.5", "--stop-deadline=0")
        self.assertEqual((60.0, 0.5, 0.0), (settings.grant_ttl, settings.origin_timeout, settings.stop_deadline))
        self.assert_refused("grant-ttl", "59.9", "3601", "-600", "nan", "inf", "1e2", "ten", "6_0")
        self.assert_refused("origin-timeout", "0", "-1", "1e999", "9" * 40)

    def test_frame_ttl_below_zero(self) -> None:
        """A frame's time below 0 means no expiry; 0 means nothing that could be meant."""
        self.assertIsNone(settings_of(*SAMPLE, "--frame-ttl", "-1").frame_ttl)
        self.assertIsNone(settings_of(*SAMPLE, "--frame-ttl=-0.5").frame_ttl)
        self.assert_refused("frame-ttl", "0", "0.5", "")

    def test_counts(self) -> None:
        """Counts are whole numbers within their limits."""
        self.assert_refused("workers", "0", "-1", "1.5", "two", "257", "1_0", "９")
        self.assert_refused("max-frames-per-request", "0", "1" * 30)
        self.assert_refused("max-jobs", "0")

    def test_shares_and_percents(self) -> None:
        """Shares lie between 0 and 1, percents between 0 and 100."""
        settings = settings_of(*SAMPLE, "--prefetch-trigger=1", "--whole-instance-max-cpu=100")
        self.assertEqual((1.0, 100.0), (settings.prefetch_trigger, settings.whole_instance_max_cpu))
        self.assert_refused("prefetch-trigger", "1.1", "-0.1", "50%")
        self.assert_refused("whole-instance-max-memory", "101", "-1")

    def test_switches(self) -> None:
        """Switches are on or off."""
        settings = settings_of(*SAMPLE, "--prefetch=OFF", "--whole-instance=on")
        self.assertEqual((False, True), (settings.prefetch, settings.whole_instance))
        self.assert_refused("prefetch", "yes", "1", "")

    def test_log_format(self) -> None:
        """Logs have two formats."""
        self.assertEqual("json", settings_of(*SAMPLE, "--log-format=json").log_format)
        self.assert_refused("log-format", "xml")

    def test_proof(self) -> None:
        """Metadata are proof of the right to pixels, or not."""
        self.assertEqual("pixels", settings_of(*SAMPLE, "--proof=pixels").proof)
        self.assert_refused("proof", "frames", "")

    def test_networks(self) -> None:
        """Networks are read as such; host bits are most likely a mistake."""
        settings = settings_of(*SAMPLE, "--trusted-proxy=10.0.0.0/8", "--trusted-proxy=::1")
        self.assertEqual((ip_network("10.0.0.0/8"), ip_network("::1/128")), settings.trusted_proxy)
        self.assert_refused("trusted-proxy", "10.0.0.1/8", "10.0.0.0/33", "localhost", "")

    def test_credential_headers(self) -> None:
        """Headers replace the default; those that cannot identify a caller are refused."""
        settings = settings_of(*SAMPLE, "--credential-header=X-Api-Key", "--credential-header=Authorization")
        self.assertEqual(("X-Api-Key", "Authorization"), settings.credential_header)
        self.assert_refused("credential-header", "", "a b", "X:", "Cookie", "host", "Connection", "Content-Length")

    def test_credential_cookies(self) -> None:
        """Cookies are named by tokens."""
        self.assertEqual(("sid",), settings_of(*SAMPLE, "--credential-cookie=sid").credential_cookie)
        self.assert_refused("credential-cookie", "a=b", "a;b", "")

    def test_credential_parameters(self) -> None:
        """Query parameters replace the default, and are named by tokens."""
        self.assertEqual(("access_token",), settings_of(*SAMPLE).credential_parameter)
        self.assertEqual(("jwt",), settings_of(*SAMPLE, "--credential-parameter=jwt").credential_parameter)
        self.assert_refused("credential-parameter", "a=b", "a&b", "")

    def test_cors_origins(self) -> None:
        """Web origins are kept as browsers send them."""
        texts = ("*", "https://Viewer.Example", "http://localhost:3000", "https://h:443", "http://[::1]:80")
        settings = settings_of(*SAMPLE, *(f"--cors-origin={text}" for text in texts))
        expected = ("*", "https://viewer.example", "http://localhost:3000", "https://h", "http://[::1]")
        self.assertEqual(expected, settings.cors_origin)
        self.assert_refused("cors-origin", "", "viewer.example", "https://h/", "https://h?", "https://", "null", "**")

    def test_secret_file(self) -> None:
        """The key is read from the file, all of it."""
        path = Path(self.mktemp())
        path.write_bytes(b"\n" * 32)
        settings = settings_of(*SAMPLE, f"--secret-file={path}")
        self.assertEqual((b"\n" * 32, str(path.absolute())), (settings.secret, settings.secret_file))

    def test_secret_file_refused(self) -> None:
        """A key that is too short to be one, too long or not there is refused, and never shown."""
        path = Path(self.mktemp())
        path.write_bytes(b"hunter2")
        error = self.refused(*SAMPLE, f"--secret-file={path}")
        self.assertIn("7 bytes", error)
        self.assertNotIn("hunter2", error)
        path.write_bytes(b"x" * (1 << 17))
        self.assertIn("too many", self.refused(*SAMPLE, f"--secret-file={path}"))
        self.assertIn("No such file", self.refused(*SAMPLE, "--secret-file=/no/such/file"))
        self.assertIn("directory", self.refused(*SAMPLE, "--secret-file=/"))

    def test_followed(self) -> None:
        """What is followed is at a mount that there is, once; a login is for something that is followed."""
        origins = ("--origin=http://a:8042/dicom-web", "--origin=/b=https://b/dicom-web")
        follow = ("--follow-changes=http://a:8042/", "--follow-changes=/b=https://b/api")
        mounts = (Mount("/dicomweb", "http://a:8042"), Mount("/b", "https://b/api"))
        self.assertEqual(mounts, settings_of(*origins, *follow).follow_changes)
        self.assert_refused("follow-changes", "", "a:8042", "file:.", "sample:")
        self.assertNotIn("secret", self.refused(*origins, "--follow-changes=http://ann:secret@a:8042"))
        for wrong, said in (
            (("--follow-changes=/c=http://c",), "--follow-changes: no --origin has the prefix /c"),
            ((*follow, "--follow-changes=/b=http://c"), "--follow-changes: 2 values have the prefix /b"),
            ((f"--follow-changes-login={self.login()}",), "--follow-changes-login: no --follow-changes has the prefix"),
        ):
            self.assertIn(said, self.refused(*origins, *wrong))

    def login(self, text: bytes = b"ann:a:hunter3 \r\n") -> str:
        """The path of a file."""
        path = Path(self.mktemp()).absolute()
        path.write_bytes(text)
        return str(path)

    def test_follow_login(self) -> None:
        """A login is read from its file, and shown nowhere; what is none is refused."""
        follow = (
            "--origin=http://a",
            "--origin=/b=http://b",
            "--follow-changes=http://a",
            "--follow-changes=/b=http://b",
        )
        given = (f"--follow-changes-login={self.login()}", f"--follow-changes-login=/b={self.login(b'bob:x')}")
        settings = settings_of(*follow, *given)
        logins = {each.prefix: each.login for each in settings.follow_changes_login}
        self.assertEqual({"/dicomweb": b"ann:a:hunter3", "/b": b"bob:x"}, logins)
        self.assertNotIn("hunter3", repr(settings))
        for text in (b"", b"hunter2", b"ann:hunter2\nbob:hunter2"):
            error = self.refused(*follow, f"--follow-changes-login={self.login(text)}")
            self.assertIn("user:password", error)
            self.assertNotIn("hunter2", error)
        self.assertIn("No such file", self.refused(*follow, "--follow-changes-login=/no/such/file"))

    def test_folder(self) -> None:
        """A folder is kept with its whole path; what is none is refused."""
        self.assertEqual(os.getcwd(), settings_of(*SAMPLE, "--icc-profiles=.").icc_profiles)
        self.assert_refused("icc-profiles", __file__, "/no/such/folder")

    def test_repeated_values_count_once(self) -> None:
        """The same value twice is one value."""
        settings = settings_of(*SAMPLE, "--listen=tcp:1", "--listen=tcp:1")
        self.assertEqual(("tcp:1",), settings.listen)


class HelpTests(OptionsTestCase):
    """``--help``."""

    def test_help_explains_every_option(self) -> None:
        """Help names every option with its default and unit, within 80 columns."""
        text = Options({}).getUsage(width=80)
        self.assertLessEqual(max(map(len, text.splitlines())), 80)
        flat = re.sub(r"\s+", " ", text.split("\n\n")[0])
        for option in OPTIONS:
            begin = flat.index(f" --{option.name}= ")
            end = flat.find(" --", begin + 3)
            described = flat[begin:end] if end > 0 else flat[begin:]
            self.assertTrue(described.rstrip().endswith("]"), described)
            if option.kind.unit:
                self.assertIn(f"({option.kind.unit})", described)
