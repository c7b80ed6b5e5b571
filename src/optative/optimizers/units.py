"""What one record gives to a loss: rows of pairs, of labelled completions, or whole lists.

Knows: ranks, labels and token ids. Does not know: formulas, models. All completions of a unit are computed once; how
many rows a loss makes of them costs nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from optative.core.ids import content_hash
from optative.generators.language.packing import Group

Kind = Literal["pair", "tied pair", "completion", "good completion", "list"]


@dataclass(frozen=True, slots=True)
class Unit:
    """One record as tokens: a prompt with its completions, and what was said about them.

    levels: a height for each completion, higher is better, equal is a tie. labelled: the heights are verdicts on each
    completion by itself (1 desirable, 0 not), so that equal ones are no tie. strength: by how much the better is
    better; None: the gap of the levels, which are ratings then. confidence: probability that it is right.
    """

    id: str
    group: Group
    levels: tuple[float, ...] = (1.0, 0.0)
    labelled: bool = False
    strength: float | None = 0.0
    confidence: float = 1.0

    @property
    def key(self) -> str:
        """Identity of what is scored: tokens, masks and control, not the labels."""
        own = [self.group.prompt_ids, self.group.completion_ids, self.group.masks]
        return content_hash([*own, self.group.control] if self.group.control else own)

    @property
    def counted(self) -> list[int]:
        """How many tokens of each completion carry loss."""
        return self.group.counted

    @property
    def label(self) -> list[object]:
        """All that training reads besides the tokens."""
        return [list(self.levels), self.labelled, self.strength, self.confidence]


Units = Sequence[Unit]  # a list, or something that encodes records when they are asked for


@dataclass(frozen=True, slots=True)
class Row:
    """What a loss sees at once. unit: index of its unit; members: indices of its completions within the unit.

    pair, tied pair: the better first. completion: one. list: all, with `ranks` (0 = best, equal = tied).
    """

    unit: int
    members: tuple[int, ...]
    strength: float = 0.0
    tied: bool = False
    desirable: bool = True
    ranks: tuple[int, ...] = ()


def rows(unit: Unit, index: int, kind: Kind) -> list[Row]:
    """The rows of a unit for losses of a kind; none where such a loss has no use for the record.

    >>> [r.members for r in rows(Unit("a", Group((1,), ((2,), (3,), (4,))), levels=(0.0, 2.0, 1.0)), 0, "pair")]
    [(1, 2), (1, 0), (2, 0)]
    """
    levels = unit.levels
    order = sorted(range(len(levels)), key=lambda i: -levels[i])
    if kind in ("pair", "tied pair"):
        found = []
        for better, worse in combinations(order, 2):
            tied = levels[better] == levels[worse]
            same = unit.group.completion_ids[better] == unit.group.completion_ids[worse]
            if same or (tied and (kind == "pair" or unit.labelled)):
                continue
            strength = abs(levels[better] - levels[worse]) if unit.strength is None else unit.strength
            found.append(Row(index, (better, worse), 0.0 if tied else strength, tied))
        return found
    best, worst = max(levels), min(levels)
    if kind == "completion":
        # Of an order only its ends are verdicts: a middle one is neither good nor bad.
        if unit.labelled:
            return [Row(index, (i,), desirable=level > 0) for i, level in enumerate(levels)]
        ends = [i for i in order if best > worst and levels[i] in (best, worst)]
        return [Row(index, (i,), desirable=levels[i] == best) for i in ends]
    if kind == "good completion":
        good = [i for i in range(len(levels)) if (levels[i] > 0 if unit.labelled else levels[i] == best)]
        return [Row(index, (i,)) for i in good] if unit.labelled or best > worst or len(levels) == 1 else []
    if best == worst:
        return []
    heights = sorted(set(levels), reverse=True)
    return [Row(index, tuple(range(len(levels))), ranks=tuple(heights.index(level) for level in levels))]
