"""Logging: the agent logs through ``logging`` and adds no handler unless asked to."""

from __future__ import annotations

import json
import logging
from pathlib import Path

logger = logging.getLogger("guard_agent")


def one_line(text: object, limit: int = 200) -> str:
    """
    Foreign text for a log line: bounded, on one line, without control characters.

    What a collector or an attacker wrote must not be able to forge a line or drive a terminal.
    """
    raw = str(text)
    cut = raw[: limit + 1]
    clean = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in cut[:limit])
    return f"{clean}..." if len(cut) > limit else clean


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "timestamp": self.formatTime(record, self.datefmt),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def setup_agent_logging(
    log_file: str | None = None, log_format: str = "text", *, reconfigure: bool = True
) -> logging.Logger:
    """
    Give the ``guard_agent`` logger a console handler, and a file handler when asked for.

    For programs without logging of their own; the agent never calls this by itself.
    ``log_format`` is ``text`` or ``json``. With ``reconfigure`` false a logger that has handlers
    is left alone.
    """
    if not reconfigure and logger.handlers:
        return logger
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()

    formatter: logging.Formatter = (
        _JsonFormatter()
        if log_format == "json"
        else logging.Formatter("[%(name)s] %(asctime)s - %(levelname)s - %(message)s")
    )
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if log_file:
        try:
            Path(log_file).parent.mkdir(parents=True, exist_ok=True)
            handlers.append(logging.FileHandler(log_file))
        except OSError as error:
            logger.warning("cannot log to %s: %s", log_file, error)
    for handler in handlers:
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # The handlers above show every line; the root's would show it once more.
    logger.propagate = False
    return logger
