"""
The agent as an app of Django: ``INSTALLED_APPS = [..., "guard_agent.integrations.django"]``.

``settings.GUARD_AGENT`` configures it: an `AgentConfig` or a mapping of its settings; without it
the configuration file does. `guard_agent.guard_agent` without arguments gives the agent, in views
and everywhere else.

It starts with the first record, in the process that takes it: management commands and the
autoreloader's first process start nothing. What a process holds is delivered when it ends. Under an
ASGI server, wrap the application in `guard_agent.integrations.asgi.LifespanMiddleware` as well.

With djapi-guard this app is not needed: its middleware makes the agent.
"""
