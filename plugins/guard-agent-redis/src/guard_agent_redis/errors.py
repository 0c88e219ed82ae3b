"""What can be wrong with the server, in one line each."""

from __future__ import annotations

import asyncio
import re

from redis import exceptions

from guard_agent import GuardAgentError


class StoreUnavailableError(GuardAgentError):
    """Redis does not serve the store now. The agent keeps its records and tries again."""


class ServerDownError(StoreUnavailableError):
    """Nobody answers, or not as a server that may be written to. Calls fail at once for a while."""


_BY_CODE = {
    "OOM": "the server has no memory left; raise maxmemory, or lower max_bytes of the store",
    "NOAUTH": "the server asks for a password; set url, or username and password",
    "WRONGPASS": "the server refuses the user name or the password",
    "NOPERM": "the user may not do this; give it the store's keys and commands (see the README)",
    "MAXCLIENTS": "the server has reached its number of clients (maxclients)",
    "WRONGTYPE": "a key of the store holds something else; choose another prefix",
    "MISCONF": "the server cannot save its data and refuses writes; see its log",
    "NOREPLICAS": "the server has too few replicas to accept writes",
    "CROSSSLOT": "the keys of the store are not in one slot",
    "READONLY": "the server is a replica and takes no writes",
    "LOADING": "the server is loading its data",
    "MASTERDOWN": "the server is a replica without its primary",
    "CLUSTERDOWN": "the cluster is down",
    "MOVED": "another node of the cluster has the keys of this project; name that one in url",
    "BUSY": "the server is busy with a script that does not end",
}
_DOWN = {"READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MAXCLIENTS", "BUSY"}

# The client takes the word away from some errors and makes classes of them; the special ones first.
_CODES = (
    (exceptions.ReadOnlyError, "READONLY"),
    (exceptions.BusyLoadingError, "LOADING"),
    (exceptions.NoPermissionError, "NOPERM"),
    (exceptions.NoScriptError, "NOSCRIPT"),
    (exceptions.OutOfMemoryError, "OOM"),
    (exceptions.MasterDownError, "MASTERDOWN"),
    (exceptions.ClusterDownError, "CLUSTERDOWN"),
    (exceptions.TryAgainError, "TRYAGAIN"),
    (exceptions.MovedError, "MOVED"),
    (exceptions.ClusterCrossSlotError, "CROSSSLOT"),
)
# How servers before 7.0 quote the error of a command in a script.
_FROM_SCRIPT = re.compile(r"user_script: ?\d+: -?([A-Z]{3,})\b")


def code_of(error: BaseException) -> str:
    """The word with which the server begins an error, such as ``OOM``; empty when there is none."""
    text = str(error)
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    if isinstance(error, exceptions.AuthenticationError):
        return "NOAUTH" if "required" in text else "WRONGPASS"
    word = text.partition(" ")[0]
    if word.isupper() and word.isalpha() and word != "ERR":
        return word
    quoted = _FROM_SCRIPT.search(text) if isinstance(error, exceptions.ResponseError) else None
    return quoted[1] if quoted else ""


def translate(error: BaseException, where: str) -> StoreUnavailableError:
    """The error to raise for ``error`` of the client, without secrets and on one line."""
    code = code_of(error)
    text = " ".join(str(error).split())[:300]
    if isinstance(error, (asyncio.TimeoutError, exceptions.TimeoutError)):
        return ServerDownError(f"{where} does not answer in time")
    if code in _BY_CODE:
        kind = ServerDownError if code in _DOWN else StoreUnavailableError
        return kind(f"{where}: {_BY_CODE[code]} ({text})")
    if "maxclients" in text or "max number of clients" in text:
        return ServerDownError(f"{where}: {_BY_CODE['MAXCLIENTS']}")
    if isinstance(error, (exceptions.ConnectionError, OSError)):
        return ServerDownError(f"{where} cannot be reached: {text}")
    return StoreUnavailableError(f"{where}: {text}")
