"""
Every Guard adapter under the servers that people run it with, and a collector beside it.

Each server lives three times: it is killed while the collector hangs, serves again until SIGTERM,
and meets SIGTERM while collector and Redis hang. The tests look at what these lives left.

The guard takes four requests of an address per minute and bans it at its second attack, each worker
by itself, so that one request more than all workers allow together shows it.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from uuid import UUID

import pytest

from guard_agent.testing.collector import Collector

pytestmark = [pytest.mark.xdist_group("e2e-adapters"), pytest.mark.timeout(120)]

APPS = Path(__file__).parent / "apps"
PATIENCE = 30
STOP_TIMEOUT = 1.0

INJECTION = "/?q=1'+UNION+SELECT+password+FROM+users--"
BROWSER = "Mozilla/5.0"


# --- servers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """One row of the table: a shop and what serves it."""

    command: tuple[str, ...]
    workers: int = 1
    loads: int = 1
    """Processes that load the shop."""
    opened: int = 0
    """Processes that record where they load the shop."""
    parent: bool = False
    """Whether the parent is one of these: then it ends after its workers, in a time of its own."""
    group: bool = False
    """Whether the parent leaves it to others to end its workers."""

    @property
    def longest_end(self) -> float:
        """Seconds; a server looks after its workers once or twice a second, and may be busy."""
        return STOP_TIMEOUT * (2 if self.parent else 1) + 3


def uvicorn(*arguments: str, workers: int = 1) -> Server:
    return Server(
        (
            *(sys.executable, "-m", "uvicorn", "--app-dir", str(APPS), "--fd", "{socket}"),
            *("--no-proxy-headers", "--no-access-log", "--workers", str(workers)),
            *arguments,
        ),
        workers,
        workers,
    )


def gunicorn(*arguments: str, workers: int = 2) -> Server:
    loads = 1 if "--preload" in arguments else workers
    return Server(
        (
            *(sys.executable, "-m", "gunicorn", "--pythonpath", str(APPS)),
            *("--bind", "fd://{socket}", "--workers", str(workers)),
            *arguments,
        ),
        workers,
        loads,
        opened=loads if "shop_flask:app" in arguments else 0,
        parent="--preload" in arguments,
    )


def tornado(workers: int) -> Server:
    return Server(
        (sys.executable, str(APPS / "shop_tornado.py"), "{socket}", str(workers)),
        workers,
        workers,
        opened=1,
        parent=workers > 1,
        group=workers > 1,
    )


THREADS = ("--worker-class", "gthread", "--threads", "4")
SERVERS = {
    "fastapi-uvicorn": uvicorn("shop_fastapi:app"),
    "fastapi-uvicorn-2-workers": uvicorn("shop_fastapi:app", workers=2),
    "starlette-uvicorn": uvicorn("shop_starlette:app"),
    "starlette-uvicorn-2-workers": uvicorn("shop_starlette:app", workers=2),
    "flask-gunicorn-sync": gunicorn("shop_flask:app"),
    "flask-gunicorn-sync-preload": gunicorn("--preload", "shop_flask:app"),
    "flask-gunicorn-gthread": gunicorn(*THREADS, "shop_flask:app"),
    "flask-gunicorn-gthread-preload": gunicorn(*THREADS, "--preload", "shop_flask:app"),
    "django-wsgi-gunicorn": gunicorn("shop_django:wsgi()"),
    "django-asgi-uvicorn": uvicorn("--factory", "shop_django:asgi"),
    "tornado": tornado(1),
    "tornado-forked": tornado(2),
}


class Shop:
    """A server that runs, in a process group of its own."""

    def __init__(self, server: Server, endpoint: str, folder: Path, name: str) -> None:
        self.server = server
        self._log = folder / f"{name}.log"
        self._addresses = (f"198.18.{n // 250}.{n % 250 + 1}" for n in itertools.count())
        self._pids: set[int] = set()
        # The socket is there before the process: nobody else gets the port.
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            self._log.open("wb") as log,
        ):
            self._port = listener.getsockname()[1]
            self.process = subprocess.Popen(
                [part.format(socket=listener.fileno()) for part in server.command],
                cwd=folder,
                env={
                    **os.environ,
                    "SHOP": name,
                    "SHOP_ENDPOINT": endpoint,
                    "GUARD_AGENT_CONFIG": str(folder / f"{name}.yaml"),
                    "GUARD_AGENT_STATE_DIR": str(folder / "state"),
                    "PYTHONWARNINGS": "default",
                },
                pass_fds=[listener.fileno()],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_loaded(self) -> None:
        until(lambda: self.log().count("the shop is loaded") >= self.server.loads, self._running)

    def get(self, path: str, address: str | None = None) -> tuple[int, bytes]:
        """Make a request as a proxy does for a client with ``address``, by default a new one."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        try:
            headers = {"X-Forwarded-For": address or next(self._addresses), "Connection": "close"}
            connection.request("GET", path, headers={"User-Agent": BROWSER, **headers})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def statuses(self, path: str, address: str, count: int) -> list[int]:
        return [self.get(path, address)[0] for _ in range(count)]

    def everywhere(self) -> list[dict[str, object]]:
        """What ``/store`` answers in each worker, asked until every one has."""
        answers: dict[int, dict[str, object]] = {}

        def ask() -> bool:
            clients = 2 * self.server.workers
            addresses = [next(self._addresses) for _ in range(clients)]
            with ThreadPoolExecutor(clients) as pool:
                for status, body in pool.map(
                    lambda address: self.get("/store", address), addresses
                ):
                    assert status == 200, body
                    answer = json.loads(body)
                    answers[answer["pid"]] = answer
            return len(answers) == self.server.workers

        until(ask, self._running)
        self._pids = set(answers)
        return list(answers.values())

    def terminate(self) -> float:
        """SIGTERM; returns the seconds until everything has ended."""
        began = time.monotonic()
        for pid in self._pids if self.server.group else {self.process.pid}:
            os.kill(pid, signal.SIGTERM)
        self.process.wait(PATIENCE)
        return time.monotonic() - began

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def _running(self) -> str | None:
        code = self.process.poll()
        return None if code is None else f"it ended with {code}"


def until(condition, trouble=lambda: None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        assert (said := trouble()) is None, said
        time.sleep(0.02)


@contextmanager
def shop(server: Server, endpoint: str, folder: Path, name: str, settings: dict[str, object]):
    file = {"stop_timeout": STOP_TIMEOUT, **settings}
    # JSON is YAML.
    file["rollup"] = False  # the tests look at each record
    (folder / f"{name}.yaml").write_text(json.dumps(file))
    running = Shop(server, endpoint, folder, name)
    try:
        running.wait_until_loaded()
        yield running
    except BaseException:
        sys.stderr.write(running.log())
        raise
    finally:
        running.kill()


@contextmanager
def frozen():
    """A port on which the operating system takes connections and nobody answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


# --- what happens to each -------------------------------------------------------------------------


@dataclass
class Story:
    """What was seen of a server from outside."""

    server: Server
    began: datetime
    waits: list[float] = field(default_factory=list)
    """Seconds of the requests while collector and Redis hang, the first of a worker included."""
    statuses: dict[str, list[int]] = field(default_factory=dict)
    """By address."""
    confirmed: bool = False
    rules: dict[str, object] = field(default_factory=dict)
    before_sigterm: int = 0
    """Records of the second life that had arrived by then."""
    ends: dict[str, float] = field(default_factory=dict)
    """Seconds from SIGTERM to the end, by life."""
    logs: str = ""
    collector: Collector = field(default_factory=Collector)

    def events(self, event_type: str, address: str) -> list[dict[str, object]]:
        wanted = (event_type, address)
        return [e for e in self.collector.events if (e["event_type"], e["ip_address"]) == wanted]

    def metrics(self, metric_type: str, path: str) -> list[dict[str, object]]:
        wanted = (metric_type, path)
        return [
            metric
            for metric in self.collector.metrics
            if (metric["metric_type"], metric["tags"]["endpoint"]) == wanted
        ]


@pytest.fixture(scope="module", params=SERVERS)
def story(request, tmp_path_factory):
    server = SERVERS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    story = Story(server, datetime.now(timezone.utc))
    # The third life is mostly waiting.
    with ThreadPoolExecutor(1) as beside:
        last = beside.submit(last_life, story, folder)
        disk = {"store": "disk", "plugins": {"polling": {"interval": 1}}}
        port = first_life(story, folder, disk)
        with Collector(port=port) as story.collector:
            second_life(story, folder, disk)
        last.result()
    return story


def first_life(story, folder, settings):
    """The collector hangs, the store is a file; killed after the worker has confirmed an attack."""
    with (
        frozen() as port,
        shop(story.server, f"http://127.0.0.1:{port}", folder, "first", settings) as running,
    ):
        # What a worker finds in the store when it starts it begins to send, and then holds it.
        running.everywhere()
        story.statuses["203.0.113.1"] = running.statuses(INJECTION, "203.0.113.1", 1)
        story.confirmed = all(answer["stored"] for answer in running.everywhere())
        running.kill()
    return port


def second_life(story, folder, settings):
    """The collector answers; attacks, rate limits, bans, rules, and at the end SIGTERM."""
    collector, workers = story.collector, story.server.workers
    with shop(story.server, collector.url, folder, "second", settings) as running:
        running.everywhere()
        collector.wait_for(lambda _: story.events("penetration_attempt", "203.0.113.1"), PATIENCE)
        for path, address, count in (
            ("/", "203.0.113.2", 4 * workers + 1),
            (INJECTION, "203.0.113.3", workers + 1),
            ("/missing", "203.0.113.4", 1),
        ):
            story.statuses[address] = running.statuses(path, address, count)

        story.rules = collector.publish({"ip_blacklist": ["203.0.113.5"], "ip_ban_duration": 1200})
        version = story.rules["version"]
        until(lambda: all(answer["rules"] == version for answer in running.everywhere()))
        story.statuses["203.0.113.5"] = running.statuses("/", "203.0.113.5", 2 * workers)

        addresses = {f"203.0.113.{number}" for number in range(2, 6)}
        story.before_sigterm = sum(e["ip_address"] in addresses for e in collector.events)
        story.ends["second"] = running.terminate()
        story.logs += running.log()


def last_life(story, folder):
    """Collector and Redis hang, from the first request to SIGTERM."""
    with frozen() as port, frozen() as redis_port:
        redis = {"redis": {"url": f"redis://127.0.0.1:{redis_port}/0"}}
        settings = {"store": "redis", "plugins": redis}
        endpoint = f"http://127.0.0.1:{port}"
        end_while_all_hangs(story, endpoint, folder, settings)


def end_while_all_hangs(story, endpoint, folder, settings):
    with shop(story.server, endpoint, folder, "last", settings) as running:
        for _ in range(3):
            began = time.monotonic()
            assert running.get("/")[0] == 200
            story.waits.append(time.monotonic() - began)
        running.everywhere()
        running.get(INJECTION, "203.0.113.6")
        story.ends["last"] = running.terminate()
        story.logs += running.log()


# --- events and metrics ---------------------------------------------------------------------------


def test_an_attack_arrives_with_its_fields(story):
    (event, *_) = story.events("penetration_attempt", "203.0.113.3")

    assert story.statuses["203.0.113.3"][0] == 400
    assert (event["endpoint"], event["method"]) == ("/", "GET")
    assert event["action_taken"] == "request_blocked"
    assert event["user_agent"] == BROWSER
    assert "Query param 'q'" in event["reason"]
    assert "SELECT" in event["metadata"]["trigger_info"]
    assert UUID(event["idempotency_key"])
    moment = datetime.fromisoformat(event["timestamp"].replace("Z", "+00:00"))
    assert story.began <= moment <= datetime.now(timezone.utc)


def test_a_rate_limit_arrives_once_for_each_refused_request(story):
    refused = story.statuses["203.0.113.2"].count(429)
    events = story.events("rate_limited", "203.0.113.2")

    assert len(events) == refused >= 1
    assert {event["endpoint"] for event in events} == {"/"}
    assert {event["action_taken"] for event in events} == {"request_blocked"}
    limits = [(e["metadata"]["rate_limit"], e["metadata"]["window"]) for e in events]
    assert set(limits) == {(4, 60)}


def test_a_ban_arrives(story):
    (ban, *_) = story.events("ip_banned", "203.0.113.3")

    assert 403 in story.statuses["203.0.113.3"]
    assert (ban["action_taken"], ban["reason"]) == ("banned", "penetration_attempt")
    assert ban["metadata"]["duration"] == 600


def test_request_metrics_arrive_with_their_tags(story):
    served = story.statuses["203.0.113.2"].count(200)
    counts = story.metrics("request_count", "/")
    times = story.metrics("response_time", "/")

    assert len(counts) >= served >= 4
    assert {count["value"] for count in counts} == {1}
    assert {count["tags"]["method"] for count in counts} == {"GET"}
    assert [seconds for seconds in times if seconds["tags"]["status"] == "200"]
    assert all(0 <= seconds["value"] < 30 for seconds in times)
    keys = [metric["idempotency_key"] for metric in story.collector.metrics]
    assert len(keys) == len(set(keys))


def test_an_error_rate_arrives_for_a_page_that_is_missing(story):
    assert story.statuses["203.0.113.4"] == [404]
    (error, *_) = story.metrics("error_rate", "/missing")
    assert error["tags"]["status"] == "404"


# --- rules ----------------------------------------------------------------------------------------


def test_rules_of_the_collector_block_in_every_worker(story):
    workers = story.server.workers
    assert story.statuses["203.0.113.5"] == [403] * 2 * workers

    applied = story.events("dynamic_rule_applied", "system")
    expected = (story.rules["rule_id"], story.rules["version"])
    assert [(e["metadata"]["rule_id"], e["metadata"]["version"]) for e in applied] == (
        [expected] * workers
    )
    assert len(story.events("ip_blocked", "203.0.113.5")) == 2 * workers


# --- the end of the process -----------------------------------------------------------------------


def test_p01_what_a_killed_server_had_confirmed_is_delivered_by_the_next(story):
    assert story.statuses["203.0.113.1"] == [400]
    assert story.confirmed
    assert len(story.events("penetration_attempt", "203.0.113.1")) == 1


def test_p04_sigterm_delivers_what_every_worker_holds(story):
    """The other tests show that it arrived; here, that it was held until then."""
    assert story.before_sigterm == 0
    assert story.events("rate_limited", "203.0.113.2")
    assert story.collector.duplicates == []


def test_p03_what_is_recorded_where_the_shop_is_loaded_arrives_once(story):
    """Also when that process forks its workers afterwards."""
    opened = [e for e in story.collector.events if e["event_type"] == "shop_opened"]
    of_this_life = [event for event in opened if event["reason"] == "second"]
    assert len(of_this_life) == story.server.opened


def test_p02_sigterm_ends_in_time_although_collector_and_redis_hang(story):
    assert story.ends["last"] < story.server.longest_end
    assert story.ends["second"] < story.server.longest_end


def test_no_request_waits_for_a_collector_and_a_redis_that_hang(story):
    """
    Whoever waited for rules or for an answer would wait two seconds or ten. The guard itself takes
    a few hundredths for its first request.
    """
    assert max(story.waits) < 1.9


def test_nothing_fails_on_the_way(story):
    for trouble in ("Traceback", "never awaited", "guard_agent - ERROR"):
        assert trouble not in story.logs
