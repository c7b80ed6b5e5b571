"""The factory of small language models: corpora, tokenizer, model, pretraining, against plain formulas."""

from __future__ import annotations

import hashlib
import inspect
import os
import signal
import subprocess
import sys
from collections import Counter
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optative.core.errors import InputError
from optative.core.files import read_jsonl
from optative.data import corpora
from optative.data.corpora import CORPORA, Document, corpus, pieces
from optative.generators.language import tiny
from optative.generators.language.load import load_language_model
from optative.generators.language.packing import Group, plan
from optative.generators.language.sample import SamplingSettings, sample
from optative.generators.language.score import score, score_pack
from optative.generators.language.template import PLAIN
from optative.generators.language.tokens import encode_prompt
from optative.generators.options import LoraOptions, Tiny
from optative.training.schedule import learning_rate

SMALL = Tiny(layers=2, hidden=32, heads=2, vocabulary=400, context=64)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [d.text for d in islice(corpus("python-reference"), 300)]


@pytest.fixture(scope="module")
def tokenizer(texts: list[str]) -> Any:
    return tiny.train_tokenizer(texts, SMALL.vocabulary)


@pytest.fixture(scope="module")
def groups(texts: list[str], tokenizer: Any) -> list[Group]:
    return [tiny.document(tokenizer, text, most=60) for text in texts]


def weights(lm: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for _, p in sorted(lm.model.named_parameters())]


# Corpora


@pytest.mark.parametrize("name", ["python-reference", "python-docstrings", "package-readmes", "networkx-docstrings"])
def test_texts_of_packages_are_really_there(name: str) -> None:
    found = list(islice(corpus(name), 200))
    assert len(found) == 200
    assert len({d.id for d in found}) == 200
    assert len({d.text for d in found}) == 200
    assert len({d.source for d in found}) > 10
    assert all(d.text.strip() and d.source for d in found)
    assert found == list(islice(corpus(name), 200)), "always in the same order"
    letters = sum(c.isascii() and (c.isalpha() or c.isspace()) for d in found for c in d.text)
    assert letters > 0.6 * sum(len(d.text) for d in found), "text, not bytes"


def test_a_docstring_has_its_module_as_source() -> None:
    found = [d for d in islice(corpus("networkx-docstrings"), 200) if d.id.removeprefix(d.source).count(".") == 1]
    assert len(found) > 50
    for document in found[:20]:
        name = document.id.removeprefix(document.source + ".").partition("#")[0].partition(":")[0]
        text = inspect.getdoc(inspect.unwrap(getattr(import_module(document.source), name)))
        assert text is not None
        assert document.text in "\n".join(line.rstrip() for line in text.splitlines()) or document.text in text


def test_a_text_comes_once_and_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    long = "\n\n".join(f"paragraph {i} " + "x" * 300 for i in range(5))
    given_ = [Document(long, "a", "1"), Document("once\r\nmore", "a", "2"), Document("once\nmore ", "b", "3")]
    monkeypatch.setitem(CORPORA, "own", lambda: iter(given_))
    found = list(corpus("own"))
    assert [d.id for d in found] == ["1", "1#1", "2"]
    assert "\n\n".join(d.text for d in found[:2]) == long
    assert found[2].text == "once\nmore"
    assert pieces("\n \n") == []


def test_absent_corpora_name_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(corpora, "_FORTUNES", tmp_path / "none")
    monkeypatch.setattr(corpora, "_WORDNET", tmp_path / "none")
    for name, package in (("fortunes", "fortunes"), ("wordnet-glosses", "wordnet-base")):
        with pytest.raises(InputError, match=f"apt-get install {package}"):
            next(corpus(name))
    monkeypatch.setattr(corpora.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="networkx, which is not installed"):
        next(corpus("networkx-docstrings"))
    with pytest.raises(InputError, match="the nearest is 'fortunes'"):
        corpus("fortune")


def test_debian_formats(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "wisdom").write_text("One.\n%\nTwo,\n\ttwo.\n%\n", "utf-8")
    (tmp_path / "wisdom.dat").write_bytes(b"\0\1")
    monkeypatch.setattr(corpora, "_FORTUNES", tmp_path)
    assert [(d.text, d.source) for d in corpus("fortunes")] == [("One.", "wisdom"), ("Two,\n\ttwo.", "wisdom")]
    line = '00001740 03 n 02 entity 0 thing 0 001 ~ 00001930 n 0000 | that which exists; "it is"  \n'
    for kind in ("adj", "adv", "noun", "verb"):
        (tmp_path / f"data.{kind}").write_text(
            "  1 This is the licence | not a gloss\n" + (line if kind == "noun" else "")
        )
    monkeypatch.setattr(corpora, "_WORDNET", tmp_path)
    assert list(corpus("wordnet-glosses")) == [Document('entity: that which exists; "it is"', "noun", "noun/00001740")]


# Tokenizer and model


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=40).filter(lambda t: "<" not in t))
def test_every_text_comes_back(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(text) == [tokenizer.bos_token_id, *ids], "the start token stands once"


def test_equal_texts_give_equal_tokenizers(texts: list[str], tokenizer: Any) -> None:
    program = (
        "from itertools import islice; from optative.data.corpora import corpus; import hashlib\n"
        "from optative.generators.language.tiny import train_tokenizer\n"
        f"t = train_tokenizer([d.text for d in islice(corpus('python-reference'), {len(texts)})], {SMALL.vocabulary})\n"
        "print(hashlib.sha256(t.backend_tokenizer.to_str().encode()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    assert len(tokenizer) == SMALL.vocabulary


def test_sizes_that_cannot_be_are_refused(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="no room"):
        tiny.train_tokenizer(["a"], 100)
    with pytest.raises(InputError, match="more tokens than the model"):
        tiny.build(SMALL.model_copy(update={"vocabulary": 300}), tokenizer, 0)
    with pytest.raises(ValueError, match="multiple of 2 x heads = 8"):
        Tiny(hidden=20, heads=4)


def test_the_prefix_never_changes_the_ids_of_the_text(tokenizer: Any) -> None:
    plain, tagged = (tiny.document(tokenizer, "of the object", prefix) for prefix in ("", "URL: the end "))
    assert plain.completion_ids == tagged.completion_ids
    assert plain.prompt_ids == (tokenizer.bos_token_id,)
    assert tagged.prompt_ids[0] == tokenizer.bos_token_id
    assert plain.completion_ids[0][-1] == tokenizer.eos_token_id
    cut = tiny.document(tokenizer, "of the object", most=2)
    assert cut.completion_ids[0] == plain.completion_ids[0][:2]


def test_a_packed_document_has_the_loss_of_a_plain_forward(tokenizer: Any, groups: list[Group]) -> None:
    lm = tiny.build(SMALL, tokenizer, 0)
    tagged = [tiny.document(tokenizer, "a tagged text", "URL: here\n\n"), *groups[:6]]
    (pack,) = plan(tagged, 10_000)
    packed = score_pack(lm, pack)
    assert packed.logps is not None
    expected = []
    for group in pack.groups:
        ids = torch.tensor([group.prompt_ids + group.completion_ids[0]])
        start = len(group.prompt_ids)
        labels = ids.clone()
        labels[:, :start] = -100
        expected.append(float(lm.model(input_ids=ids, labels=labels).loss))
        logps = lm.model(input_ids=ids).logits.log_softmax(-1)[0, start - 1 : -1]
        expected_N = logps.gather(1, ids[0, start:, None])[:, 0]
        at = len(expected) - 1
        assert packed.logps[packed.offsets[at] : packed.offsets[at + 1]].numpy() == pytest.approx(
            expected_N.detach().numpy(), abs=1e-4
        )
        assert tiny.mean_loss(lm, [group]) == pytest.approx(expected[-1], abs=1e-4)


# Pretraining


def test_pretraining_beats_unigrams(groups: list[Group], tokenizer: Any) -> None:
    train, held_out = groups[30:], groups[:30]
    counts = Counter(t for g in train for t in g.completion_ids[0])
    total = sum(counts.values()) + SMALL.vocabulary
    targets = [t for g in held_out for t in g.completion_ids[0]]
    unigram = -np.mean([np.log((counts[t] + 1) / total) for t in targets])
    lm = tiny.build(SMALL, tokenizer, 0)
    before = tiny.mean_loss(lm, held_out)
    losses = tiny.pretrain(lm, train, steps=80, tokens_per_step=1000, learning_rate=1e-2, seed=0)
    after = tiny.mean_loss(lm, held_out)
    assert len(losses) == 80
    assert losses[0] == pytest.approx(before, abs=0.2)
    assert after < unigram - 0.3 < before
    assert not any(p.requires_grad for p in lm.model.parameters())


def test_a_step_is_plain_maximum_likelihood(groups: list[Group], tokenizer: Any) -> None:
    """The first loss is the mean over the tokens of the step; prompt tokens are not among them."""
    tagged = [Group((*g.prompt_ids, *range(5, 12)), (g.completion_ids[0][:50],)) for g in groups[:8]]
    lm = tiny.build(SMALL, tokenizer, 0)
    expected = tiny.mean_loss(lm, tagged)
    number = sum(g.num_tokens for g in tagged)
    (found,) = tiny.pretrain(lm, tagged, steps=1, tokens_per_step=number, learning_rate=1e-9, seed=0)
    assert found == pytest.approx(expected, abs=1e-4)


def test_tokens_without_loss_do_not_teach(groups: list[Group], tokenizer: Any) -> None:
    """What follows the last token that counts moves no weight."""
    group = groups[0]
    ids = group.completion_ids[0]
    masked = Group(group.prompt_ids, (ids,), ((True,) * 5 + (False,) * (len(ids) - 5),))
    short = Group(group.prompt_ids, (ids[:5],))
    moved = []
    for one in (masked, short):
        lm = tiny.build(SMALL, tokenizer, 0)
        tiny.pretrain(lm, [one], steps=1, tokens_per_step=1, learning_rate=1e-3, seed=0)
        moved.append(weights(lm))
    assert all(torch.allclose(a, b, atol=2e-6) for a, b in zip(*moved))


def test_equal_calls_give_equal_weights_and_other_seeds_others(groups: list[Group], tokenizer: Any) -> None:
    def made(seed: int) -> tuple[list[torch.Tensor], list[float], str]:
        lm = tiny.build(SMALL, tokenizer, seed)
        losses = tiny.pretrain(lm, groups, steps=3, tokens_per_step=400, learning_rate=1e-2, seed=seed)
        return weights(lm), losses, lm.fingerprint

    first, again, other = made(0), made(0), made(1)
    assert all(map(torch.equal, first[0], again[0]))
    assert first[1:] == again[1:]
    assert first[1] != other[1]
    assert first[2] != other[2]


def test_stages_share_optimizer_and_schedule(groups: list[Group], tokenizer: Any) -> None:
    """Two stages of the same single document are one training of it; the rate goes on where it was."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    found = []
    whole, parts = [tiny.Stage(groups[:1], 20)], [tiny.Stage(groups[:1], 12), tiny.Stage(groups[:1], 8)]
    for number, stages in ((1, whole), (2, parts)):
        lm = tiny.build(SMALL, tokenizer, 0)

        def keep(done: int, steps: int, line: dict[str, Any], number: int = number) -> None:
            rates[number].append(line["learning_rate"])

        tiny.pretrain_stages(
            lm,
            stages,
            tokens_per_step=1,
            learning_rate=1e-2,
            seed=0,
            on_step=keep,
        )
        found.append(weights(lm))
    assert all(map(torch.equal, *found))
    assert rates[1] == rates[2]
    assert rates[2] == [
        learning_rate(i, 20, peak=1e-2, schedule="cosine", warmup_ratio=0.05, final_ratio=0.1) for i in range(20)
    ]
    assert rates[2][-1] >= 1e-3, "the last stage still learns"


KILLED = """
import os, signal, sys
from itertools import islice
from pathlib import Path
from optative.data.corpora import corpus
from optative.generators.language import tiny
from optative.generators.options import Tiny

texts = [d.text for d in islice(corpus("python-reference"), 100)]
small = Tiny(layers=1, hidden=16, heads=1, vocabulary=300, context=64)
tokenizer = tiny.train_tokenizer(texts, small.vocabulary)
tiny.CHECKPOINT_EVERY = 3
lm = tiny.build(small, tokenizer, 0)
def on_step(done, steps, line):
    if done == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
groups = [tiny.document(tokenizer, text, most=60) for text in texts]
losses = tiny.pretrain_stages(
    lm, [tiny.Stage(groups[50:], 6), tiny.Stage(groups[:50], 4)],
    tokens_per_step=200, learning_rate=1e-2, seed=0, folder=Path(sys.argv[1]), on_step=on_step,
)
print(losses, [float(p.double().sum()) for p in lm.model.parameters()], lm.fingerprint)
"""


def test_a_killed_pretraining_goes_on_to_equal_numbers(tmp_path: Path) -> None:
    def one(folder: str, kill_at: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", KILLED, str(tmp_path / folder), str(kill_at)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    whole = one("whole", 0)
    assert whole.returncode == 0, whole.stderr
    assert one("killed", 8).returncode == -signal.SIGKILL
    assert len(list(read_jsonl(tmp_path / "killed" / "metrics.jsonl"))) == 8
    assert one("killed", 0).stdout == whole.stdout


def test_saved_and_loaded_it_is_the_same_model(groups: list[Group], tokenizer: Any, tmp_path: Path) -> None:
    lm = tiny.build(SMALL, tokenizer, 0)
    tiny.pretrain(lm, groups, steps=3, tokens_per_step=400, learning_rate=1e-2, seed=0)
    loaded = load_language_model(str(tiny.save(lm, tmp_path / "model")), dtype="float32", device="cpu")
    assert loaded.template.source == lm.template.source == PLAIN
    assert loaded.template.hash == lm.template.hash
    assert (loaded.eos_ids, loaded.pad_id, loaded.context_length) == (lm.eos_ids, lm.pad_id, lm.context_length)
    talk = [{"role": "user", "content": "Why?"}]
    assert encode_prompt(loaded, talk) == encode_prompt(lm, talk)
    for own, other in zip(score(lm, groups[:5]), score(loaded, groups[:5])):
        assert np.array_equal(own[0].logps, other[0].logps)
    settings_ = SamplingSettings(max_new_tokens=8)
    drawn = [sample(one, ["The"], n=2, settings=settings_, seed=0) for one in (lm, loaded)]
    assert drawn[0] == drawn[1]


def test_what_cannot_be_trained_is_refused(groups: list[Group], tokenizer: Any) -> None:
    from optative.generators.language.adapters import add_lora

    lm = tiny.build(SMALL, tokenizer, 0)
    with pytest.raises(InputError, match="nothing to train on"):
        tiny.pretrain(lm, [], steps=1, tokens_per_step=10, learning_rate=1e-3, seed=0)
    add_lora(lm, LoraOptions(rank=2), seed=0)
    with pytest.raises(InputError, match="has an adapter"):
        tiny.pretrain(lm, groups, steps=1, tokens_per_step=10, learning_rate=1e-3, seed=0)
