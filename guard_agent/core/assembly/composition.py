"""
Decides, once at startup, what the agent consists of.

`compose` takes every plugin that the configuration names, validates its settings, checks that
nothing unredacted could reach a store or a transport, and answers with a `Plan`. All problems are
collected first. Mistakes of the owner (unknown names, unknown settings, a wrong order) are fatal;
a plugin that is broken costs only itself, as long as it cannot have been one that redacts.
"""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING

from pydantic import ValidationError

from guard_agent.core.assembly.inspection import (
    AGGREGATOR,
    ENRICHER,
    RULE_SOURCE,
    STORE,
    TRANSPORT,
    Seam,
)
from guard_agent.core.assembly.plan import ADOPTING, Plan, Step, construct, stage_of
from guard_agent.core.assembly.problems import (
    describe_exception,
    describe_invalid,
    did_you_mean,
    listed,
)
from guard_agent.core.assembly.registry import Registry
from guard_agent.core.errors import ConfigurationError, Problem
from guard_agent.core.interfaces import BufferStore, Level, Stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from guard_agent.core.config import AgentConfig
    from guard_agent.core.interfaces import Plugin

logger = logging.getLogger("guard_agent.composition")

FALLBACK_STORE = "memory"
# Said to a person once, but nothing is broken.
WARNINGS = {"GA115", "GA201", "GA309"}


def compose(config: AgentConfig, registry: Registry | None = None) -> Plan:
    """
    Find, check and arrange the plugins that ``config`` names.

    Plugins that were left out are in `Plan.problems` and are logged, each once.

    Raises:
        ConfigurationError: with every problem that was found, when one of them is fatal.
        GuardAgentError: as the constructor of a plugin raised it.
    """
    composer = _Composer(config, Registry.from_environment() if registry is None else registry)
    plan = composer.compose()
    for problem in plan.problems:
        level = logging.WARNING if problem.code in WARNINGS else logging.ERROR
        logger.log(level, "%s: %s; fix: %s", problem.code, problem.message, problem.fix)
    return plan


def compose_store(
    config: AgentConfig, registry: Registry | None = None
) -> tuple[Step, tuple[str, ...]]:
    """
    The store that ``config`` names and its destinations, for a look at what waits in it.

    The destinations are those that an agent has: to open a store for a transport that is broken
    would have it keep records for what nobody delivers to. Enrichers and rule sources do not
    matter.

    Raises:
        ConfigurationError: that store cannot be used.
    """
    composer = _Composer(config, Registry.from_environment() if registry is None else registry)
    return composer.compose_store()


class _Composer:
    def __init__(self, config: AgentConfig, registry: Registry) -> None:
        self._config = config
        self._registry = registry
        # A dictionary, because two instances of one plugin share its problems.
        self._problems: dict[Problem, None] = dict.fromkeys(config.notes)
        self._redactor_missing = False

    def compose(self) -> Plan:
        config = self._config
        transports = self._take(TRANSPORT, config.transports)
        if not transports and not _any_fatal(self._problems):
            self._report([self._no_transport()])
        enrichers = self._take(ENRICHER, config.enrichers)
        rules = self._take(RULE_SOURCE, config.rules)
        aggregator = next(iter(self._take(AGGREGATOR, config.aggregators)), None)
        store = self._store()
        fallback = self._fallback(store)
        self._report(self._check_order(enrichers))
        self._report(self._check_redaction(enrichers))
        self._report(self._unused_settings())

        problems = sorted(self._problems, key=lambda problem: not problem.fatal)
        if store is None or _any_fatal(problems):
            raise ConfigurationError(problems)
        return Plan(
            config,
            enrichers,
            store,
            transports,
            rules,
            tuple(problems),
            fallback,
            aggregator,
            self._registry,
        )

    def compose_store(self) -> tuple[Step, tuple[str, ...]]:
        step = self._step(STORE, self._config.store)
        if step is None:
            raise ConfigurationError([*self._problems])
        transports = self._take(TRANSPORT, self._config.transports)
        return step, tuple(transport.instance for transport in transports)

    def _report(self, problems: Iterable[Problem]) -> None:
        self._problems.update(dict.fromkeys(problems))

    def _take(self, seam: Seam, instances: Iterable[str]) -> tuple[Step, ...]:
        steps = [self._step(seam, instance) for instance in instances]
        return tuple(step for step in steps if step is not None)

    def _step(self, seam: Seam, instance: str) -> Step | None:
        """The plugin for one place, or None with the reason among the problems."""
        step, problems, stage = self._resolve(seam, instance)
        destinations = tuple(self._config.transports)
        if step and construct(step, self._config, destinations, problems, trial=True) is None:
            step = None
        if step is None and seam is ENRICHER and stage not in (Stage.DERIVE, Stage.SEAL):
            self._redactor_missing = True
            # An owner's mistake is fatal by itself; saying it twice helps nobody.
            if not _any_fatal(problems):
                problems.append(_broken_redactor(instance, stage, problems))
        self._report(problems)
        return step

    def _resolve(
        self, seam: Seam, instance: str
    ) -> tuple[Step | None, list[Problem], Stage | None]:
        name, slash, rest = instance.partition("/")
        if slash and not rest:
            name = instance  # 'http/' is no name; the registry says so
        loaded = self._registry.load(name)
        problems = list(loaded.problems)
        cls = loaded.classes.get(seam.kind)
        if cls is None or loaded.provider is None:
            if not problems:
                problems.append(self._wrong_kind(seam, instance, loaded.classes))
            return None, problems, stage_of(loaded.refused.get(seam.kind))
        section = self._config.plugins.get(instance, {})
        try:
            settings = cls.Settings.model_validate(section)
        except ValidationError as error:
            problems += self._invalid_settings(instance, cls, error)
            return None, problems, stage_of(cls)
        except Exception as error:
            # Foreign code again: a model that cannot be completed, a validator that fails.
            logger.debug("the settings of %s failed", instance, exc_info=True)
            what = describe_exception(error, section)
            fix = "define Settings at module level, with all types it names imported there"
            message = f"the Settings of {cls.__qualname__} ({loaded.provider.label}): {what}"
            problems.append(Problem("GA113", message, fix, fatal=False))
            return None, problems, stage_of(cls)
        provider = loaded.provider
        step = Step(instance, seam.kind, cls, settings, provider.distribution, provider.version)
        return step, problems, step.stage

    def _store(self) -> Step | None:
        wanted = self._config.store
        before = len(self._problems)
        step = self._step(STORE, wanted)
        wanted_by_mistake = _any_fatal([*self._problems][before:])
        if step is not None or wanted_by_mistake:
            return step
        # The agent is more useful with a store that forgets than not at all.
        fallback = self._step(STORE, FALLBACK_STORE) if wanted != FALLBACK_STORE else None
        if fallback is None:
            message = f"the store {wanted!r} is broken, and so is {FALLBACK_STORE!r}"
            fix = "mend one of them, as the other problems say"
            self._report([Problem("GA205", message, fix)])
        return fallback

    def _fallback(self, store: Step | None) -> Step | None:
        """What takes over while a store that outlives the process is not available."""
        if store is None or not issubclass(store.cls, BufferStore):
            return None
        return None if store.cls.level is Level.MEMORY else self._step(STORE, FALLBACK_STORE)

    def _wrong_kind(self, seam: Seam, instance: str, classes: Iterable[str]) -> Problem:
        kinds = sorted(classes)
        message = (
            f"{self._at(seam.setting)} names {instance!r} as {seam.a_kind}, but that plugin "
            f"provides only: {listed(kinds)}"
        )
        return Problem("GA114", message, f"take {instance!r} out of {seam.setting!r}")

    def _invalid_settings(
        self, instance: str, cls: type[Plugin], error: ValidationError
    ) -> Iterator[Problem]:
        known = cls.Settings.model_fields
        for detail in error.errors(include_url=False, include_context=False):
            path = ".".join(str(part) for part in ("plugins", instance, *detail["loc"]))
            last = str(detail["loc"][-1]) if detail["loc"] else ""
            if detail["type"] == "extra_forbidden" and len(detail["loc"]) == 1:
                what = f"the plugin has no setting {last!r}{did_you_mean(last, known)}"
                fix = f"rename or remove it; settings of {instance!r} are: {listed(known)}"
            elif detail["type"] == "missing":
                what, fix = "is required", f"set {path}"
            else:
                what, fix = describe_invalid(detail), f"correct {path}"
            yield Problem("GA112", f"{self._at(path)}: {what}", fix)

    def _check_order(self, enrichers: tuple[Step, ...]) -> Iterator[Problem]:
        for before, after in itertools.pairwise(enrichers):
            if before.stage and after.stage and before.stage > after.stage:
                early, late = before.stage.name.lower(), after.stage.name.lower()
                right = sorted(enrichers, key=lambda step: step.stage or 0)
                yield Problem(
                    "GA202",
                    f"{self._at('enrichers')} has {after.instance!r} (stage {late}) after "
                    f"{before.instance!r} (stage {early}): stages go derive, redact, seal, because "
                    "what derives may add secrets and what seals relies on their absence",
                    f"write enrichers = {[step.instance for step in right]}",
                )

    def _no_transport(self) -> Problem:
        broken = bool(self._config.transports)
        state = "names only broken transports" if broken else "is empty"
        return Problem(
            "GA203",
            f"{self._at('transports')} {state}, so nothing could be delivered",
            "mend or replace them" if broken else "name a transport, such as 'http'",
        )

    def _check_redaction(self, enrichers: tuple[Step, ...]) -> Iterator[Problem]:
        if self._redactor_missing or any(step.stage is Stage.REDACT for step in enrichers):
            return
        allowed = self._config.allow_unredacted
        yield Problem(
            "GA201",
            f"{self._at('enrichers')} contains no enricher that redacts, so secrets in events "
            "would be stored and sent" + (", as allow_unredacted says" if allowed else ""),
            "put 'redaction' into it"
            + ("" if allowed else ", or set allow_unredacted if there really is nothing to hide"),
            fatal=not allowed,
        )

    def _unused_settings(self) -> Iterator[Problem]:
        config = self._config
        used = {
            *config.aggregators,
            *config.enrichers,
            config.store,
            *config.transports,
            *config.rules,
        }
        used |= {FALLBACK_STORE, "rollup"}  # settings of what is switched off are no mistake
        if "store" not in config.model_fields_set:
            used.update(ADOPTING)  # which of them it is comes out with `initialize_redis`
        installed = {provider.name for provider in self._registry.providers}
        for section in config.plugins:
            if section not in used:
                where = self._at(f"plugins.{section}")
                # What is installed is spelt right; a resemblance to something else means nothing.
                guess = "" if section in installed else did_you_mean(section, used)
                yield Problem(
                    "GA115",
                    f"{where}: no plugin {section!r} is in use{guess}",
                    f"rename or remove the section, or name {section!r} in enrichers, store, "
                    "transports, rules or rollup",
                    fatal=False,
                )

    def _at(self, path: str) -> str:
        """A setting, with its place in the configuration file when it comes from there."""
        place = self._config.origin(path)
        return f"{path} ({place})" if place else path


def _broken_redactor(instance: str, stage: Stage | None, causes: Iterable[Problem]) -> Problem:
    duty = "redacts" if stage is Stage.REDACT else "may be one that redacts"
    codes = listed({problem.code for problem in causes})
    return Problem(
        "GA204",
        f"enricher {instance!r} is broken ({codes}) and {duty}; without it secrets could leave",
        f"mend what {codes} says, or take {instance!r} out of 'enrichers' if another one redacts",
    )


def _any_fatal(problems: Iterable[Problem]) -> bool:
    return any(problem.fatal for problem in problems)
