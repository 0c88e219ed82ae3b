"""
What the agent consists of, once that is decided: `Plan`, which builds and explains itself.

How a plan comes about is the business of `guard_agent.core.assembly.composition`.
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast, get_args

from guard_agent._version import __version__
from guard_agent.core.assembly.problems import describe_exception
from guard_agent.core.config import state_directory
from guard_agent.core.errors import ConfigurationError, GuardAgentError, Problem
from guard_agent.core.interfaces import (
    Aggregator,
    BufferStore,
    Enricher,
    Kind,
    Plugin,
    PluginContext,
    PluginSettings,
    RuleSource,
    Stage,
    Transport,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guard_agent.core.assembly.inspection import ComponentKind
    from guard_agent.core.assembly.registry import Registry
    from guard_agent.core.config import AgentConfig
    from guard_agent.core.host_redis import HostRedis
    from guard_agent.core.interfaces import Fields, Record

logger = logging.getLogger("guard_agent.composition")

ADOPTING = ("redis", "handler")
"""Stores that can use the Redis of the host application, the better one first."""


@dataclass(frozen=True, slots=True)
class Step:
    """One plugin in its place."""

    instance: str
    """Name in the configuration: ``http`` or ``http/eu``."""
    kind: ComponentKind
    cls: type[Plugin]
    settings: PluginSettings
    distribution: str
    version: str

    @property
    def label(self) -> str:
        return f"{self.distribution} {self.version}".strip()

    @property
    def stage(self) -> Stage | None:
        return stage_of(self.cls)


@dataclass(frozen=True, slots=True)
class Components:
    """Fresh instances, in the order of the plan. ``context.instance`` is the name of each."""

    enrichers: tuple[Enricher, ...]
    memory: BufferStore
    """Where records wait while there is no durable store, or it is away."""
    durable: BufferStore | None
    transports: tuple[Transport, ...]
    rules: tuple[RuleSource, ...]
    aggregator: Aggregator | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What the agent consists of, in the order of execution."""

    config: AgentConfig
    enrichers: tuple[Step, ...]
    store: Step
    transports: tuple[Step, ...]
    rules: tuple[Step, ...]
    problems: tuple[Problem, ...] = ()
    """What was left out or is doubtful; none of it is fatal."""
    fallback: Step | None = None
    """Takes over while ``store``, which outlives the process, is not available."""
    aggregator: Step | None = None
    """Merges records before all others, unless that is off."""
    registry: Registry | None = field(default=None, repr=False, compare=False)
    """For what is only needed once the application hands something over; see `adopt`."""

    def build(self) -> Components:
        """
        Construct everything anew, for a start and after a fork. No I/O.

        Raises:
            ConfigurationError: when a constructor fails that did not fail in `compose`.
            GuardAgentError: as a constructor raised it.
        """
        stores = (self.store,) if self.fallback is None else (self.fallback, self.store)
        merging = () if self.aggregator is None else (self.aggregator,)
        steps = (*self.enrichers, *stores, *self.transports, *self.rules, *merging)
        destinations = tuple(step.instance for step in self.transports)
        built: list[Plugin] = []
        problems: list[Problem] = []
        for step in steps:
            plugin = construct(step, self.config, destinations, problems)
            if plugin is not None:
                built.append(plugin)
        if problems:
            raise ConfigurationError(problems)
        at = len(self.enrichers)
        transports_at = at + len(stores)
        rules_at = transports_at + len(self.transports)
        return Components(
            enrichers=cast("tuple[Enricher, ...]", tuple(built[:at])),
            memory=cast("BufferStore", built[at]),
            durable=None if self.fallback is None else cast("BufferStore", built[at + 1]),
            transports=cast("tuple[Transport, ...]", tuple(built[transports_at:rules_at])),
            rules=cast(
                "tuple[RuleSource, ...]", tuple(built[rules_at : len(built) - len(merging)])
            ),
            aggregator=cast("Aggregator", built[-1]) if merging else None,
        )

    def adopt(self, host: HostRedis) -> BufferStore | None:
        """
        A store on the Redis of the host application; None when it is not wanted or not possible.

        It is not wanted when the owner has chosen a store. What is done is logged.
        """
        if "store" in self.config.model_fields_set or self.registry is None:
            return None
        destinations = tuple(step.instance for step in self.transports)
        refused = False
        for name in ADOPTING:
            cls = self.registry.load(name).classes.get("store")
            if cls is None or not issubclass(cls, BufferStore):
                continue
            context = PluginContext(name, self.config, destinations, state_directory())
            try:
                store = cls.adopt(host, context)
            except Exception as error:
                # Where plugin meets core, with an object of the application in between.
                logger.debug("%s cannot adopt %s", name, host.label, exc_info=True)
                what = describe_exception(error, self.config.plugins.get(name))
                logger.warning("the store %r cannot use %s: %s", name, host.label, what)
                refused = True
                continue
            if store is not None:
                logger.info("records wait in the store %r, on %s", name, host.label)
                return store
        if not refused:
            logger.warning(
                "initialize_redis() got a %s, which is no client of redis-py and has not the "
                "methods of RedisHandlerProtocol; records wait in memory",
                host.label,
            )
        return None

    def names(self) -> dict[str, list[str]]:
        """What is in use, each with its distribution, in the order of execution."""
        parts = {
            "aggregator": () if self.aggregator is None else (self.aggregator,),
            "enrichers": self.enrichers,
            "store": (self.store,),
            "transports": self.transports,
            "rules": self.rules,
        }
        return {
            name: [f"{step.instance} ({step.label})" for step in steps]
            for name, steps in parts.items()
        }

    def explain(self) -> str:
        """What was built, from which distribution, in which order, and why it is safe."""
        return "\n".join(_explain(self))


def construct(
    step: Step,
    config: AgentConfig,
    destinations: tuple[str, ...],
    problems: list[Problem],
    *,
    trial: bool = False,
) -> Plugin | None:
    """
    An instance for ``step``, or None with the reason added to ``problems``.

    With ``trial`` an enricher is bound as well, to see errors before anything depends on it.
    """
    context = PluginContext(step.instance, config, destinations, state_directory())
    try:
        plugin = step.cls(step.settings, context)
        if trial and isinstance(plugin, Enricher):
            _try_to_bind(plugin)
        if trial and isinstance(plugin, Aggregator):
            _try_to_aggregate(plugin)
    except (KeyboardInterrupt, GuardAgentError):
        raise  # ours, and documented as what construction raises: a wrong encryption key
    except BaseException as error:
        # Where plugin meets core: a constructor may do anything, and costs only its plugin.
        logger.debug("constructing %s failed", step.instance, exc_info=True)
        what = describe_exception(error, config.plugins.get(step.instance))
        message = f"{step.kind} {step.instance!r} of {step.label} cannot be constructed: {what}"
        fix = f"correct plugins.{step.instance} if that is the cause, else update {step.label}"
        problems.append(Problem("GA116", message, fix, fatal=False))
        return None
    return plugin


def _try_to_bind(enricher: Enricher) -> None:
    for kind in get_args(Kind):
        function: object = enricher.bind(kind)
        if function is not None and (
            not callable(function) or inspect.iscoroutinefunction(function)
        ):
            got = "an async function" if callable(function) else type(function).__name__
            msg = f"bind({kind!r}) returned {got}, not a plain function or None"
            raise TypeError(msg)


def _try_to_aggregate(aggregator: Aggregator) -> None:
    def encode(_: Fields) -> Record:
        raise NotImplementedError

    for kind in get_args(Kind):
        functions: dict[str, object] = {
            "bind": aggregator.bind(kind, encode),
            "bind_early": aggregator.bind_early(kind),
        }
        for name, function in functions.items():
            if function is not None and (
                not callable(function) or inspect.iscoroutinefunction(function)
            ):
                got = "an async function" if callable(function) else type(function).__name__
                msg = f"{name}({kind!r}) returned {got}, not a plain function or None"
                raise TypeError(msg)
    if not aggregator.interval > 0:
        msg = f"its interval is {aggregator.interval!r}, not seconds"
        raise ValueError(msg)


def stage_of(cls: type[Plugin] | None) -> Stage | None:
    """The stage of an enricher class, as far as it has one."""
    stage = getattr(cls, "stage", None)
    return stage if isinstance(stage, Stage) else None


def _explain(plan: Plan) -> Iterator[str]:
    yield f"guard-agent {__version__}"
    yield ""
    yield "A record passes, in this order:"
    merging = () if plan.aggregator is None else (plan.aggregator,)
    path = (*merging, *plan.enrichers, plan.store, *plan.transports)
    yield from _table(path)
    if plan.fallback is not None:
        yield f"While the store is not available, {plan.fallback.instance!r} takes over."
    yield "Each transport is a destination of its own: none waits for another."
    yield ""
    yield from _explain_merging(plan)
    yield ""
    yield "Rules come from:" if plan.rules else "No rule source is configured."
    yield from _table(plan.rules)
    yield ""
    redactors = [step.instance for step in plan.enrichers if step.stage is Stage.REDACT]
    if redactors:
        yield (
            f"Safe: {' and '.join(map(repr, redactors))} removes secrets before anything is stored "
            "or sent; whatever comes later gets redacted data only and adds none."
        )
    else:
        yield "NOT SAFE: nothing redacts, and allow_unredacted permits it. Secrets will leave."
    if plan.problems:
        yield ""
        yield "Problems:"
        yield from (f"  {problem}" for problem in plan.problems)


def _explain_merging(plan: Plan) -> Iterator[str]:
    step = plan.aggregator
    plugin = None
    if step is not None:
        plugin = construct(step, plan.config, (), [])
    if not isinstance(plugin, Aggregator):
        yield "Nothing is merged: every event and metric leaves as a record of its own."
        return
    yield "Before that, records are merged:"
    yield from (f"  {sentence}" for sentence in plugin.explain())


def _table(steps: tuple[Step, ...]) -> Iterator[str]:
    rows = [(step.instance, _role(step), step.label) for step in steps]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(2)]
    for number, (instance, role, label) in enumerate(rows, 1):
        yield f"  {number}. {instance:<{widths[0]}}  {role:<{widths[1]}}  {label}"


def _role(step: Step) -> str:
    if step.stage:
        return f"{step.kind} ({step.stage.name.lower()})"
    if issubclass(step.cls, BufferStore):
        return f"{step.kind} ({step.cls.level.value})"
    return step.kind
