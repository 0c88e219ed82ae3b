"""
A guarded app under attack, its agent, and a collector with a live page.

Starts a collector and ``guarded_app.py`` on loopback, visits and attacks the app, shows what the
agent delivers, publishes a rule, and shows that it holds. Needs no account, key or Redis.

On a terminal the page stays up, with visitors and attackers, until Ctrl-C; elsewhere it ends after
the summary. Ends with 0 when everything went as it should, else with 1 and a message.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import webbrowser
from collections import Counter
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote, urlencode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

EXAMPLES = Path(__file__).resolve().parent
PATIENCE = 20.0  # seconds to wait for any one thing; a slow machine needs about two

# What must not arrive anywhere. Every request carries the first three in its headers, the attacks
# carry the others where attackers and careless clients leave them.
BEARER = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJkZW1vIn0.c2lnbmF0dXJlLW9mLXRoZS1kZW1v"
COOKIE = "s3ss10n-7f4c1e"
API_KEY = "shop-key-51Hd3m0"
QUERY_TOKEN = "query-t0ken-9a2b"
QUERY_PASSWORD = "hunter2-query"
FORM_PASSWORD = "hunter2-form"
URL_PASSWORD = "hunter2-url"
AGENT_TOKEN = "agent-t0ken-44d1"
SECRETS = (
    *(BEARER, COOKIE, API_KEY, QUERY_TOKEN),
    *(QUERY_PASSWORD, FORM_PASSWORD, URL_PASSWORD, AGENT_TOKEN),
)

# What the guard reports about itself; it is counted, not listed.
DIAGNOSTICS = ("pattern_", "security_headers_")


class DemoError(Exception):
    """Something did not go as it should."""


def expect(status: int, wanted: int, what: str) -> None:
    if status != wanted:
        msg = f"{what} was answered with {status} instead of {wanted}"
        raise DemoError(msg)


# --- terminal -------------------------------------------------------------------------------------


class Terminal:
    """Lines cut to the width, coloured only where colours are understood."""

    _COLOURS: Mapping[str, int] = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33}

    def __init__(self) -> None:
        is_terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._is_coloured = is_terminal and not os.environ.get("NO_COLOR")
        self._width = shutil.get_terminal_size((140, 24)).columns if is_terminal else 140

    def line(self, text: str = "", colour: str | None = None) -> None:
        cut = text if len(text) <= self._width else f"{text[: self._width - 3]}..."
        if colour and self._is_coloured:
            cut = f"\x1b[{self._COLOURS[colour]}m{cut}\x1b[0m"
        print(cut, flush=True)

    def heading(self, text: str) -> None:
        self.line()
        self.line(text, "bold")


def clean(text: object) -> str:
    """Attackers wrote parts of an event: nothing in it may drive the terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


# --- the collector --------------------------------------------------------------------------------


class Collector:
    """
    ``guard-agent collector`` in a process of its own.

    What it received is read from the file that it records to, and from what its page asks for.
    """

    def __init__(self, folder: Path) -> None:
        self.events: list[dict[str, Any]] = []
        self.metrics: list[dict[str, Any]] = []
        self._record = folder / "received.jsonl"
        self._known: set[str] = set()
        self._at = 0
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", "from guard_agent.cli import main; main()"),
                *("collector", "--port", "0", "--database", str(folder / "collector.db")),
                *("--record", str(self._record)),
            ],
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the demo, which ends it then
        )
        self.url = self._announced()

    def _announced(self) -> str:
        assert self._process.stdout is not None
        first = self._process.stdout.readline()
        _, _, url = first.rstrip().rpartition(" ")
        if not url.startswith("http://"):
            msg = "the collector did not start; what it said stands above"
            raise DemoError(msg)
        return url

    def look(self) -> None:
        """Take in what was received since the last look."""
        if not self._record.exists():
            return
        with self._record.open("rb") as file:
            file.seek(self._at)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # it is being written
                self._at += len(line)
                batch = json.loads(json.loads(line)["body"])
                for kept, name in ((self.events, "events"), (self.metrics, "metrics")):
                    for record in batch.get(name) or []:
                        if record["idempotency_key"] not in self._known:
                            self._known.add(record["idempotency_key"])
                            kept.append(record)

    def wait_for(self, predicate: Callable[[Collector], object], timeout: float) -> None:
        """
        Look until ``predicate`` is true.

        Raises:
            TimeoutError: it was not true in time.
        """
        deadline = time.monotonic() + timeout
        self.look()
        while not predicate(self):
            if time.monotonic() > deadline:
                types = Counter(str(event["event_type"]) for event in self.events)
                msg = f"received: {dict(types)}, {len(self.metrics)} metrics"
                raise TimeoutError(msg)
            time.sleep(0.02)
            self.look()

    def publish(self, rules: Mapping[str, Any]) -> dict[str, Any]:
        """Publish rules, as the form of the page does."""
        answer = self._ask("POST", "/ui/rules", json.dumps({"text": json.dumps(rules)}))
        published: dict[str, Any] = json.loads(answer.read())
        if answer.status != 200:
            msg = f"the collector did not publish the rules: {published}"
            raise DemoError(msg)
        return published

    def requests(self) -> list[dict[str, Any]]:
        """What the page lists under Wire: sizes, answers and duplicates of each request."""
        answer = self._ask("GET", "/ui/stream")
        for line in answer:
            if line.startswith(b"data: "):
                found: list[dict[str, Any]] = json.loads(line[6:])["requests"]
                return found
        return []

    def _ask(self, method: str, path: str, body: str | None = None) -> http.client.HTTPResponse:
        host = self.url.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=PATIENCE)
        headers = {"Content-Type": "application/json"} if body else {}
        connection.request(method, path, body, headers)
        return connection.getresponse()

    def stop(self) -> None:
        stop(self._process)

    def secrets_found(self) -> list[str]:
        """Which of the planted secrets are in anything it kept."""
        kept = [path.read_bytes() for path in self._record.parent.glob("collector.db*")]
        kept.append(self._record.read_bytes())
        return sorted({secret for secret in SECRETS for data in kept if secret.encode() in data})


def stop(process: subprocess.Popen[Any]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# --- the guarded app ------------------------------------------------------------------------------


class App:
    """The example app in a process of its own, and a client for it."""

    def __init__(self, collector_url: str, folder: Path) -> None:
        self._log = folder / "app.log"
        self.answers: Counter[int] = Counter()
        # The socket is there before the process: nobody else gets the port, and the first request
        # waits in its backlog until the app is up.
        with socket.create_server(("127.0.0.1", 0)) as listener, self._log.open("wb") as log:
            self._port: int = listener.getsockname()[1]
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "uvicorn", "guarded_app:app"),
                    *("--app-dir", str(EXAMPLES), "--fd", str(listener.fileno())),
                    *("--no-proxy-headers", "--no-access-log"),
                ],
                cwd=folder,
                env={
                    **os.environ,
                    "GUARD_DEMO_ENDPOINT": collector_url,
                    "GUARD_AGENT_CONFIG": str(EXAMPLES / "guard-agent.yaml"),
                    # The rules of the last demo must not be remembered.
                    "GUARD_AGENT_STATE_DIR": str(folder / "state"),
                },
                pass_fds=[listener.fileno()],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def request(
        self,
        path: str,
        *,
        address: str,
        query: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
        user_agent: str = "Mozilla/5.0",
    ) -> int:
        """Make a request as a proxy does for a client with ``address``; returns the status."""
        target = path + (f"?{urlencode(query, quote_via=quote)}" if query else "")
        headers = {
            "X-Forwarded-For": address,
            "User-Agent": user_agent,
            "Authorization": f"Bearer {BEARER}",
            "Cookie": f"theme=dark; session={COOKIE}",
            "X-Api-Key": API_KEY,
            "Content-Type": "application/json",
        }
        method, body = ("GET", None) if form is None else ("POST", json.dumps(form))
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        try:
            connection.request(method, target, body, headers)
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            msg = f"the app did not answer {method} {path}: {error!r}"
            raise DemoError(msg) from error
        finally:
            connection.close()
        self.answers[response.status] += 1
        return response.status

    def stop(self) -> None:
        stop(self._process)

    def log_tail(self, lines: int = 25) -> str:
        try:
            text = self._log.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            return f"    (no log: {error})"
        return "\n".join(f"    {clean(line)[:200]}" for line in text.splitlines()[-lines:])


# --- the live view --------------------------------------------------------------------------------


class View:
    """Prints what arrives at the collector."""

    def __init__(self, collector: Collector, terminal: Terminal) -> None:
        self._collector = collector
        self._terminal = terminal
        self._shown = 0
        self._counted: Counter[str] = Counter()

    def until(self, what: str, predicate: Callable[[Collector], object]) -> None:
        """Print events as they arrive until ``predicate`` is true."""
        deadline = time.monotonic() + PATIENCE
        while not predicate(self._collector):
            try:
                self._collector.wait_for(
                    lambda c: len(c.events) > self._shown or predicate(c),
                    timeout=deadline - time.monotonic(),
                )
            except TimeoutError as error:
                msg = f"waited in vain for {what}: {error}"
                raise DemoError(msg) from error
            self._print_new()
        self._print_new()
        self._print_counts()

    def until_event(self, event_type: str, address: str, count: int = 1) -> dict[str, Any]:
        """Print events until there were ``count`` of this type and address; returns the last."""

        def found(collector: Collector) -> list[dict[str, Any]]:
            return [
                event
                for event in collector.events
                if (event["event_type"], event["ip_address"]) == (event_type, address)
            ]

        self.until(
            f"{count} {event_type} of {address}", lambda c: sum(map(count_of, found(c))) >= count
        )
        return found(self._collector)[-1]

    def _print_new(self) -> None:
        new = self._collector.events[self._shown :]
        self._shown += len(new)
        # The agent sends attacks first; people read in the order of time.
        for event in sorted(new, key=moment_of):
            if not is_diagnostic(event):
                self._print_event(event)

    def _print_event(self, event: Mapping[str, Any]) -> None:
        moment = moment_of(event).astimezone()
        request = f"{event.get('method') or ''} {event.get('endpoint') or ''}".strip()
        columns = (
            f"  {moment:%H:%M:%S}.{moment.microsecond // 1000:03d}",
            f"{clean(event['event_type']):<20}",
            f"{clean(event.get('ip_address') or '-'):<13}",
            f"{clean(request) or '-':<13}",
            f"{clean(event.get('action_taken') or '-'):<15}",
            clean(event.get("reason") or "").removeprefix("Penetration attempt detected: "),
            f"(x {times})" if (times := count_of(event)) > 1 else "",
        )
        is_stopped = event.get("action_taken") in ("request_blocked", "banned")
        self._terminal.line("  ".join(columns).rstrip(), "red" if is_stopped else "yellow")

    def _print_counts(self) -> None:
        counted = count_by("metric_type", self._collector.metrics)
        counted["diagnostics"] = sum(map(count_of, filter(is_diagnostic, self._collector.events)))
        new, self._counted = counted - self._counted, counted
        if new:
            text = ", ".join(f"{name}: {count}" for name, count in sorted(new.items()))
            self._terminal.line(f"  + {text}", "dim")


def is_diagnostic(event: Mapping[str, Any]) -> bool:
    return str(event["event_type"]).startswith(DIAGNOSTICS)


def count_of(record: Mapping[str, Any]) -> int:
    """How many events or metrics a record stands for: the agent merges what is the same."""
    notes = record.get("metadata") or record.get("tags") or {}
    return int(notes.get("guard.count", 1))


def count_by(name: str, records: Iterable[Mapping[str, Any]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for record in records:
        counts[str(record[name])] += count_of(record)
    return counts


def moment_of(event: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(str(event["timestamp"]).replace("Z", "+00:00"))


# --- the story ------------------------------------------------------------------------------------


def visit(app: App, view: View, terminal: Terminal) -> None:
    terminal.heading("Visitors look around")
    for address, path in (
        ("198.51.100.1", "/"),
        ("198.51.100.1", "/products/2"),
        ("198.51.100.2", "/products"),
    ):
        expect(app.request(path, address=address), 200, f"a visit to {path}")
    view.until("metrics of the visits", lambda c: sum(map(count_of, c.metrics)) >= 6)


def attack(app: App, view: View, terminal: Terminal) -> None:
    terminal.heading("203.0.113.10 tries SQL injection")
    injection = {"q": "1' UNION SELECT password FROM users--", "token": QUERY_TOKEN}
    expect(app.request("/products", address="203.0.113.10", query=injection), 400, "SQL injection")
    view.until_event("penetration_attempt", "203.0.113.10")

    terminal.heading("203.0.113.11 tries it in the login form")
    form = {"user": "x' UNION SELECT 1,2,3 FROM users--", "password": FORM_PASSWORD}
    expect(app.request("/login", address="203.0.113.11", form=form), 400, "SQL injection")
    view.until_event("penetration_attempt", "203.0.113.11")

    terminal.heading("203.0.113.12 tries path traversal")
    traversal = {"q": "../../../../etc/passwd", "password": QUERY_PASSWORD}
    expect(app.request("/products", address="203.0.113.12", query=traversal), 400, "traversal")
    view.until_event("penetration_attempt", "203.0.113.12")

    terminal.heading("203.0.113.13 tries cross-site scripting")
    scripting = {"q": f"<script src=https://bot:{URL_PASSWORD}@evil.example/>alert(1)</script>"}
    expect(app.request("/products", address="203.0.113.13", query=scripting), 400, "scripting")
    view.until_event("penetration_attempt", "203.0.113.13")

    terminal.heading("203.0.113.14 comes with sqlmap")
    tool = f"sqlmap/1.8 (token={AGENT_TOKEN})"
    expect(app.request("/", address="203.0.113.14", user_agent=tool), 403, "sqlmap")
    view.until_event("user_agent_blocked", "203.0.113.14")

    terminal.heading("203.0.113.15 floods the shop")
    statuses = Counter(app.request("/", address="203.0.113.15") for _ in range(13))
    if statuses != {200: 10, 429: 3}:
        msg = f"13 requests of one address were answered with {dict(statuses)}"
        raise DemoError(msg)
    view.until_event("rate_limited", "203.0.113.15", count=3)

    terminal.heading("203.0.113.16 does not give up and is banned")
    expect(app.request("/products", address="203.0.113.16", query=injection), 400, "attack 1")
    expect(app.request("/products", address="203.0.113.16", query=traversal), 400, "attack 2")
    expect(app.request("/products", address="203.0.113.16", query=scripting), 403, "attack 3")
    expect(app.request("/", address="203.0.113.16"), 403, "a request of a banned address")
    view.until_event("ip_banned", "203.0.113.16")
    view.until_event("ip_blocked", "203.0.113.16")


def publish_a_rule(app: App, view: View, terminal: Terminal, collector: Collector) -> float:
    """Returns how many seconds after its publication the rule was in force."""
    scraper = "GreedyScraper/2.0"
    terminal.heading("203.0.113.66 scrapes the shop, which the guard has nothing against")
    status = app.request("/products", address="203.0.113.66", user_agent=scraper)
    expect(status, 200, "the scraper")
    terminal.line(f"  its request was answered with {status}")

    terminal.heading("The collector publishes a rule against it")
    before = datetime.now(timezone.utc)
    rules = collector.publish(
        {
            "rule_id": "demo-scraper",
            "ip_blacklist": ["203.0.113.66"],
            # The list replaces the one the app was configured with.
            "blocked_user_agents": ["sqlmap", "nikto", "GreedyScraper"],
            "message": "scraper on the loose",
        }
    )
    terminal.line(f"  rule {rules['rule_id']} version {rules['version']} is out")
    applied = view.until_event("dynamic_rule_applied", "system")
    seconds = (moment_of(applied) - before).total_seconds()
    terminal.line(f"  in force {seconds:.1f} s after it was published", "green")

    terminal.heading("The scraper comes back")
    status = app.request("/products", address="203.0.113.66")
    expect(status, 403, "the blacklisted address")
    terminal.line("  from its address:             403")
    view.until_event("ip_blocked", "203.0.113.66")
    status = app.request("/products", address="203.0.113.67", user_agent=scraper)
    expect(status, 403, "the blocked user agent")
    terminal.line("  from another address:         403")
    view.until_event("user_agent_blocked", "203.0.113.67")
    expect(app.request("/products", address="198.51.100.2"), 200, "a visitor")
    terminal.line("  a visitor in the meantime:    200", "green")
    return seconds


def summarise(app: App, collector: Collector, terminal: Terminal, in_force: float) -> None:
    collector.look()
    batches = [r for r in collector.requests() if r.get("records") and r["status"] == 200]
    leaks = collector.secrets_found()
    records = len(collector.events) + len(collector.metrics)
    wire = sum(request["wire"] for request in batches)
    duplicates = sum(request["duplicates"] for request in batches)
    answers = ", ".join(f"{count} x {status}" for status, count in sorted(app.answers.items()))
    events = count_by("event_type", collector.events)
    metrics = count_by("metric_type", collector.metrics)

    terminal.heading("Summary")
    terminal.line(f"  requests to the app   {app.answers.total()} ({answers})")
    terminal.line(
        f"  events and metrics    {events.total() + metrics.total()} in {records} records"
    )
    terminal.line(f"  events delivered      {events.total()}")
    for name, count in events.most_common():
        terminal.line(f"  {count:>21}   {clean(name)}", "dim")
    terminal.line(f"  metrics delivered     {metrics.total()}")
    for name, count in metrics.most_common():
        terminal.line(f"  {count:>21}   {clean(name)}", "dim")
    terminal.line(f"  delivered twice       {duplicates}")
    terminal.line(
        f"  on the wire           {wire} bytes in {len(batches)} batches, "
        f"{wire / records:.0f} bytes a record"
    )
    terminal.line(f"  rule in force after   {in_force:.1f} s")
    terminal.line(
        f"  secrets               {len(SECRETS)} planted, {len(leaks)} found in what was kept",
        "red" if leaks else "green",
    )
    if leaks:
        msg = f"secrets left the app: {', '.join(leaks)}"
        raise DemoError(msg)


def go_on(app: App, terminal: Terminal, page: str) -> None:
    """Keep the page alive until Ctrl-C."""
    terminal.heading(f"The page stays up: {page}")
    terminal.line("  Visitors and attackers go on. Break the collector under Wire, publish a rule")
    terminal.line("  under Rules, and watch what happens. Ctrl-C ends it.")
    attacks = (
        {"q": "1' UNION SELECT password FROM users--"},
        {"q": "../../../../etc/passwd"},
        {"q": "<script>alert(1)</script>"},
    )
    chance = random.Random(7)
    while True:
        number = chance.randrange(40)
        if number < 30:
            path = chance.choice(("/", "/products", "/products/1", "/products/9"))
            app.request(path, address=f"198.51.100.{number}")
        else:
            app.request("/products", address=f"203.0.113.{number}", query=chance.choice(attacks))
        time.sleep(chance.uniform(0.2, 1.0))


def open_page(page: str) -> None:
    """Open it where there is a screen; a text browser would take the terminal away."""
    if sys.platform in ("darwin", "win32") or os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}:
        webbrowser.open(page)


def run(terminal: Terminal, folder: Path) -> int:
    began = time.monotonic()
    collector = Collector(folder)
    app: App | None = None
    try:
        page = f"{collector.url}/"
        terminal.line(f"The page of the collector: {page}", "bold")
        app = App(collector.url, folder)
        stays = sys.stdout.isatty()
        if stays:
            open_page(page)
        terminal.line(
            "a line is an event that the collector received; '+' counts the others: metrics"
        )
        terminal.line("of the requests, and notes that the guard takes while it checks")
        view = View(collector, terminal)
        visit(app, view, terminal)
        attack(app, view, terminal)
        in_force = publish_a_rule(app, view, terminal, collector)
        if not stays:
            app.stop()  # what is left is delivered with its end
        summarise(app, collector, terminal, in_force)
        terminal.heading(f"All as it should be, in {time.monotonic() - began:.0f} s")
        if stays:
            try:
                go_on(app, terminal, page)
            except KeyboardInterrupt:
                terminal.line("\nended")
    except DemoError as error:
        if app is not None:
            app.stop()
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        if app is not None:
            print(f"\nThe app's last lines:\n{app.log_tail()}", file=sys.stderr)
        return 1
    finally:
        if app is not None:
            app.stop()
        collector.stop()
    return 0


def main() -> int:
    missing = [
        name
        for name in ("guard_agent", "guard_agent_collector", "guard", "uvicorn")
        if not find_spec(name)
    ]
    if missing:
        print(
            f"The demo needs {', '.join(missing)}, which cannot be imported here. "
            "'make demo' installs everything into .venv and runs it.",
            file=sys.stderr,
        )
        return 1
    # So that 'finally' also ends the app when the demo is told to end.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _end)
    with tempfile.TemporaryDirectory(prefix="guard-agent-demo-") as folder:
        try:
            return run(Terminal(), Path(folder))
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
            return 130


def _end(signum: int, _frame: object) -> NoReturn:
    sys.exit(128 + signum)


if __name__ == "__main__":
    sys.exit(main())
