"""Tools for tests of plugins, and of apps that use the agent. The core imports nothing of it."""
