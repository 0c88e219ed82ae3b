"""A client that asks a server on loopback again and again, over connections it keeps."""

from __future__ import annotations

import socket
import threading
import time

_TIMEOUT = 30.0


class Client:
    """One connection, which asks one thing at a time."""

    def __init__(self, port: int, user_agent: str, status: int) -> None:
        self._user_agent = user_agent
        self._status = status
        self._socket = socket.create_connection(("127.0.0.1", port), _TIMEOUT)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        self._socket.close()

    def ask(self, number: int) -> None:
        """
        Ask for one item, and read the answer to its end.

        Raises:
            OSError: the server hung up, or answers with another status than is expected.
        """
        status = self.request(f"/items/{number}", self._user_agent)
        if status != self._status:
            raise OSError(f"the answer was {status}, not {self._status}")

    def request(self, path: str, user_agent: str, address: str | None = None) -> int:
        """
        Ask for ``path``, as a proxy does for ``address`` if there is one, and read the answer.

        Returns:
            Its status.

        Raises:
            OSError: the server hung up.
        """
        behind = "" if address is None else f"X-Forwarded-For: {address}\r\n"
        self._socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: shop\r\n"
            f"User-Agent: {user_agent}\r\n{behind}Accept: */*\r\n\r\n".encode()
        )
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.lower().split(b"\r\n")
        lengths = [int(line[15:]) for line in lines if line.startswith(b"content-length:")]
        while len(body) < sum(lengths):
            body += self._more()
        return int(first.split(b" ")[1])

    def _more(self) -> bytes:
        part = self._socket.recv(65_536)
        if not part:
            raise OSError("the server hung up")
        return part


def crowd(
    amount: int, connections: int, port: int, user_agent: str, status: int
) -> tuple[list[float], float]:
    """
    ``amount`` requests over several connections at once.

    Returns:
        Milliseconds until each answer, and the seconds all of it took.

    Raises:
        OSError: as `Client.ask`.
    """
    took: list[float] = []
    wrong: list[OSError] = []

    def work(first: int) -> None:
        client = Client(port, user_agent, status)
        try:
            for number in range(first, amount, connections):
                began = time.perf_counter()
                client.ask(number)
                took.append((time.perf_counter() - began) * 1000)
        except OSError as error:
            wrong.append(error)
        finally:
            client.close()

    began = time.perf_counter()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    if wrong:
        raise wrong[0]
    return took, seconds
