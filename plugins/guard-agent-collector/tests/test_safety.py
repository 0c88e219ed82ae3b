"""Who may talk to the collector, and how it shows what attackers wrote."""

from __future__ import annotations

import pytest

from guard_agent import GuardAgentError
from guard_agent_collector import CollectorServer, ServerOptions
from guard_agent_collector.access import Access, refuse_production

TOKEN = "a-token-of-sufficient-length"


@pytest.mark.parametrize("path", ["/", "/ui/now", "/api/v1/rules"])
@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost@evil"])
async def test_another_host_name_is_refused(start, path, host):
    """
    A name of somebody else that was made to point here (DNS rebinding).
    """
    kit = await start()

    response, _ = await kit.get(path, Host=host)

    assert response.status in (400, 421)


async def test_the_names_of_loopback_are_its_own(start):
    kit = await start(names=("host.docker.internal",))

    for host in ("localhost:1", "127.0.0.1", "[::1]:8700", "host.docker.internal:8700"):
        assert (await kit.get("/", Host=host))[0].status == 200


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/ui/now", "GET"),
        ("/ui/stream", "GET"),
        ("/ui/records/1/raw", "GET"),
        ("/ui/rules", "POST"),
        ("/ui/fault", "POST"),
        ("/api/v1/events", "POST"),
        ("/v1/logs", "POST"),
    ],
)
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
async def test_another_web_page_gets_nothing_and_changes_nothing(start, path, method, headers):
    kit = await start()

    async with kit.session.request(method, kit.url + path, headers=headers, data=b"{}") as response:
        assert response.status == 403


async def test_what_changes_something_must_be_json(start):
    """
    A form of another page cannot send that.
    """
    kit = await start()

    for path in ("/ui/fault", "/ui/rules", "/ui/rules/check"):
        response, _ = await kit.post(path, b"{}", **{"Content-Type": "text/plain"})
        assert response.status == 415


async def test_every_answer_of_the_page_has_a_strict_policy(start, make):
    kit = await start()
    await kit.send(make())

    for path in ("/", "/app.js", "/style.css", "/ui/now", "/ui/records/1", "/ui/nothing"):
        response, _ = await kit.get(path)
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "require-trusted-types-for 'script'" in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    response, _ = await kit.get("/ui/records/1/raw")
    assert response.headers["Content-Disposition"].startswith("attachment")


async def test_the_page_loads_nothing_from_elsewhere(start):
    kit = await start()

    for path in ("/", "/app.js", "/style.css"):
        _, body = await kit.get(path)
        text = body.decode().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text
        assert "https://" not in text
        assert "innerHTML" not in text
        assert "insertAdjacentHTML" not in text


async def test_nothing_but_loopback_without_a_token(tmp_path):
    for token in (None, "", "short"):
        options = ServerOptions(
            database=tmp_path / "c.db", host="0.0.0.0", token=token, environment={}
        )
        with pytest.raises(GuardAgentError, match=r"0\.0\.0\.0.*token"):
            CollectorServer(options)


async def test_with_a_token_the_page_wants_it_once_and_agents_as_their_key(start, make):
    kit = await start(host="0.0.0.0", token=TOKEN)

    assert (await kit.get("/"))[0].status == 401
    assert (await kit.get("/ui/now"))[0].status == 401
    assert (await kit.get("/?token=wrong"))[0].status == 401
    assert (await kit.send(make()))[0].status == 401
    assert (await kit.send(make(), **{"X-API-Key": TOKEN}))[0].status == 200
    assert (await kit.get("/ui/now", Authorization=f"Bearer {TOKEN}"))[0].status == 200

    response, page = await kit.get(f"/?token={TOKEN}")

    assert response.status == 200  # after a redirect, with a cookie
    assert str(response.url) == f"{kit.url}/"
    assert b"<title>" in page
    assert (await kit.get("/ui/now"))[0].status == 200
    cookie = response.history[0].headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite" in cookie
    assert kit.server.page_url == f"{kit.url}/?token={TOKEN}"


def test_a_header_that_is_no_text_is_a_wrong_key():
    access = Access.configured("0.0.0.0", TOKEN, None, ())
    bytes_of_a_header = b"\xff".decode("utf-8", "surrogateescape")

    assert not access.may_send({"X-API-Key": bytes_of_a_header})
    assert not access.may_look({"Authorization": f"Bearer {bytes_of_a_header}"})


def test_a_reachable_collector_answers_to_addresses_but_not_to_unknown_names():
    access = Access.configured("0.0.0.0", TOKEN, None, ("lab.internal",))

    assert access.knows_host("192.0.2.7:8700")
    assert access.knows_host("lab.internal")
    assert not access.knows_host("evil.example")
    assert not access.knows_host(None)
    assert not access.knows_host("[")


@pytest.mark.parametrize(
    ("name", "value"),
    [("ENVIRONMENT", "production"), ("APP_ENV", " Prod "), ("NODE_ENV", "PRODUCTION")],
)
def test_it_refuses_to_start_in_production(tmp_path, name, value):
    with pytest.raises(GuardAgentError, match=f"env -u {name}"):
        CollectorServer(ServerOptions(database=tmp_path / "c.db", environment={name: value}))


def test_anything_else_is_no_production():
    refuse_production({"ENVIRONMENT": "development", "APP_ENV": "", "PRODUCTION": "production"})


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/ui/fault", {"kind": "burn"}),
        ("/ui/fault", {"kind": "500", "count": 0}),
        ("/ui/fault", {"kind": "500", "count": "3"}),
        ("/ui/rules", {"text": 7}),
        ("/ui/rules", {"text": "{}", "signature": "a\nb"}),
        ("/ui/rules", []),
    ],
)
async def test_nonsense_is_answered_not_obeyed(start, path, document):
    kit = await start()

    response, said = await kit.post(path, document)

    assert response.status == 422
    assert said["detail"]


@pytest.mark.parametrize("path", ["/ui/records/x", "/ui/records/99999999999999999999", "/../x"])
async def test_what_is_not_there_is_404(start, path):
    kit = await start()

    assert (await kit.get(path))[0].status == 404


async def test_a_port_or_a_database_that_is_taken_is_named(start, tmp_path):
    kit = await start()
    other = tmp_path / "other.db"
    port = int(kit.url.rpartition(":")[2])

    with pytest.raises(GuardAgentError, match=f"port {port}"):
        await start(port=port, database=other)
    with pytest.raises(GuardAgentError, match="another collector uses it"):
        await start()


async def test_a_file_that_is_no_database_is_named(start, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("my notes, which nobody may overwrite" * 100)

    with pytest.raises(GuardAgentError, match=r"notes\.txt.*--database"):
        await start(database=file)

    assert file.read_text().startswith("my notes")
