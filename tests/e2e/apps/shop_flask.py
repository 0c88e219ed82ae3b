from __future__ import annotations

from flask import Flask
from flaskapi_guard import FlaskAPIGuard, SecurityConfig
from shop import CONFIG, home, loaded, opened, report

from guard_agent import guard_agent

app = Flask(__name__)
FlaskAPIGuard(app, config=SecurityConfig(**CONFIG))
app.get("/")(home)


@app.get("/store")
def store() -> dict[str, object]:
    return report(stored=guard_agent().flush_to_store())


opened(guard_agent())
loaded()
