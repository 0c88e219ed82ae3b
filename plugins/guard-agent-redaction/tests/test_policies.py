"""What the owner decides about single fields, allow-lists, and keyed hashes."""

from __future__ import annotations

import copy
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from guard_agent import AgentConfig, ConfigurationError
from guard_agent.core.assembly.composition import compose
from guard_agent.core.assembly.registry import Registry
from guard_agent_redaction import RedactionSettings
from guard_agent_redaction.names import SensitiveNames
from guard_agent_redaction.policies import Policies, parse_policy
from guard_agent_redaction.pseudonyms import Pseudonyms
from guard_agent_redaction.redactor import Redactor

KEY = "0f2a7c4e9b1d8356" * 4
HASH = re.compile(r"hmac-[0-9a-f]{32}")


@pytest.fixture
def bound(enricher):
    """``bound(hash_ip=True)``: the function for events, with a key for hashes."""

    def bind(**redaction):
        return enricher(hash_key=KEY, **redaction).bind("event")

    return bind


# --- policies -------------------------------------------------------------------------------------


def test_drop_removes_the_field(bound):
    redact = bound(fields={"metadata.user.email": "drop", "user_agent": "drop", "gone": "drop"})
    assert redact(
        {"user_agent": "x", "reason": "r", "metadata": {"user": {"email": "a", "n": 1}}}
    ) == {
        "reason": "r",
        "metadata": {"user": {"n": 1}},
    }


def test_keep_overrules_the_name_but_not_the_shape(bound):
    redact = bound(fields={"metadata.page_token": "keep", "metadata.session": "keep"})
    assert redact(
        {
            "token": "abc",
            "metadata": {
                "page_token": "abc",
                "other": {"page_token": "abc"},
                "session": {"n": 5, "password": "abc", "note": "Bearer abc123"},
            },
        }
    ) == {
        "token": "[REDACTED]",
        "metadata": {
            "page_token": "abc",
            "other": {"page_token": "[REDACTED]"},
            "session": {"n": 5, "password": "[REDACTED]", "note": "Bearer [REDACTED]"},
        },
    }


def test_keep_does_not_overrule_sensitive_headers(bound):
    redact = bound(fields={"metadata.headers.cookie": "keep", "metadata.headers.*": "keep"})
    assert redact({"metadata": {"headers": {"Cookie": "a=b", "X-Api-Key": "k", "token": "t"}}}) == {
        "metadata": {"headers": {"Cookie": "[REDACTED]", "X-Api-Key": "[REDACTED]", "token": "t"}}
    }


def test_hash_makes_the_same_of_the_same_and_tells_others_apart(bound):
    redact = bound(fields={"metadata.user.email": "hash", "metadata.session_id": "hash"})
    first, again, other = (
        redact({"metadata": {"user": {"email": email}, "session_id": session}})["metadata"]
        for email, session in [("a@x.test", "s1"), ("a@x.test", "s1"), ("b@x.test", "s2")]
    )
    assert HASH.fullmatch(first["user"]["email"])
    assert HASH.fullmatch(first["session_id"])
    assert first == again
    assert first["user"] != other["user"]
    assert first["session_id"] != other["session_id"]


@pytest.mark.parametrize("value", [None, ""])
def test_nothing_is_not_hashed(bound, value):
    assert bound(fields={"country": "hash"})({"country": value}) == {"country": value}


def test_everything_in_a_hashed_field_is_hashed_and_its_keys_are_redacted(bound):
    redact = bound(fields={"metadata.ids": "hash"})
    value = {"n": 7, "ok": True, "list": ["a", ["b"]], "none": None, "token=abc123": 1}
    ids = redact({"metadata": {"ids": value}})["metadata"]["ids"]
    leaves = [ids["n"], ids["ok"], ids["list"][0], ids["list"][1][0], ids["token=[REDACTED]"]]
    assert all(map(HASH.fullmatch, leaves)), ids
    assert len(set(leaves)) == 5
    assert ids["none"] is None


def test_truncate_cuts_what_is_redacted_already(bound):
    redact = bound(fields={"user_agent": "truncate:8", "metadata.body": "truncate:12"})
    assert redact(
        {"user_agent": "Mozilla/5.0", "metadata": {"body": ["password=hunter2", "short", 5]}}
    ) == {
        "user_agent": "Mozilla/...[TRUNCATED]",
        "metadata": {"body": ["password=[RE...[TRUNCATED]", "short", 5]},
    }


def test_truncate_does_not_show_the_head_of_a_secret(bound):
    redact = bound(fields={"metadata.token": "truncate:4", "metadata.context": "truncate:4"})
    assert redact({"metadata": {"token": "abcdef", "context": {"password": "abcdef"}}}) == {
        "metadata": {"token": "[REDACTED]", "context": {"password": "[RED...[TRUNCATED]"}}
    }


@pytest.mark.parametrize(
    "path",
    [
        "metadata.user.e_mail",
        "Metadata.User.eMail",
        "metadata.*.email",
        "*.user.email",
        "metadata.\uff55ser.email",
    ],
)
def test_paths_name_fields_in_any_spelling(bound, path):
    redact = bound(fields={path: "drop"})
    assert redact({"metadata": {"user": {"E-Mail": "a", "mail": "b"}}}) == {
        "metadata": {"user": {"mail": "b"}}
    }


def test_lists_on_the_way_are_passed_through(bound):
    redact = bound(fields={"metadata.users.email": "drop"})
    assert redact({"metadata": {"users": [{"email": 1, "n": 2}, [{"email": 3}], "x"]}}) == {
        "metadata": {"users": [{"n": 2}, [{}], "x"]}
    }


def test_what_is_cut_in_lists_on_the_way_is_redacted_before(bound):
    redact = bound(fields={"metadata.users.note": "truncate:20"})
    note, cut = (
        "token=canary-canary, of which nothing may stay",
        "token=[REDACTED], of...[TRUNCATED]",
    )
    assert redact({"metadata": {"users": [[{"note": note}], {"note": note}]}}) == {
        "metadata": {"users": [[{"note": cut}], {"note": cut}]}
    }


def test_a_key_with_dots_counts_as_the_names_between_them(bound):
    redact = bound(fields={"metadata.guard.path": "drop"})
    assert redact({"metadata": {"guard.path": "/a", "guard.rule": "r", "guard": {"path": 1}}}) == {
        "metadata": {"guard.rule": "r", "guard": {}}
    }


def test_what_is_decided_about_a_name_holds_for_keys_that_begin_with_it(bound):
    redact = bound(fields={"metadata.guard": "drop", "metadata.guard.rule": "keep"})
    assert redact({"metadata": {"guard.path": "/a", "guard.rule": "r", "guardian": "x"}}) == {
        "metadata": {"guard.rule": "r", "guardian": "x"}
    }


def test_a_longer_path_goes_before_a_shorter_one_and_a_name_before_a_star(bound):
    redact = bound(
        fields={
            "metadata.context": "drop",
            "metadata.context.rule": "keep",
            "metadata.headers.*": "hash",
            "metadata.headers.host": "keep",
        }
    )
    result = redact(
        {
            "metadata": {
                "context": {"rule": "r", "x": 1},
                "headers": {"host": "h.test", "referer": "r"},
            }
        }
    )["metadata"]
    assert result["context"] == {"rule": "r"}
    assert result["headers"]["host"] == "h.test"
    assert HASH.fullmatch(result["headers"]["referer"])


def test_what_has_another_shape_than_the_path_stays(bound):
    redact = bound(fields={"reason.x": "drop", "metadata.a.b": "drop"})
    fields = {"reason": "text", "metadata": {"a": [1, "b"], "b": 2}}
    assert redact(copy.deepcopy(fields)) == fields


def test_a_hash_is_not_taken_for_a_secret_again(bound):
    redact = bound(fields={"metadata.*": "hash"})
    for number in range(300):
        (value,) = redact({"metadata": {"session": f"s{number}"}})["metadata"].values()
        assert HASH.fullmatch(value)
        assert bound()({"reason": value}) == {"reason": value}


# --- allow-list -----------------------------------------------------------------------------------


RECORD = {
    "timestamp": None,
    "idempotency_key": "k",
    "event_type": "ip_banned",
    "ip_address": "203.0.113.7",
    "reason": "password=hunter2",
    "shop": "x",
    "metadata": {
        "guard.rule": "r",
        "headers": {"host": "h", "referer": "r"},
        "list": [{"a": 1, "b": 2}, 3],
    },
}


def test_only_what_is_allowed_stays_and_is_redacted(bound):
    redact = bound(allow=["reason", "metadata.guard", "metadata.headers.host", "metadata.list.a"])
    assert redact(copy.deepcopy(RECORD)) == {
        "timestamp": None,
        "idempotency_key": "k",
        "event_type": "ip_banned",
        "reason": "password=[REDACTED]",
        "metadata": {"guard.rule": "r", "headers": {"host": "h"}, "list": [{"a": 1}]},
    }


def test_an_empty_allow_list_leaves_what_makes_a_record(bound):
    assert set(bound(allow=[])(copy.deepcopy(RECORD))) == {
        "timestamp",
        "idempotency_key",
        "event_type",
    }


def test_a_metric_keeps_its_value_and_the_allowed_tags(enricher):
    redact = enricher(allow=["tags.method"]).bind("metric")
    fields = {
        "metric_type": "m",
        "value": 1.5,
        "endpoint": "/",
        "tags": {"method": "GET", "a": "b"},
    }
    assert redact(fields) == {"metric_type": "m", "value": 1.5, "tags": {"method": "GET"}}


def test_a_field_with_a_policy_that_keeps_something_of_it_is_allowed(bound):
    redact = bound(allow=["metadata.a"], fields={"ip_address": "hash", "metadata.a.x": "drop"})
    result = redact(
        {"ip_address": "203.0.113.7", "reason": "r", "metadata": {"a": {"x": 1, "y": 2}}}
    )
    assert HASH.fullmatch(result.pop("ip_address"))
    assert result == {"metadata": {"a": {"y": 2}}}


def test_a_star_allows_any_one_name(bound):
    redact = bound(allow=["metadata.*.id"])
    assert redact({"metadata": {"a": {"id": 1, "n": 2}, "b": {"id": 3}, "id": 4}}) == {
        "metadata": {"a": {"id": 1}, "b": {"id": 3}}
    }


# --- addresses ------------------------------------------------------------------------------------


def test_hash_ip_replaces_addresses_wherever_they_stand(bound):
    redact = bound(hash_ip=True)
    result = redact(
        {
            "ip_address": "203.0.113.7",
            "reason": "IP 203.0.113.7 banned (was 203.0.113.70:8080).",
            "endpoint": "/users/203.0.113.7/x?ip=203.0.113.7&v6=[2001:DB8::1]:443",
            "metadata": {
                "headers": {
                    "x-forwarded-for": "203.0.113.7, 2001:db8::1",
                    "forwarded": "for=203.0.113.7",
                },
                "seen": {"203.0.113.7": 3},
                "body": json.dumps({"client": "203.0.113.7"}),
                "mapped": "::ffff:203.0.113.7",
            },
        }
    )
    one = result["ip_address"]
    text = json.dumps(result)
    assert HASH.fullmatch(one)
    assert "203.0.113" not in text
    assert "2001" not in text
    assert text.count(one) == 9
    assert result["reason"].startswith(f"IP {one} banned (was hmac-")
    assert result["reason"].endswith(":8080).")
    assert list(result["metadata"]["seen"]) == [one]
    assert result["metadata"]["mapped"] == one
    six = result["metadata"]["headers"]["x-forwarded-for"].partition(", ")[2]
    assert result["endpoint"] == f"/users/{one}/x?ip={one}&v6=[{six}]:443"


@pytest.mark.parametrize(
    "text",
    [
        "Mozilla/5.0 (X11; Linux x86_64) Chrome/120.0.0.0 Safari/537.36",
        "version 1.2.3 of 12:30:45, ratio 16:9, std::string",
        "2026-01-15T10:30:00.123456+00:00",
        "00:1b:44:11:3a:b7",
        "1.2.3.4.5.6 and 999.1.1.1 and 300.200.100.0",
        "C:\\windows\\a.b.c.d",
        "section 10.2.1: see :: there",
    ],
)
def test_hash_ip_leaves_what_is_no_address(bound, text):
    assert bound(hash_ip=True)({"user_agent": text}) == {"user_agent": text}


@pytest.mark.parametrize(
    "same",
    [
        ["2001:db8::1", "2001:DB8:0:0::1", "2001:0db8:0000:0000:0000:0000:0000:0001"],
        ["203.0.113.7", "::ffff:203.0.113.7", "::ffff:cb00:7107", "203.000.113.007"],
        ["fe80::1", "fe80::1%eth0"],
    ],
)
def test_an_address_has_one_stand_in_however_it_is_written(bound, same):
    redact = bound(hash_ip=True)
    stand_ins = {redact({"ip_address": text})["ip_address"] for text in same}
    stand_ins |= {redact({"reason": f"from {text}, twice"})["reason"][5:42] for text in same}
    assert len(stand_ins) == 1


def test_an_address_that_is_none_is_hashed_as_it_is(bound):
    redact = bound(hash_ip=True)
    assert HASH.fullmatch(redact({"ip_address": "testclient"})["ip_address"])
    assert redact({"ip_address": ""}) == {"ip_address": ""}


def test_without_hash_ip_addresses_stay(bound):
    assert bound()({"ip_address": "203.0.113.7"}) == {"ip_address": "203.0.113.7"}


def test_a_policy_for_the_address_goes_before_hash_ip(bound):
    redact = bound(hash_ip=True, fields={"ip_address": "drop"})
    assert "ip_address" not in redact({"ip_address": "203.0.113.7", "reason": ""})


def test_stand_ins_depend_on_key_and_project_only():
    """
    The same in every process and after a restart; not to be joined across projects.
    """
    known = Pseudonyms(KEY, "shop").of("203.0.113.7")
    assert known == "hmac-1e48c31352eff1fce4dcbadb9aa6097c"  # what collectors have in their records
    assert Pseudonyms(KEY, "shop").of("203.0.113.7") == known
    assert Pseudonyms(KEY, "blog").of("203.0.113.7") != known
    assert Pseudonyms(KEY[::-1], "shop").of("203.0.113.7") != known


def test_stand_ins_of_who_names_no_project_stay_the_same_too(bound):
    redact = bound(hash_ip=True)

    known = Pseudonyms(KEY, "").of("203.0.113.7")
    assert redact({"ip_address": "203.0.113.7"}) == {"ip_address": known}


@settings(max_examples=300, deadline=None)
@given(
    address=st.ip_addresses(),
    before=st.sampled_from(["", " ", "(", "ip=", "//", "[", '"', "_", "at "]),
    after=st.sampled_from(
        ["", " ", ")", "]:80", ":", "/64", ".", ", ", "_", '"', "-", "%25", "\n"]
    ),
)
def test_no_address_survives_in_any_surroundings(address, before, after):
    """
    Besides the shortest, such as ``::1``: none of them is that of a person.
    """
    redactor = Redactor(SensitiveNames([], [], []), addresses=Pseudonyms(KEY, ""))
    for text in (f"{before}{address}{after}", f"x {before}{address}{after} y"):
        if len(str(address)) >= 6:
            assert str(address) not in redactor.text(text)


@pytest.mark.parametrize(
    "unit", ["1.", "1.1.1.1", "1.1.1.", ":", "::", "a:", "1:", "1.1.1.1:", "%a", "f:1."]
)
def test_looking_for_addresses_takes_linear_time(unit):
    """
    Quadratic work on 64 KiB would take minutes; the time limit of the test ends it.
    """
    redactor = Redactor(SensitiveNames([], [], []), addresses=Pseudonyms(KEY, ""))
    redactor.text((unit * 65_536)[:65_536])


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("redaction", "where", "message"),
    [
        ({"hash_ip": True}, "hash_key", "is required, because hash_ip is on"),
        ({"fields": {"a.b": "hash"}}, "hash_key", "is required, because a.b is hashed"),
        ({"hash_key": "short"}, "hash_key", "has 5 characters, 32 are needed"),
        ({"hash_key": ""}, "hash_key", "has 0 characters"),
        ({"hash_key": "0" * 64}, "hash_key", "less than 8 different characters"),
        ({"hash_key": "\0" * 32}, "hash_key", "less than 8 different characters"),
        ({"hash_key": "A" * 43 + "="}, "hash_key", "less than 8 different characters"),
        ({"fields": {"a": "encrypt"}}, "fields.a", "no such policy; choose 'keep', 'drop'"),
        ({"fields": {"a": "truncate"}}, "fields.a", "no such policy"),
        ({"fields": {"a": "truncate:-1"}}, "fields.a", "no such policy"),
        ({"fields": {"a..b": "drop"}}, "fields.a..b", "is no path of a field"),
        ({"fields": {"": "drop"}}, "fields", "is no path of a field"),
        ({"fields": {"timestamp": "drop"}}, "fields.timestamp", "no policy can change"),
        ({"fields": {"eventType": "hash"}}, "fields.eventType", "no policy can change"),
        ({"fields": {"a_b": "drop", "aB": "keep"}}, "fields", "'a_b' and 'aB' are the same field"),
        ({"fields": ["a"]}, "fields", "dictionary"),
        ({"allow": ["a", "b."]}, "allow.1", "is no path of a field"),
        ({"allow": "reason"}, "allow", "list"),
    ],
)  # fmt: skip
def test_k02_a_wrong_policy_or_key_is_refused_when_the_agent_is_composed(redaction, where, message):
    """
    What is wrong, where, and how to mend it; never the key itself.
    """
    config = AgentConfig(
        api_key="k" * 12, transports=["console"], rules=[], plugins={"redaction": redaction}
    )
    with pytest.raises(ConfigurationError) as caught:
        compose(config, Registry.from_environment())
    (problem,) = caught.value.problems
    assert problem.code == "GA112"
    assert f"plugins.redaction.{where}" in problem.message
    assert message in problem.message
    for secret in ("short", "0" * 64):
        assert secret not in str(caught.value)


def test_nested_tables_are_paths_too():
    """
    TOML and YAML make tables of names with dots.
    """
    nested = RedactionSettings(fields={"metadata": {"user": {"email": "drop"}}, "a.b": "keep"})
    assert nested.fields == {"metadata.user.email": "drop", "a.b": "keep"}


def test_the_key_is_not_shown():
    shown = RedactionSettings(hash_ip=True, hash_key=KEY)
    assert KEY not in repr(shown) + str(shown) + shown.model_dump_json()
    with pytest.raises(ValidationError) as caught:
        RedactionSettings(hash_ip=True, hash_key=KEY, typo=1)
    assert KEY not in str(caught.value)


def test_memory_is_bounded():
    """
    What is remembered of keys does not grow with the traffic.
    """
    policies = Policies({"metadata.x": parse_policy("drop")}, None, None)
    redactor = Redactor(SensitiveNames([], [], []), policies=policies)
    for number in range(5_000):
        redactor.record({"metadata": {f"key{number}": 1, "k" * 300 + str(number): 2}})
    (metadata,) = (found.inner for found in policies._state.known.values())
    assert 100 < len(metadata.known) <= 2_048
    assert max(map(len, metadata.known)) <= 128


def test_memory_for_addresses_is_bounded():
    pseudonyms = Pseudonyms(KEY, "")
    for number in range(5_000):
        pseudonyms.addresses_in(f"from 10.0.{number // 256}.{number % 256}")
        pseudonyms.of(f"no address {number}")
    assert 100 < len(pseudonyms._known) <= 2_048
