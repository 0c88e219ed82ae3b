"""Serves a listening socket in some processes: ``shop_tornado.py DESCRIPTOR PROCESSES``."""

from __future__ import annotations

import asyncio
import socket
import sys

from shop import CONFIG, home, loaded, opened, report
from tornado.httpserver import HTTPServer
from tornado.process import fork_processes
from tornado.web import Application, HTTPError
from tornadoapi_guard import SecurityConfig, SecurityHandler, SecurityMiddleware

from guard_agent import guard_agent
from guard_agent.integrations.tornado import run_until_stopped


class Index(SecurityHandler):
    async def get(self) -> None:
        self.write(home())


class Store(SecurityHandler):
    async def get(self) -> None:
        self.write(report(stored=await guard_agent().flush_to_store()))


class Missing(SecurityHandler):
    async def get(self) -> None:
        raise HTTPError(404)


async def main() -> None:
    app = Application(
        [("/", Index), ("/store", Store)],
        default_handler_class=Missing,
        security_middleware=middleware,
    )
    server = HTTPServer(app)
    listener = socket.socket(fileno=int(sys.argv[1]))
    listener.setblocking(False)
    server.add_socket(listener)
    loaded()
    await run_until_stopped()


# As in the quick start of the adapter: made where no event loop runs.
middleware = SecurityMiddleware(config=SecurityConfig(**CONFIG))
opened(guard_agent())
if (workers := int(sys.argv[2])) > 1:
    fork_processes(workers)
asyncio.run(main())
