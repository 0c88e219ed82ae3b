"""One module for each command of ``guard-agent``, imported when it is asked for."""
