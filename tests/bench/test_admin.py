"""The admin client over TLS: whom it trusts."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import trustme

from prefixlab.bench.config.target import TargetConfig
from prefixlab.bench.targets.admin import open_admin, request
from prefixlab.core.errors import TargetError

AUTHORITY = trustme.CA()


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class _Server(HTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A handshake that the client broke off is what some of these tests are about."""


@pytest.fixture
def url() -> Iterator[str]:
    """A server whose certificate only AUTHORITY vouches for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("127.0.0.1").configure_cert(context)
    with _Server(("127.0.0.1", 0), _Answers) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"https://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_an_authority_of_the_machines_own_is_trusted_as_by_measured_requests(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    AUTHORITY.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    with open_admin(url) as client:
        assert request(client, "GET", "/").status_code == 200


def test_an_unknown_authority_is_refused_unless_nothing_is_checked(url: str) -> None:
    with open_admin(url) as client, pytest.raises(TargetError, match=r"could not connect.*certificate"):
        request(client, "GET", "/")
    with open_admin(url, TargetConfig(base_url=url, insecure=True)) as client:
        assert request(client, "GET", "/").status_code == 200
