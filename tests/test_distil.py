"""Distillation into an adapter: losses by plain logits, packing, masks that follow the student, refusals."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import pytest
import torch

from optative.core.errors import InputError
from optative.data import choices, reformatting
from optative.evaluation import overlap
from optative.generators.language.load import load_language_model
from optative.generators.language.packing import Group
from optative.generators.language.trained import prepare_training
from optative.generators.options import LoraOptions
from optative.optimizers import distillation as m
from optative.optimizers.losses import distillation as losses
from optative.optimizers.options import SFT
from tiny_models import save_tiny_model

GROUPS = [
    Group((5, 6, 7), ((8, 9, 10, 258), (11, 12)), ((True, True, False, True), (True, True))),
    Group((20, 21), ((22, 23, 24),)),
    Group((30,), ((31, 32, 33, 34, 258),)),
    Group((40, 41), ((42, 43),)),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("models")
    return save_tiny_model(place / "old", seed=1, hidden=16), save_tiny_model(place / "new", seed=2)


def models(folders: tuple[Path, Path]) -> tuple[Any, Any]:
    old, new = (load_language_model(str(folder), dtype="float32", device="cpu") for folder in folders)
    prepare_training(new, LoraOptions(rank=8), 0)
    return old, new


def trained(folders: tuple[Path, Path], place: Path, align: Any, *, steps: int = 1, **given: Any) -> Any:
    """Metrics of each step, and the student."""
    old, new = models(folders)
    teachers = [m.teacher(lm, GROUPS, token_budget=64) for lm in (old, new)]
    budget, rate = given.pop("token_budget", 64), given.pop("learning_rate", 1e-2)
    options = SFT(
        units_per_step=len(GROUPS), epochs=steps, token_budget=budget, learning_rate=rate, schedule="constant",
        warmup_ratio=0,
    )  # fmt: skip
    return m.distil(new, GROUPS, *teachers, align=align, options=options, seed=0, folder=place, **given), new


def plain_logits(lm: Any, group: Group, completion: tuple[int, ...]) -> torch.Tensor:
    ids = torch.tensor([[*group.prompt_ids, *completion]])
    with torch.no_grad():
        return lm.model(input_ids=ids).logits[0, len(group.prompt_ids) - 1 : -1].double()


@pytest.mark.parametrize("align", losses.ALIGNMENTS)
def test_the_first_loss_by_plain_logits_and_for_any_packing(
    folders: tuple[Path, Path], tmp_path: Path, align: Any
) -> None:
    numbers = {"temperature": 2.0, "nll_weight": 0.5}
    old, new = models(folders)
    wanted = 0.0
    for group in GROUPS:
        for i, ids in enumerate(group.completion_ids):
            mask = torch.tensor(group.masks[i] if group.masks else [True] * len(ids))
            logits = [plain_logits(lm, group, ids) for lm in (old, new)]
            targets = torch.tensor(ids)
            taught = losses.towards_old(align, logits[1], logits[0], targets, torch.zeros_like(targets))
            own = losses.compatible(logits[1], *logits, targets, taught, **numbers)
            wanted += float(own[mask].mean()) / len(group.completion_ids) / len(GROUPS)
    for place, budget in (("one", 64), ("many", 16)):
        (line,), _ = trained(folders, tmp_path / place, align, token_budget=budget, **numbers)
        assert line["loss"] == pytest.approx(wanted, rel=1e-4)


def test_the_student_nears_whom_it_learns_from(folders: tuple[Path, Path], tmp_path: Path) -> None:
    lines, _ = trained(folders, tmp_path / "old", "always", steps=40)
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    assert lines[0]["towards_old"] == 1
    lines, _ = trained(folders, tmp_path / "new", "never", steps=2)
    assert lines[0]["loss"] == pytest.approx(0, abs=1e-6), "it starts at the new teacher"
    assert lines[0]["towards_old"] == 0


def share_falls_as_the_student_learns(folders: tuple[Path, Path], place: Path) -> None:
    lines, _ = trained(folders, place, "student_wrong", steps=40, nll_weight=20.0)
    assert lines[-1]["towards_old"] < 0.5 * lines[0]["towards_old"]


def test_the_mask_is_made_anew_at_each_step(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share_falls_as_the_student_learns(folders, tmp_path / "right")

    def of_the_old_model(_: Any, student_NV: Any, old_NV: Any, targets_N: Any, sequence_N: Any) -> torch.Tensor:
        return old_NV.argmax(-1) != targets_N

    monkeypatch.setattr(m, "towards_old", of_the_old_model)
    with pytest.raises(AssertionError):
        share_falls_as_the_student_learns(folders, tmp_path / "wrong")


def test_another_vocabulary_and_other_groups_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = models(folders)
    options = SFT(units_per_step=4)
    mine, fewer = (m.teacher(new, groups, token_budget=64) for groups in (GROUPS, GROUPS[:2]))
    given: dict[str, Any] = {"align": "always", "options": options, "seed": 0, "folder": tmp_path}
    with pytest.raises(InputError, match="a teacher of other groups"):
        m.distil(new, GROUPS, mine, fewer, **given)
    tokens = old.tokenizer.get_vocab()  # as many tokens, but two of them have changed places
    swapped = {**tokens, **dict(zip(sorted(tokens)[:2], [tokens[name] for name in sorted(tokens)[1::-1]]))}
    old.tokenizer.get_vocab = lambda: swapped
    with pytest.raises(InputError, match="mean something else"):
        m.distil(new, GROUPS, m.teacher(old, GROUPS, token_budget=64), mine, **given)


def test_questions_have_one_right_option_and_the_same_lengths() -> None:
    words = [f"w{i}" for i in range(400)]
    texts = [(" ".join(words[i : i + 3]), " " + " ".join(words[i + 3 : i + 9]), f"s{i % 7}") for i in range(0, 390, 3)]
    items = choices.continuations(texts, options=4, words=4, key=0)
    assert (
        items
        == choices.continuations(texts, options=4, words=4, key=0)
        != choices.continuations(texts, options=4, words=4, key=1)
    )
    for item, (first, rest, source) in zip(items, texts):
        assert (item.prompt, item.source) == (first, source)
        assert rest.startswith(item.options[item.answer])
        assert len(set(item.options)) == 4
        assert all(len(option.split()) == 4 for option in item.options)
    counts = [sum(item.answer == place for item in items) for place in range(4)]
    assert min(counts) > len(items) / 8, "the place says nothing"
    with pytest.raises(InputError, match="too short"):
        choices.continuations(texts, options=4, words=9, key=0)
    with pytest.raises(InputError, match="too few different"):
        choices.continuations(texts[:3], options=4, words=4, key=0)


def test_forms_of_dates_and_numbers_have_one_answer() -> None:
    items = reformatting.reformatting(300, key=0)
    assert len({written for written, _ in items}) == 300
    assert items == reformatting.reformatting(300, key=0)
    spoken = dict(items)
    assert all(written != asked for written, asked in items if not written.isdigit())
    assert any("-" in asked for asked in spoken.values())
    assert any(asked.isdigit() for asked in spoken.values())


def test_character_f_by_hand() -> None:
    # "ab ca" without white space against "abc": 1-grams 3 of 4 and 3 of 3, 2-grams 2 of 3 and 2 of 2, 3-grams 1 of 2
    # and 1 of 1
    precision, recall = (3 / 4 + 2 / 3 + 1 / 2) / 3, 1.0
    assert overlap.character_f("ab ca", "abc") == pytest.approx(5 * precision * recall / (4 * precision + recall))
    assert overlap.character_f("xyz", "abc") == 0
    assert overlap.character_f("", "") == 1


def test_doctests() -> None:
    for module in (choices, reformatting, overlap):
        assert doctest.testmod(module).failed == 0
