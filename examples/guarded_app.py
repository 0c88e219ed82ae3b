"""
A small shop whose API is protected by fastapi-guard and reported on by guard-agent.

``make demo`` runs it beside a local collector. By hand, with any collector::

    GUARD_DEMO_ENDPOINT=http://127.0.0.1:8700 \
        uvicorn guarded_app:app --app-dir examples --no-proxy-headers

``--no-proxy-headers`` leaves it to the guard to decide whose ``X-Forwarded-For`` is trusted.
"""

from __future__ import annotations

import os

from fastapi import FastAPI, HTTPException
from guard import SecurityConfig, SecurityMiddleware

from guard_agent.integrations.asgi import agent_lifespan

PRODUCTS = {1: "lantern", 2: "rope", 3: "compass"}

config = SecurityConfig(
    # The agent: these lines are all it takes.
    enable_agent=True,
    agent_api_key=os.environ.get("GUARD_DEMO_API_KEY", "demo-key-0000"),
    agent_endpoint=os.environ.get("GUARD_DEMO_ENDPOINT", "http://127.0.0.1:8700"),
    agent_project_id="demo-shop",
    agent_buffer_size=20,
    agent_flush_interval=1,
    enable_dynamic_rules=True,
    # The guard.
    enable_penetration_detection=True,
    blocked_user_agents=["sqlmap", "nikto"],
    rate_limit=10,
    rate_limit_window=60,
    auto_ban_threshold=3,
    auto_ban_duration=600,
    # Requests reach the app through a proxy on this machine, which names the client.
    trusted_proxies=("127.0.0.1",),
    # Nothing besides the collector is needed.
    enable_redis=False,
)


app = FastAPI(
    title="Demo shop",
    docs_url=None,
    redoc_url=None,
    openapi_url=None,
    # uvicorn ends by a signal, so nothing comes after it: deliver what is left.
    lifespan=agent_lifespan(),
)
app.add_middleware(SecurityMiddleware, config=config)


@app.get("/")
async def home() -> dict[str, str]:
    return {"shop": "open"}


@app.get("/products")
async def products(q: str = "") -> dict[str, list[str]]:
    return {"products": [name for name in PRODUCTS.values() if q in name]}


@app.get("/products/{number}")
async def product(number: int) -> dict[str, str]:
    if number not in PRODUCTS:
        raise HTTPException(404, "no such product")
    return {"name": PRODUCTS[number]}


@app.post("/login")
async def login() -> dict[str, str]:
    return {"user": "ok"}
