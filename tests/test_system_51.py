"""System 51: each check holds, and fails when the trap that it is for is planted."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optative.cli.main import main
from optative.core.errors import InputError
from optative.data.pair_steps import PairSteps
from optative.evaluation import pairs
from optative.evaluation.pair_curves import lowest_step, pair_curves
from optative.generators.language import tiny
from optative.generators.language.packing import Group
from optative.generators.language.score import summed
from optative.generators.options import Tiny
from optative.objectives.word_runs import run_of_words, vocabulary
from optative.optimizers.follow import follow
from optative.optimizers.options import DPO
from optative.optimizers.units import Unit
from optative.systems import preference_rankings as m
from optative.systems.catalogue import find
from optative.systems.preference_rankings import identities as preference_identities
from optative.systems.preference_rankings import real as preference_real
from optative.systems.preference_rankings import training as preference_training
from optative.systems.preference_rankings import worlds as preference_worlds
from optative.systems.status import arms_of, standing

SMALL = {"random_pairs": 2000, "problems": 10}


def identities_hold() -> None:
    found: Any = preference_identities.identities(SMALL, 0).values
    assert found["pairs on which the theorem holds"] == 1
    assert found["largest error of the idealised margin, nats"] < 1e-3


def loss_without_reference(difficulty: Any, beta: float) -> np.ndarray:
    return np.full(len(difficulty), np.log(2))  # the bound that would hold if the reference had no say


def shares_as_odds(shares: Any, epsilon: float = 1e-3) -> np.ndarray:
    return np.asarray(shares) / (1 - np.asarray(shares))  # the odds, without their logarithm


@pytest.mark.parametrize(
    ("name", "fault"), [("required_loss", loss_without_reference), ("log_odds", shares_as_odds)], ids=("bound", "odds")
)
def test_identities_hold_and_fail_with_a_fault(name: str, fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    identities_hold()
    monkeypatch.setattr(pairs, name, fault)
    with pytest.raises(AssertionError):
        identities_hold()


def test_what_was_not_run_is_not_met(tmp_path: Path) -> None:
    assert standing(find("51"), tmp_path).verdict == "runs"
    state = standing(find("51"))
    assert [finding.met for finding in state.findings[:2]] == [True, True]
    assert all(finding.effects for finding in state.findings), "the full study answers every line"
    assert state.verdict == "negative"


# Real pairs, real model


def items(values: Any) -> list[float]:
    return [float(value) for value in values]


def conversation(*turns: str) -> str:
    return "".join(f"\n\n{role}: {text}" for role, text in zip(("Human", "Assistant") * len(turns), turns))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [
        ("What is a fig?", "A sweet fruit that grows on trees.", "No."),
        ("Name a colour.", "Blue.", "I would say that it is blue, or green, or red, or any other one."),
        ("Count to two.", "One, two.", "Two, one."),
    ]
    found = [{"chosen": conversation(q, a), "rejected": conversation(q, b)} for q, a, b in rows]
    drift = ("Hello", "Hi, who are you?", "Me", "Fine."), ("Hello", "What?", "Nothing", "Bye.")
    found.insert(1, {"chosen": conversation(*drift[0]), "rejected": conversation(*drift[1])})
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found), "utf-8")
    return path


def test_pairs_whose_prompts_differ_are_left_out(file: Path) -> None:
    from optative.data.readers import read
    from optative.data.records import pairs as strict_pairs

    kept = preference_worlds.answered_pairs(file)
    every = [pair for judgement in read(file, on_bad_record="skip") for pair in strict_pairs(judgement)]
    assert (len(kept), len(every)) == (3, 4), "the fault to guard against is there"
    assert all(len(pair.prompt) == 1 for pair in kept)


def test_the_real_model_is_scored_as_slowly(default_model_folder: Path, file: Path, monkeypatch: Any) -> None:
    options = {"real_pairs": 2, "slow_pairs": 1}
    monkeypatch.setattr(preference_real, "ANSWER", 6)
    found = preference_real.scores(options, file)
    assert found["tokens"] == [[6, 3], [3, 6]], "both answers are cut by one rule, and keep their end token if not cut"
    measured: Any = preference_real.figures(found).values
    assert measured[preference_real.SLOW] < 1e-3
    assert measured[preference_real.AGAIN] == 0
    for name in (*preference_real.SHARES, *preference_real.NUMBERS):
        assert name in measured, "raw, per token and length alone stand side by side"
    found["slow"][0][0] += 0.1  # a token that was scored from another place
    measured = preference_real.figures(found).values
    assert measured[preference_real.SLOW] > 1e-3


SCORED = {
    "sums": [[-300.0, -310.0], [-900.0, -899.0], [-20.0, -20.5]],
    "again": [[-300.0, -310.0], [-900.0, -899.0], [-20.0, -20.5]],
    "slow": [[-300.0, -310.0]],
    "tokens": [[60, 64], [64, 64], [8, 5]],
}


def idealised_holds() -> None:
    found = preference_real.figures(SCORED)
    values, (_, ideal) = found.values, found.curves["ranking accuracy, idealised, over log10 of beta"]
    assert items(values["ranking accuracy"]) == [1, 0, 1], "probabilities of e^-900 are told apart"
    assert items(values["ranking accuracy of length alone"]) == [1, 0.5, 0]
    assert ideal == pytest.approx([1, 1, 1, 2 / 3, 2 / 3]), "log 3 / beta outweighs one nat up to beta = 1.0986"
    assert items(values["alignment gap"]) == [0, 1, 0]


def quotient_of_logs(margins_B: Any, shares_B: Any, betas_K: Any) -> np.ndarray:
    sums_B2 = np.array(SCORED["sums"])
    ratio = sums_B2[:, 0] / sums_B2[:, 1] * 3.0 ** (1 / np.maximum(np.array(betas_K), 0.1))[:, None]
    return (ratio > 1.05).astype(float)


def test_idealised_rankings_stay_in_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    idealised_holds()
    for name, fault in (
        ("idealised_right", quotient_of_logs),
        ("half_ties", lambda gaps: (np.sign(np.exp(gaps - 900) - np.exp(-900.0)) + 1) / 2),
    ):
        with monkeypatch.context() as planted:
            planted.setattr(pairs, name, fault)
            with pytest.raises(AssertionError):
                idealised_holds()


# Training


def curves_of(chosen_SB: Any, rejected_SB: Any, ref: tuple[Any, Any] | None = None) -> PairSteps:
    chosen_SB, rejected_SB = np.array(chosen_SB, float), np.array(rejected_SB, float)
    ref_chosen, ref_rejected = ref or (chosen_SB[0], rejected_SB[0])
    ones, ids = np.ones(chosen_SB.shape[1], int), tuple("abcdefgh"[: chosen_SB.shape[1]])
    steps = np.arange(len(chosen_SB))
    return PairSteps(steps, ids, chosen_SB, rejected_SB, ref_chosen, ref_rejected, ones, ones, 0.5)


def test_the_lowest_step_is_one_of_training() -> None:
    worse = curves_of([[0, 0], [-9, -9], [-5, -5]], [[0, 0], [0, 0], [0, 0]])
    assert pair_curves(worse).lowest == 0, "the fault: an untrained policy has a reward accuracy of one half"
    assert lowest_step(worse) == 2
    rng = np.random.default_rng(0)
    for _ in range(20):
        found = curves_of(*rng.normal(0, 3, (2, 6, 4)))
        assert lowest_step(found) == 1 + int(np.argmin(pair_curves(found).mean_loss_S[1:])), "gamma 1 is DPO"
    held = curves_of([[0.0], [3.0], [6.0]], [[0.0], [0.0], [0.0]], (np.array([-9.0]), np.array([0.0])))
    assert lowest_step(held, gamma=0) == 2
    with pytest.raises(InputError, match="nothing was measured"):
        lowest_step(curves_of([[0.0]], [[0.0]]))


def test_area_under_the_curve() -> None:
    assert pairs.auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == 0.75
    assert pairs.auc([1, 1], [0, 1]) == 0.5
    with pytest.raises(InputError, match="nothing to tell apart"):
        pairs.auc([1, 2], [1, 1])


def test_runs_of_words() -> None:
    known = vocabulary(["A file is a file. " * 3, "once"])
    assert known == {"a", "file", "is"}
    for text, length in (("A file is, a", 3), ("file File", 1), (" is it", 1), ("", 0), ("42: a_file", 2)):
        assert run_of_words(text, known) == length


@pytest.fixture(scope="module")
def world() -> preference_worlds.World:
    rng = np.random.default_rng(0)
    tokenizer = tiny.train_tokenizer(["one two three four"] * 3, 270)
    lm = tiny.build(Tiny(layers=1, hidden=16, heads=2, vocabulary=270, context=32), tokenizer, 0)

    def unit(i: int) -> Unit:
        first, second = (tuple(rng.integers(3, 270, 4).tolist()) for _ in range(2))
        return Unit(str(i), Group((0, 5), (first, second)))

    units = [unit(i) for i in range(48)]
    return preference_worlds.World(lm, units[:32], units[32:])


OPTIONS = {"epochs": 4, "rate": 3e-3, "measurements": 4}


def sums(lm: Any, units: Any) -> np.ndarray:
    return np.array(summed(lm, [unit.group for unit in units]))


def test_what_is_followed_is_what_the_model_says(world: preference_worlds.World) -> None:
    before = {name: p.clone() for name, p in world.lm.model.named_parameters()}
    models: list[Any] = []
    found = preference_training.train(world, OPTIONS, 0, look=lambda lm, step: models.append((lm, step)))
    assert all(torch.equal(p, before[name]) for name, p in world.lm.model.named_parameters()), "the reference stays"
    assert [step for _, step in models] == found.steps_S.tolist() == [0, 1, 2, 3, 4]
    watched = [*world.held_out, *world.train]
    for row, lm in ((0, world.lm), (-1, models[-1][0])):
        np.testing.assert_allclose(found.chosen_SB[row], sums(lm, watched)[:, 0], atol=1e-4)
        np.testing.assert_allclose(found.rejected_SB[row], sums(lm, watched)[:, 1], atol=1e-4)
    assert pair_curves(found.only(u.id for u in world.train)).reward_S[-1] > 0.9
    again = preference_training.train(world, OPTIONS, 0)
    assert np.array_equal(again.chosen_SB, found.chosen_SB), "redone whole it is the same"
    settings = DPO(
        learning_rate=3e-3, schedule="constant", units_per_step=32, epochs=4, eval_every=1, token_budget=2048
    )

    lm = replace(world.lm, model=deepcopy(world.lm.model))
    dpo = follow(lm, world.train, watched, loss="dpo", options=settings, seed=0)
    np.testing.assert_allclose(dpo.chosen_SB, found.chosen_SB, atol=1e-3)
    swapped = replace(world.train[0], levels=(0.0, 1.0))
    with pytest.raises(InputError, match="better answer first"):
        follow(lm, world.train, [swapped], loss="dpo", options=settings, seed=0)


def test_flips_of_a_training(world: preference_worlds.World) -> None:
    measured = preference_training.flips({"epochs": 1, "rate": 1e-3, "measurements": 1}, 0, world)
    for name in preference_training.OF_PAIRS:
        assert name in measured.values
        assert f"held-out pairs: {name}" in measured.values
    start = sums(world.lm, world.train)
    right = (start[:, 0] > start[:, 1]).astype(float)
    assert items(measured.values[preference_training.REFERENCE]) == list(right)
    shares = {name: values for name, (_, values) in measured.curves.items()}
    assert shares["right, now right"][0] == pytest.approx(right.mean())
    assert shares["held-out pairs: loss"][0] == pytest.approx(np.log(2))


def test_a_path_has_its_peak_where_it_is_highest() -> None:
    found: dict[str, list[float]] = {
        "steps": [0, 5, 10, 15],
        preference_training.WINS: [0.5, 0.7, 0.7, 0.4],
        preference_training.RANKING: [0.5, 0.6, 0.7, 0.8],
        preference_training.DISTANCE: [0.0, 1.0, 2.0, 3.0],
    }
    wins = preference_training.peak(found, preference_training.WINS).values
    assert wins[preference_training.PEAK] == 5, "the first of equals"
    assert wins["squared distance at the peak"] == 1.0
    assert wins[preference_training.BEFORE] == pytest.approx(1)
    assert wins[preference_training.AFTER] == pytest.approx(np.corrcoef([0.7, 0.7, 0.4], [0.6, 0.7, 0.8])[0, 1])
    assert preference_training.peak(found, preference_training.RANKING).values[preference_training.PEAK] == 15


LITTLE = {
    "random_pairs": 50, "problems": 2, "documents": 300, "train_pairs": 6, "held_out": 4, "steps": 2, "epochs": 1,
    "long_epochs": 2, "measurements": 1, "looks": 2,
}  # fmt: skip


def test_the_study_runs_without_a_file_and_a_lost_cell_comes_back_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preference_worlds, "TOKENS_PER_STEP", 128)
    settings = [f"--set={name}={value}" for name, value in LITTLE.items()]
    studies = []
    for _ in range(2):
        assert main(["systems", "run", "51", *settings, "--out", str(tmp_path)]) == 0
        studies.append(json.loads(next(tmp_path.glob("*/study.json")).read_text("utf-8")))
        lost = next(cell["key"] for cell in studies[0]["cells"] if cell["arm"] == m.TINY)
        for path in tmp_path.glob(f"*/cells/{lost}*"):
            path.unlink()
    assert studies[0]["levels"] == studies[1]["levels"]
    assert list(studies[0]["arms"]) == [m.IDENTITIES, m.TINY, m.WINS, m.RANKING]
    assert "No file of pairs was given" in studies[0]["notes"][1]
    assert main(["systems", "run", "51", "--set=pairs=none.jsonl", "--out", str(tmp_path)]) == 2
    assert "no such file" in capsys.readouterr().err
    answered = {(row["metric"], row["arm"]) for row in studies[0]["levels"]}
    for criterion in m.SYSTEM.criteria:
        for arm in arms_of(criterion):
            assert arm in (m.REAL, m.TINY) or (criterion.metric, arm) in answered


def test_too_few_pairs_in_the_file(file: Path) -> None:
    with pytest.raises(InputError, match="too few pairs"):
        preference_worlds.from_file({"train_pairs": 8, "held_out": 4}, 0, file)
