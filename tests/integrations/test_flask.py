"""The agent as an extension of a Flask app."""

from __future__ import annotations

import threading

import pydantic
import pytest
from flask import Flask, current_app

from guard_agent import ConfigurationError, SyncGuardAgentHandler, guard_agent
from guard_agent.integrations.flask import init_app
from guard_agent.testing.records import make_event


def test_views_find_the_agent_in_the_extensions(collector, config):
    app = Flask("shop")
    agent = init_app(app, config)

    @app.get("/")
    def index():
        current_app.extensions["guard_agent"].send_event(make_event(reason="view"))
        return "", 204

    assert app.test_client().get("/").status_code == 204
    agent.stop()

    assert [event["reason"] for event in collector.events] == ["view"]


def test_the_settings_of_the_app_configure_it(collector):
    app = Flask("shop")
    app.config["GUARD_AGENT"] = {"api_key": "from-the-app-01", "endpoint": collector.url}

    init_app(app).send_event(make_event())
    guard_agent().stop()

    assert collector.requests[-1].headers["x-api-key"] == "from-the-app-01"


def test_a_configuration_in_code_goes_before_the_settings_of_the_app(config):
    app = Flask("shop")
    app.config["GUARD_AGENT"] = {"api_key": "from-the-app-01"}

    assert init_app(app, config).config.api_key == "test-key-0123"


def test_without_settings_the_configuration_file_describes_it(collector, tmp_path):
    (tmp_path / "guard-agent.yaml").write_text(
        f"api_key: from-the-file-01\nendpoint: {collector.url}\n"
    )

    assert init_app(Flask("shop")).config.api_key == "from-the-file-01"


def test_it_starts_nothing_so_that_a_server_may_fork(config):
    before = threading.enumerate()

    agent = init_app(Flask("shop"), config)

    assert threading.enumerate() == before
    assert agent.get_stats()["running"] is False


def test_mistakes_show_when_the_app_is_made(config):
    app = Flask("shop")
    with pytest.raises(ConfigurationError, match="nowhere"):
        init_app(app, config.model_copy(update={"store": "nowhere"}))

    app.config["GUARD_AGENT"] = {"api_key": "from-the-app-01", "colour": "blue"}
    with pytest.raises(pydantic.ValidationError, match="colour"):
        init_app(app)


async def test_in_a_running_event_loop_it_is_the_blocking_face_all_the_same(config):
    """As when an ASGI server imports the app."""
    assert isinstance(init_app(Flask("shop"), config), SyncGuardAgentHandler)
