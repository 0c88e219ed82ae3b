from __future__ import annotations

import os
import sys
from datetime import datetime, timezone

import pytest

from guard_agent import DynamicRules, Retry, RuleSet, Unchanged
from guard_agent.plugins.file import FileRules, FileSettings
from guard_agent.testing.records import make_context

JSON = '{"rule_id": "r", "version": 2, "ip_blacklist": ["203.0.113.7"]}'
YAML = """
rule_id: r
version: 2
ip_blacklist:
  - 203.0.113.7
"""
DOCUMENT = {"rule_id": "r", "version": 2, "ip_blacklist": ["203.0.113.7"]}


def source(path, **options):
    return FileRules(FileSettings(path=path, **options), make_context())


async def fetch(path, content=None, known=None):
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return await source(path).fetch(known)


async def refused(path, content):
    result = await fetch(path, content)
    assert isinstance(result, Retry), result
    start = f"cannot use the rule file {path}: "
    assert result.reason.startswith(start)
    return result.reason.removeprefix(start)


@pytest.fixture
def json_path(tmp_path):
    return tmp_path / "rules.json"


@pytest.fixture
def yaml_path(tmp_path):
    return tmp_path / "rules.yaml"


def test_the_interval_is_a_setting(json_path):
    assert source(json_path).interval == 5.0
    assert source(json_path, interval=1).interval == 1.0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rules.json", JSON),
        ("rules.JSON", "\ufeff" + JSON),
        ("rules.yaml", YAML),
        ("rules.yml", "\ufeff" + YAML),
        ("rules", YAML),
        ("rules.yaml", JSON),
    ],
)
async def test_rules_are_read_as_they_stand(tmp_path, name, content):
    result = await fetch(tmp_path / name, content)

    assert isinstance(result, RuleSet)
    assert result.document == DOCUMENT
    assert DynamicRules(**result.document).ip_blacklist == ["203.0.113.7"]


async def test_a_known_file_is_unchanged_until_it_is_written(json_path):
    first = await fetch(json_path, JSON)
    assert await fetch(json_path, known=first.validator) == Unchanged()

    second = await fetch(json_path, JSON.replace("2", "10"), known=first.validator)
    assert second.document["version"] == 10
    assert second.validator != first.validator
    assert await fetch(json_path, known=second.validator) == Unchanged()


async def test_a_file_replaced_by_one_of_the_same_time_and_size_has_changed(json_path):
    first = await fetch(json_path, JSON)
    times = json_path.stat()
    other = json_path.with_suffix(".new")
    other.write_text(JSON.replace("2", "3"))
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(json_path)

    second = await fetch(json_path, known=first.validator)

    assert isinstance(second, RuleSet)


async def test_the_file_may_be_a_symbolic_link(tmp_path, json_path):
    """
    Kubernetes mounts a ConfigMap that way and changes where the link points.
    """
    for version in (1, 2):
        (tmp_path / f"{version}.json").write_text(f'{{"version": {version}}}')
    json_path.symlink_to(tmp_path / "1.json")
    first = await fetch(json_path)
    json_path.unlink()
    json_path.symlink_to(tmp_path / "2.json")

    second = await fetch(json_path, known=first.validator)

    assert (first.document, second.document) == ({"version": 1}, {"version": 2})


async def test_a_missing_file_is_named(json_path):
    assert await fetch(json_path) == Retry(f"the rule file {json_path} does not exist")


async def test_a_folder_is_named(json_path):
    json_path.mkdir()

    result = await fetch(json_path)

    assert result == Retry(f"cannot read the rule file {json_path}: Is a directory")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipes in folders")
async def test_a_pipe_is_refused_without_waiting_for_a_writer(json_path):
    os.mkfifo(json_path)

    assert await refused_as_it_is(json_path) == "it is not a regular file"


async def refused_as_it_is(path):
    result = await fetch(path)
    return result.reason.removeprefix(f"cannot use the rule file {path}: ")


async def test_broken_json_is_refused_with_its_line(json_path):
    reason = await refused(json_path, '{\n  "version": 1,\n  "ttl": oops\n}')

    assert reason.startswith("line 3, column 10: ")


@pytest.mark.parametrize(
    ("content", "start"),
    [
        ("version: 1\nttl: [1, 2\nx: 3\n", "line 3, column 2: "),
        ("version: 1\n\tttl: 3\n", "line 2, column 1: "),
        ("a: 1\n---\nb: 2\n", "line 2, column 1: "),
        ("a: !!python/object/apply:os.getcwd []\n", "line 1, column 4: could not determine"),
        (b"a: 1\nb: \xff\xfe\n", "line 2: it is not UTF-8: invalid start byte"),
        ("a: \x01\n", "unacceptable character #x0001"),
        ("a: 2026-13-45\n", "a value is out of range: month must be in 1..12"),
        ("a: " + "9" * 5000, "a value is out of range: "),
    ],
)
async def test_broken_yaml_is_refused_with_its_line(yaml_path, content, start):
    reason = await refused(yaml_path, content)

    assert reason.startswith(start), reason
    assert "\n" not in reason


@pytest.mark.parametrize("content", ["", "# nothing yet\n", "~\n"])
async def test_an_empty_yaml_file_is_refused(yaml_path, content):
    assert await refused(yaml_path, content) == "line 1: it is empty"


async def test_an_empty_json_file_is_refused(json_path):
    assert (await refused(json_path, "")).startswith("line 1, column 1: ")


@pytest.mark.parametrize("content", ["[1]", "1", '"text"'])
async def test_a_document_that_is_no_mapping_is_refused(tmp_path, content):
    expected = "line 1: it must be a mapping of rule names to values"

    assert await refused(tmp_path / "rules.json", content) == expected
    assert await refused(tmp_path / "rules.yaml", content) == expected


async def test_names_that_are_no_text_are_refused(yaml_path):
    assert "mapping of rule names" in await refused(yaml_path, "1: a\n")


async def test_plain_yaml_values_are_those_of_version_1_2(yaml_path):
    """
    Version 1.1 turns Norway into false and some addresses and times into numbers.
    """
    content = """
    countries: [NO, no, ON, yes, Y]
    addresses: [1:2:3:4:5:6:7:8, 10.0.0.0/8, "::1", 10.0, 010, 0x10]
    numbers: [0, -3, 300, 1.5, 1e3]
    switches: [true, False]
    nothing: [null, ~, ]
    expires_at: 2026-01-31T12:00:00Z
    """

    result = await fetch(yaml_path, content)

    assert result.document == {
        "countries": ["NO", "no", "ON", "yes", "Y"],
        "addresses": ["1:2:3:4:5:6:7:8", "10.0.0.0/8", "::1", 10.0, "010", "0x10"],
        "numbers": [0, -3, 300, 1.5, 1000.0],
        "switches": [True, False],
        "nothing": [None, None],
        "expires_at": datetime(2026, 1, 31, 12, tzinfo=timezone.utc),
    }


@pytest.mark.parametrize("deep", ["[" * 300_000, "- " * 300_000, "{a: " * 200_000])
async def test_deep_nesting_is_refused_before_it_ends_the_process(yaml_path, deep):
    reason = await refused(yaml_path, deep)

    assert reason.startswith("line 1, column ")
    assert reason.endswith("more than 16 levels are not supported here")


async def test_deep_json_is_refused(json_path):
    assert await refused(json_path, "[" * 1_000_000)


async def test_aliases_are_refused(yaml_path):
    """
    Ten lines of them can stand for more values than memory holds.
    """
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 100))]

    reason = await refused(yaml_path, "\n".join(lines))

    assert reason == "line 2, column 10: aliases are not supported here"


async def test_a_file_that_is_too_large_is_refused(json_path, yaml_path):
    assert "larger than 8192 KiB" in await refused(json_path, b" " * (8 * 1024 * 1024 + 1))
    assert "larger than 1024 KiB" in await refused(yaml_path, b" " * (1024 * 1024 + 1))


async def test_a_file_as_large_as_allowed_is_read(json_path):
    result = await fetch(json_path, JSON + " " * (8 * 1024 * 1024 - len(JSON)))

    assert result.document == DOCUMENT


# --- signatures -----------------------------------------------------------------------------------


async def fetch_signed(path, signature, secret="s" * 32):
    path.write_text(JSON)
    beside = path.with_name(f"{path.name}.sig")
    if isinstance(signature, bytes):
        beside.write_bytes(signature)
    elif signature == "folder":
        beside.mkdir()
    context = make_context(rules_signing_secret=secret)
    return await FileRules(FileSettings(path=path), context).fetch(None)


async def test_l09_the_signature_stands_in_a_file_beside(json_path):
    result = await fetch_signed(json_path, b"v1=00ff\n")

    assert (result.content, result.signature) == (JSON.encode(), "v1=00ff")


@pytest.mark.parametrize("signature", [None, b"\xff" * 100_000], ids=["none", "garbage"])
async def test_l09_a_signature_that_is_none_leaves_the_judgement_to_the_core(json_path, signature):
    result = await fetch_signed(json_path, signature)

    assert isinstance(result, RuleSet)
    assert len(result.signature or "") <= 1024


async def test_l09_a_folder_in_place_of_the_signature_is_told(json_path):
    assert isinstance(await fetch_signed(json_path, "folder"), Retry)


async def test_l09_without_a_secret_no_signature_is_read(json_path):
    result = await fetch_signed(json_path, b"v1=00ff", secret=None)

    assert result.signature is None
