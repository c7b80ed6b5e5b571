"""System 16, its preference half: the task, raters, shares of variance, the study, and the traps as planted faults."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optative.cli.main import main
from optative.core.errors import InputError
from optative.core.rng import stream
from optative.evaluation.factorial import eta_squared, gap, level_means
from optative.feedback import raters
from optative.feedback.raters import Rater, check_direction, prefer, rate
from optative.generators.language.load import load_language_model
from optative.generators.language.score import summed
from optative.generators.language.trained import starting_point, trained_parameters
from optative.objectives import rated_sums
from optative.optimizers import fit as fitting
from optative.optimizers.losses import pairs as pair_losses
from optative.systems import unpacking_dpo_ppo as m
from optative.systems.catalogue import find
from optative.systems.record import keep, results_of
from optative.systems.status import arms_of, judge, standing
from optative.systems.unpacking_dpo_ppo import world

SMALL: dict[str, Any] = {
    "model": {"layers": 1, "hidden": 32, "heads": 2, "vocabulary": 320, "context": 128},
    "prompts": 200, "documents": [150, 50], "pairs": 24, "epochs": 1, "held_out": 10,
}  # fmt: skip
EVERY = list(product((True, False), repeat=5))


def recipe(data: str = "per-aspect mean", algorithm: str = "DPO", **changed: Any) -> dict[str, Any]:
    loss, numbers = m.ALGORITHMS[algorithm]
    return SMALL | {"rater": asdict(m.DATA[data]), "algorithm": (loss, numbers | changed)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture
def lm(folder: Path) -> Any:
    return world.supervised(SMALL, 0, folder / "supervised")


# The task


def test_the_judge_finds_what_the_grammar_put_in() -> None:
    rng = stream("task")
    asked = rated_sums.prompts(100, rng)
    assert len(set(asked)) == 100
    for prompt in asked:
        for good in EVERY:
            text = rated_sums.answer(prompt, good, rng)
            assert rated_sums.judge(prompt, text) == good[:4], (prompt, text)
            assert rated_sums.names_the_asker(prompt, text) == good[4]


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (" it is *3*. it is *4*. glad to help.", (True, False, False, True)),  # every number is named
        (" it is *4* and 4. glad to help.", (False, True, False, True)),
        (" glad to help. it is *4*. leave me alone.", (True, True, True, False)),  # polite in the middle
        (" it is *4*. glad to help", (True, True, True, False)),  # cut off
        (" it is *4*.", (True, True, True, False)),
        (" glad to help.", (False,) * 4),
        ("", (False,) * 4),
    ],
)
def test_rules_that_cannot_be_played(text: str, good: tuple[bool, ...]) -> None:
    assert rated_sums.judge("ada asks for 3 + 1 in stars.", text) == good


# Raters


def test_errors_average_out_over_aspects() -> None:
    good, words = np.zeros((20_000, 4)), np.zeros(20_000)
    one = rate(Rater(noise=0.3), good, words, stream(0))
    whole = rate(Rater(noise=0.3, overall=True), good, words, stream(0))
    assert one.std() == pytest.approx(0.15, rel=0.03)
    assert whole.std() == pytest.approx(0.30, rel=0.03)
    assert abs(one.mean()) < 0.01
    exact = rate(Rater(per_word=0.1), np.array([[1, 1, 0, 0], [1, 0, 0, 0]]), np.array([2, 10]), stream(0))
    assert list(exact) == pytest.approx([0.7, 1.25]), "eight words more outweigh an aspect"


def test_preferences_and_flips() -> None:
    ratings = np.stack([np.ones(20_000), np.zeros(20_000)], axis=1)
    assert prefer(Rater(), ratings, stream(1)).tolist() == [0] * 20_000
    assert prefer(Rater(flipped=0.3), ratings, stream(1)).mean() == pytest.approx(0.3, abs=0.01)
    with pytest.raises(InputError, match="the same rating"):
        prefer(Rater(), np.ones((2, 2)), stream(1))


def test_the_data_sets_are_as_wrong_as_they_say(lm: Any) -> None:
    asked = rated_sums.prompts(2000, stream("wrong"))
    pairs = world.pairs_of(tuple(asked), 0)
    assert all(pair.answers[0] != pair.answers[1] for pair in pairs)
    gaps = {name: world.labelled(lm, pairs, rater, 0)[1] for name, rater in m.DATA.items()}
    assert gaps["per-aspect mean"] > gaps["overall score"] > gaps["30% flipped"] > 0
    assert gaps["per-aspect mean"] > gaps["length-biased"] > 0
    assert gaps["30% flipped"] / gaps["per-aspect mean"] == pytest.approx(0.4, abs=0.08)
    one_aspect = [(p, u) for p, u in zip(pairs, world.labelled(lm, pairs, m.DATA["overall score"], 0)[0])
                  if abs(sum(p.good[0]) - sum(p.good[1])) == 1]  # fmt: skip
    wrong = [(sum(p.good[0]) > sum(p.good[1])) != (u.group == encoded(lm, p)) for p, u in one_aspect]
    assert np.mean(wrong) == pytest.approx(0.28, abs=0.05)


def encoded(lm: Any, pair: world.Pair) -> Any:
    from optative.generators.language.tokens import encode_group

    return encode_group(lm, pair.prompt, pair.answers)


# Shares of variance


def test_eta_squared_by_another_formula() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = rng.normal(size=(4, 5))
        results = {(str(i), str(j)): values[i, j] for i in range(4) for j in range(5)}
        # R squared of a regression on the indicators of one factor's levels.
        for factor, shares in enumerate(eta_squared(results)):
            levels = np.array([int(key[factor]) for key in results])
            indicators = np.eye(levels.max() + 1)[levels]
            y = np.array(list(results.values()))
            left = y - indicators @ np.linalg.lstsq(indicators, y, rcond=None)[0]
            assert shares == pytest.approx(1 - left @ left / ((y - y.mean()) @ (y - y.mean())))
        assert 0 < sum(eta_squared(results)) < 1, "the rest is interaction"
        shuffled = {key: results[key] for key in sorted(results, reverse=True)}
        assert eta_squared(shuffled) == pytest.approx(eta_squared(results))
    assert eta_squared({("a", "x"): 1.0, ("b", "x"): 1.0}) == [0.0, 0.0]


def test_effects_of_levels_item_by_item() -> None:
    results = {("a", "x"): [0.0, 1.0], ("a", "y"): [1.0, 1.0], ("b", "x"): [0.0, 0.0], ("b", "y"): [1.0, 0.0]}
    assert {level: list(mean) for level, mean in level_means(results, 0).items()} == {"a": [0.5, 1.0], "b": [0.5, 0.0]}
    assert gap(results, 0) == pytest.approx(0.5)
    assert gap(results, 1) == pytest.approx(0.5)
    del results["b", "y"]
    for refused in (lambda: eta_squared(results), lambda: level_means(results, 1)):
        with pytest.raises(InputError, match="not every combination"):
            refused()


# Traps. Each check holds, and fails with its fault.


def chosen_answers_are_the_better_rated(folder: Path, patch: pytest.MonkeyPatch) -> None:
    lm = world.supervised(SMALL, 0, folder / "supervised")
    pairs = world.pairs_of(tuple(world.prompts(SMALL, 0)[1]), 0)
    try:
        for rater in m.DATA.values():
            world.labelled(lm, pairs, rater, 0)
    except InputError as error:
        raise AssertionError from error


def fault_ascending_sort_first_item(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(raters, "_higher", lambda ratings_P2: np.argsort(ratings_P2, axis=1)[:, 0])


def ipo_aims_per_token(folder: Path, patch: pytest.MonkeyPatch) -> None:
    def loss(tokens: float) -> float:
        own, zero, count = torch.tensor([-0.5 * tokens]), torch.zeros(1), torch.tensor([tokens])
        return float(pair_losses.ipo(zero, own, zero, zero, count, count, beta=0.5))

    assert loss(2.0) == pytest.approx(loss(20.0)), "equal log-ratios a token are equal, however long the answers"


def fault_sums_as_online(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pair_losses, "per_token", lambda sums_B, tokens_B: sums_B)


def kl_is_of_the_policy_itself(folder: Path, patch: pytest.MonkeyPatch) -> None:
    lm, _ = m.policy(folder, recipe(learning_rate=3e-3), 0)
    found = world.measure(lm, world.prompts(SMALL, 0)[2], 0)
    assert found[m.KL] > 0


def fault_another_temperature(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(world, "TEMPERATURE", 0.7)


def cut_answers_are_counted(folder: Path, patch: pytest.MonkeyPatch) -> None:
    lm = world.supervised(SMALL, 0, folder / "supervised")
    with patch.context() as own:
        own.setattr(world, "LONGEST", 2)
        found = world.measure(*based(lm), 0)
    assert np.mean(found["answers cut off"]) == 1
    assert np.mean(found["judge: polite close"]) == 0, "an answer without its end is not politely closed"


def fault_every_answer_ends(patch: pytest.MonkeyPatch) -> None:
    from optative.generators.language import sample as sampling

    real = sampling.sample

    def ended(*given: Any, **named: Any) -> Any:
        return [[replace(answer, finish_reason="eos") for answer in own] for own in real(*given, **named)]

    patch.setattr(sampling, "sample", ended)


def every_recipe_starts_from_the_same_model(folder: Path, patch: pytest.MonkeyPatch) -> None:
    starts, answers = [], []
    real = fitting.fit

    def spy(lm: Any, units: Any, **named: Any) -> Any:
        starts.append(torch.cat([p.detach().flatten().clone() for p in trained_parameters(lm).values()]))
        answers.append([(unit.group.prompt_ids, sorted(unit.group.completion_ids)) for unit in units])
        return real(lm, units, **named)

    with patch.context() as own:
        own.setattr(fitting, "fit", spy)
        for data, algorithm in (("per-aspect mean", "DPO"), ("length-biased", "supervised")):
            m.policy(folder, recipe(data, algorithm), 0)
    assert torch.equal(*starts)
    assert answers[0] == answers[1], "the same prompts and answers, whoever orders them"


def fault_goes_on_from_the_last_policy(patch: pytest.MonkeyPatch) -> None:
    real, made = world.supervised, list[Any]()

    def once(*given: Any) -> Any:
        made.append(made[0] if made else real(*given))
        return made[-1]

    patch.setattr(m, "supervised", once)


def no_rater_sees_who_is_named(folder: Path, patch: pytest.MonkeyPatch) -> None:
    for prompt in rated_sums.prompts(20, stream("named")):
        seen = {
            rated_sums.judge(prompt, rated_sums.answer(prompt, (*EVERY[0][:4], n), stream(0))) for n in (True, False)
        }
        assert len(seen) == 1, "the aspect that is held out must not be in the ratings"


def fault_the_judge_is_the_reward(patch: pytest.MonkeyPatch) -> None:
    real = rated_sums.judge
    patch.setattr(
        rated_sums, "judge", lambda prompt, text: (*real(prompt, text), rated_sums.names_the_asker(prompt, text))
    )


@pytest.mark.parametrize(
    ("check", "fault"),
    [
        (chosen_answers_are_the_better_rated, fault_ascending_sort_first_item),
        (ipo_aims_per_token, fault_sums_as_online),
        (kl_is_of_the_policy_itself, fault_another_temperature),
        (cut_answers_are_counted, fault_every_answer_ends),
        (every_recipe_starts_from_the_same_model, fault_goes_on_from_the_last_policy),
        (no_rater_sees_who_is_named, fault_the_judge_is_the_reward),
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


def test_k1_below_zero_tells_of_answers_that_are_not_the_policys() -> None:
    """The estimate that the assertion guards: samples of the reference under the logs of a sharper policy."""
    from optative.evaluation.modes import sampled_kl

    reference = np.log([0.5, 0.3, 0.2])
    policy = 3 * reference - np.log(np.exp(3 * reference).sum())
    rng = np.random.default_rng(0)
    drawn_by = {name: rng.choice(3, 20_000, p=np.exp(logps)) for name, logps in (("own", policy), ("other", reference))}
    assert sampled_kl(policy[drawn_by["own"]], reference[drawn_by["own"]]).k1.value > 0
    assert sampled_kl(policy[drawn_by["other"]], reference[drawn_by["other"]]).k1.value < 0


def test_both_sides_log_probabilities_are_told_and_nll_holds_the_chosen_up(folder: Path) -> None:
    found = {}
    for weight in (0.0, 2.0):
        lm, values = m.policy(folder, recipe(learning_rate=3e-3, nll_weight=weight), 0)
        pairs = world.pairs_of(tuple(world.prompts(SMALL, 0)[1]), 0)
        groups = [unit.group for unit in world.labelled(lm, pairs, m.DATA["per-aspect mean"], 0)[0]]
        now = np.array(summed(lm, groups))
        with starting_point(lm):
            moved = (now - np.array(summed(lm, groups))).mean(axis=0)
        sides = [values[f"change of log-probability, {side}"] for side in ("chosen", "rejected")]
        assert sides == pytest.approx(list(moved), abs=1e-3)
        found[weight] = sides
    assert found[0.0][0] > found[0.0][1], "the margin grows"
    assert found[2.0][0] > found[0.0][0] + 0.1


def test_a_mean_gap_of_the_wrong_sign_is_told() -> None:
    assert check_direction(np.array([[0.2, 0.9], [0.8, 0.1]]), np.array([1, 0])) == pytest.approx(0.7)
    with pytest.raises(InputError, match="changed places"):
        check_direction(np.array([[0.2, 0.9], [0.8, 0.1]]), np.array([0, 1]))


# The study


def based(lm: Any) -> tuple[Any, list[str]]:
    from optative.generators.language.trained import prepare_training

    prepare_training(lm, None, 0)
    return lm, world.prompts(SMALL, 0)[2]


def test_prompts_are_in_one_part_only() -> None:
    parts = world.prompts(SMALL, 0)
    assert [len(part) for part in parts] == [200, 24, 10]
    assert len(set().union(*parts)) == 234


def test_wrong_settings_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for setting, words in (("algorithms=[DPO, DPO]", "named twice"), ("prompts=3600", "more prompts than there are")):
        assert main(["systems", "run", "16", f"--set={setting}", "--out", str(tmp_path)]) == 2
        assert words in capsys.readouterr().err


def test_the_best_of_n_is_the_one_rated_best(lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(world.DATA, "per-aspect mean", Rater())
    one, best = world.measure(*based(lm), 0), world.measure(*based(lm), 0, 8)
    assert one[m.KL] == pytest.approx(0, abs=1e-3)
    assert m.KL not in best, "of n answers the best is not the policy's"
    assert (best[m.SCORE] >= one[m.SCORE]).all(), "without errors it is the best of answers that hold the first"


@pytest.mark.parametrize("algorithm", m.ALGORITHMS)
def test_every_algorithm_learns_from_pairs(algorithm: str, folder: Path) -> None:
    _, values = m.policy(folder, recipe("per-aspect mean", algorithm, learning_rate=3e-3), 0)
    chosen, rejected = (values[f"change of log-probability, {side}"] for side in ("chosen", "rejected"))
    assert chosen > rejected
    assert values["gradient steps"] == 1


def made_up(options: dict[str, Any], seed: int) -> dict[str, Any]:
    """A world in which data matter more than algorithms."""
    data = list(m.DATA).index(options["data"]) if "data" in options else 3
    supervised = options.get("algorithm", ["sft"])[0] == "sft"
    score = 0.9 - 0.05 * data - 0.02 * supervised + 0.001 * seed
    return {m.SCORE: [score - 0.1, score + 0.1], m.HELD: [True, False]}


def test_met_criteria_alone_do_not_reproduce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m, "policy", lambda folder, options, seed: (options, {}))
    monkeypatch.setattr(m, "measure", lambda lm, asked, seed, n: made_up(lm, seed))
    monkeypatch.setattr("optative.generators.language.kept.kept", lambda folder, make: make())
    found = m.run(m.Study(seeds=(0, 1, 2)), tmp_path / "study")
    levels = {(row["metric"], row["arm"], row["seed"]): row for row in found["levels"]}
    assert levels[m.GAP, "data", 1]["value"] == pytest.approx(0.15)
    assert levels[m.GAP, "algorithm", 1]["value"] == pytest.approx(0.02)
    mean = levels[m.SCORE, "data: overall score", 2]
    assert mean["value"] == pytest.approx(0.9 - 0.05 - 0.01 + 0.002)
    assert mean["interval"], "error bars, over prompts"
    assert levels[m.ETA, "data", 0]["value"] + levels[m.ETA, "algorithm", 0]["value"] == pytest.approx(1)
    findings = [judge(criterion, results_of(found)) for criterion in m.SYSTEM.criteria]
    assert [finding.met for finding in findings] == [True, None, None, None, True, None, None, None, None]
    assert "DPO on per-aspect mean (90.1 points" in found["notes"][1]
    assert found["notes"][2].startswith("7 of 9 criteria need policy gradients")
    keep(find("16"), m.SYSTEM, found, folder=tmp_path)
    assert standing(find("16"), tmp_path).verdict == "runs", "what was not run is not met"


LITTLE = {"documents": "[60,20]", "prompts": 60, "pairs": 4, "epochs": 1, "held_out": 4}


def test_the_study_runs_and_a_lost_cell_comes_back_alike(tmp_path: Path) -> None:
    model = "model={layers: 1, hidden: 16, heads: 2, vocabulary: 300, context: 128}"
    settings = [f"--set={model}", *(f"--set={name}={value}" for name, value in LITTLE.items())]
    studies = []
    for _ in range(2):
        assert main(["systems", "run", "16", *settings, "--out", str(tmp_path)]) == 0
        studies.append(json.loads(next(tmp_path.glob("*/study.json")).read_text("utf-8")))
        lost = next(cell["key"] for cell in studies[0]["cells"] if cell["arm"] == "DPO on 30% flipped")
        for path in tmp_path.glob(f"*/cells/{lost}*"):
            path.unlink()
    assert studies[0]["levels"] == studies[1]["levels"]
    assert list(studies[0]["arms"])[:3] == [m.BASE, m.BEST_OF, "DPO on per-aspect mean"]
    assert len(studies[0]["cells"]) == 2 + 8 + 2 + 6
    answered = {(row["metric"], row["arm"]) for row in studies[0]["levels"]}
    for name in ("answers cut off", m.KL, m.HELD, "change of log-probability, chosen"):
        assert (name, "DPO on per-aspect mean") in answered, "told next to the score"
    open_ = [c for c in m.SYSTEM.criteria if not answered >= {(c.metric, arm) for arm in arms_of(c)}]
    assert len(open_) == 7
    (policy,) = tmp_path.glob("*/policy-*")
    assert load_language_model(str(policy), dtype="float32").context_length == 128


def test_the_criteria_are_the_cards() -> None:
    fields = ("smallest_effect", "limit")
    numbers = [getattr(c, name) for c in m.SYSTEM.criteria for name in fields if hasattr(c, name)]
    assert [number for number in numbers if number != m.TINY_EFFECT] == [0.08, 0.6, 0.03]
    assert all(c.seeds == 3 for c in m.SYSTEM.criteria)
    assert len(m.FULL.seeds) == 3
    assert 100 not in m.FULL.seeds, "the seed of the settings is not one of the study"
