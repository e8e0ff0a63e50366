"""How many tokens a micro-batch may have at each step: what was asked for, and less from where memory did not suffice.
Used by `lvlm.train.loop`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from lvlm.records import write_json

BUDGETS_FILE = "token_budgets.json"


class TokenBudgets:
    """The token budget of every step of a stage, the same in all processes, which make this together.

    What was lowered stands in the stage's folder from that moment on, beside the checkpoint and not in it: whoever goes
    on, from whichever step, divides each one as it was divided before, and draws the same masks of dropout. `settings`
    are those that decide what memory holds, the budget asked for among them: under others the file does not count.
    """

    def __init__(self, folder: Path, asked: int, settings: Mapping[str, Any]) -> None:
        self.path = folder / BUDGETS_FILE
        self.asked = asked
        self.settings = {**settings, "asked": asked}
        self._lowered: list[tuple[int, int]] = broadcast_object_list([self._read()])[0]

    def at(self, step: int) -> int:
        """Tokens that a micro-batch of `step` may have."""
        return min([self.asked, *(budget for first, budget in self._lowered if first <= step)])

    def lower(self, step: int, budget: int, *, writes: bool) -> None:
        """From `step` on micro-batches have at most `budget` tokens; the process that `writes` keeps it."""
        self._lowered.append((step, budget))
        if writes:
            write_json(self.path, {"settings": self.settings, "lowered": self._lowered})

    def _read(self) -> list[tuple[int, int]]:
        if not self.path.exists():
            return []
        known = json.loads(self.path.read_text(encoding="utf-8"))
        return [(step, budget) for step, budget in known["lowered"]] if known["settings"] == self.settings else []
