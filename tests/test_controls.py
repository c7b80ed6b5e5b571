"""Controls: equal to what they stand for, apart from each other, and each forward has the one that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from optative.core.errors import InputError
from optative.generators.language import controls as c
from optative.generators.language.load import load_language_model
from optative.generators.language.packing import Group, Pack, plan
from optative.generators.language.sample import SamplingSettings, sample
from optative.generators.language.score import score_pack, summed
from optative.generators.language.trained import trained_parameters
from tiny_models import save_tiny_model

LABELS = ("good", "bad")
PLAIN = Group((1, 2, 3), ((4, 5, 6, 258), (7, 258)))
OTHER = Group((9, 8), ((4, 5), (3, 2, 1)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def fresh(folder: Path) -> Any:
    return load_language_model(str(folder), dtype="float32")


def with_prompts(folder: Path) -> Any:
    lm = fresh(folder)
    rows = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    c.add_soft_prompts(lm, dict(zip(LABELS, rows)))
    return lm


def with_loras(folder: Path) -> Any:
    """Factors that are not zero, so that a label shows."""
    lm = fresh(folder)
    c.add_control_loras(lm, LABELS, rank=2, alpha=4.0, seed=0)
    with torch.no_grad():
        for number, label in enumerate(LABELS):
            for weight in c.controls_of(lm).weights[label][1::2]:
                weight.normal_(0, 0.5, generator=torch.Generator(weight.device).manual_seed(number))
    return lm


KINDS = pytest.mark.parametrize("make", [with_prompts, with_loras], ids=["soft prompts", "loras"])


def test_a_soft_prompt_is_what_the_embeddings_of_its_tokens_are(folder: Path) -> None:
    """Positions and all: a soft prompt with the embeddings of three tokens is those three tokens before the prompt."""
    lm = fresh(folder)
    ids = (11, 12, 13)
    plain = summed(lm, [Group(ids + PLAIN.prompt_ids, PLAIN.completion_ids)])
    rows = lm.model.get_input_embeddings().weight[list(ids)]
    c.add_soft_prompts(lm, {"good": rows, "bad": rows * 2})
    assert summed(lm, [c.controlled(lm, "good", PLAIN)]) == [pytest.approx(own) for own in plain]
    assert summed(lm, [c.controlled(lm, "bad", PLAIN)]) != [pytest.approx(own) for own in plain]
    settings = SamplingSettings(max_new_tokens=8)
    drawn = [
        sample(lm, [prompt], 3, settings, seed=0, keys=["x"])[0]
        for prompt in (ids + PLAIN.prompt_ids, c.controlled(lm, "good", PLAIN).prompt_ids)
    ]
    assert [a.ids for a in drawn[0]] == [a.ids for a in drawn[1]]
    assert all(token < 259 for a in drawn[1] for token in a.ids), "no control is ever written"


def test_a_control_lora_is_the_merged_matrix(folder: Path) -> None:
    lm, merged = with_loras(folder), fresh(folder)
    bare = summed(fresh(folder), [PLAIN])
    assert summed(lm, [PLAIN]) == [pytest.approx(own, abs=1e-5) for own in bare], "without a control nothing is added"
    with torch.no_grad():
        for ours, theirs in zip(lm.model.model.layers, merged.model.model.layers):
            for name in ("q_proj", "v_proj"):
                outer = getattr(ours.self_attn, name)
                getattr(theirs.self_attn, name).weight += 2.0 * outer.b[1] @ outer.a[1]
    wanted = summed(merged, [PLAIN])
    assert summed(lm, [c.controlled(lm, "bad", PLAIN)]) == [pytest.approx(own, abs=1e-4) for own in wanted]
    with c.active(lm, "bad"):
        inside = sample(lm, [PLAIN.prompt_ids], 4, SamplingSettings(max_new_tokens=8), seed=0)
    outside = sample(merged, [PLAIN.prompt_ids], 4, SamplingSettings(max_new_tokens=8), seed=0)
    assert [a.ids for a in inside[0]] == [a.ids for a in outside[0]]


@KINDS
def test_rows_of_several_labels_in_one_call(make: Callable[[Path], Any], folder: Path) -> None:
    lm = make(folder)
    mixed = [c.controlled(lm, label, group) for group in (PLAIN, OTHER) for label in LABELS]
    together = summed(lm, mixed)
    for group, found in zip(mixed, together):
        assert summed(lm, [group]) == [pytest.approx(found, abs=1e-4)]
    swapped = summed(lm, [c.controlled(lm, label, PLAIN) for label in reversed(LABELS)])
    assert swapped == [pytest.approx(own, abs=1e-4) for own in (together[1], together[0])]
    assert together[0] != pytest.approx(together[1], abs=1e-2), "swapping labels changes the loss"


@KINDS
def test_each_control_learns_from_its_own_rows_alone(make: Callable[[Path], Any], folder: Path) -> None:
    lm = make(folder)
    c.train_only(lm, controls=True, model=False)
    group = c.controlled(lm, "good", PLAIN)
    found = score_pack(lm, Pack((group,), (0,))).logps
    assert found is not None
    found.sum().backward()
    weights = c.controls_of(lm).weights
    assert all(float(w.grad.abs().sum()) > 0 for w in weights["good"] if w.grad is not None)
    assert any(w.grad is not None for w in weights["good"])
    assert all(w.grad is None or float(w.grad.abs().sum()) == 0 for w in weights["bad"])
    own = {id(w) for values in weights.values() for w in values}
    assert {id(p) for p in trained_parameters(lm).values()} == own
    assert all(p.grad is None for p in lm.model.parameters() if id(p) not in own)
    c.train_only(lm, controls=True, model=True)
    assert len(trained_parameters(lm)) == len(list(lm.model.parameters()))


def test_the_last_adapter_for_the_whole_batch_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The silent bug of adapters in batches: put back, rows no longer have the label that they name."""
    monkeypatch.setattr(Pack, "control", property(lambda pack: pack.groups[-1].control))
    monkeypatch.setattr("optative.generators.language.score.plan", lambda groups, _: [Pack(tuple(groups), (0, 1))])
    with pytest.raises(AssertionError):
        test_rows_of_several_labels_in_one_call(with_loras, folder)


def test_packs_have_one_control() -> None:
    groups = [Group((1,), ((2,),), control=label) for label in ("a", "b", "a", "")]
    assert [pack.group_indices for pack in plan(groups, 100)] == [(0, 2), (1,), (3,)]
    with pytest.raises(InputError, match="one control"):
        _ = Pack(tuple(groups), (0, 1, 2, 3)).control


@KINDS
def test_blends(make: Callable[[Path], Any], folder: Path) -> None:
    lm = make(folder)
    group = [c.controlled(lm, "good", PLAIN)]
    good, bad = summed(lm, group), summed(lm, [c.controlled(lm, "bad", PLAIN)])
    with c.blended(lm, "good", {"good": 0.0, "bad": 1.0}):
        assert summed(lm, group) == [pytest.approx(own) for own in bad]
    with c.blended(lm, "good", {"good": 0.5, "bad": 0.5}):
        assert summed(lm, group)[0] not in (pytest.approx(good[0]), pytest.approx(bad[0]))
    assert summed(lm, group) == good


def test_wrong_labels(folder: Path) -> None:
    with pytest.raises(InputError, match="goood"):
        c.controlled(with_prompts(folder), "goood", PLAIN)
    with pytest.raises(InputError, match="no controls"):
        summed(fresh(folder), [Group((1,), ((2,),), control="good")])
