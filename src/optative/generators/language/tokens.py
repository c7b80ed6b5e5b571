"""From prompts and completions to token ids: the one rule that training, scoring and sampling share.

Border: prompt and answer are encoded apart, so a token never spans the end of the prompt, all answers of a prompt see
the same prompt ids, and they are the ids that sampling starts from. What joint encoding would merge is only counted.
Start: what the tokenizer itself writes in front of a text stands there exactly once, also when the template wrote it.
End: a finished assistant turn ends with exactly one end token, the one that the template writes (or the tokenizer's,
if it writes none). What templates write after it is not scored, because a model that samples has stopped there.

Knows: tokenizers, templates, the truncation rule. Does not know: models, batches, padding; no mask is ever made by
comparing ids with the pad id. Text: a str is taken as it is; a conversation goes through the template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

from optative.core.config import Config, Field
from optative.core.errors import InputError
from optative.data.records import Text
from optative.generators.language.packing import Group, Ids

__all__ = [
    "PromptTooLong",
    "Text",
    "Truncation",
    "TruncationCounts",
    "border_is_merged",
    "cut_left",
    "encode_apart",
    "encode_completion",
    "encode_group",
    "encode_prompt",
    "encode_turns",
    "start_ids",
]


def encode_prompt(lm: Any, prompt: Text) -> Ids:
    """The ids of a prompt, up to where the assistant's answer starts.

    An empty prompt is the start token alone. Raises `InputError` for a prompt of no tokens.
    """
    text = prompt if isinstance(prompt, str) else _render(lm, prompt, True)
    ids = _with_start(lm.tokenizer, text)
    if not ids:
        start = lm.tokenizer.bos_token_id
        if start is None:
            raise InputError("the prompt is empty and the tokenizer has no start token", field="prompt", found=prompt)
        ids = (start,)
    return ids


def encode_completion(lm: Any, prompt: Text, completion: Text, *, end: bool = True) -> Ids:
    """The ids of a completion behind `prompt`, its end token included; `end=False`: an answer that did not end."""
    return encode_turns(lm, prompt, completion, end=end)[0]


def encode_turns(lm: Any, prompt: Text, completion: Text, *, end: bool = True) -> tuple[Ids, tuple[bool, ...]]:
    """Ids of a completion of one or several turns, and for each id whether it carries loss (the assistant wrote it)."""
    if isinstance(prompt, str) != isinstance(completion, str):
        raise InputError(
            "prompt and completion must both be text or both be messages", field="completion", found=completion
        )
    pieces = [(completion, True)] if isinstance(completion, str) else _turns(lm, prompt, completion)
    ids: list[int] = []
    mask: list[bool] = []
    for i, (text, carries_loss) in enumerate(pieces):
        piece = encode_apart(lm.tokenizer, text)
        if carries_loss:
            content, closing, piece = _split_end(lm, piece)
            if i == len(pieces) - 1:
                closing, piece = (closing or _own_end(lm)) if end else (), ()
            ids += content + closing
            mask += [True] * len(content + closing)
        ids += piece
        mask += [False] * len(piece)
    return tuple(ids), tuple(mask)


def encode_group(
    lm: Any,
    prompt: Text,
    completions: Sequence[Text],
    *,
    truncation: Truncation | None = None,
    counts: TruncationCounts | None = None,
) -> Group:
    """A prompt and its completions, ready for `packing.plan`. Raises `PromptTooLong` as `truncation` says."""
    prompt_ids = encode_prompt(lm, prompt)
    turns = [encode_turns(lm, prompt, c) for c in completions]
    if counts is not None:
        counts.merged_borders += sum(border_is_merged(lm, prompt, c) for c in completions)
    if truncation is not None:
        prompt_ids, turns = truncation.apply(prompt_ids, turns, counts=counts, start=start_ids(lm))
    masks = None if all(all(mask) for _, mask in turns) else tuple(mask for _, mask in turns)
    return Group(prompt_ids, tuple(ids for ids, _ in turns), masks)


def border_is_merged(lm: Any, prompt: Text, completion: Text) -> bool:
    """Whether encoding prompt and completion as one text would give other ids than encoding them apart."""
    if isinstance(prompt, str) and isinstance(completion, str):
        before, after = prompt, completion
    else:
        before, after = _render(lm, prompt, True), _turns(lm, prompt, completion)[0][0]
    joint = _with_start(lm.tokenizer, before + after)
    return joint != _with_start(lm.tokenizer, before) + encode_apart(lm.tokenizer, after)


class Truncation(Config):
    """The one truncation rule. A prompt is kept whole or, if asked, cut on its left; an answer is cut on its right."""

    max_length: int = Field(ge=2, description="Most tokens of a prompt and one answer together.")
    on_long_prompt: Literal["error", "truncate_left"] = Field(
        "error",
        description="What to do with a prompt of `max_length` tokens or more: refuse it, or cut it on its left so that "
        "the longest answer fits (an answer gets at most half of `max_length` this way).",
    )

    def apply(
        self,
        prompt_ids: Ids,
        turns: Sequence[tuple[Ids, tuple[bool, ...]]],
        *,
        counts: TruncationCounts | None = None,
        start: Ids = (),
    ) -> tuple[Ids, list[tuple[Ids, tuple[bool, ...]]]]:
        """Cut to `max_length`; no answer loses all its tokens and no end token is invented on a cut one.

        `start`: ids in front of every text (the tokenizer's own start token), kept when the prompt is cut.
        Raises `PromptTooLong`.
        """
        counts = counts if counts is not None else TruncationCounts()
        longest = max((len(ids) for ids, _ in turns), default=1)
        prompt_ids = self.fit_prompt(prompt_ids, longest, counts=counts, start=start)
        counts.answers += len(turns)
        keep = self.max_length - len(prompt_ids)
        lost = [max(0, len(ids) - keep) for ids, _ in turns]
        counts.answers_cut += sum(n > 0 for n in lost)
        counts.answer_tokens_cut += sum(lost)
        return prompt_ids, [(ids[:keep], mask[:keep]) for ids, mask in turns]

    def fit_prompt(
        self, prompt_ids: Ids, longest_answer: int, *, counts: TruncationCounts | None = None, start: Ids = ()
    ) -> Ids:
        """The prompt as it is, or cut on its left, or `PromptTooLong`; sampling uses this part of the rule alone."""
        counts = counts if counts is not None else TruncationCounts()
        counts.prompts += 1
        if len(prompt_ids) < self.max_length:
            return prompt_ids
        if self.on_long_prompt == "error":
            counts.prompts_refused += 1
            raise PromptTooLong(
                "the prompt leaves no room for an answer",
                field="prompt",
                found=f"{len(prompt_ids)} tokens",
                expected=f"fewer than max_length = {self.max_length}",
            )
        kept, cut = cut_left(prompt_ids, self.max_length - min(longest_answer, self.max_length // 2), start)
        counts.prompts_cut += 1
        counts.prompt_tokens_cut += cut
        return kept


class PromptTooLong(InputError):
    """A prompt that the truncation rule refuses; `on_bad_record` decides what follows."""


@dataclass(slots=True)
class TruncationCounts:
    """What the truncation rule did, to be printed; nothing is cut in silence."""

    prompts: int = 0
    answers: int = 0
    answers_cut: int = 0
    answer_tokens_cut: int = 0
    prompts_cut: int = 0
    prompt_tokens_cut: int = 0
    prompts_refused: int = 0
    merged_borders: int = 0

    def __str__(self) -> str:
        return (
            f"{self.prompts} prompts with {self.answers} answers: {self.answers_cut} answers cut "
            f"({self.answer_tokens_cut} tokens), {self.prompts_cut} prompts cut on the left ({self.prompt_tokens_cut} "
            f"tokens), {self.prompts_refused} prompts refused, {self.merged_borders} merged borders (encoded apart)"
        )


def cut_left(prompt_ids: Ids, keep: int, start: Ids = ()) -> tuple[Ids, int]:
    """The last `keep` tokens of a prompt, behind its start token if it has one; and how many tokens were lost."""
    if len(prompt_ids) <= keep:
        return prompt_ids, 0
    head = start if prompt_ids[: len(start)] == start and len(start) < keep else ()
    cut = head + prompt_ids[len(prompt_ids) - keep + len(head) :]
    return cut, len(prompt_ids) - keep


def shorten(lm: Any, group: Group, prompt: int | None = None, completion: int | None = None) -> Group:
    """A group with its prompt cut on the left and its completions on the right to at most so many tokens; None: whole.

    The same rule for all completions of a prompt, so that their comparison stays one of equals.
    """
    prompt_ids = group.prompt_ids if prompt is None else cut_left(group.prompt_ids, prompt, start_ids(lm))[0]
    masks = group.masks and tuple(mask[:completion] for mask in group.masks)
    return Group(prompt_ids, tuple(ids[:completion] for ids in group.completion_ids), masks, group.control)


def encode_apart(tokenizer: Any, text: str) -> Ids:
    """Ids of a text that continues another one: no start token, and no space that a tokenizer puts before a first word.

    SentencePiece-style tokenizers put one; behind an anchor that cannot merge with what follows, they do not.
    """
    anchor = _traits(tokenizer).anchor
    if not anchor:
        return _encode(tokenizer, text)
    ids, head = _encode(tokenizer, anchor + text), _encode(tokenizer, anchor)
    return ids[len(head) :] if ids[: len(head)] == head else _encode(tokenizer, text)


def _encode(tokenizer: Any, text: str) -> Ids:
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def _with_start(tokenizer: Any, text: str) -> Ids:
    ids, start = _encode(tokenizer, text), _traits(tokenizer).start
    return ids if ids[: len(start)] == start else start + ids


def start_ids(lm: Any) -> Ids:
    """What the tokenizer itself writes in front of any text."""
    return _traits(lm.tokenizer).start


@dataclass(frozen=True, slots=True)
class _Traits:
    start: Ids  # what the tokenizer writes in front of any text
    anchor: str  # put before a continuation so that it gets no space of its own; "" where none is needed


_KNOWN: WeakKeyDictionary[Any, _Traits] = WeakKeyDictionary()


def _traits(tokenizer: Any) -> _Traits:
    if tokenizer not in _KNOWN:
        bare, full = _encode(tokenizer, "a"), tuple(tokenizer.encode("a", add_special_tokens=True))
        at = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
        _KNOWN[tokenizer] = _Traits(full[:at], _anchor(tokenizer))
    return _KNOWN[tokenizer]


def _anchor(tokenizer: Any) -> str:
    def decode(ids: Ids) -> str:
        return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    for anchor in ("", tokenizer.eos_token or "", tokenizer.bos_token or "", "\n", "."):
        head, ids = _encode(tokenizer, anchor), _encode(tokenizer, anchor + "a")
        behind = ids[len(head) :]
        before = _encode(tokenizer, "b")
        if ids[: len(head)] == head and decode(before + behind) == decode(before) + "a":
            return anchor
    return ""


def _render(lm: Any, messages: Any, add_generation_prompt: bool) -> str:
    if lm.template is None:
        raise InputError("the model has no chat template, but the prompt is a conversation", field="template")
    return lm.template.render(messages, add_generation_prompt=add_generation_prompt)


def _turns(lm: Any, prompt: Any, completion: Any) -> list[tuple[str, bool]]:
    """Pieces of the text behind the prompt, assistant turns (True) and what stands between them (False).

    All come from renderings of the whole conversation so far, so that a template's default system turn stays in the
    prompt; each rendering must continue the one before, or the border between prompt and answer would be a guess.
    """
    if not completion:
        raise InputError("the completion has no messages", field="completion", found=completion)
    pieces: list[tuple[str, bool]] = []
    so_far = _render(lm, prompt, True)
    for i, message in enumerate(completion):
        if message.get("role") != "assistant":
            if not pieces:
                raise InputError(
                    "the first message of a completion must be the assistant's", field="completion", found=message
                )
            continue
        before, after = list(prompt) + list(completion[:i]), list(prompt) + list(completion[: i + 1])
        opened, closed = (so_far if i == 0 else _render(lm, before, True)), _render(lm, after, False)
        if not opened.startswith(so_far) or not closed.startswith(opened):
            raise InputError(
                f"the chat template {lm.template.name} rewrites earlier turns or the start of the answer, "
                "so prompt and answer cannot be told apart",
                field="template",
            )
        if i:
            pieces.append((opened[len(so_far) :], False))
        pieces.append((closed[len(opened) :], True))
        so_far = closed
    if completion[-1].get("role") != "assistant":
        raise InputError(
            "the last message of a completion must be the assistant's", field="completion", found=completion[-1]
        )
    return pieces


def _split_end(lm: Any, piece: Ids) -> tuple[Ids, Ids, Ids]:
    """A turn's content, its end token if it has one, and what stands behind that.

    The end token is the first of those that only space and other end tokens follow: the model stops there. An end token
    further left belongs to the content.
    """
    at = len(piece)
    for i in range(len(piece) - 1, -1, -1):
        if piece[i] in lm.eos_ids:
            at = i
        elif lm.tokenizer.decode([piece[i]], clean_up_tokenization_spaces=False).strip():
            break
    return piece[:at], piece[at : at + 1], piece[at + 1 :]


def _own_end(lm: Any) -> Ids:
    """The end token for a turn whose template writes none."""
    if not lm.eos_ids:
        raise InputError("the model has no end token, so a finished answer cannot be told from a cut one")
    own = lm.tokenizer.eos_token_id
    return (own if own in lm.eos_ids else lm.eos_ids[0],)
