"""``python -m guard_agent.cli``: the command, where its script is not on the path."""

from guard_agent.cli import main

main(prog_name="guard-agent")
