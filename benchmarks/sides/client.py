"""A client that asks a server on loopback again and again, over connections it keeps."""

from __future__ import annotations

import socket
import threading
import time

from sides.common import quantile

_TIMEOUT = 30.0


def ask(
    amount: int, *, port: int, user_agent: str, status: int, connections: int
) -> dict[str, float]:
    """
    Milliseconds from a request to its answer, and requests per second.

    Raises:
        SystemExit: an answer has another status, or there is none.
    """
    took: list[float] = []
    wrong: list[str] = []

    def work(first: int) -> None:
        try:
            with socket.create_connection(("127.0.0.1", port), _TIMEOUT) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for number in range(first, amount, connections):
                    request = (
                        f"GET /items/{number} HTTP/1.1\r\nHost: shop\r\n"
                        f"User-Agent: {user_agent}\r\nAccept: */*\r\n\r\n"
                    ).encode()
                    began = time.perf_counter()
                    connection.sendall(request)
                    found = read_answer(connection)
                    took.append((time.perf_counter() - began) * 1000)
                    if found != status:
                        wrong.append(f"the answer was {found}, not {status}")
                        return
        except OSError as error:
            wrong.append(str(error))

    began = time.perf_counter()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    if wrong:
        raise SystemExit(wrong[0])
    took.sort()
    return {
        "p50": quantile(took, 0.5),
        "p99": quantile(took, 0.99),
        "per_second": len(took) / seconds,
    }


def read_answer(connection: socket.socket) -> int:
    """Read one answer to its end; its status, 0 when the server hung up."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65_536)
        if not part:
            return 0
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    while len(body) < length:
        part = connection.recv(65_536)
        if not part:
            return 0
        body += part
    return int(head.split(b" ")[1])
