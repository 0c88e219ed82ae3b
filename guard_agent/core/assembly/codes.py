"""
Every stable code of a problem, and what it means.

A code keeps its meaning for ever and is never given to something else. The messages of a problem
say what is wrong in one case; this table says why that is a problem, and how to mend it in general.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class Explanation(NamedTuple):
    what: str
    why: str
    fix: str


_CODES = {
    # Plugins.
    "GA101": Explanation(
        "The configuration names a plugin that is not installed.",
        "The agent cannot know what the plugin would have done: a destination or a redaction would "
        "be missing without anybody noticing. So it does not start.",
        "Correct the name (`guard-agent plugins` lists what is installed), install the package "
        "that provides it into the environment of the app, or take the name out.",
    ),
    "GA102": Explanation(
        "Two providers offer a plugin of the same name, so it is unclear which one is meant.",
        "Taking either could run code that was put there to be mistaken for the other. None of "
        "them is imported. Within one package the first class is taken.",
        "Uninstall all but the one you mean. An author gives each class an entry point of its own.",
    ),
    "GA103": Explanation(
        "A plugin is installed but cannot be imported.",
        "Importing it raised: a dependency is missing, or it does not fit this Python or this "
        "version of guard-agent. It costs that plugin only, unless it may be one that redacts.",
        "Install what the message names, or update the package. `--disable NAME` runs a command "
        "without importing the plugin.",
    ),
    "GA104": Explanation(
        "A function is marked with @hookimpl, but there is no hook of that name.",
        "Nothing would ever call it, so what it offers would be missing silently.",
        "For its author: rename it to guard_agent_transports, guard_agent_buffer_stores, "
        "guard_agent_rule_sources, guard_agent_enrichers or guard_agent_aggregators.",
    ),
    "GA105": Explanation(
        "A function is named like a hook but is not marked with @hookimpl.",
        "Only marked functions are called, so what it offers would be missing silently.",
        "For its author: `from guard_agent import hookimpl`, and @hookimpl above the function.",
    ),
    "GA106": Explanation(
        "A hook has the wrong form: hooks are plain functions without arguments.",
        "Hooks are called once, synchronously, before there is an event loop.",
        "For its author: `def guard_agent_transports(): return [MyTransport]`, and so on.",
    ),
    "GA107": Explanation(
        "A hook raised an exception.",
        "A hook only says which classes there are. One that fails offers none.",
        "Update the package. Its author leaves everything but the list of classes to open().",
    ),
    "GA108": Explanation(
        "A hook returned something else than a list of classes of its kind.",
        "The agent makes the instances itself, one for each name in the configuration, and anew "
        "after a fork.",
        "For its author: return the classes, not instances, in a list.",
    ),
    "GA109": Explanation(
        "A class attribute that the agent reads (name, stage, level) is missing or wrong.",
        "The name ties class, entry point and configuration together; the stage decides where an "
        "enricher may stand; the level says what survives.",
        "For its author: set the attribute as the message says.",
    ),
    "GA110": Explanation(
        "A method that must be 'async def' is not, or one that must not be is.",
        "A plain function would block the event loop of the agent; an async enricher could not be "
        "called from the thread of the app.",
        "For its author: define the method in the form that the message shows.",
    ),
    "GA111": Explanation(
        "A required method is missing, or cannot be called as the interface says.",
        "The agent would fail in the middle of a delivery; so it is told at the start.",
        "For its author: define the method in the form that the message shows.",
    ),
    "GA112": Explanation(
        "A setting of a plugin is unknown, missing or invalid.",
        "A misspelt setting would leave the default in force without anybody noticing.",
        "Correct it at the place that the message names. `guard-agent config show` lists the "
        "settings of the plugins in use, `guard-agent config schema` describes all of them.",
    ),
    "GA113": Explanation(
        "The Settings of a plugin cannot be used.",
        "They must be a subclass of PluginSettings that refuses unknown settings, with types that "
        "can be found where it is defined.",
        "For its author: define Settings at module level as a subclass of PluginSettings.",
    ),
    "GA114": Explanation(
        "A plugin is named in a place for something that it does not provide.",
        "A store cannot serve as a transport, and an entry point without hooks provides nothing.",
        "Name it where it belongs: the column KIND of `guard-agent plugins` says where.",
    ),
    "GA115": Explanation(
        "There are settings for a plugin that is not in use.",
        "They have no effect. Often the section is misspelt, or the plugin was meant to be used.",
        "Rename or remove it, or name the plugin in enrichers, store, transports, rules or rollup.",
    ),
    "GA116": Explanation(
        "A plugin cannot be constructed with its settings.",
        "Its constructor raised, so it is left out; a redactor that is left out stops the start.",
        "Correct its section if the message says so, else update the package.",
    ),
    # Composition.
    "GA201": Explanation(
        "No enricher redacts, so secrets would leave the process.",
        "Events hold headers and parameters of requests. Nothing that was not redacted may be "
        "stored or sent.",
        "Put 'redaction' into enrichers. Set allow_unredacted only if there is nothing to hide.",
    ),
    "GA202": Explanation(
        "The enrichers stand in an order in which redacted data could get secrets again.",
        "Stages go derive, redact, seal: what derives may add secrets, and what seals relies on "
        "their absence.",
        "Write the enrichers in the order that the message shows.",
    ),
    "GA203": Explanation(
        "No transport is left, so nothing could be delivered.",
        "The list is empty, or all that it names are broken.",
        "Name a transport such as 'http', or mend what the other problems say.",
    ),
    "GA204": Explanation(
        "An enricher that redacts, or that may, is broken.",
        "Without it secrets could leave, and what a broken plugin would have done cannot be known.",
        "Mend it as the other problem says, or take it out if another enricher redacts.",
    ),
    "GA205": Explanation(
        "Neither the configured store nor the memory store can be used.",
        "Records need a place to wait, even while the store is away.",
        "Mend one of them, as the other problems say; reinstall guard-agent if it is 'memory'.",
    ),
    # Configuration.
    "GA301": Explanation(
        "A configuration file cannot be read.",
        "It was named, so going on with defaults would not be what was asked for.",
        "Correct --config or GUARD_AGENT_CONFIG, or the rights of the file.",
    ),
    "GA302": Explanation(
        "A configuration file is not well formed.",
        "What is not YAML or TOML, says something twice or has no table [tool.guard-agent] cannot "
        "be understood as it was meant.",
        "Correct the line that the message names, or what begins above it.",
    ),
    "GA303": Explanation(
        "A setting is unknown.",
        "A misspelt setting would leave the default in force without anybody noticing.",
        "Write the name that the message proposes. Settings of a plugin stand in plugins.NAME.",
    ),
    "GA304": Explanation(
        "A setting has an invalid value.",
        "It is of the wrong type or outside its bounds, so it cannot be meant as it stands.",
        "Correct it at the place that the message names; `guard-agent config schema` has the "
        "bounds.",
    ),
    "GA305": Explanation(
        "A setting refers to an environment variable that is not set.",
        "An empty key or address in its place would fail later, and far from here.",
        "Set the variable where the app runs, or write ${env:NAME:-default}.",
    ),
    "GA306": Explanation(
        "A setting refers to a file that cannot be read.",
        "An empty key or secret in its place would fail later, or switch a protection off.",
        "Correct the path (relative to the configuration file), or the rights of the file.",
    ),
    "GA307": Explanation(
        "A required setting is missing.",
        "Neither the code nor the environment nor a file sets it, and it has no default.",
        "Set it: api_key in the file, GUARD_AGENT_API_KEY, or AgentConfig(api_key=...).",
    ),
    "GA308": Explanation(
        "A setting contains a malformed reference.",
        "A '${' in a text of the file begins a reference, and this one does not end as it should.",
        "Write ${env:NAME} or ${env:NAME:-default}; $${ stands for a plain ${.",
    ),
    "GA309": Explanation(
        "An environment variable begins with GUARD_AGENT_ and is no setting.",
        "It has no effect. Others may use the prefix as well, so it stops nothing; a name that is "
        "close to a setting is GA303 instead.",
        "Correct or remove it if it was meant for the agent.",
    ),
    "GA310": Explanation(
        "Environment variables contradict each other, or can mean several plugins.",
        "In the name of a variable only letters, digits and underscores can stand, so HTTP_EU is "
        "'http/eu' and 'http_eu' at once; and a setting is one value, or a section.",
        "Remove one of them, or write the setting into the configuration file.",
    ),
}

CODES: Mapping[str, Explanation] = MappingProxyType(_CODES)
