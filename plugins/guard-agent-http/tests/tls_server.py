"""A collector that speaks TLS and tells why a handshake failed, as real servers do."""

from __future__ import annotations

import socket
import ssl
import threading
import warnings
from contextlib import suppress


class TlsServer:
    """
    Answers every request with ``{"success": true}``, one connection at a time.

    asyncio cuts the connection when a handshake fails; most servers say why before they close.
    """

    def __init__(self, context, port=0):
        self.context = context
        self.requests: list[bytes] = []
        """What came in through finished handshakes, by request."""
        self._listener = socket.create_server(("127.0.0.1", port), reuse_port=False)
        self.port = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.shutdown(socket.SHUT_RDWR)
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(30)
        self._listener.close()

    def _run(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        wire = connection
        try:
            connection.settimeout(20)
            with suppress(OSError):  # ssl.SSLError is one: the handshake, or the client, failed
                wire = self.context.wrap_socket(
                    connection, server_side=True, do_handshake_on_connect=False
                )
                wire.do_handshake()
                while request := self._read(wire):
                    self.requests.append(request)
                    wire.sendall(
                        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                        b'Content-Length: 16\r\n\r\n{"success":true}'
                    )
            with suppress(OSError):
                # Close after what the client has sent, or the reset overtakes the reason.
                wire.shutdown(socket.SHUT_WR)
                while wire.recv(65_536):
                    pass
        finally:
            self._open.discard(connection)
            wire.close()
            connection.close()

    @staticmethod
    def _read(wire):
        data = b""
        while b"\r\n\r\n" not in data:
            chunk = wire.recv(65_536)
            if not chunk:
                return b""
            data += chunk
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(
            (
                int(line[15:])
                for line in head.lower().split(b"\r\n")
                if line[:15] == b"content-length:"
            ),
            0,
        )
        while len(body) < length:
            body += wire.recv(65_536)
        return head + b"\r\n\r\n" + body


def server_context(certificate, *, clients=None, oldest=None, newest=None):
    """A context that shows ``certificate``; with ``clients``, an authority, it wants one back."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        clients.configure_trust(context)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # old versions are the point
        if oldest is not None:
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = oldest
        if newest is not None:
            context.maximum_version = newest
    return context
