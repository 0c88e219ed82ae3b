"""Plugins are checked and arranged once, before anything runs; all problems are shown together."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import pytest

import guard_agent.plugins.memory
from guard_agent import AgentConfig, ConfigurationError, EncryptionConfigError, Stage
from guard_agent.core.assembly.composition import compose
from guard_agent.core.assembly.registry import Registry

pytestmark = pytest.mark.usefixtures("installed")

GOOD = {
    "enrichers": ["acme-redact"],
    "store": "acme-store",
    "transports": ["acme-tcp"],
    "rules": ["acme-rules"],
}


def config(**changes):
    return AgentConfig(api_key="a-key-of-a-test", **{**GOOD, **changes})


def registry():
    """The environment, and the memory store also where guard-agent runs from a checkout."""
    found = Registry.from_environment()
    if "memory" not in {provider.name for provider in found.providers}:
        found.register(guard_agent.plugins.memory, name="memory", distribution="guard-agent")
    return found


def plan_of(**changes):
    return compose(config(**changes), registry())


def refused(**changes):
    """The problems for which a composition is refused, by code."""
    with pytest.raises(ConfigurationError) as caught:
        plan_of(**changes)
    problems = caught.value.problems
    assert any(problem.fatal for problem in problems)
    for problem in problems:
        assert str(problem) in str(caught.value)
        assert problem.message
        assert problem.fix
    return {problem.code: problem for problem in problems}


def names(steps):
    return [step.instance for step in steps]


# --- what is composed -----------------------------------------------------------------------------


def test_the_order_of_the_configuration_is_the_order_of_the_plan():
    plan = plan_of(
        enrichers=["acme-derive", "acme-redact/second", "acme-redact", "acme-seal"],
        transports=["acme-tcp/us", "acme-lazy", "acme-tcp"],
    )

    assert names(plan.enrichers) == [
        "acme-derive",
        "acme-redact/second",
        "acme-redact",
        "acme-seal",
    ]
    assert names(plan.transports) == ["acme-tcp/us", "acme-lazy", "acme-tcp"]
    assert plan.problems == ()


def test_a_step_says_where_it_comes_from():
    step = plan_of().transports[0]

    assert (step.instance, step.kind, step.cls.__name__) == ("acme-tcp", "transport", "T")
    assert (step.distribution, step.version) == ("acme-guard-fixtures", "1.2.3")


def test_every_instance_has_its_own_settings():
    """
    ``http/eu`` reads ``plugins."http/eu"`` and nothing else.
    """
    plan = plan_of(
        transports=["acme-tcp", "acme-tcp/eu", "acme-tcp/us"],
        plugins={"acme-tcp": {"port": 1}, "acme-tcp/eu": {"port": 2}},
    )

    assert [step.settings.port for step in plan.transports] == [1, 2, 9000]


def test_only_named_plugins_are_imported():
    plan_of()

    assert "acme_guard_fixtures.acme_tcp" in sys.modules
    assert "acme_guard_fixtures.acme_lazy" not in sys.modules


def test_build_makes_new_instances_that_know_their_place():
    plan = plan_of(transports=["acme-tcp/eu", "acme-lazy"], enrichers=["acme-redact", "acme-seal"])

    first, second = plan.build(), plan.build()

    assert [p.context.instance for p in first.enrichers] == ["acme-redact", "acme-seal"]
    assert [p.context.instance for p in first.transports] == ["acme-tcp/eu", "acme-lazy"]
    assert first.memory.context.destinations == ("acme-tcp/eu", "acme-lazy")
    assert first.memory.context.config is plan.config
    assert [p.context.instance for p in first.rules] == ["acme-rules"]
    assert first.transports[0].settings.port == 9000
    assert first.memory is not second.memory


def test_no_rules_and_no_enrichers_besides_the_redactor_are_fine():
    plan = plan_of(rules=[])

    assert plan.build().rules == ()


# --- problems of the owner's making: always fatal -------------------------------------------------


def test_all_problems_are_shown_together():
    problems = refused(
        enrichers=["acme-seal", "acme-redact"],
        store="acme-stor",
        transports=["acme-twice", "acme-tcp"],
        rules=["acme-raises"],
        plugins={"acme-tcp": {"prot": 1}},
    )

    assert set(problems) == {"GA101", "GA102", "GA103", "GA112", "GA202"}


def test_the_text_of_the_error_has_code_message_and_fix_of_each():
    with pytest.raises(ConfigurationError) as caught:
        plan_of(store="acme-stor", transports=["acme-twice"])

    text = str(caught.value)
    assert text.startswith("guard-agent cannot start, 2 problems:")
    for problem in caught.value.problems:
        assert f"{problem.code}: {problem.message}" in text
        assert f"fix: {problem.fix}" in text


def test_ga112_unknown_setting_of_a_plugin():
    problem = refused(plugins={"acme-tcp": {"prot": 9001}})["GA112"]

    assert "plugins.acme-tcp.prot: the plugin has no setting 'prot'" in problem.message
    assert "did you mean 'port'?" in problem.message
    assert "host, port, token" in problem.fix
    assert "9001" not in str(problem)


def test_ga112_invalid_setting_never_shows_the_value():
    problem = refused(plugins={"acme-tcp": {"port": "s3cret-value"}})["GA112"]

    assert "plugins.acme-tcp.port: Input should be a valid integer" in problem.message
    assert problem.fix == "correct plugins.acme-tcp.port"
    assert "s3cret-value" not in str(problem)


def test_ga112_hides_a_value_that_the_plugin_put_into_its_message():
    problem = refused(plugins={"acme-tcp": {"token": "bad-s3cret"}})["GA112"]

    assert "plugins.acme-tcp.token: the token '[hidden]' is refused" in problem.message


def test_ga114_plugin_of_another_kind():
    problem = refused(transports=["acme-store"])["GA114"]

    assert "names 'acme-store' as a transport" in problem.message
    assert "provides only: store" in problem.message
    assert "take 'acme-store' out of 'transports'" in problem.fix


def test_ga201_nothing_redacts():
    problem = refused(enrichers=["acme-derive", "acme-seal"])["GA201"]

    assert "secrets" in problem.message
    assert "put 'redaction' into it" in problem.fix
    assert "allow_unredacted" in problem.fix


def test_ga201_is_a_warning_when_the_owner_allows_it(caplog):
    plan = plan_of(enrichers=[], allow_unredacted=True)

    assert [(p.code, p.fatal) for p in plan.problems] == [("GA201", False)]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "NOT SAFE" in plan.explain()


@pytest.mark.parametrize(
    ("order", "early", "late"),
    [
        (["acme-redact", "acme-derive"], "derive", "redact"),
        (["acme-seal", "acme-redact"], "redact", "seal"),
        (["acme-derive", "acme-redact", "acme-seal", "acme-derive/2"], "derive", "seal"),
    ],
)
def test_ga202_stages_do_not_step_back(order, early, late):
    problem = refused(enrichers=order)["GA202"]

    assert f"(stage {early}) after" in problem.message
    assert f"(stage {late})" in problem.message
    assert "derive, redact, seal" in problem.message
    assert problem.fix.startswith("write enrichers = ['acme-")


def test_ga202_proposes_an_order_that_works():
    fix = refused(enrichers=["acme-seal", "acme-redact", "acme-derive"])["GA202"].fix

    assert fix == "write enrichers = ['acme-derive', 'acme-redact', 'acme-seal']"


def test_ga203_no_transport_is_named():
    problem = refused(transports=[])["GA203"]

    assert "transports is empty" in problem.message


# --- broken plugins -------------------------------------------------------------------------------


def test_a_broken_transport_costs_itself(caplog):
    plan = plan_of(transports=["acme-sync-send", "acme-tcp", "acme-init-raises"])

    assert names(plan.transports) == ["acme-tcp"]
    assert plan.build().memory.context.destinations == ("acme-tcp",)
    assert [p.code for p in plan.problems] == ["GA110", "GA116"]
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert [text[:5] for text in errors] == ["GA110", "GA116"]


def test_ga203_all_transports_are_broken():
    problems = refused(transports=["acme-sync-send", "acme-raises"])

    assert set(problems) == {"GA103", "GA110", "GA203"}
    assert "names only broken transports" in problems["GA203"].message


def test_a_broken_rule_source_costs_itself():
    plan = plan_of(rules=["acme-interval-method", "acme-rules"])

    assert names(plan.rules) == ["acme-rules"]
    assert [p.code for p in plan.problems] == ["GA111"]


@pytest.mark.parametrize("store", ["acme-append-signature", "acme-store-broken", "acme-exits"])
def test_a_broken_store_is_replaced_by_memory(store):
    plan = plan_of(store=store)

    assert plan.store.instance == "memory"
    assert [p.fatal for p in plan.problems] == [False]
    assert plan.build().memory.context.instance == "memory"


def test_ga205_not_even_memory_is_left():
    found = registry()
    found.register(SimpleNamespace(), name="memory")
    with pytest.raises(ConfigurationError) as caught:
        compose(config(store="acme-append-signature"), found)

    assert "GA205" in [problem.code for problem in caught.value.problems]


def test_a_broken_enricher_that_cannot_have_redacted_costs_itself():
    plan = plan_of(enrichers=["acme-redact", "acme-async-bind"])

    assert names(plan.enrichers) == ["acme-redact"]
    assert [p.code for p in plan.problems] == ["GA110"]


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("acme-async-redactor", "GA110) and redacts"),
        ("acme-bind-junk", "GA116) and redacts"),
        ("acme-raises", "GA103) and may be one that redacts"),
        ("acme-no-stage", "GA109) and may be one that redacts"),
    ],
)
def test_ga204_a_broken_redactor_is_fatal_even_next_to_a_working_one(broken, why):
    """
    Fail closed: what the owner wanted removed must not leave.
    """
    problems = refused(enrichers=["acme-redact", broken])

    assert problems["GA204"].fatal
    assert why in problems["GA204"].message
    assert "GA201" not in problems


def test_ga204_alone_when_the_only_redactor_is_broken():
    assert set(refused(enrichers=["acme-async-redactor"])) == {"GA110", "GA204"}


def test_ga204_allow_unredacted_does_not_excuse_it():
    """
    It says that nothing needs to redact, not that what was asked to redact may fail.
    """
    assert "GA204" in refused(enrichers=["acme-raises"], allow_unredacted=True)


def test_ga113_settings_that_cannot_be_completed():
    plan = plan_of(transports=["acme-settings-incomplete", "acme-tcp"])

    (problem,) = plan.problems
    assert problem.code == "GA113"
    assert "Settings of T (acme-guard-fixtures 1.2.3)" in problem.message


def test_ga115_settings_of_a_plugin_that_is_not_in_use(caplog):
    plan = plan_of(plugins={"acme-tpc": {"port": 1}})

    (problem,) = plan.problems
    assert (problem.code, problem.fatal) == ("GA115", False)
    assert "did you mean 'acme-tcp'?" in problem.message
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_settings_of_a_store_that_the_application_may_hand_over_are_in_use():
    open_to_it = config(plugins={"handler": {"max_dead_letters": 5}}).model_copy()
    open_to_it.model_fields_set.discard("store")

    assert compose(open_to_it, registry()).problems == ()
    (problem,) = plan_of(plugins=open_to_it.plugins).problems
    assert problem.code == "GA115"


def test_ga115_gives_no_hint_for_a_name_that_is_spelt_right():
    plan = plan_of(plugins={"acme-twice": {"port": 1}})

    (problem,) = plan.problems
    assert problem.code == "GA115"
    assert "did you mean" not in problem.message


def test_ga116_a_constructor_that_raises_never_shows_its_settings():
    plan = plan_of(
        transports=["acme-init-raises", "acme-tcp"],
        plugins={"acme-init-raises": {"token": "s3cret-value"}},
    )

    (problem,) = plan.problems
    assert problem.code == "GA116"
    assert "'acme-init-raises' of acme-guard-fixtures 1.2.3" in problem.message
    assert "RuntimeError: cannot use [hidden]" in problem.message
    assert "plugins.acme-init-raises" in problem.fix
    assert "s3cret-value" not in plan.explain()


def test_exceptions_of_ours_leave_the_constructor_as_they_are():
    """
    A wrong encryption key is documented to raise EncryptionConfigError at construction.
    """
    with pytest.raises(EncryptionConfigError, match="the key has 3 bytes"):
        plan_of(transports=["acme-init-key"])


def test_problems_of_two_instances_are_said_once():
    plan = plan_of(transports=["acme-sync-send", "acme-sync-send/eu", "acme-tcp"])

    assert [p.code for p in plan.problems] == ["GA110"]


# --- explaining -----------------------------------------------------------------------------------


def test_explain_shows_order_distribution_and_safety():
    enrichers = ["acme-derive", "acme-redact", "acme-seal"]
    text = plan_of(rollup=True, enrichers=enrichers).explain()

    lines = [" ".join(line.split()) for line in text.splitlines()]
    path = [
        "2. acme-derive enricher (derive) acme-guard-fixtures 1.2.3",
        "3. acme-redact enricher (redact) acme-guard-fixtures 1.2.3",
        "4. acme-seal enricher (seal) acme-guard-fixtures 1.2.3",
        "5. acme-store store (memory) acme-guard-fixtures 1.2.3",
        "6. acme-tcp transport acme-guard-fixtures 1.2.3",
    ]
    start = lines.index(path[0])
    assert lines[start - 1].startswith("1. rollup aggregator guard-agent ")
    assert lines[start : start + 5] == path
    assert "1. acme-rules rule source acme-guard-fixtures 1.2.3" in lines
    assert any(line.startswith("Safe: 'acme-redact' removes secrets") for line in lines)


def test_explain_shows_problems_with_their_fix():
    plan = plan_of(transports=["acme-sync-send", "acme-tcp"])

    assert str(plan.problems[0]) in plan.explain()


def test_stages_are_those_of_the_classes():
    assert [step.stage for step in plan_of().enrichers] == [Stage.REDACT]
