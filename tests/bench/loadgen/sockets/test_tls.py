"""TLS: the same answers and stamps as without, and certificates that are checked."""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path

import pytest
import trustme

from prefixlab.bench.loadgen.capture import Ending
from tests.bench.loadgen.sockets.rig import MS, Peer, drive, each_request, lay_down, serving

AUTHORITY = trustme.CA()


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The authority is one of the machine's own."""
    AUTHORITY.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))


def server_context(name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert(name).configure_cert(context)
    return context


def stream(peer: Peer, body: bytes) -> None:
    peer.begin_chunks()
    for _ in range(5):
        peer.chunk(b"data: {}\n\n")
    peer.end_chunks()


@pytest.mark.usefixtures("trusted")
def test_streams_are_decrypted_and_stamped_as_they_come(tmp_path: Path) -> None:
    with serving(each_request(stream), tls=server_context()) as server:
        seen = drive(lay_down(tmp_path, server.port, [b"x"] * 3, tls=True))
    assert seen.endings == [Ending.COMPLETE] * 3
    assert server.num_connections == 1
    for answer in seen.answers:
        data = b"".join(answer.pieces)
        assert data.startswith(b"HTTP/1.1 200 OK\r\n") and data.endswith(b"0\r\n\r\n")
        assert all(answer.kernel_ns) == (seen.health.stamps == "kernel")


@pytest.mark.usefixtures("trusted")
def test_large_bodies_pass_both_ways(tmp_path: Path) -> None:
    body = os.urandom(1 << 20) * 6
    got: list[bytes] = []

    def echo(peer: Peer, request: bytes) -> None:
        got.append(request)
        peer.answer(request)

    with serving(each_request(echo), tls=server_context(), receive_buffer=4096) as server:
        seen = drive(lay_down(tmp_path, server.port, [body, b"small"], tls=True))
    assert seen.endings == [Ending.COMPLETE] * 2
    assert got == [body, b"small"]
    assert b"".join(seen.answers[0].pieces).endswith(body)


@pytest.mark.usefixtures("trusted")
def test_the_name_to_be_proven_may_differ_from_the_address(tmp_path: Path) -> None:
    asked: list[str | None] = []
    context = server_context("model.example")
    context.sni_callback = lambda _sock, name, _context: asked.append(name)
    with serving(each_request(stream), tls=context) as server:
        seen = drive(lay_down(tmp_path, server.port, tls=True, tls_name="model.example"))
    assert seen.endings == [Ending.COMPLETE]
    assert asked == ["model.example"]


@pytest.mark.usefixtures("trusted")
def test_a_certificate_of_another_name_is_refused(tmp_path: Path) -> None:
    with serving(each_request(stream), tls=server_context("model.example")) as server:
        answer = drive(lay_down(tmp_path, server.port, tls=True)).one
    assert answer.ending is Ending.CONNECT
    assert "certificate" in answer.detail


def test_a_certificate_of_an_unknown_authority_is_refused_unless_told_otherwise(tmp_path: Path) -> None:
    for verify, ending in ((True, Ending.CONNECT), (False, Ending.COMPLETE)):
        folder = tmp_path / str(verify)
        folder.mkdir()
        with serving(each_request(stream), tls=server_context()) as server:
            seen = drive(lay_down(folder, server.port, tls=True, verify_tls=verify))
        assert seen.endings == [ending]


def test_a_server_that_does_not_speak_tls_is_no_connection(tmp_path: Path) -> None:
    def plain(peer: Peer) -> None:
        peer.sock.recv(10)
        peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with serving(plain) as server:
        answer = drive(lay_down(tmp_path, server.port, tls=True)).one
    assert answer.ending is Ending.CONNECT
    assert answer.detail


def test_a_handshake_nobody_answers_times_out(tmp_path: Path) -> None:
    with serving(lambda peer: peer.wait_for_close()) as server:
        answer = drive(lay_down(tmp_path, server.port, tls=True, connect_timeout_ns=100 * MS)).one
    assert answer.ending is Ending.CONNECT_TIMEOUT


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("goodbye", [True, False])
def test_a_body_without_length_ends_with_the_connection_said_goodbye_or_not(
    tmp_path: Path, goodbye: bool
) -> None:
    def script(peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        if goodbye:
            assert isinstance(peer.sock, ssl.SSLSocket)
            peer.sock.settimeout(10)
            peer.sock.unwrap()
        else:
            peer.sock.shutdown(socket.SHUT_WR)

    with serving(script, tls=server_context()) as server:
        seen = drive(lay_down(tmp_path, server.port, [b"x"] * 2, tls=True))
    assert seen.endings == [Ending.COMPLETE] * 2
    assert b"".join(seen.answers[0].pieces).endswith(b"all of it")


@pytest.mark.usefixtures("trusted")
def test_a_connection_closed_before_an_answer_is_dropped(tmp_path: Path) -> None:
    with serving(lambda peer: peer.read_request() and None, tls=server_context()) as server:
        answer = drive(lay_down(tmp_path, server.port, tls=True)).one
    assert answer.ending is Ending.DROPPED
