"""A connection that speaks TLS, over the same reads and writes as one that does not.

Owns the cipher state: bytes pass through memory (`ssl.MemoryBIO`), so the socket is read by the same
`recvmsg` and arrivals have the same stamps. Certificates are checked unless told otherwise.

Invariant: no plaintext waits inside between two calls of `receive`.
"""

from __future__ import annotations

import contextlib
import ssl
from dataclasses import dataclass

from prefixlab.bench.loadgen.sockets.connection import Connection, Endpoint
from prefixlab.bench.loadgen.sockets.poller import Poller
from prefixlab.bench.loadgen.sockets.stamps import KernelStamps

_RECORD_BYTES = 64 * 1024
"""Encrypted or decrypted at a time."""


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """How to speak TLS, and to whom: `server_name` goes into SNI, and the certificate must be of it."""

    context: ssl.SSLContext
    server_name: str

    @classmethod
    def make(cls, server_name: str, verify: bool) -> TlsSettings:
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return cls(context, server_name)


class TlsConnection(Connection):
    """See the module."""

    __slots__ = ("_ciphertext", "_handshaking", "_incoming", "_outgoing", "_settings", "_tls")

    def __init__(
        self, endpoint: Endpoint, poller: Poller, stamps: KernelStamps | None, settings: TlsSettings
    ) -> None:
        super().__init__(endpoint, poller, stamps)
        self._settings = settings
        self._handshaking = False
        self._ciphertext = memoryview(b"")

    def advance(self, events: int) -> bool:
        if not self._handshaking:
            if not super().advance(events):
                return False
            self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            settings = self._settings
            self._tls = settings.context.wrap_bio(
                self._incoming, self._outgoing, server_hostname=settings.server_name
            )
            self._handshaking = True
        else:
            with contextlib.suppress(BlockingIOError):  # room to send, and nothing has come
                self._pull()
        try:
            self._tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            done = False
        self._push()
        self.watch_for_room(self.pending)
        return done

    def send(self, data: memoryview) -> int:
        taken = 0
        while not self.pending and taken < len(data):
            taken += self._tls.write(data[taken : taken + _RECORD_BYTES])
            self._push()
        if self.pending:
            self._push()
        return taken

    def receive(self) -> tuple[bytes, int]:
        kernel_ns = self._pull()
        pieces = []
        try:
            while piece := self._tls.read(_RECORD_BYTES):
                pieces.append(piece)
            self.at_end = True
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):  # said goodbye, or did not
            self.at_end = True
        self._push()  # an answer to a change of keys, say
        if not pieces and not self.at_end:
            raise BlockingIOError
        return b"".join(pieces), kernel_ns

    def _pull(self) -> int:
        """What the socket has, into the decoder; the kernel's stamp of it."""
        data, kernel_ns = super().receive()
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        return kernel_ns

    def _push(self) -> None:
        """What the encoder has, onto the socket, as far as it fits."""
        self._ciphertext = self._ciphertext or memoryview(self._outgoing.read())
        while self._ciphertext:
            sent = super().send(self._ciphertext)
            if not sent:
                break
            self._ciphertext = self._ciphertext[sent:] or memoryview(self._outgoing.read())
        self.pending = bool(self._ciphertext)
