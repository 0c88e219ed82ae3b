"""Tools for tests of plugins and of apps that use the agent. Nothing here is imported by the core."""
