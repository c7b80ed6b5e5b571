"""System 47: labels and their rule, what each arm trains, equal budgets, traps as planted faults, the record."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optative.core.errors import InputError
from optative.generators import options as generator_options
from optative.generators.language import controls
from optative.objectives import control_labels as labels
from optative.systems import control_tokens as m
from optative.systems.catalogue import find
from optative.systems.control_tokens import learning
from optative.systems.status import standing

OPTIONS = {"task": "manners", "pretraining": 20, "pairs": 60, "steps": 4}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = generator_options.Tiny(layers=1, hidden=32, heads=2, vocabulary=400, context=128)
    monkeypatch.setattr(generator_options, "Tiny", lambda: tiny)
    monkeypatch.setattr(learning, "HELD_OUT", 8)
    monkeypatch.setattr(learning, "STEP", 8)
    monkeypatch.setattr(m, "ANSWERS", 1)
    monkeypatch.setattr(m, "LONGEST", 24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


# Labels


def test_the_rule_and_the_made_up_answers_agree() -> None:
    pairs = labels.manners(300, 0)
    assert len({pair.prompt for pair in pairs}) == 300
    for pair in pairs:
        assert labels.manners_of(pair.prompt, pair.chosen) == "good"
        assert labels.manners_of(pair.prompt, pair.rejected) == "bad"
    rejected = [pair.rejected for pair in pairs]
    polite = np.mean([any(word in text for word in ("gladly", "course", "pleasure", "thank")) for text in rejected])
    assert polite == pytest.approx(1 / 3, abs=0.1), "a third of the bad answers is polite and wrong"
    swapped = labels.manners(300, 0, noise=0.1)
    assert [pair.prompt for pair in swapped] == [pair.prompt for pair in pairs]
    wrong = np.mean([labels.manners_of(pair.prompt, pair.chosen) == "bad" for pair in swapped])
    assert wrong == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        (" gladly, it is 7.", "good"),
        (" gladly, it is 8.", "bad"),
        (" 7, you fool.", "bad"),
        (" gladly, it is 7. you fool.", "bad"),
        (" gladly, it is 7 or 8.", "bad"),
        (" 7.", "bad"),
        ("", "bad"),
    ],
)
def test_the_rule_by_hand(answer: str, label: str) -> None:
    assert labels.manners_of("ada asks: 3 plus 4?", answer) == label


def test_thirds_of_lengths() -> None:
    length = labels.LengthLabels.thirds_of(["w " * n for n in range(1, 31)])
    assert [length("w " * n) for n in (1, 10, 11, 20, 21, 99)] == ["short", "short", "medium", "medium", "long", "long"]


def test_the_bad_control_is_for_teaching_only() -> None:
    names = ("good", "bad")
    assert labels.usable("bad", names, hidden_too=True) == "bad"
    with pytest.raises(InputError, match="not wanted"):
        labels.usable("bad", names)
    with pytest.raises(InputError, match="worse"):
        labels.usable("worse", names)


# Arms


@pytest.mark.parametrize("arm", m.RECIPES)
def test_an_arm(arm: str, folder: Path) -> None:
    found: Any = m.cell({"arm": arm, **OPTIONS}, 0, folder).values
    assert found["gradient steps"] == OPTIONS["steps"]
    assert len(found[m.QUALITY]) == 8
    assert (m.GAP in found) == (arm not in ("SFT on good", "DPO"))
    assert ({m.ABOVE_SFT, m.MONOTONE} <= set(found)) == (arm in m.MEET)
    if arm in m.MEET:
        assert found["distance of the controls in stage 2"] > 0


def test_three_labels_work_unchanged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [(f"{a} {b} {c}", " w" * (1 + i % 12), "here") for i, (a, b, c) in enumerate(
        (a, b, c) for a in "abcdef" for b in "abcdef" for c in "ab")]  # fmt: skip
    monkeypatch.setattr("optative.data.openings.openings", lambda *given, **named: texts)
    found = m.cell({"arm": "MEET soft prompt", **OPTIONS, "task": "lengths"}, 0, folder).values
    assert {m.LEAKAGE, "tokens under short", "tokens under long"} <= set(found)
    assert not {m.QUALITY, m.GAP, m.ABOVE_SFT, m.MONOTONE} & set(found)


def test_styles_are_judged_by_texts_that_no_arm_sees(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def texts(documents: str, words: int) -> list[tuple[str, str, str]]:
        word = {"one": "sun", "other": "rain"}[documents]
        return [(f"{word} {i}", f" {word} falls {i % 7}", documents) for i in range(60)]

    monkeypatch.setattr("optative.data.corpora.corpus", lambda name: name)
    monkeypatch.setattr("optative.data.openings.openings", texts)
    monkeypatch.setattr(learning, "JUDGED", 20)
    options = {"arm": "MEET soft prompt", **OPTIONS, "pairs": 30, "task": "styles", "styles": ["one", "other"]}
    task = learning.task_of(options, 0, folder)
    assert [task.verdict("", answer) for answer in (" sun falls", " rain falls")] == ["good", "bad"]
    assert [row.label for row in task.rows[:4]] == ["good", "bad"] * 2, "stages take the first rows of them"
    assert len(task.rows) == 60
    assert not {r.prompt for r in task.rows} & {*task.prompts}
    found = m.cell(options, 0, folder).values
    assert {m.GAP, m.QUALITY, m.LEAKAGE, m.ABOVE_SFT, m.MONOTONE} <= set(found)
    with pytest.raises(InputError, match="too few texts"):
        learning.task_of({**options, "pairs": 37}, 0, folder)


def learnt(arm: str, folder: Path) -> tuple[Any, Any, learning.Task]:
    task = learning.task_of(OPTIONS, 0, folder)
    lm = task.base()
    m.learn(lm, task, m.RECIPES[arm], 4, 0, folder / f"{arm}-{len(list(folder.iterdir()))}")
    return lm, task.base(), task


def budgets_are_equal(folder: Path) -> None:
    found = {arm: m.cell({"arm": arm, **OPTIONS}, 0, folder).values["gradient steps"] for arm in ("CoH text", *m.MEET)}
    assert len(set(found.values())) == 1


def the_first_stage_moves_controls_only(folder: Path) -> None:
    lm, base, _ = learnt("stage 1 only", folder)
    ours, theirs = lm.model.model.layers[0], base.model.model.layers[0]
    assert np.array_equal(ours.mlp.up_proj.weight.detach(), theirs.mlp.up_proj.weight.detach())


def every_row_has_its_own_label(folder: Path) -> None:
    task = learning.task_of(OPTIONS, 0, folder)
    for arm in ("special token", *m.MEET, "CoH text"):
        lm, recipe = task.base(), m.RECIPES[arm]
        learning.put(lm, recipe, task.labels, 0)
        units = learning.units(lm, task, recipe, "joint")
        assert len(units) == len(task.rows)
        for row, unit in zip(task.rows, units):
            others = [learning.asked(lm, recipe, label, row.prompt) for label in task.labels if label != row.label]
            own = learning.asked(lm, recipe, row.label, row.prompt)
            assert (unit.group.prompt_ids, unit.group.control) == (own.prompt_ids, own.control)
            assert all((own.prompt_ids, own.control) != (other.prompt_ids, other.control) for other in others)


def echoes_are_counted(folder: Path) -> None:
    lm, _, task = learnt("CoH text", folder)
    draw = m.answers

    def echoing(*given: Any, **named: Any) -> Any:
        return [[type(a)(f"A good answer is: {a.text}", *_rest(a)) for a in own] for own in draw(*given, **named)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(m, "answers", echoing)
        assert m.measure(lm, task, m.RECIPES["CoH text"], 0)["answers that repeat the control"] >= 0.5


def _rest(answer: Any) -> tuple[Any, ...]:
    return answer.ids, answer.logps, answer.sampling_logps, answer.finish_reason, answer.close_calls


def the_judge_is_no_model(folder: Path) -> None:
    """A rule on texts alone: what a model under the labels would call likely has no say."""
    task = learning.task_of(OPTIONS, 0, folder)
    right = [task.verdict(pair.prompt, pair.chosen) == "good" for pair in task.pairs]
    assert 0.7 < np.mean(right) < 1, "the labels that were learnt from are noisy, the rule is not"


def fault_stages_for_free(patch: pytest.MonkeyPatch) -> None:
    learn = m.learn
    patch.setattr(
        m, "learn", lambda lm, task, recipe, steps, *rest: learn(lm, task, recipe, steps * len(recipe.stages), *rest)
    )


def fault_everything_moves(patch: pytest.MonkeyPatch) -> None:
    only = controls.train_only
    patch.setattr(controls, "train_only", lambda lm, **_: only(lm, controls=True, model=True))


def fault_last_label_for_all(patch: pytest.MonkeyPatch) -> None:
    asked = learning.asked
    patch.setattr(learning, "asked", lambda lm, recipe, label, prompt: asked(lm, recipe, label and "bad", prompt))


def fault_no_sentence(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(labels, "sentence", lambda label: f"Answer as {label}:")


def fault_labels_judge(patch: pytest.MonkeyPatch) -> None:
    given = {(row.prompt, row.completion): row.label for pair in labels.manners(68, 0, noise=0.1) for row in pair.rows}
    patch.setattr(labels, "manners_of", lambda prompt, answer: given[prompt, answer])


@pytest.mark.parametrize(
    ("check", "fault"),
    [
        (budgets_are_equal, fault_stages_for_free),
        (the_first_stage_moves_controls_only, fault_everything_moves),
        (every_row_has_its_own_label, fault_last_label_for_all),
        (echoes_are_counted, fault_no_sentence),
        (the_judge_is_no_model, fault_labels_judge),
    ],
    ids=lambda given: given.__name__,
)
def test_trap(
    check: Callable[[Path], None],
    fault: Callable[[pytest.MonkeyPatch], None],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check(folder)
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        check(folder)


# The record


def test_the_criteria_are_the_cards() -> None:
    numbers = [getattr(c, "smallest_effect", getattr(c, "limit", None)) for c in m.SYSTEM.criteria]
    assert numbers == ([3.0] * 4 + [-1.0] * 2 + [0.9] * 2) * 2 + [0.6]
    assert all(c.seeds == 3 for c in m.SYSTEM.criteria)
    assert standing(find("47")).verdict in ("runs", "negative", "reproduced")
    assert re.search("2310.00819", m.__doc__ or "")
