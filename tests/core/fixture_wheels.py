"""
Distributions with good and bad plugins, built as wheels and installed by pip.

Each plugin is a module below; the entry point has the module's name with dashes. The tests put the
folder into which pip installed on ``sys.path``, so that plugins are found the way they are found in
production.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PACKAGE = "acme_guard_fixtures"
OTHER_PACKAGE = "other_guard_fixtures"

_IMPORTS = """
from __future__ import annotations
from guard_agent import *
"""

_TRANSPORT = """
class T(Transport):
    name = {name!r}
    {body}
{hook}
def guard_agent_transports():
    return [T]
"""

_ENRICHER = """
class E(Enricher):
    name = {name!r}
    {body}
    def bind(self, kind):
        {bind}
@hookimpl
def guard_agent_enrichers():
    return [E]
"""

_STORE = """
class S(BufferStore):
    name = {name!r}
    {body}
    async def append(self, records, *, evict): return Appended(len(records))
    async def lease(self, destination, max_records, max_bytes, ttl): return None
    async def ack(self, lease, ids): return 0
    async def release(self, lease, ids, delay=0.0): return 0
    async def bury(self, lease, ids, reason): return 0
    async def release_expired(self): return 0
    async def stats(self): return {{}}
    async def dead_letters(self, destination): return ()
    async def replay(self, destination, limit): return 0
@hookimpl
def guard_agent_buffer_stores():
    return [S]
"""

_RULES = """
class R(RuleSource):
    name = {name!r}
    {body}
    async def fetch(self, known): return Unchanged()
@hookimpl
def guard_agent_rule_sources():
    return [R]
"""

_SEND = "async def send(self, batch): return Accepted()"


def _transport(name: str, body: str = _SEND, hook: str = "@hookimpl") -> str:
    return _TRANSPORT.format(name=name, body=body, hook=hook)


def _enricher(name: str, body: str, bind: str = "return lambda fields: fields") -> str:
    return _ENRICHER.format(name=name, body=body, bind=bind)


def _store(name: str, body: str = "") -> str:
    return _STORE.format(name=name, body=body)


def _rules(name: str, body: str = "interval = 300.0") -> str:
    return _RULES.format(name=name, body=body)


def _hook(body: str, name: str = "guard_agent_transports") -> str:
    return f"@hookimpl\ndef {name}():\n    {body}\n"


_TCP = """
from pydantic import field_validator

class TcpSettings(PluginSettings):
    host: str = "localhost"
    port: int = 9000
    token: str = ""

    @field_validator("token")
    @classmethod
    def check_token(cls, value):
        if value.startswith("bad"):
            raise ValueError(f"the token {value!r} is refused")
        return value

class T(Transport):
    name = "acme-tcp"
    Settings = TcpSettings
    settings: TcpSettings
    async def send(self, batch: Batch) -> SendResult:
        return Accepted()

@hookimpl
def guard_agent_transports():
    return [T]
"""

MODULES = {
    # Good ones.
    "acme_tcp": _TCP,
    "acme_lazy": _transport("acme-lazy"),
    "acme_store": _store("acme-store"),
    "acme_rules": _rules("acme-rules"),
    "acme_derive": _enricher("acme-derive", "stage = Stage.DERIVE"),
    "acme_redact": _enricher("acme-redact", "stage = Stage.REDACT"),
    "acme_seal": _enricher("acme-seal", "stage = Stage.SEAL", "return None"),
    # A transport that works next to a hook that does not.
    "acme_half": _transport("acme-half") + _hook("return 1 / 0", "guard_agent_rule_sources"),
    # Import.
    "acme_missing_module": "import acme_no_such_module\n",
    "acme_raises": "raise RuntimeError('first line\\nsecond line')\n",
    "acme_exits": "import sys\nsys.exit(3)\n",
    # Hooks.
    "acme_misspelt": _hook("return []", "guard_agent_transport"),
    "acme_undecorated": _transport("acme-undecorated", hook=""),
    "acme_hook_args": "@hookimpl\ndef guard_agent_transports(config):\n    return []\n",
    "acme_hook_async": "@hookimpl\nasync def guard_agent_transports():\n    return []\n",
    "acme_hook_raises": _hook("raise KeyError('transports')"),
    "acme_hook_exits": _hook("raise SystemExit(4)"),
    "acme_hook_none": _hook("pass"),
    "acme_hook_number": _hook("return 42"),
    "acme_hook_single": _transport("acme-hook-single").replace("[T]", "T"),
    "acme_hook_instance": (
        _transport("acme-hook-instance").replace("[T]", "[T(PluginSettings(), None)]")
    ),
    "acme_hook_endless": _hook("while True:\n        yield 'junk'"),
    "acme_hook_wrong_kind": _transport("acme-hook-wrong-kind").replace("transports", "enrichers"),
    "acme_no_hooks": "x = 1\n",
    "acme_two_classes": _transport("acme-two-classes").replace("[T]", "[T, T]"),
    # Classes.
    "acme_wrong_name": _transport("something-else"),
    "acme_no_name": _transport("x").replace("name = 'x'", ""),
    "acme_no_stage": _enricher("acme-no-stage", ""),
    "acme_sync_send": _transport("acme-sync-send", "def send(self, batch): return Accepted()"),
    "acme_async_bind": _enricher("acme-async-bind", "stage = Stage.SEAL").replace(
        "def bind", "async def bind"
    ),
    "acme_async_redactor": _enricher("acme-async-redactor", "stage = Stage.REDACT").replace(
        "def bind", "async def bind"
    ),
    "acme_yielding_send": _transport("acme-yielding-send", "async def send(self, batch): yield 1"),
    "acme_no_send": _transport("acme-no-send", "pass"),
    "acme_send_signature": _transport(
        "acme-send-signature", "async def send(self, batch, deadline): return Accepted()"
    ),
    "acme_append_signature": _store("acme-append-signature").replace(", *, evict", ""),
    "acme_release_signature": _store("acme-release-signature").replace("delay=", "wait="),
    "acme_init_signature": _transport(
        "acme-init-signature", f"{_SEND}\n    def __init__(self): pass"
    ),
    "acme_interval_method": _rules("acme-interval-method", "def interval(self): return 300.0"),
    # Settings.
    "acme_settings_type": _transport("acme-settings-type", f"{_SEND}\n    Settings = dict"),
    "acme_settings_loose": _transport(
        "acme-settings-loose",
        f"{_SEND}\n    class Settings(PluginSettings):\n"
        "        model_config = {'extra': 'ignore'}",
    ),
    "acme_settings_incomplete": _transport(
        "acme-settings-incomplete",
        f"{_SEND}\n    class Settings(PluginSettings):\n        at: NotDefinedAnywhere",
    ),
    # Construction.
    "acme_init_raises": _transport(
        "acme-init-raises",
        f"{_SEND}\n    class Settings(PluginSettings):\n        token: str = ''\n"
        "    def __init__(self, settings, context):\n"
        "        raise RuntimeError('cannot use ' + settings.token)",
    ),
    "acme_init_key": _transport(
        "acme-init-key",
        f"{_SEND}\n    def __init__(self, settings, context):\n"
        "        raise EncryptionConfigError('the key has 3 bytes')",
    ),
    "acme_store_broken": _store(
        "acme-store-broken", "def __init__(self, settings, context): raise OSError('no')"
    ),
    "acme_bind_junk": _enricher("acme-bind-junk", "stage = Stage.REDACT", "return 'junk'"),
    # Offered by the other distribution as well.
    "acme_twice": _transport("acme-twice"),
}


def entry_points(modules: dict[str, str], package: str) -> str:
    lines = [f"{module.replace('_', '-')} = {package}.{module}" for module in modules]
    if package == PACKAGE:
        lines.append(f"acme-class = {package}.acme_tcp:T")
    return "\n".join(["[guard_agent]", *lines, ""])


def build_wheel(
    folder: Path, distribution: str, version: str, package: str, modules: dict[str, str]
) -> Path:
    """A wheel as the binary distribution format has it: package, METADATA, WHEEL, RECORD."""
    stem = f"{distribution.replace('-', '_')}-{version}"
    files = {f"{package}/__init__.py": ""}
    files |= {f"{package}/{name}.py": _IMPORTS + source for name, source in modules.items()}
    info = f"{stem}.dist-info"
    files |= {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
        f"{info}/entry_points.txt": entry_points(modules, package),
    }
    record = [f"{info}/RECORD,,"]
    for name, text in files.items():
        digest = hashlib.sha256(text.encode()).digest()
        encoded = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        record.append(f"{name},sha256={encoded},{len(text.encode())}")
    files[f"{info}/RECORD"] = "\n".join([*record, ""])
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return wheel


def install(folder: Path) -> Path:
    """Build both distributions, install them into a folder of their own, and answer with it."""
    wheels = [
        build_wheel(folder, "acme-guard-fixtures", "1.2.3", PACKAGE, MODULES),
        build_wheel(
            folder,
            "other-guard-fixtures",
            "0.9",
            OTHER_PACKAGE,
            {"acme_twice": MODULES["acme_twice"]},
        ),
    ]
    site = folder / "site"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    options = ["--no-deps", "--no-index", "--no-compile", "--target", str(site)]
    subprocess.run([*pip, *options, *map(str, wheels)], check=True)
    # Added afterwards, because older versions of pip refuse such a wheel; other installers do not.
    info = site / "acme_guard_fixtures-1.2.3.dist-info"
    with (info / "entry_points.txt").open("a", encoding="utf-8") as file:
        file.write("acme-junk-value = not a module!\n\n[console_scripts]\nacme = not one either!\n")
    return site
