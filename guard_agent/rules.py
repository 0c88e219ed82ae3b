"""What an agent thinks of a rule document, for those who write and publish rules."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from guard_agent.core.rules import bounds
from guard_agent.core.rules.bounds import Limits, RulesRefused
from guard_agent.core.rules.judge import Judge
from guard_agent.core.rules.keeper import sign as sign_rules
from guard_agent.core.rules.keeper import validate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from guard_agent.core.models import DynamicRules

__all__ = ["RuleChecker", "RulesRefused", "sign_rules"]


class RuleChecker:
    """Looks at documents as an agent with default settings does, and remembers their patterns."""

    def __init__(self) -> None:
        self._judge = Judge()

    async def check(self, document: Mapping[str, Any]) -> tuple[DynamicRules, list[str]]:
        """
        Look at one document. Nothing comes into force.

        Patterns that are not known yet are tried in a process of their own, for at most 20 seconds.

        Returns:
            The rules, and a line for each pattern that agents would leave out because it is slow.

        Raises:
            RulesRefused: what an agent would refuse it for, with the name of the field.
        """
        limits = Limits()
        rules = validate(document, datetime.now(timezone.utc), limits)
        verdicts = await self._judge(bounds.keys_of(rules))
        kept, left_out = bounds.check_patterns(rules, verdicts, limits)
        return (rules.model_copy(update=kept) if left_out else rules), left_out
