"""From a configuration and the installed plugins to a plan of what the agent consists of."""
