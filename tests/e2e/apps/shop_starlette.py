from __future__ import annotations

from typing import TYPE_CHECKING

from guard import SecurityConfig, SecurityMiddleware
from shop import CONFIG, home, loaded, report
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route

from guard_agent import guard_agent
from guard_agent.integrations.asgi import agent_lifespan

if TYPE_CHECKING:
    from starlette.requests import Request


async def index(_: Request) -> JSONResponse:
    return JSONResponse(home())


async def store(_: Request) -> JSONResponse:
    return JSONResponse(report(stored=await guard_agent().flush_to_store()))


app = Starlette(
    routes=[Route("/", index), Route("/store", store)],
    middleware=[Middleware(SecurityMiddleware, config=SecurityConfig(**CONFIG))],
    lifespan=agent_lifespan(),
)
loaded()
