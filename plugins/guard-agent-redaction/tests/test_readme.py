"""The configurations in the README are valid and do what it says."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(.+?)\n(.*?)```", README, re.DOTALL)
KEY = "0f2a7c4e9b1d8356" * 4


def sections(language):
    """The settings of the plugin in each block of that language."""
    for found, text in BLOCKS:
        if found == language == "toml":
            parsed = tomllib.loads(text.replace("${env:GUARD_HASH_KEY}", KEY))
            yield parsed["tool"]["guard-agent"]
        elif found == language == "yaml":
            yield yaml.safe_load(text)


def test_every_block_is_read_here():
    assert [language for language, _ in BLOCKS] == [
        "toml",
        "toml",
        "json before",
        "json after",
        "yaml",
        "toml",
    ]


@pytest.mark.parametrize("language", ["toml", "yaml"])
def test_every_configuration_is_valid(enricher, language):
    for agent in sections(language):
        redact = enricher(agent.get("sensitive_headers"), **agent["plugins"]["redaction"])
        assert redact.bind("event")({"event_type": "x"}) == {"event_type": "x"}


def test_the_policies_make_of_one_record_what_the_readme_shows(enricher):
    before, after = (json.loads(text) for language, text in BLOCKS if language.startswith("json"))
    (agent,) = (found for found in sections("toml") if "fields" in found["plugins"]["redaction"])

    shown = enricher(**agent["plugins"]["redaction"]).bind("event")(before)

    # The README shortens the hashes.
    short = json.loads(re.sub(r"hmac-[0-9a-f]{32}", "hmac-...", json.dumps(shown)))
    assert short == json.loads(re.sub(r"hmac-[0-9a-f]{3}", "hmac-...", json.dumps(after)))


def test_the_allow_list_lets_dotted_keys_of_the_guard_through(enricher):
    (agent,) = sections("yaml")
    redact = enricher(**agent["plugins"]["redaction"]).bind("event")
    fields = {"endpoint": "/a", "user_agent": "x", "metadata": {"guard.path": "/a", "n": 1}}
    assert redact(fields) == {"endpoint": "/a", "metadata": {"guard.path": "/a"}}
