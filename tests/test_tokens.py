"""Borders, start and end tokens, truncation (cases 08 to 12)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from language_models import wrap
from optative.core.errors import InputError
from optative.generators.language.tokens import (
    PromptTooLong,
    Truncation,
    TruncationCounts,
    border_is_merged,
    encode_apart,
    encode_completion,
    encode_group,
    encode_prompt,
    encode_turns,
)
from test_template import DEFAULT_SYSTEM
from tiny_models import CHATML, make_tokenizer

USER = [{"role": "user", "content": "Who is Ada?"}]
ANSWER = [{"role": "assistant", "content": "A mathematician."}]


def fast(tokenizer: Tokenizer, **special: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def word_tokenizer(*, adds_start: bool) -> Any:
    """Case 08's: ids <unk> <s> </s> <|user|> <|assistant|> hello there."""
    words = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "hello", "there"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(w, special=True) for w in words[:5]])
    if adds_start:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return fast(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def price_tokenizer() -> Any:
    """Case 11's: byte-level, where the space merges with what follows."""
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789", "$", ":", ".", "Ġ"]
    merged = ["pr", "pri", "pric", "price", "58", "Ġ$", "Ġ58"]
    vocabulary = {t: i for i, t in enumerate([*letters, *merged])}
    merges = [("p", "r"), ("pr", "i"), ("pri", "c"), ("pric", "e"), ("5", "8"), ("Ġ", "$"), ("Ġ", "58")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return fast(tokenizer, eos_token="</s>")


def piece_tokenizer(scheme: str) -> Any:
    """SentencePiece style: a first word gets a space (▁) of its own."""
    pieces = ["<s>", "</s>", "<unk>", "▁", "a", "b", "▁a", "▁b", "c", "\n", ".", "▁c"]
    merges = [("▁", "a"), ("▁", "b"), ("▁", "c")]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.add_special_tokens([AddedToken(p, special=True) for p in pieces[:3]])
    return fast(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize(
    ("adds", "text", "right"),
    [
        (True, "<s><|user|> hello there <|assistant|>", (1, 3, 5, 6, 4)),
        (True, "<|user|> hello there <|assistant|>", (1, 3, 5, 6, 4)),
        (False, "<s><|user|> hello there <|assistant|>", (1, 3, 5, 6, 4)),
        (False, "<|user|> hello there <|assistant|>", (3, 5, 6, 4)),
    ],
)
def test_one_start_token_whoever_writes_it(adds, text, right):
    lm = wrap(None, word_tokenizer(adds_start=adds))
    assert encode_prompt(lm, text) == right
    assert encode_completion(lm, text, "hello there") == (5, 6, 2), "no start token between prompt and answer"


def test_shared_start_token_files(shared):
    for name, right in (("adds", (1, 3, 5, 6, 4)), ("plain", (3, 5, 6, 4))):
        file = shared / "cases" / f"08-bos-twice-or-never.{name}.tokenizer.json"
        lm = wrap(None, fast(Tokenizer.from_file(str(file)), bos_token="<s>", eos_token="</s>"))
        assert encode_prompt(lm, "<|user|> hello there <|assistant|>") == right
        assert encode_prompt(lm, "<s><|user|> hello there <|assistant|>") == (1, 3, 5, 6, 4)


def test_an_empty_prompt_is_the_start_token_or_an_error():
    for adds in (True, False):
        assert encode_prompt(wrap(None, word_tokenizer(adds_start=adds)), "") == (1,)
    with pytest.raises(InputError, match="no start token"):
        encode_prompt(wrap(None, price_tokenizer()), "")


def test_a_default_system_turn_stays_in_the_prompt():
    lm = wrap(None, make_tokenizer(), template=DEFAULT_SYSTEM)
    prompt, answer = encode_prompt(lm, USER), encode_completion(lm, USER, ANSWER)
    assert lm.tokenizer.decode(prompt) == (
        "<|im_start|>system\nYou are helpful.<|im_end|>\n"
        "<|im_start|>user\nWho is Ada?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert lm.tokenizer.decode(answer) == "A mathematician.<|im_end|>"


def test_a_finished_turn_has_one_end_token_and_nothing_behind_it():
    lm = wrap(None, make_tokenizer())
    end = lm.tokenizer.eos_token_id
    answer = encode_completion(lm, USER, ANSWER)
    assert answer[-1] == end
    assert answer.count(end) == 1
    assert encode_completion(lm, USER, ANSWER, end=False) == answer[:-1]
    carried = [{"role": "assistant", "content": "A mathematician.<|im_end|>"}]
    assert encode_completion(lm, USER, carried) == answer
    assert encode_completion(lm, "Who is Ada?", "A mathematician.") == answer
    assert encode_completion(lm, "Who is Ada?", "A mathematician.<|im_end|>") == answer
    assert encode_completion(lm, "Who is Ada?", "A mathematician.", end=False) == answer[:-1]
    bare = CHATML.replace("<|im_end|>", "")
    without = encode_completion(wrap(None, make_tokenizer(), template=bare), USER, ANSWER)
    assert lm.tokenizer.decode(without) == "A mathematician.\n<|im_end|>", "a template without end token gets one"


@pytest.mark.parametrize(
    "tail", ["<|im_end|>\n", "<|im_end|><|endoftext|>", "<|im_end|>\n<|endoftext|>\n", "<|endoftext|>"]
)
def test_the_first_end_token_is_where_a_model_stops(tail):
    tokenizer = make_tokenizer()
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}" + tail + "{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    lm = wrap(None, tokenizer, template=template, eos_ids=(256, 258))
    answer = [{"role": "assistant", "content": "no <|im_end|> yet\n\n"}]
    stop = "<|im_end|>" if tail.startswith("<|im") else "<|endoftext|>"
    assert tokenizer.decode(encode_completion(lm, USER, answer)) == "no <|im_end|> yet\n\n" + stop


def test_no_end_token_is_put_between_turns():
    lm = wrap(None, make_tokenizer(), template=CHATML.replace("<|im_end|>", "|"))
    second = [{"role": "user", "content": "Born?"}]
    ids, mask = encode_turns(lm, USER, [*ANSWER, *second, {"role": "assistant", "content": "1815."}])
    later = encode_prompt(lm, USER + ANSWER + second)
    assert (encode_prompt(lm, USER) + ids)[: len(later)] == later
    assert ids.count(lm.tokenizer.eos_token_id) == 1
    assert mask[-1]


def test_inner_turns_of_others_carry_no_loss():
    lm = wrap(None, make_tokenizer())
    completion = [*ANSWER, {"role": "user", "content": "Born?"}, {"role": "assistant", "content": "1815."}]
    ids, mask = encode_turns(lm, USER, completion)
    scored = [i for i, m in zip(ids, mask) if m]
    assert lm.tokenizer.decode(scored) == "A mathematician.<|im_end|>1815.<|im_end|>"
    whole = lm.template.render(USER + completion, add_generation_prompt=False)
    assert lm.tokenizer.decode(encode_prompt(lm, USER) + ids) == whole.removesuffix("\n")
    unfinished, _ = encode_turns(lm, USER, completion, end=False)
    assert unfinished == ids[:-1]
    assert encode_group(lm, USER, [completion]).masks == (mask,)
    assert encode_group(lm, USER, [ANSWER]).masks is None


def test_each_turn_is_encoded_as_the_next_prompt_sees_it():
    lm = wrap(None, make_tokenizer())
    second = [{"role": "user", "content": "Born?"}]
    completion = [*ANSWER, *second, {"role": "assistant", "content": "1815."}]
    prompt, ids = encode_prompt(lm, USER), encode_completion(lm, USER, completion)
    later = encode_prompt(lm, USER + ANSWER + second)
    assert (prompt + ids)[: len(later)] == later


def test_border_is_encoded_apart_and_merges_are_counted():
    lm = wrap(None, price_tokenizer(), eos_ids=(47,))
    assert encode_prompt(lm, "price: ") == (43, 37, 39)
    assert encode_completion(lm, "price: ", "58", end=False) == (44,)
    assert encode_completion(lm, "price: ", "$58", end=False) == (36, 44)
    assert border_is_merged(lm, "price: ", "58")
    assert not border_is_merged(lm, "price:", "58")
    counts = TruncationCounts()
    group = encode_group(lm, "price: ", ["58", "a"], counts=counts)
    assert counts.merged_borders == 1
    for ids, text in zip(group.completion_ids, ("58", "a")):
        assert lm.tokenizer.decode(group.prompt_ids + ids[:-1]) == "price: " + text


def test_shared_border_file(shared):
    file = shared / "cases" / "11-border-merge.tokenizer.json"
    lm = wrap(None, fast(Tokenizer.from_file(str(file))), eos_ids=(0,), template=None)
    assert encode_prompt(lm, "price: ") == (43, 37, 39)
    assert encode_completion(lm, "price: ", "$58", end=False) == (36, 44)


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_an_answer_gets_no_space_of_the_tokenizers_own(scheme):
    tokenizer = piece_tokenizer(scheme)
    behind = encode_apart(tokenizer, "a")
    before = tuple(tokenizer.encode("b", add_special_tokens=False))
    assert tokenizer.decode(before + behind, clean_up_tokenization_spaces=False) == "ba"
    spaced = encode_apart(tokenizer, " a")
    assert tokenizer.decode(before + spaced, clean_up_tokenization_spaces=False) == "b a"


def test_text_and_messages_do_not_mix():
    lm = wrap(None, make_tokenizer())
    for prompt, completion in (("a", ANSWER), (USER, "a")):
        with pytest.raises(InputError, match="both be text or both be messages"):
            encode_completion(lm, prompt, completion)
    with pytest.raises(InputError, match="must be the assistant's"):
        encode_completion(lm, USER, USER)
    with pytest.raises(InputError, match="last message"):
        encode_completion(lm, USER, [*ANSWER, *USER])
    with pytest.raises(InputError, match="no chat template"):
        encode_prompt(wrap(None, make_tokenizer(), template=None), USER)


def test_a_template_that_rewrites_the_past_is_refused():
    rewrites = "{{ messages | length }}" + CHATML
    with pytest.raises(InputError, match="cannot be told apart"):
        encode_completion(wrap(None, make_tokenizer(), template=rewrites), USER, ANSWER)


def turns(*lengths: int) -> list[tuple[tuple[int, ...], tuple[bool, ...]]]:
    return [(tuple(range(n)), (True,) * n) for n in lengths]


def test_truncation_keeps_the_prompt_and_some_of_every_answer():
    counts = TruncationCounts()
    rule = Truncation(max_length=16, on_long_prompt="truncate_left")
    prompt, answers = rule.apply(tuple(range(100, 106)), turns(30, 4), counts=counts)
    assert (len(prompt), [len(ids) for ids, _ in answers]) == (6, [10, 4])
    assert answers[0][0] == tuple(range(10)), "cut on the right, and no end token is invented"
    prompt, answers = rule.apply(tuple(range(100, 120)), turns(5, 5), counts=counts)
    assert prompt == tuple(range(109, 120))
    assert [len(ids) for ids, _ in answers] == [5, 5]
    assert (counts.prompts, counts.answers, counts.answers_cut, counts.answer_tokens_cut) == (2, 4, 1, 20)
    assert (counts.prompts_cut, counts.prompt_tokens_cut, counts.prompts_refused) == (1, 9, 0)
    assert "1 answers cut (20 tokens)" in str(counts)


def test_truncation_refuses_a_long_prompt_unless_asked():
    counts = TruncationCounts()
    with pytest.raises(PromptTooLong, match="20 tokens"):
        Truncation(max_length=16).apply(tuple(range(20)), turns(5, 5), counts=counts)
    assert counts.prompts_refused == 1
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        Truncation(max_length=1)


def test_a_cut_prompt_keeps_its_start_token():
    rule = Truncation(max_length=8, on_long_prompt="truncate_left")
    prompt, _ = rule.apply((1, *range(100, 120)), turns(3), start=(1,))
    assert prompt == (1, 116, 117, 118, 119)


@given(
    st.integers(2, 40),
    st.integers(1, 60),
    st.lists(st.integers(1, 60), min_size=1, max_size=4),
)
def test_no_answer_is_emptied_and_nothing_exceeds_the_length(max_length, prompt_length, lengths):
    rule = Truncation(max_length=max_length, on_long_prompt="truncate_left")
    prompt, answers = rule.apply(tuple(range(prompt_length)), turns(*lengths))
    assert prompt
    assert all(ids and len(prompt) + len(ids) <= max_length for ids, _ in answers)
    assert prompt == tuple(range(prompt_length))[-len(prompt) :]


@pytest.mark.model
def test_borders_of_the_default_model(default_model_folder: Path):
    from transformers import AutoTokenizer

    from optative.generators.language.template import ChatTemplate

    lm = wrap(None, AutoTokenizer.from_pretrained(default_model_folder))
    lm.template = ChatTemplate.of(default_model_folder)
    assert lm.template.added_system == "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    for content in ("A mathematician.", " spaced ", "🙂 ünïcode\n\n", "1. one\n2. two"):
        answer = [{"role": "assistant", "content": content}]
        ids = encode_completion(lm, USER, answer)
        assert ids[-1] == lm.tokenizer.convert_tokens_to_ids("<|im_end|>")
        whole = lm.template.render(USER + answer, add_generation_prompt=False)
        assert lm.tokenizer.decode(encode_prompt(lm, USER) + ids) + "\n" == whole
