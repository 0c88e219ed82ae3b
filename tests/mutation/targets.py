"""What `make mutate` changes, and the tests that have to notice it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """One module and the tests that have to notice when it is changed."""

    source: str
    """Below ``home``."""
    tests: tuple[str, ...]
    """Files below ``home``; what pytest takes to leave tests out may follow."""
    home: str = "."
    leave_out: frozenset[str] = frozenset()
    """Functions that are not changed, because what they do is seen in another process only."""


def _core(source: str, *tests: str) -> Target:
    return Target(f"guard_agent/{source}", tests)


def _redaction(module: str) -> Target:
    source = f"src/guard_agent_redaction/{module}.py"
    tests = _REDACTION_PARTS.get(module, _REDACTION)
    return Target(source, tests, home="plugins/guard-agent-redaction")


def _redis(module: str, *tests: str) -> Target:
    source = f"src/guard_agent_redis/{module}.py"
    return Target(source, tests, home="plugins/guard-agent-redis")


_DELIVERY = ("tests/core/test_delivery.py", "tests/core/test_agent.py")
_AGENTS = (
    "tests/core/test_outage.py",
    "tests/test_client.py",
    "tests/test_dead_letters.py",
)
# Each of the two that are left out takes as long as all the rest of its file.
_GATE = (
    "tests/core/test_gate.py",
    "--deselect=tests/core/test_gate.py::test_c24_a_fleet_does_not_come_back_in_one_storm",
)
_REDACTION = (
    "tests/test_text_rules.py",
    "tests/test_secrets.py",
    "tests/test_settings.py",
    "tests/test_policies.py",
    "tests/test_harmless.py",
    "tests/test_bounds.py",
    # Time and memory: what a mutant changes is seen in what comes out.
    "--deselect=tests/test_bounds.py::test_hostile_texts_take_linear_time",
    "--deselect=tests/test_bounds.py::test_memory_is_bounded",
    "--deselect=tests/test_policies.py::test_looking_for_addresses_takes_linear_time",
)
_POLICIES = (
    "tests/test_policies.py",
    "tests/test_settings.py",
    "--deselect=tests/test_policies.py::test_looking_for_addresses_takes_linear_time",
)
# The file of a module alone is quicker than all, and what it does not notice is a hole in it.
_REDACTION_PARTS = {
    "__init__": _POLICIES,
    "budget": ("tests/test_budget.py",),
    "names": ("tests/test_names.py",),
    "pairs": ("tests/test_pairs.py", "tests/test_text_rules.py"),
    "policies": _POLICIES,
    "pseudonyms": ("tests/test_pseudonyms.py",),
    "shapes": ("tests/test_shapes.py", "tests/test_text_rules.py"),
}
_RULES = (
    "tests/core/test_rules.py",
    "--deselect=tests/core/test_rules.py::test_l05_while_patterns_are_judged_other_threads_run",
)
# Left out: they measure time, in another process, and are too slow with code that can be changed;
# or start a Python that has no way to mutmut.
_PATTERNS = (
    "tests/core/test_patterns.py",
    "--deselect=tests/core/test_patterns.py::test_l05_harmless_patterns_pass",
    "--deselect=tests/core/test_patterns.py::test_l05_what_takes_too_long_for_a_long_text_does_not_pass",
    "--deselect=tests/core/test_patterns.py::test_l05_what_takes_too_long_for_a_short_text_is_refused",
    "--deselect=tests/core/test_patterns.py::test_l05_the_program_imports_nothing_of_the_app",
)
_MEASURING = frozenset(
    {
        "attacks",
        "cost",
        "_texts",
        "_pumps",
        "_words",
        "_character",
        "_extrapolate",
        "_time",
        "_main",
    }
)
# Left out: what goes on for minutes when something is wrong, and what reads the README.
_REDIS = (
    "tests/test_store.py",
    "tests/test_contract.py",
    "tests/test_faults.py",
    "tests/test_adoption.py",
    "--deselect=tests/test_contract.py::TestRedisStoreContract::test_every_sequence_of_steps_has_the_result_of_the_model",
    "--deselect=tests/test_faults.py::test_r15_a_user_with_the_rights_of_the_readme_can_do_everything",
)
_DISK_PARTS = ("tests/plugins/test_disk_parts.py", "tests/plugins/test_disk_database.py")
# Left out: it gives up rights without which mutmut cannot be imported.
_DISK = (
    "tests/plugins/test_disk.py",
    "tests/plugins/test_disk_database.py",
    "tests/test_peek.py",
    "--deselect=tests/plugins/test_disk.py::TestDiskStoreContract::test_every_sequence_of_steps_has_the_result_of_the_model",
    "--deselect=tests/plugins/test_disk.py::test_a_folder_that_cannot_be_written_is_refused",
)

TARGETS = {
    "gate": _core("core/delivery/gate.py", *_GATE),
    "sizes": _core("core/delivery/sizes.py", "tests/core/test_sizes.py"),
    "destination": _core("core/delivery/destination.py", *_DELIVERY),
    "lanes": _core("core/delivery/lanes.py", "tests/core/test_lanes.py"),
    "shares": _core("core/delivery/shares.py", "tests/core/test_shares.py"),
    "trace": _core("core/delivery/trace.py", "tests/core/test_trace.py"),
    "glance": _core("core/intake/glance.py", "tests/core/test_glance.py"),
    "ring": _core("core/intake/ring.py", "tests/core/test_ring.py"),
    "priority": _core("core/intake/priority.py", "tests/core/test_models.py"),
    "bounds": _core("core/rules/bounds.py", *_RULES),
    "judge": _core("core/rules/judge.py", "tests/core/test_judge.py"),
    "patterns": Target("guard_agent/core/rules/patterns.py", _PATTERNS, leave_out=_MEASURING),
    "keeper": _core("core/rules/keeper.py", *_RULES, "tests/core/test_rule_watch.py"),
    "engine_link": _core("core/rules/engine_link.py", "tests/core/test_engine_link.py"),
    "memory": _core("plugins/memory.py", "tests/plugins/test_memory.py"),
    "handler": _core(
        "plugins/handler.py", "tests/plugins/test_handler.py", "tests/test_initialize_redis.py"
    ),
    "disk": _core("plugins/disk/__init__.py", *_DISK),
    "disk-tables": _core("plugins/disk/tables.py", *_DISK),
    "disk-database": _core("plugins/disk/database.py", *_DISK),
    "disk-folder": _core("plugins/disk/folder.py", *_DISK_PARTS),
    "disk-jobs": _core("plugins/disk/jobs.py", *_DISK_PARTS),
    "disk-owners": _core("plugins/disk/owners.py", *_DISK_PARTS),
    "calls": _core("core/delivery/calls.py", "tests/core/test_calls.py"),
    "worker": _core(
        "core/delivery/worker.py",
        "tests/core/test_worker.py",
        "tests/core/test_agent.py",
        "tests/core/test_aggregation.py",
    ),
    "redaction": _redaction("__init__"),
    "redaction-redactor": _redaction("redactor"),
    "redaction-pairs": _redaction("pairs"),
    "redaction-shapes": _redaction("shapes"),
    "redaction-policies": _redaction("policies"),
    "redaction-names": _redaction("names"),
    "redaction-pseudonyms": _redaction("pseudonyms"),
    "redaction-budget": _redaction("budget"),
    "redis": _redis("__init__", "tests/test_contract.py"),
    "redis-store": _redis("store", *_REDIS),
    "redis-codec": _redis("codec", "tests/test_codec.py"),
    "redis-prefetch": _redis("prefetch", "tests/test_prefetch.py"),
    "redis-link": _redis("link", "tests/test_link.py"),
    "redis-errors": _redis("errors", "tests/test_errors.py"),
    "redis-server": _redis("server", "tests/test_link.py"),
    "redis-settings": _redis("settings", "tests/test_settings.py", "tests/test_link.py"),
    "redis-adoption": _redis("adoption", "tests/test_adoption.py"),
}
