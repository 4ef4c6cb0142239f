"""nginx with proxy_cache in front of a store, for comparison: on the loopback interface, in a folder of its own."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from tests.running import READY_SECONDS, Child, free_port, pinned

_CONFIGURATION = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error warn; user root;
events {{ worker_connections 8192; }}
http {{
  access_log off; tcp_nodelay on; keepalive_requests 1000000;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  proxy_cache_path {folder}/cache levels=1:2 keys_zone=frames:32m max_size=1g use_temp_path=off;
  upstream store {{ server {store}; keepalive 32; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location {root} {{
      proxy_pass http://store; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_cache frames; proxy_cache_key "{key}";
      proxy_cache_valid 200 1h; proxy_ignore_headers Cache-Control Expires Vary;
      add_header X-Cache $upstream_cache_status;
    }}
  }}
}}
"""

KEY = "$request_uri $http_accept"
CREDENTIAL_KEY = f"{KEY} $http_authorization"
"""What answers are found by: without the credential everybody gets what anybody may see."""


def installed() -> bool:
    """Whether there is an nginx."""
    return _program() is not None


def _program() -> str | None:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


class Nginx(Child):
    """nginx that caches what the store at *store_url* (a DICOMweb root) answers. *url*: that root through nginx."""

    def __init__(self, store_url: str, key: str = CREDENTIAL_KEY, core: int | None = None) -> None:
        program = _program()
        if program is None:
            raise RuntimeError("nginx is not installed")
        parts = urlsplit(store_url)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}{parts.path}"
        self._data = Path(tempfile.mkdtemp(prefix="nginx-"))
        configuration = self._data / "nginx.conf"
        text = _CONFIGURATION.format(
            folder=self._data, store=parts.netloc, port=self.port, root=parts.path or "/", key=key
        )
        configuration.write_text(text)
        super().__init__(pinned([program, "-p", str(self._data), "-c", str(configuration)], core))

    def wait_until_ready(self, seconds: float = READY_SECONDS) -> Nginx:
        """Block until it listens. Raises RuntimeError with its output."""
        self.wait_until_it_listens(self.port, seconds)
        return self

    def remove(self) -> None:
        super().remove()
        shutil.rmtree(self._data, ignore_errors=True)
