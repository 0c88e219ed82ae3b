from __future__ import annotations

from fastapi import FastAPI
from guard import SecurityConfig, SecurityMiddleware
from shop import CONFIG, home, loaded, report

from guard_agent import guard_agent
from guard_agent.integrations.asgi import agent_lifespan

app = FastAPI(lifespan=agent_lifespan())
app.add_middleware(SecurityMiddleware, config=SecurityConfig(**CONFIG))
app.get("/")(home)


@app.get("/store")
async def store() -> dict[str, object]:
    return report(stored=await guard_agent().flush_to_store())


loaded()
