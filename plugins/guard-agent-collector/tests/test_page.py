"""
The page in a real browser, with a real guarded app: one browser, one collector, one app for all.

Every test uses addresses of its own, and waits for what it wants to see.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import expect, sync_playwright

from guard_agent import AgentConfig, SecurityEvent, SecurityMetric, get_current_timestamp
from guard_agent.core.agent import Agent
from guard_agent.core.assembly.composition import compose

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
PATIENCE = 40_000  # milliseconds for any one thing; most take less than one second
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
INJECTION = {"q": "1' UNION SELECT password FROM users--"}

pytestmark = pytest.mark.timeout(180)
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        reason = "no Chromium to test the page with: run 'make browser', or install 'chromium'"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser
        browser.close()


def end(process):
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
    process.communicate()


class Collector:
    """``guard-agent collector`` in a process, and what a test posts to it by hand."""

    def __init__(self, folder, port=0):
        self.folder = folder
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", "from guard_agent.cli import main; main()", "collector"),
                *("--port", str(port), "--database", str(folder / "collector.db")),
            ],
            env={name: value for name, value in os.environ.items() if "ENV" not in name},
            stdout=subprocess.PIPE,
            text=True,
        )
        line = self.process.stdout.readline()
        assert line.startswith("collector listening on "), line
        self.url = line.split()[-1]
        self.client = httpx.Client(base_url=self.url, timeout=30, trust_env=False)
        self.sent = 0

    def send(self, **fields):
        self.sent += 1
        event = {"idempotency_key": f"hand-{self.sent}", "timestamp": "2026-01-02T03:04:05Z"}
        response = self.client.post("/api/v1/events", json={"events": [{**event, **fields}]})
        assert response.status_code == 200

    def stop(self):
        self.client.close()
        end(self.process)


@pytest.fixture(scope="module")
def collector(tmp_path_factory):
    collector = Collector(tmp_path_factory.mktemp("collector"))
    yield collector
    collector.stop()


@pytest.fixture(scope="module")
def app(collector, tmp_path_factory):
    """The example app under uvicorn, whose agent polls for rules once an hour."""
    folder = tmp_path_factory.mktemp("app")
    config = folder / "guard-agent.yaml"
    config.write_text("rollup: false\nplugins: {polling: {interval: 3600}}\n")
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        (folder / "app.log").open("wb") as log,
    ):
        port = listener.getsockname()[1]
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "uvicorn", "guarded_app:app"),
                *("--app-dir", str(EXAMPLES), "--fd", str(listener.fileno())),
                *("--no-proxy-headers", "--no-access-log"),
            ],
            cwd=folder,
            env={
                **os.environ,
                "GUARD_DEMO_ENDPOINT": collector.url,
                "GUARD_AGENT_CONFIG": str(config),
                "GUARD_AGENT_STATE_DIR": str(folder / "state"),
            },
            pass_fds=[listener.fileno()],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    client = httpx.Client(
        base_url=f"http://127.0.0.1:{port}",
        timeout=60,
        trust_env=False,
        headers={"User-Agent": "Mozilla/5.0"},
    )

    def request(path, address, **options):
        headers = {"X-Forwarded-For": address}
        return client.get(path, headers=headers, **options).status_code

    yield request
    client.close()
    end(process)


@pytest.fixture
def opened(browser):
    """Open a page; at the end nothing may have been complained about or asked of elsewhere."""
    contexts, complaints = [], []

    def opened(url, *, quiet=False, **options):
        context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce", **options}
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        if not quiet:
            page.on(
                "console",
                lambda line: (
                    complaints.append(line.text)
                    if line.type == "error" and "status of 422" not in line.text
                    else None
                ),
            )
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((url.rsplit("/", 1)[0], "data:"))
                else complaints.append(request.url)
            ),
        )
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def rows(page, text=""):
    return page.locator("#live-rows tr", has_text=text)


def test_an_empty_page_says_what_to_do_and_fills_itself(opened, tmp_path):
    collector = Collector(tmp_path)
    try:
        page = opened(f"{collector.url}/")
        expect(page.locator("#now-empty")).to_be_visible()
        expect(page.locator("#paste-app")).to_contain_text(collector.url)

        # The line to paste is a line that works.
        line = page.locator("#paste-curl").inner_text()
        event = json.loads(line.split("-d ")[1].strip("'"))
        collector.send(**event["events"][0])

        expect(page.locator("#now-full")).to_be_visible()
        expect(page.locator("#now-addresses")).to_contain_text("203.0.113.9")
        expect(page.locator("#now-chart rect")).to_have_count(1)
        page.close()  # before its collector, or it complains
    finally:
        collector.stop()


def test_events_of_the_app_appear_and_can_be_searched_and_read(opened, collector, app):
    page = opened(f"{collector.url}/")
    page.locator("#tab-now").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-live")).to_be_focused()
    expect(page.locator("#live")).to_be_visible()

    assert app("/products", "203.0.113.20", params={**INJECTION, "token": "t0ken-of-a-user"}) == 400
    expect(rows(page, "203.0.113.20").filter(has_text="penetration_attempt")).to_have_count(1)

    for _ in range(3):
        collector.send(event_type="probe", ip_address="203.0.113.22", reason="try 1 of 3")
    expect(rows(page, "203.0.113.22")).to_have_count(1)  # repeats are one row
    expect(rows(page, "203.0.113.22").locator(".times")).to_have_text("\N{MULTIPLICATION SIGN}3")

    page.locator("#live-collapse").uncheck()
    expect(rows(page, "203.0.113.22")).to_have_count(3)
    page.locator("#live-collapse").check()
    expect(rows(page, "203.0.113.22")).to_have_count(1)

    page.keyboard.press("/")
    page.keyboard.type("203.0.113.22 probe")
    expect(rows(page)).to_have_count(1)
    page.locator(".chip", has_text="probe").click()
    expect(rows(page)).to_have_count(0)
    expect(page.locator("#live-empty")).to_be_visible()
    page.locator(".chip", has_text="probe").click()
    expect(rows(page)).to_have_count(1)

    page.locator("#live-pause").click()
    collector.send(event_type="probe", ip_address="203.0.113.22", reason="while paused")
    expect(page.locator("#live-pause")).to_contain_text("1 new")
    expect(rows(page)).to_have_count(1)
    page.locator("#live-pause").click()
    expect(rows(page)).to_have_count(2)

    page.locator("#live-filter").fill("203.0.113.20 penetration")
    expect(rows(page)).to_have_count(1)
    expect(rows(page).first).to_contain_text("203.0.113.20")
    rows(page).first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#detail-text")).to_contain_text('"event_type": "penetration_attempt"')
    expect(page.locator("#detail-facts")).to_contain_text("demo-shop")
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()
    expect(rows(page).first).to_be_focused()


@pytest.fixture
def counting_agent(collector, tmp_path, monkeypatch):
    """An agent that merges what repeats until it is stopped, by the test or after it."""
    monkeypatch.setenv("GUARD_AGENT_STATE_DIR", str(tmp_path / "state"))
    config = AgentConfig(
        api_key="test-key-0123",
        endpoint=collector.url,
        project_id="counting",
        rules=[],
        rollup=True,
        plugins={"rollup": {"interval": 3600, "sample": {"sampled_probe": 0.01}}},
    )
    agent = Agent(compose(config))
    yield agent
    agent.stop().result(PATIENCE / 1000)


def test_what_stands_for_several_is_shown_as_several(opened, collector, counting_agent):
    page = opened(f"{collector.url}/#live")
    for event_type, times in (("penetration_attempt", 60), ("sampled_probe", 101)):
        for _ in range(times):
            event = SecurityEvent(
                timestamp=get_current_timestamp(), event_type=event_type, ip_address="203.0.113.25"
            )
            counting_agent.record("event", event)
    for _ in range(200):
        metric = SecurityMetric(
            timestamp=get_current_timestamp(), metric_type="request_count", value=1.0
        )
        counting_agent.record("metric", metric)
    counting_agent.stop().result(PATIENCE / 1000)

    attack = rows(page, "203.0.113.25").filter(has_text="penetration_attempt")
    expect(attack.locator(".times")).to_have_text("\N{MULTIPLICATION SIGN}60")
    expect(attack).to_have_count(1)
    clock = r"\d\d:\d\d:\d\d"
    expect(attack.locator(".during")).to_have_text(re.compile(f"^{clock} to {clock}$"))
    sample = rows(page, "a sample: 1 in 100 is sent")
    expect(sample.locator(".times")).to_have_text("\N{MULTIPLICATION SIGN}100")
    expect(page.locator(".chip", has_text="sampled_probe")).to_contain_text("101")
    sample.click()
    expect(page.locator("#detail-facts")).to_contain_text("a sample: 1 in 100 is sent")
    page.keyboard.press("Escape")

    page.locator("#tab-agents").click()
    card = page.locator(".agent", has_text="counting")
    expect(card).to_contain_text("361 events and metrics in 5 records")
    page.locator("#tab-now").click()
    expect(page.locator("#now-types li", has_text="sampled_probe")).to_contain_text("101")
    # 60 attacks, the first of the samples, and one that stands for the others.
    expect(page.locator("#now-addresses li", has_text="203.0.113.25")).to_contain_text("62")
    expect(page.locator("#now-requests")).to_have_text(re.compile(r"^([2-9]\d\d|\d,\d{3})$"))


def test_what_was_redacted_is_marked(opened, collector):
    page = opened(f"{collector.url}/#live")
    collector.send(
        event_type="leak", ip_address="203.0.113.30", reason="token=[REDACTED] and x...[TRUNCATED]"
    )

    rows(page, "203.0.113.30").click()

    expect(page.locator("#detail-text mark")).to_have_text(["[REDACTED]", "[TRUNCATED]"])
    expect(page.locator("#detail-marks")).to_contain_text("2 places were redacted")


def test_what_is_broken_under_wire_is_retried_and_recovers(opened, collector, app):
    page = opened(f"{collector.url}/#wire")
    expect(page.locator("#wire-faults button")).to_have_count(6)

    page.locator("#wire-count").select_option("1")
    page.locator("[data-fault='500']").click()
    expect(page.locator("#broken")).to_contain_text("for 1 more request")
    assert app("/products", "203.0.113.40", params=INJECTION) == 400

    expect(page.locator("#wire-rows tr", has_text="broken: 500")).to_have_count(1)
    expect(page.locator("#broken")).to_be_hidden()  # it was for one request
    page.locator("#tab-live").click()
    expect(rows(page, "203.0.113.40").filter(has_text="penetration_attempt")).to_have_count(1)

    page.locator("#tab-wire").click()
    page.locator("[data-fault='lose_ack']").click()
    expect(page.locator("#broken")).to_be_visible()
    assert app("/products", "203.0.113.41", params=INJECTION) == 400

    lost = page.locator("#wire-rows tr", has_text="broken: lose ack")
    expect(lost).to_have_count(1)
    expect(lost).to_contain_text("hung up")
    again = page.locator("#wire-rows td:nth-child(5):not(:empty)")
    expect(again).not_to_have_count(0)  # duplicates: the records came again
    page.locator("#tab-live").click()
    expect(rows(page, "203.0.113.41").filter(has_text="penetration_attempt")).to_have_count(1)
    expect(
        rows(page, "203.0.113.41").filter(has_text="penetration_attempt").locator(".times")
    ).to_be_hidden()

    page.locator("#tab-agents").click()
    expect(page.locator(".agent", has_text="demo-shop")).to_contain_text("healthy")
    expect(page.locator(".agent", has_text="demo-shop")).to_contain_text("watches for rules")


def test_a_rule_that_is_published_in_the_form_blocks_in_the_app(opened, collector, app):
    """
    Its agent would poll in an hour: the rule is pushed.
    """
    address = "203.0.113.50"
    assert app("/", address) == 200
    page = opened(f"{collector.url}/#agents")
    expect(page.locator(".agent", has_text="demo-shop")).to_contain_text("watches for rules")
    page.locator("#tab-rules").click()

    page.locator("#rule-ips").fill("0.0.0.0/0")
    expect(page.locator("#rule-verdict")).to_contain_text("refuse")
    page.locator("#rule-publish").click()
    expect(page.locator("#rule-verdict")).to_contain_text("Not published: ip_blacklist")
    page.locator("#rule-ips").fill(address)
    expect(page.locator("#rule-verdict")).to_contain_text("would take")
    page.locator("#rule-publish").click()
    began = time.monotonic()
    while app("/products", address) != 403:
        assert time.monotonic() - began < PATIENCE / 1000
    print(f"blocked {time.monotonic() - began:.3f} s after the click")  # noqa: T201 - measured

    step = page.locator(".publication").first.locator("tbody tr")
    expect(step).to_contain_text("demo-shop")
    expect(step.locator(".applied")).to_contain_text("s")
    expect(page.locator(".publication").first.locator("pre")).to_contain_text(address)


def test_what_attackers_write_is_text_and_nothing_else(opened, collector):
    evil = "<script>document.title='taken'</script><img src=x onerror=alert(1)>"
    page = opened(f"{collector.url}/#live")
    title = page.title()
    names = (
        "event_type",
        "ip_address",
        "endpoint",
        "method",
        "reason",
        "action_taken",
        "user_agent",
    )
    notes = {f"guard.{name}": evil for name in ("count", "first", "last", "rollup", "rate")}
    collector.send(**{name: f"{name} {evil}" for name in names}, metadata={evil: evil, **notes})
    collector.send(event_type="huge", ip_address="203.0.113.60", reason="<b>" + "x" * 2**20)
    headers = {"X-Agent-Install-Id": evil, "X-Project-ID": evil, "User-Agent": evil}
    report = {"status": evil, "pid": 7, "errors": [evil], "destinations": {evil: {"breaker": evil}}}
    collector.client.post("/api/v1/status", json=report, headers=headers)
    collector.client.post(f"/api/v1/events?{evil}", content=b"<script>")

    row = rows(page, "event_type <script>")
    expect(row).to_contain_text("<img src=x onerror=alert(1)>")
    row.click()
    expect(page.locator("#detail-text")).to_contain_text("<script>document.title=")
    page.keyboard.press("Escape")
    rows(page, "203.0.113.60").click()
    expect(page.locator("#detail-marks")).to_contain_text("Only the first 64.0 kB of 1.0 MB")
    assert len(page.locator("#detail-text").inner_text()) <= 65_536
    page.keyboard.press("Escape")
    for tab in ("now", "agents", "wire", "rules", "live"):
        page.locator(f"#tab-{tab}").click()
        expect(page.locator(f"#{tab}")).to_be_visible()
    page.locator("#tab-agents").click()
    expect(page.locator(".agent", has_text="<script>")).to_be_visible()

    assert page.title() == title
    assert page.locator("main script, main img, main iframe").count() == 0
    # Not even a mistake in the page could make it more than text.
    other = opened(f"{collector.url}/", quiet=True)
    with pytest.raises(PlaywrightError, match="TrustedHTML"):
        other.evaluate("() => { document.body.innerHTML = '<b>' }")


def test_a_collector_that_is_gone_is_said_so_and_found_again(opened, tmp_path):
    first = Collector(tmp_path)
    page = opened(f"{first.url}/#live", quiet=True)
    first.send(event_type="before", ip_address="203.0.113.70")
    expect(rows(page, "before")).to_have_count(1)
    port = int(first.url.rpartition(":")[2])
    first.stop()
    expect(page.locator("#lost")).to_be_visible()
    expect(page.locator("#link")).to_have_text("connection lost")

    second = Collector(tmp_path, port)
    try:
        second.send(event_type="after", ip_address="203.0.113.71", idempotency_key="another")

        expect(rows(page, "after")).to_have_count(1)
        expect(rows(page, "before")).to_have_count(1)
        expect(page.locator("#lost")).to_be_hidden()
    finally:
        second.stop()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_on_a_phone_and_texts_have_contrast(opened, collector, scheme):
    collector.send(event_type="phone_" + "x" * 60, ip_address="203.0.113.80", reason="y" * 190)
    page = opened(f"{collector.url}/", viewport={"width": 390, "height": 844}, color_scheme=scheme)
    for tab in ("now", "live", "agents", "wire", "rules"):
        page.locator(f"#tab-{tab}").click()
        expect(page.locator(f"#{tab}")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab
    page.locator("#tab-now").click()
    for name in ("--text", "--quiet", "--attack", "--change", "--good", "--warn", "--bad"):
        assert contrast(page, name, "--card") >= 4.5, name


def contrast(page, one, other):
    """As WCAG 2 defines it."""
    values = page.evaluate(
        "names => names.map(name => getComputedStyle(document.documentElement)"
        ".getPropertyValue(name).trim())",
        [one, other],
    )

    def luminance(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted(map(luminance, values))
    return (light + 0.05) / (dark + 0.05)
