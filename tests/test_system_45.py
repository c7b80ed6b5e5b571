"""System 45: the language of facts and its judge, arms on a base that has learnt little, traps as planted faults."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optative.core.errors import InputError
from optative.core.rng import stream
from optative.feedback import grades as grades_of
from optative.optimizers import degree as degree_of
from optative.optimizers.degree import Degree
from optative.runs.study import Measured
from optative.systems import preference_degree as m
from optative.systems.catalogue import find
from optative.systems.preference_degree import measures, real, training, world
from optative.systems.record import read_results, results_of
from optative.systems.status import judge, standing

MODEL = {"layers": 1, "hidden": 48, "heads": 4, "vocabulary": 700, "context": 160}
WORLD = {"model": MODEL, "documents": 300, "steps": 4, "pairs": 32, "flips": 0.15, "held_out": 8}


# The language and its judge


def the_judge_counts_what_was_stated() -> None:
    rng = stream(0, "cases")
    for _ in range(60):
        one = world.case(rng)
        for count in range(5):
            text = world.answer(one, count, rng)
            assert world.stated(text, one) == count, text
            other = world.case(rng)
            shared = sum(one.facts[slot] == other.facts[slot] for slot in world.SLOTS)
            assert world.stated(world.answer(other, 4, rng), one) == shared


def no_fact_is_bought_by_naming_two_values() -> None:
    one = world.Case("", "market", {"host": "Red Owls", "place": "Oak Hall", "price": "20", "day": "Monday noon"})
    assert world.stated(" The market costs 20 crowns.", one) == 1
    assert world.stated(" The market costs 20 crowns and asks 30 crowns at the door.", one) == 0
    assert world.stated(" The market costs 20 crowns and asks 20 crowns at the door.", one) == 1
    assert world.stated(" The market costs 200 crowns and is led by Red Owls.", one) == 0


def fault_any_value_of_the_prompt_counts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(world, "stated", lambda text, one: sum(value in text for value in one.facts.values()))


def fault_slots_are_mixed_up(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(world, "_STATED", dict(zip(world._STATED, reversed(world._STATED.values()))))


@pytest.mark.parametrize(
    ("check", "fault"),
    [
        (the_judge_counts_what_was_stated, fault_slots_are_mixed_up),
        (no_fact_is_bought_by_naming_two_values, fault_any_value_of_the_prompt_counts),
    ],
    ids=("counts", "hedges"),
)
def test_the_judge(
    check: Callable[[], None], fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    check()
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        check()


def test_pairs_have_every_gap_and_so_many_flips() -> None:
    rng = stream(0, "cases")
    pairs = world.judged([world.case(rng) for _ in range(3000)], 0.15, rng)
    gaps = np.array([first - second for first, second in (pair.counts for pair in pairs)])
    assert np.bincount(abs(gaps))[1:] / 3000 == pytest.approx([0.25] * 4, abs=0.03)
    assert (gaps < 0).mean() == pytest.approx(0.15, abs=0.02)
    assert all(pair.flipped == (pair.counts[0] < pair.counts[1]) for pair in pairs)
    assert all(world.stated(text, p.case) == n for p in pairs[:100] for text, n in zip(p.answers, p.counts))
    lengths = [(len(text.split()), n) for pair in pairs for text, n in zip(pair.answers, pair.counts)]
    assert np.corrcoef(np.array(lengths).T)[0, 1] < 0.8, "length is not coverage"


# Arms


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


def options(name: str, **changed: Any) -> dict[str, Any]:
    return {"world": WORLD, "rate": 1e-3, "epochs": 1, **m._options(m.METHODS[name])} | changed


def test_cells_are_deterministic_and_measure_what_is_declared(folder: Path) -> None:
    first, again = (training.cell(options(m.SPO), 0, folder) for _ in range(2))
    plain = {name: np.asarray(value).tolist() for name, value in first.values.items()}
    assert plain == {name: np.asarray(value).tolist() for name, value in again.values.items()}
    declared = m._metrics()
    assert set(plain) <= set(declared)
    assert {m.COVERAGE, m.DEGREE, m.SPEARMAN, m.BEYOND, m.PERPLEXITY, measures.FALL, measures.ORDER} <= set(plain)
    assert len(plain[m.COVERAGE]) == 8
    assert len(plain[m.DEGREE]) % 3 == 0
    assert 0 <= plain[measures.LEFT_OUT] < 1
    assert len(first.curves["implicit reward by grade"][1]) == 3
    assert len(list(folder.iterdir())) == 1, "the model is made once"
    base = training.cell(options(m.BASE), 0, folder)
    assert base.values[m.PERPLEXITY] == 1
    assert m.SPEARMAN not in base.values


def test_every_method_is_what_it_says() -> None:
    for name, method in m.METHODS.items():
        if method.degree is not None:
            Degree.model_validate(method.degree)
        if method.loss:
            training.asked({"rate": 1e-4, "epochs": 1}, method.loss, method.numbers)
        assert method.way in grades_of.WAYS, name
    assert m.METHODS[m.SPO].numbers == m.METHODS[m.DPO].numbers == m.METHODS[m.RANDOM].numbers


def all_arms_take_the_same_pairs_and_start(folder: Path, patch: pytest.MonkeyPatch) -> None:
    from optative.optimizers import fit as fit_of

    seen = []
    real_training = fit_of.train_preferences

    def spy(lm: Any, units: Any, reference: Any, **named: Any) -> int:
        seen.append((list(units), reference, named["seed"], named["options"]))
        assert all(len(unit.group.completion_ids) == 2 for unit in units), "versions are never pairs"
        return real_training(lm, units, reference, **named)

    with patch.context() as own:
        own.setattr(fit_of, "train_preferences", spy)
        for name in (m.DPO, m.SPO):
            training.cell(options(name), 0, folder)
    assert seen[0] == seen[1]


def fault_versions_join_the_pairs(patch: pytest.MonkeyPatch) -> None:
    real_fit = degree_of.fit

    def more(lm: Any, units: Any, **named: Any) -> Any:
        return real_fit(lm, [*units, *units[:2]], **named | {"beside": None})

    patch.setattr(degree_of, "fit", more)


def fault_another_seed(patch: pytest.MonkeyPatch) -> None:
    real_fit = degree_of.fit
    patch.setattr(degree_of, "fit", lambda *given, **named: real_fit(*given, **named | {"seed": 1}))


def versions_differ_only_by_what_is_deleted(folder: Path, patch: pytest.MonkeyPatch) -> None:
    made = training.made(WORLD, 0, folder)
    rake, random, filler = (
        training.versions(made.lm, made.pairs, Degree(), way, 0) for way in ("rake", "random", "filler")
    )
    for one, other, same in zip(rake, random, filler):
        assert (one is None) == (other is None) == (same is None)
        if one is not None:
            assert one.grades == other.grades == (0, 1, 2) * (len(one.grades) // 3)
            assert [one.group.completion_ids[i] for i, g in enumerate(one.grades) if g == 0] == [
                other.group.completion_ids[i] for i, g in enumerate(other.grades) if g == 0
            ]
            lengths = np.array([len(ids) for ids in same.group.completion_ids]).reshape(-1, 3)
            assert (abs(np.diff(lengths)) <= 2).all(), "filler leaves the head no length to read"


def fault_filler_is_short(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(grades_of, "_padding", lambda length: lambda phrase: "some")


@pytest.mark.parametrize(
    ("check", "fault"),
    [
        (all_arms_take_the_same_pairs_and_start, fault_versions_join_the_pairs),
        (all_arms_take_the_same_pairs_and_start, fault_another_seed),
        (versions_differ_only_by_what_is_deleted, fault_filler_is_short),
    ],
    ids=lambda given: given.__name__,
)
def test_trap(
    check: Callable[[Path, pytest.MonkeyPatch], None],
    fault: Callable[[pytest.MonkeyPatch], None],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check(folder, monkeypatch)
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        check(folder, monkeypatch)


def test_what_losses_on_the_strength_axis_are_told(folder: Path) -> None:
    made = training.made(WORLD, 0, folder)
    gaps = [abs(a - b) for a, b in (pair.counts for pair in made.pairs)]
    assert [unit.strength for unit in training.strengths(made, "strength")] == gaps
    sure = [unit.confidence for unit in training.strengths(made, "confidence")]
    assert sure == pytest.approx([1 / (1 + np.exp(-gap)) for gap in gaps])
    assert training.strengths(made, "") is made.train


def test_the_same_recipe_beside_other_losses(folder: Path) -> None:
    own = {"world": WORLD, "rate": 1e-3, "epochs": 1, "plug": list(training.PLUGS)}
    found = training.cell(own, 0, folder)
    assert len(np.asarray(found.values[m.PLUGGED])) == 4


# Real summaries


def test_the_published_summaries_can_be_graded(shared: Path) -> None:
    texts = real.summaries(shared / "data" / "57-sami-mutual-information")
    assert len(texts) > 700, "of 750"
    assert len({post for post, _, _ in texts}) == 250
    assert all(len(set(own)) == 3 for _, _, own in texts)
    lengths = [len(own[0].split()) for _, _, own in texts]
    assert np.mean(np.array(lengths) <= real.SUMMARY_WORDS) > 0.9, "a longer one is a single sentence"
    assert np.std(lengths) > 5, "whole sentences: lengths of uncut answers differ"


def test_summaries_are_cut_between_sentences() -> None:
    long = " ".join(["word"] * 30)
    assert real.first_sentences(f"One is short. Two too! {long}. Last.") == f"One is short. Two too! {long}. Last."
    assert real.first_sentences(f"Two too! {long}. {long}.") == f"Two too! {long}."
    assert real.first_sentences(f"{long} {long}. Two.") == f"{long} {long}."


def invented(folder: Path) -> tuple[list[tuple[str, str, tuple[str, ...]]], Path]:
    texts = [
        (
            str(post),
            f"Post {post} is long.",
            (f"The post is about a cat and a dog {post}.", "The is about a cat and .", "The and ."),
        )
        for post in range(6)
    ]
    pairs = folder / "pairs.jsonl"
    rows = [{"prompt": f"Q{i}", "chosen": "Yes, a cat.", "rejected": "No."} for i in range(3)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return texts, pairs


def test_held_out_summaries_are_of_other_posts(
    default_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, pairs = invented(tmp_path)
    monkeypatch.setattr(real, "summaries", lambda folder: texts)
    monkeypatch.setattr(real, "STEPS", 40)
    learnt = []
    fit_heads = degree_of.fit_heads
    monkeypatch.setattr(
        degree_of,
        "fit_heads",
        lambda heads, own, *given, **named: (learnt.extend(own), fit_heads(heads, own, *given, **named)),
    )
    own = {"posts": 6, "replies": 2, "files": {}, "pairs": ""}
    found = real.cell(own, 0, tmp_path / "shared", (tmp_path, pairs))
    assert set(found.values) == {real.ACCURACY, real.ALONE, real.BEYOND, real.ORDER, real.REPLIES}
    assert len(learnt) == 4
    assert len(np.asarray(found.values[real.ACCURACY])) == 6
    assert len(np.asarray(found.values[real.REPLIES])) == 2
    states = list((tmp_path / "shared").iterdir())
    assert len(states) == 1
    again = real.cell(own, 0, tmp_path / "shared", (tmp_path, pairs))
    assert np.asarray(found.values[real.REPLIES]).tolist() == np.asarray(again.values[real.REPLIES]).tolist()
    with pytest.raises(InputError, match="too few posts"):
        real.cell({**own, "posts": 7}, 0, tmp_path / "shared", (tmp_path, pairs))


# The study and its record


def drawn_up(options: Any, seed: int, folder: Path) -> Measured:
    """What the arms would give, made up: facts, rewards and heads that meet every criterion."""
    if "plug" in options:
        return Measured({m.PLUGGED: [1.0] * 4})
    shown = 0.5 + 0.25 * (options["degree"] == {} and options["way"] == "rake")
    values: dict[str, Any] = {m.COVERAGE: [shown, 0.75, 0.75, shown], m.PERPLEXITY: 1.0 + seed * (shown - 0.5)}
    if options["loss"]:
        values[m.SPEARMAN] = shown
    if options["degree"] is not None:
        values |= {m.DEGREE: [1.0, 1.0, 0.0, 1.0], m.BEYOND: 0.2 * (options["way"] == "rake")}
    return Measured(values)


def test_the_study_from_made_up_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: Path) -> None:
    monkeypatch.setattr(training, "cell", drawn_up)
    monkeypatch.setattr(real, "cell", lambda *given: Measured({real.ACCURACY: [1.0, 0.0, 1.0], real.BEYOND: 0.3}))
    summaries = shared / "data" / "57-sami-mutual-information"
    found = m.run(m.Study(seeds=(0, 1, 2), summaries=summaries), tmp_path / "study")
    findings = [judge(criterion, results_of(found)) for criterion in m.SYSTEM.criteria]
    assert [finding.met for finding in findings] == [True] * 8
    of = {(row["metric"], row["arm"]): row["value"] for row in found["levels"]}
    assert of[m.WIN, m.POOLED] == pytest.approx(0.75), "two of four answers state more, ties count half"
    assert of[m.OVER_RANDOM, m.POOLED] == pytest.approx(0.25)
    notes = " ".join(found["notes"])
    assert f"{m.RANDOM}, seed 0: the head knows 0.00 beyond length alone" in notes
    assert f"{m.SPO}, seed 2: chosen answers are over 1.2 times" in notes
    assert f"{m.SPO}, seed 0: chosen" not in notes
    assert f"{m.SPO}, seed 0: the head" not in notes


def test_wrong_options(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="DPO"):
        m.run(m.Study(arms=("DPOO",)), tmp_path)
    with pytest.raises(InputError, match="no such"):
        m.run(m.Study(summaries=tmp_path / "none"), tmp_path)
    (tmp_path / "pairs.jsonl").write_text("{}")
    with pytest.raises(InputError, match="cannot act"):
        m.run(m.Study(pairs_file=tmp_path / "pairs.jsonl"), tmp_path)


def test_the_criteria_are_the_cards_and_what_was_not_run_is_not_met() -> None:
    numbers = [getattr(c, name) for c in m.SYSTEM.criteria for name in ("smallest_effect", "limit") if hasattr(c, name)]
    assert numbers == [0.53, 0.50, 0.05, 0.70, 0.0, 0.97, 0.60, 1.0]
    assert all(c.seeds == 3 for c in m.SYSTEM.criteria)
    state = standing(find("45"))
    assert (state.verdict == "runs") == (not read_results(find("45")))
