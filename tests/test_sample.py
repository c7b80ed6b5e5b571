"""Sampling against Transformers' `generate`, against rescoring, and against exact probabilities (cases 24 and 25)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from language_models import FAMILIES, chain, family, wrap
from optative.core.errors import InputError
from optative.generators.language import cache
from optative.generators.language import sample as sampling
from optative.generators.language.packing import Group
from optative.generators.language.sample import Completion, SamplingSettings, draw, sample
from optative.generators.language.score import score
from optative.generators.language.tokens import Truncation, TruncationCounts, encode_completion, encode_prompt
from tiny_models import make_tokenizer

GREEDY = {"temperature": 0.0}


def letters(vocabulary: int = 97, *merges: str) -> Any:
    """One printable character a token, in order from `!`; further tokens after them."""
    from transformers import PreTrainedTokenizerFast

    tokens = [chr(33 + i) for i in range(vocabulary - len(merges) - 1)] + ["Ġ", *merges]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [], fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def small(name: str = "llama", *, eos_ids: tuple[int, ...] = (), seed: int = 0) -> Any:
    return wrap(family(name, seed=seed), letters(), eos_ids=eos_ids, template=None)


PROMPTS = ["a", "abcdefghijkl", "xyz", "hello-world,this-is-longer", "xy", "0123456789" * 3]


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_equals_generate(name):
    lm = small(name, eos_ids=(2,))
    found = sample(lm, PROMPTS, 1, SamplingSettings(max_new_tokens=20, **GREEDY), seed=0, max_rows=4)
    for prompt, (completion,) in zip(PROMPTS, found):
        ids = torch.tensor([encode_prompt(lm, prompt)])
        alone = lm.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, eos_token_id=2, pad_token_id=2
        )
        assert completion.ids == tuple(alone[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bloom"])
@pytest.mark.parametrize(("temperature", "top_p", "top_k"), [(1.0, 1.0, 0), (0.7, 0.9, 20), (1.3, 0.8, 0)])
def test_logps_equal_rescoring(name, temperature, top_p, top_k):
    lm = small(name, eos_ids=(2,))
    asked = SamplingSettings(max_new_tokens=12, temperature=temperature, top_p=top_p, top_k=top_k)
    found = sample(lm, PROMPTS, 3, asked, seed=1, max_rows=5)
    groups = [Group(encode_prompt(lm, p), tuple(c.ids for c in own)) for p, own in zip(PROMPTS, found)]
    for own, scores in zip(found, score(lm, groups)):
        for completion, right in zip(own, scores):
            assert completion.logps == pytest.approx(right.logps, abs=1e-4)
    if top_p == 1 and top_k == 0:
        for own, scores in zip(found, score(lm, groups, temperature=temperature)):
            for completion, right in zip(own, scores):
                assert completion.sampling_logps == pytest.approx(right.logps, abs=1e-4)
    else:
        assert all(s >= r - 1 for own in found for c in own for s, r in zip(c.sampling_logps, c.logps))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_sample_does_not_depend_on_its_batch(name):
    lm = small(name, eos_ids=tuple(range(2, 97, 9)))
    asked = SamplingSettings(max_new_tokens=24)
    right = sample(lm, PROMPTS, 4, asked, seed=3, max_rows=64)
    assert len({len(c.ids) for own in right for c in own}) > 3, "rows must end at different times"
    for max_rows, order, lanes in ((1, 1, 1), (3, 1, 1), (64, -1, 1), (7, -1, 2), (64, 1, 2), (9, 1, 3), (2, 1, 99)):
        found = sample(lm, PROMPTS[::order], 4, asked, seed=3, max_rows=max_rows, lanes=lanes)[::order]
        assert [[c.ids for c in own] for own in found] == [[c.ids for c in own] for own in right]
        flat = [
            (x, y) for own, other in zip(found, right) for c, d in zip(own, other) for x, y in zip(c.logps, d.logps)
        ]
        assert max(abs(x - y) for x, y in flat) < 1e-4
    one = sample(lm, [PROMPTS[2]], 2, asked, seed=3)[0]
    assert [c.ids for c in one] == [c.ids for c in right[2][:2]], "nor on how many samples are drawn"


def test_the_window_of_columns_moves_back(monkeypatch):
    lm = small(eos_ids=(2, 7, 11))
    asked = SamplingSettings(max_new_tokens=24)
    right = sample(lm, PROMPTS, 4, asked, seed=3, max_rows=64)
    monkeypatch.setattr(cache, "SLACK", 1)
    found = sample(lm, PROMPTS, 4, asked, seed=3, max_rows=4)
    assert [[c.ids for c in own] for own in found] == [[c.ids for c in own] for own in right]


def test_samples_differ_and_keys_name_them():
    lm = small()
    asked = SamplingSettings(max_new_tokens=8)
    (own,) = sample(lm, ["abc"], 8, asked, seed=0)
    assert len({c.ids for c in own}) == 8
    assert all(c.finish_reason == "length" for c in own)
    same = sample(lm, ["abc", "abc"], 2, asked, seed=0)
    assert same[0] == same[1]
    named = sample(lm, ["abc", "abc"], 2, asked, seed=0, keys=["one", "two"])
    assert named[0][0].ids != named[1][0].ids
    assert sample(lm, ["abc"], 1, asked, seed=1)[0][0].ids != own[0].ids


def test_memory_bounds_the_rows():
    lm = small()
    asked = SamplingSettings(max_new_tokens=8)
    right = sample(lm, PROMPTS, 2, asked, seed=0)
    assert [[c.ids for c in own] for own in sample(lm, PROMPTS, 2, asked, seed=0, memory_bytes=1)] == [
        [c.ids for c in own] for own in right
    ]


def test_progress_counts_completions():
    seen: list[tuple[int, int]] = []
    asked = SamplingSettings(max_new_tokens=3)
    sample(small(), PROMPTS, 2, asked, seed=0, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, 12) for i in range(12)]


# ---- case 25: positions


@pytest.mark.parametrize("max_rows", [1, 2, 7])
def test_a_short_prompt_beside_a_long_one_keeps_its_positions(max_rows):
    lm = small("gpt2")
    side = lm.tokenizer.padding_side
    prompts = ["abcdefghijkl", "xyz"]
    asked = SamplingSettings(max_new_tokens=8, **GREEDY)
    together = sample(lm, prompts, 1, asked, seed=0, max_rows=max_rows)
    for prompt, (completion,) in zip(prompts, together):
        ((alone,),) = sample(lm, [prompt], 1, asked, seed=0)
        assert completion.ids == alone.ids
        assert completion.logps == pytest.approx(alone.logps, abs=1e-4)
    assert lm.tokenizer.padding_side == side


# ---- case 24: when to stop


def spell(text: str) -> str:
    """Text as byte-level tokens spell it: one letter a byte."""
    return "".join(
        t for t, _ in pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    )


def emitter(*pieces: str) -> Any:
    """A model that writes these pieces (spelled), one a token, after the prompt `>`."""
    from transformers import PreTrainedTokenizerFast

    assert len({">", *pieces}) == len(pieces) + 1, "each piece once, or the chain would loop"
    vocabulary = {t: i for i, t in enumerate([">", *pieces])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    model = chain({i: i + 1 for i in range(len(pieces))}, len(vocabulary))
    return wrap(model, PreTrainedTokenizerFast(tokenizer_object=tokenizer), eos_ids=(), template=None)


def written(lm: Any, stop: tuple[str, ...] = (), max_new_tokens: int = 8) -> Completion:
    asked = SamplingSettings(max_new_tokens=max_new_tokens, stop=stop, **GREEDY)
    return sample(lm, [">"], 1, asked, seed=0)[0][0]


def test_a_stop_string_split_over_tokens():
    lm = emitter(*map(spell, ["The", " river", " is", " Dan", "ube", "."]))
    found = written(lm, ("Danu",))
    assert (found.text, found.finish_reason) == ("The river is ", "stop")
    assert len(found.ids) == 5, "up to the token that completed it"
    assert len(found.logps) == len(found.sampling_logps) == 5


def test_the_earliest_place_wins_and_not_the_first_of_the_list():
    lm = emitter(*map(spell, ["The", " river", " is Dan", "ube", "."]))
    assert written(lm, ("Danu", "is")).text == "The river "
    assert written(lm, ("Dan", "is", "e r")).text == "Th"
    assert written(lm, ("Dan", "is")).text == "The river ", "both ended by the same token"
    assert written(lm, ("ube.", "nube")).text == "The river is Da"


def test_a_stop_string_of_the_prompt_does_not_count():
    assert written(emitter("a", "b", "c"), (">",), 3).text == "abc"


@pytest.mark.parametrize("last", [11, 12, 13])
def test_every_end_token_ends(last):
    tokenizer = letters(20)
    lm = wrap(chain({7: last, last: 9, 5: 7}, 20), tokenizer, eos_ids=(11, 12, 13), template=None)
    prompt = tokenizer.decode([5])
    found = sample(lm, [prompt], 1, SamplingSettings(max_new_tokens=6, **GREEDY), seed=0)[0][0]
    assert (found.ids, found.finish_reason, found.text) == ((7, last), "eos", tokenizer.decode([7]))


def test_a_character_of_several_tokens_comes_out_whole():
    emoji = spell("🙂")
    lm = emitter("a", emoji[:2], emoji[2:], "!")
    assert written(lm, ("!",)).text == "a🙂"
    assert written(lm, (), 3).text == "a🙂"
    cut = written(lm, (), 2)
    assert (cut.text, len(cut.ids)) == ("a", 2), "no U+FFFD for a character that was not finished"


def test_a_sampled_answer_has_the_ids_of_its_text():
    """What training scores for a text from a file is what sampling gives for the same text: one end token, last."""
    tokenizer = make_tokenizer()
    end = tokenizer.eos_token_id
    start = tokenizer.encode("\n")[0]
    answer = [*tokenizer.encode("Yes!"), end]
    lm = wrap(chain(dict(zip([start, *answer], answer)), len(tokenizer)), tokenizer)
    prompt = [{"role": "user", "content": "Well?"}]
    ((found,),) = sample(lm, [prompt], 1, SamplingSettings(max_new_tokens=10, **GREEDY), seed=0)
    assert (found.text, found.finish_reason) == ("Yes!", "eos")
    assert found.ids == encode_completion(lm, prompt, [{"role": "assistant", "content": found.text}])


# ---- the distribution


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"), [(1.0, 1.0, 0), (0.5, 1.0, 0), (1.0, 1.0, 4), (1.5, 0.8, 0), (1.0, 0.7, 5)]
)
def test_draws_follow_the_exact_distribution(temperature, top_p, top_k):
    logits = torch.tensor([1.0, -2.0, 0.5, 1.0, -0.5, 2.0, 0.0, -1.0, 1.0])
    weights = torch.softmax(logits.double() / temperature, 0).numpy()
    order = sorted(range(9), key=lambda i: (-weights[i], i))
    kept, mass = [], 0.0
    order = order[: top_k or 9]
    total = sum(weights[i] for i in order)
    for i in order:
        kept.append(i)
        mass += weights[i] / total
        if mass >= top_p:
            break
    exact = np.array([weights[i] if i in kept else 0.0 for i in range(9)])
    exact /= exact.sum()
    n = 20_000
    numbers = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = draw(logits.expand(n, -1), numbers, SamplingSettings(temperature=temperature, top_p=top_p, top_k=top_k))
    counts = Counter(drawn.tokens.tolist())
    assert set(counts) == set(kept)
    observed = np.array([counts[i] for i in sorted(kept)])
    assert chisquare(observed, exact[sorted(kept)] * n).pvalue > 1e-3
    assert drawn.sampling_logps.numpy() == pytest.approx(np.log(exact[drawn.tokens.numpy()]), abs=1e-5)
    assert drawn.logps.numpy() == pytest.approx(logits.log_softmax(0)[drawn.tokens].numpy(), abs=1e-5)


@given(st.integers(1, 700), st.integers(0, 2**32), st.floats(0, 1, exclude_max=True))
@settings(max_examples=60, deadline=None)
def test_a_draw_is_the_inverse_of_the_cumulative_distribution(vocabulary, seed, number):
    """Also where the vocabulary is no multiple of the blocks, and at both ends."""
    logits = 4 * torch.randn(2, vocabulary, generator=torch.Generator().manual_seed(seed))
    cumulative = logits.double().softmax(-1).cumsum(-1)
    drawn = draw(logits, torch.tensor([number, 1 - 2**-53], dtype=torch.float64), SamplingSettings())
    for row, aim in enumerate((number, 1 - 2**-53)):
        token = int(drawn.tokens[row])
        upper, lower = float(cumulative[row, token]), float(cumulative[row, token - 1]) if token else 0.0
        assert lower - 1e-6 <= aim <= upper + 1e-6
        assert float(drawn.margins[row]) <= min(upper - aim, aim - lower) + 1e-6


def test_tokens_without_probability_are_never_drawn():
    logits = torch.full((2, 600), float("-inf"))
    logits[:, [3, 300, 599]] = 0.0
    logits[1, 599] = float("-inf")
    numbers = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits, numbers, SamplingSettings()).tokens.tolist() == [3, 300]


def test_close_calls_are_counted():
    logits = torch.zeros(1, 4)
    for number, close in ((0.25 + 1e-7, True), (0.3, False)):
        drawn = draw(logits, torch.tensor([number], dtype=torch.float64), SamplingSettings())
        assert (float(drawn.margins[0]) < 1e-5) is close


def test_top_p_beyond_the_first_candidates(monkeypatch):
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    asked = SamplingSettings(top_p=0.95)
    numbers = torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    right = draw(logits, numbers, asked)
    monkeypatch.setattr(sampling, "CANDIDATES", 3)
    found = draw(logits, numbers, asked)
    assert found.tokens.tolist() == right.tokens.tolist()
    assert found.sampling_logps.tolist() == right.sampling_logps.tolist()


# ---- one truncation rule


def test_truncation_is_that_of_training():
    lm, counts = small(), TruncationCounts()
    asked = SamplingSettings(max_new_tokens=10)
    rule = Truncation(max_length=16, on_long_prompt="truncate_left")
    prompts = ["a" * 6, "a" * 12 + "bcdefgh" * 2]
    found = sample(lm, prompts, 1, asked, seed=0, truncation=rule, counts=counts)
    assert [len(own[0].ids) for own in found] == [10, 8]
    assert (counts.prompts_cut, counts.prompt_tokens_cut) == (1, 18)
    whole = sample(lm, [prompts[1][-8:]], 1, asked, seed=0)
    assert found[1][0].ids == whole[0][0].ids[:8]
    with pytest.raises(InputError, match="no room for an answer"):
        sample(lm, prompts, 1, asked, seed=0, truncation=Truncation(max_length=16))
    (shorter,) = sample(lm, ["a" * 14], 1, asked, seed=0, truncation=rule)
    assert (len(shorter[0].ids), shorter[0].finish_reason) == (2, "length")


# ---- what is refused


def test_what_cannot_be_sampled_is_refused_before_any_work():
    lm = small()
    lm.model = lm.model.__class__(lm.model.config)
    with pytest.raises(InputError, match=r"prompt 1 \(long\).*at most 128 tokens"):
        sample(lm, ["ab", "a" * 120], 1, SamplingSettings(max_new_tokens=9), seed=0, keys=["short", "long"])
    with pytest.raises(InputError, match="all the same"):
        sample(lm, ["a"], 2, SamplingSettings(**GREEDY), seed=0)
    with pytest.raises(InputError, match="empty stop"):
        sample(lm, ["a"], 1, SamplingSettings(max_new_tokens=9, stop=("",)), seed=0)
    with pytest.raises(InputError, match="one key for each"):
        sample(lm, ["a"], 1, SamplingSettings(max_new_tokens=9), seed=0, keys=[])
    assert sample(lm, [], 1, SamplingSettings(max_new_tokens=9), seed=0) == []


def test_dropout_is_off_and_the_training_mode_comes_back():
    lm = small("gpt2")
    lm.model.train()
    asked = SamplingSettings(max_new_tokens=6)
    found = sample(lm, ["abc"], 2, asked, seed=0)
    assert lm.model.training
    assert lm.model.transformer.drop.training
    lm.model.eval()
    assert found == sample(lm, ["abc"], 2, asked, seed=0)


# ---- the real model


@pytest.fixture(scope="module")
def default_lm(default_model_folder: Path) -> Any:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from optative.generators.language.template import ChatTemplate

    model = AutoModelForCausalLM.from_pretrained(default_model_folder, dtype=torch.float32).eval()
    lm = wrap(model, AutoTokenizer.from_pretrained(default_model_folder))
    lm.template = ChatTemplate.of(default_model_folder)
    return lm


def real_prompts(n: int) -> list[list[dict[str, str]]]:
    tasks = (
        "Name {} birds.",
        "Write {} lines about rain, in French.",
        "What is {} times twelve? Think aloud.",
        "{} 🙂?",
    )
    return [[{"role": "user", "content": tasks[i % 4].format(i + 2)}] for i in range(n)]


@pytest.mark.model
def test_greedy_equals_generate_on_the_default_model(default_lm):
    prompts, new = real_prompts(32), 12
    found = sample(default_lm, prompts, 1, SamplingSettings(max_new_tokens=new, **GREEDY), seed=0)
    encoded = [encode_prompt(default_lm, p) for p in prompts]
    width = max(map(len, encoded))
    ids = torch.tensor([[2] * (width - len(e)) + list(e) for e in encoded])
    mask = torch.tensor([[0] * (width - len(e)) + [1] * len(e) for e in encoded])
    right = default_lm.model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=2)
    excused = 0
    for (completion,), row in zip(found, right[:, width:].tolist()):
        wanted = row[: row.index(2) + 1] if 2 in row else row
        if completion.ids != tuple(wanted):
            excused += 1
            assert completion.close_calls > 0, "differs where the two best logits are not within 1e-4"
    assert excused <= 2


@pytest.mark.model
def test_sampled_logps_equal_rescoring_on_the_default_model(default_lm):
    prompts = real_prompts(4)
    found = sample(default_lm, prompts, 4, SamplingSettings(max_new_tokens=12), seed=5, max_rows=6)
    groups = [Group(encode_prompt(default_lm, p), tuple(c.ids for c in own)) for p, own in zip(prompts, found)]
    for own, scores in zip(found, score(default_lm, groups)):
        for completion, right in zip(own, scores):
            assert completion.logps == pytest.approx(right.logps, abs=1e-4)
            if completion.finish_reason == "eos":
                assert completion.ids[-1] == default_lm.tokenizer.eos_token_id


def test_a_fault_in_one_lane_ends_all_and_leaves_the_threads_as_they_were():
    lm = small("llama", eos_ids=(2,))
    threads, told = torch.get_num_threads(), []

    def progress(done, total):
        told.append((done, total))
        raise RuntimeError("the listener broke")

    with pytest.raises(RuntimeError, match="the listener broke"):
        sample(lm, PROMPTS, 4, SamplingSettings(max_new_tokens=24), seed=3, lanes=2, progress=progress)
    assert torch.get_num_threads() == threads
    counted = []
    sample(lm, PROMPTS, 4, SamplingSettings(max_new_tokens=4), seed=3, lanes=2, progress=lambda d, t: counted.append(d))
    assert counted == list(range(1, 4 * len(PROMPTS) + 1))
