"""Keys and values of the rows that are being sampled, in buffers made once.

All rows write their new token into the same column, so a step writes one slice a layer and reads one window of columns:
the prompt of a row that enters is laid right before the current column. Each row knows where it starts; columns before
that are masked. When the columns are used up the window moves back to the front. Rows that end are replaced by the last
active ones, so the active rows are always the first.

Knows: columns, rows, windows of attention. Does not know: tokens, how a token is chosen.
Positions come from the caller.
Shapes: R rows, h key heads, C columns, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optative.generators.language.attention import PackLayout, backbone_of, run_backbone
from optative.generators.language.packing import Group, Ids, Pack

SLACK = 64  # columns beyond the longest row: the window moves back once in at least so many steps

Prefix = Any  # what `prefill` returns for a prompt and `enter` takes


class RowLayout:
    """The attention layout and the store of one new token for each of the active rows."""

    def __init__(self, max_rows: int, longest_prompt: int, max_new_tokens: int) -> None:
        self.calls = 0
        self.num_rows = 0
        self.max_rows, self.longest_prompt = max_rows, longest_prompt
        self.num_columns = longest_prompt + max_new_tokens + SLACK
        self.column = longest_prompt
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.starts_R = torch.zeros(0, dtype=torch.long)
        self.low = 0
        self._masks: dict[int | None, Tensor | None] = {}

    def enter(self, prefixes: Sequence[tuple[list[tuple[Tensor, Tensor]], int, int]]) -> None:
        """Add rows behind the active ones; a prefix is the layers' keys and values of a pack and its place in it."""
        if not self.keys:
            for key, value in prefixes[0][0]:
                self.keys.append(key.new_zeros(self.max_rows, key.shape[1], self.num_columns, key.shape[3]))
                self.values.append(value.new_zeros(self.max_rows, value.shape[1], self.num_columns, value.shape[3]))
            self.starts_R = torch.zeros(self.max_rows, dtype=torch.long, device=self.keys[0].device)
        if self.num_rows == 0:
            self.column = self.longest_prompt
        row = self.num_rows
        i = 0
        while i < len(prefixes):  # rows of one prompt come together: one copy for all of them
            layers, start, end = prefixes[i]
            same = 1
            while i + same < len(prefixes) and prefixes[i + same] is prefixes[i]:
                same += 1
            rows, columns = slice(row, row + same), slice(self.column - (end - start), self.column)
            for layer, (key, value) in enumerate(layers):
                self.keys[layer][rows, :, columns] = key[:, :, start:end]
                self.values[layer][rows, :, columns] = value[:, :, start:end]
            self.starts_R[rows] = columns.start
            row += same
            i += same
        self.num_rows = row
        self.low = int(self.starts_R[:row].min())

    def leave(self, kept: list[int]) -> list[int]:
        """Keep these rows (ascending); returns which old row each new row is, the last ones filling the holes."""
        n = len(kept)
        stay = set(kept)
        holes = [r for r in range(n) if r not in stay]
        moved = [r for r in kept if r >= n]
        order = list(range(n))
        for hole, source in zip(holes, moved):
            order[hole] = source
        if moved:
            device = self.starts_R.device
            to, sources = torch.tensor(holes, device=device), torch.tensor(moved, device=device)
            window = slice(self.low, self.column)
            for store in (*self.keys, *self.values):
                store[to, :, window] = store[sources, :, window]
            self.starts_R[to] = self.starts_R[sources]
        self.num_rows = n
        self.low = int(self.starts_R[:n].min()) if n else self.column
        return order

    def begin_step(self) -> None:
        """Make room for the next column and forget the masks of the last one."""
        if self.column == self.num_columns:
            width = self.column - self.low
            to = max(width, self.longest_prompt)
            for store in (*self.keys, *self.values):
                store[: self.num_rows, :, to - width : to] = store[: self.num_rows, :, self.low : self.column].clone()
            self.starts_R += to - self.column
            self.low, self.column = to - width, to
        self._masks.clear()

    def end_step(self) -> None:
        self.column += 1

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
        cap: float | None,
        dropout: float,
    ) -> Tensor:
        n, h, c = self.num_rows, key.shape[1], self.column
        self.keys[layer][:n, :, c : c + 1] = key
        self.values[layer][:n, :, c : c + 1] = value
        keys = self.keys[layer].flatten(0, 1)[: n * h, self.low : c + 1]
        values = self.values[layer].flatten(0, 1)[: n * h, self.low : c + 1]
        # The query heads that share a key head are the columns of one small product. Written out, because the fused
        # kernels of CPUs are about twice as slow for a single query a row.
        grouped = query.reshape(n * h, -1, query.shape[3])
        scores = torch.bmm(keys, grouped.transpose(1, 2)).transpose(1, 2).contiguous().float().mul_(scale)
        if cap is not None:
            scores = cap * torch.tanh(scores / cap)
        mask = self._mask(window)
        if mask is not None:
            scores = (scores.unflatten(0, (n, h)) + mask).flatten(0, 1)
        weights = scores.softmax(-1).to(values.dtype)
        return torch.bmm(weights, values).reshape(n, -1, 1, value.shape[3])

    def _mask(self, window: int | None) -> Tensor | None:
        """What to add to the scores, [R, 1, 1, columns], or None. Columns are as far from each other as positions."""
        if window not in self._masks:
            columns = torch.arange(self.low, self.column + 1, device=self.starts_R.device)
            seen = columns >= self.starts_R[: self.num_rows, None]
            if window is not None:
                seen &= columns > self.column - window
            hidden = torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, float("-inf"))
            self._masks[window] = None if bool(seen.all()) else hidden[:, None, None]
        return self._masks[window]


class CachedRows:
    """Rows of a model that takes layouts: prompts are packed and computed once, then a step is one token a row."""

    def __init__(self, base: Any, max_rows: int, longest_prompt: int, max_new_tokens: int, device: Any) -> None:
        self.base, self.device = base, device
        self.layout = RowLayout(max_rows, longest_prompt, max_new_tokens)

    def prefill(self, prompts: Sequence[Ids]) -> tuple[Tensor, list[Prefix]]:
        """The last hidden state of each prompt, [prompts, hidden], and what `enter` needs to start rows from it."""
        groups = tuple(Group(ids, ()) for ids in prompts)
        layout = PackLayout(Pack(groups, tuple(range(len(groups)))), self.device, keep=True)
        hidden_TD = run_backbone(self.base, layout, layout.ids_1T, layout.positions_1T)[0]
        last = torch.tensor([end - 1 for end in layout.prompt_ends], device=self.device)
        kept = layout.kept or []
        prefixes = [(kept, end - len(ids), end) for ids, end in zip(prompts, layout.prompt_ends)]
        return hidden_TD[last], prefixes

    def enter(self, prefixes: Sequence[Prefix]) -> None:
        self.layout.enter(prefixes)

    def leave(self, kept: list[int]) -> list[int]:
        return self.layout.leave(kept)

    def step(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Feed one token a row at its position; the hidden states that predict the next ones, [rows, hidden]."""
        self.layout.begin_step()
        ids_R1 = torch.tensor(tokens, device=self.device)[:, None]
        positions_R1 = torch.tensor(positions, device=self.device)[:, None]
        hidden = run_backbone(self.base, self.layout, ids_R1, positions_R1)[:, -1]
        self.layout.end_step()
        return hidden


class PlainRows:
    """Rows of any other model: every step computes all rows from their start. Slow, and right for whatever it is."""

    def __init__(self, base: Any, device: Any) -> None:
        self.base, self.device = base, device
        self.rows: list[list[int]] = []

    def prefill(self, prompts: Sequence[Ids]) -> tuple[Tensor, list[Prefix]]:
        return self._run([list(p) for p in prompts]), list(prompts)

    def enter(self, prefixes: Sequence[Prefix]) -> None:
        self.rows += [list(p) for p in prefixes]

    def leave(self, kept: list[int]) -> list[int]:
        self.rows = [self.rows[r] for r in kept]
        return kept

    def step(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        for row, token in zip(self.rows, tokens):
            row.append(token)
        return self._run(self.rows)

    def _run(self, rows: list[list[int]]) -> Tensor:
        width = max(map(len, rows))
        ids_BT = torch.tensor([r + [0] * (width - len(r)) for r in rows], device=self.device)
        mask_BT = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows], device=self.device)
        hidden = backbone_of(self.base)(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).last_hidden_state
        return hidden[
            torch.arange(len(rows), device=self.device), torch.tensor([len(r) - 1 for r in rows], device=self.device)
        ]
