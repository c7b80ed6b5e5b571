"""Which sequences go through the model together: a prompt with all its completions is one group, groups fill packs.

Knows: lengths. Does not know: models, attention. A prompt is laid out once, whatever the number of its completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optative.core.errors import InputError

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt and its completions as token ids.

    `masks`, one for each completion, says which of its tokens carry loss; None: all of them. Turns of other speakers
    inside a completion of several turns carry none. `control`: the LoRA of this label is on (`controls`); groups of
    different controls are never in one pack.
    """

    prompt_ids: Ids
    completion_ids: tuple[Ids, ...]
    masks: tuple[tuple[bool, ...], ...] | None = None
    control: str = ""

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise InputError("a prompt of no tokens: the first token of its completions would have no probability")
        if any(not ids for ids in self.completion_ids):
            raise InputError("a completion of no tokens has no probability")
        if self.masks is not None and [len(m) for m in self.masks] != [len(c) for c in self.completion_ids]:
            raise InputError("masks and completions differ in length")

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + sum(map(len, self.completion_ids))

    @property
    def flags(self) -> tuple[tuple[bool, ...], ...]:
        """Of each completion which tokens carry loss."""
        return self.masks or tuple((True,) * len(ids) for ids in self.completion_ids)

    @property
    def counted(self) -> list[int]:
        """How many tokens of each completion carry loss."""
        return [sum(flags) for flags in self.flags]


@dataclass(frozen=True, slots=True)
class Pack:
    """Groups for one forward; `group_indices` are their places in the list that was planned."""

    groups: tuple[Group, ...]
    group_indices: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return sum(g.num_tokens for g in self.groups)

    @property
    def control(self) -> str:
        """The control of all its groups."""
        found = {group.control for group in self.groups}
        if len(found) > 1:
            raise InputError("one forward has one control", field="control", found=sorted(found))
        return found.pop() if found else ""


def plan(groups: Sequence[Group], token_budget: int) -> list[Pack]:
    """Fill packs of at most `token_budget` tokens: longest group first, each into the first pack with room.

    A group is never split; one above the budget gets a pack of its own; a pack has one control. Equal lengths keep
    their order, so the plan depends on lengths and controls alone.
    """
    if token_budget < 1:
        raise InputError("no room for any token", field="token_budget", found=token_budget, expected="1 or more")
    members: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(groups)), key=lambda i: -groups[i].num_tokens):
        size = groups[i].num_tokens
        fits = (p for p, left in enumerate(room) if left >= size and groups[members[p][0]].control == groups[i].control)
        p = next(fits, None)
        if p is None:
            members.append([])
            room.append(max(token_budget, size))
            p = len(room) - 1
        members[p].append(i)
        room[p] -= size
    return [Pack(tuple(groups[i] for i in m), tuple(m)) for m in members]
