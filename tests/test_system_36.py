"""System 36, bandit and lengths: losses by other formulas, equal budgets, traps as planted faults, the record.

A trap is a check that holds for the code as it is and fails when its fault is put back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch

from optative.data.corpora import Document
from optative.data.openings import openings
from optative.evaluation import modes
from optative.generators.language import sample as sampling
from optative.generators.language.kept import kept
from optative.generators.language.load import load_language_model
from optative.generators.language.packing import Group
from optative.generators.language.trained import prepare_training
from optative.optimizers import fit as fitting
from optative.systems import on_policy_data as m
from optative.systems.catalogue import find
from optative.systems.on_policy_data import bandit as b
from optative.systems.on_policy_data import lengths as n
from optative.systems.record import Criterion, read_results
from optative.systems.status import arms_of, standing

REFERENCE_K = np.log(np.full(b.BINS, 1 / b.BINS))


def options(loss: str, on_policy: bool, peak: int = b.TAIL, **changed: Any) -> dict[str, Any]:
    short = {"refreshes": 40, "steps": 1, "learning_rate": 0.05}
    return {"peak": peak, "loss": loss, "on_policy": on_policy, **short, **changed}


def trained(seed: int = 0, world: b.World | None = None, **given: Any) -> Any:
    asked = options(**given)
    return b.train(asked, seed, b.world(asked, seed) if world is None else world)


# The parts, by other formulas


def test_the_bandit_is_the_published_one() -> None:
    tail, aligned = (b.world({"peak": peak}, 0) for peak in (b.TAIL, b.ALIGNED))
    p = np.exp(tail.reference_K)
    assert p.sum() == pytest.approx(1)
    assert np.searchsorted(p.cumsum(), 0.5) in range(18, 22), "the reference's mass lies about bin 20"
    assert p @ tail.reward_K == pytest.approx(0.04, abs=0.015)
    assert p @ aligned.reward_K == pytest.approx(0.38, abs=0.02)
    assert (tail.reward_K[70], tail.reward_K[80]) == (1, pytest.approx(np.exp(-1)))
    gauge = [modes.tail_index(w.reward_K, w.reference_K).value for w in (tail, aligned)]
    assert gauge[0] * 5 < gauge[1], "the tail index foretells where fresh samples are needed"


def test_losses_and_gradients_by_hand() -> None:
    rng = np.random.default_rng(0)
    logits_SK = torch.tensor(rng.normal(size=(b.STATES, b.BINS)), requires_grad=True)
    logps_SK = logits_SK.log_softmax(-1)
    reference_SK = torch.tensor(rng.normal(size=(b.STATES, b.BINS))).log_softmax(-1)
    world = b.World(REFERENCE_K, np.linspace(0, 1, b.BINS), np.linspace(0, 1, b.BINS))
    drawn = b.draw(np.tile(REFERENCE_K, (b.STATES, 1)), world, 3, 0)
    y, r = drawn.answers_SN, drawn.labels_SN
    lp, ref = logps_SK.detach().numpy(), reference_SK.numpy()
    rows = np.arange(b.STATES)
    best, worst = y[rows, r.argmax(1)], y[rows, r.argmin(1)]
    ratio = (lp[rows, best] - ref[rows, best]) - (lp[rows, worst] - ref[rows, worst])
    kept = r.max(1) - r.min(1) > 0.2
    own = np.take_along_axis(lp, y, 1)
    wanted = {
        "BoN": -lp[rows, best],
        "RWR": (-np.minimum(np.exp(r / 0.2), 20) * own).mean(1),
        "REINFORCE": (-(r - r.mean(1, keepdims=True)) * own).mean(1),
        "DPO": np.logaddexp(0, -0.1 * ratio)[kept],
        "IPO": ((ratio - 10) ** 2)[kept],
    }
    assert list(wanted) == list(b.LOSSES)
    for name, values in wanted.items():
        assert b.losses(name, logps_SK, reference_SK, drawn).detach().numpy() == pytest.approx(values), name
    b.losses("REINFORCE", logps_SK, reference_SK, drawn).sum().backward()
    one_hot = np.eye(b.BINS)[y]
    advantage = (r - r.mean(1, keepdims=True))[..., None] / b.ANSWERS
    by_hand = -(advantage * (one_hot - np.exp(lp)[:, None, :])).sum(1)
    assert logits_SK.grad is not None
    assert logits_SK.grad.numpy() == pytest.approx(by_hand)


@pytest.mark.parametrize("loss", b.LOSSES)
def test_offline_and_on_policy_arms_differ_only_in_whom_they_draw_from(loss: str) -> None:
    found = {on: trained(loss=loss, on_policy=on) for on in (False, True)}
    for name in ("reward queries", "gradient steps"):
        assert found[False].values[name] == found[True].values[name]
    assert found[True].values["reward queries"] == 40 * b.STATES * b.ANSWERS
    assert found[True].values["gradient steps"] == 40
    first = [found[on].curves["log-ratio of the best"][1][0] for on in (False, True)]
    assert first[0] == first[1], "before the first step both draw the same answers"
    last = [found[on].values["reward"] for on in (False, True)]
    assert not np.array_equal(*last), "from the second draw on they do not"


def test_steps_of_the_flows_by_a_loop_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(b, "LONGEST", 1000)
    found = b.time_flows(1e-3, 0).values
    p = np.exp(b.world({"peak": b.TAIL}, 0).reference_K)
    p[b.TAIL] = 0
    p *= 0.999 / p.sum()
    p[b.TAIL] = 0.001
    q = np.full(b.BINS, 1e-9)
    q[b.TAIL] = 1 - 99e-9
    start = 0.5 * np.abs(p - q).sum()
    taken = {}
    for direction in ("forward", "reverse"):
        logits = np.log(p)
        for step in range(1001):
            now = np.exp(logits) / np.exp(logits).sum()
            if 0.5 * np.abs(now - q).sum() <= start / 2:
                taken[direction] = step
                break
            gap = np.log(now / q)
            logits += 0.1 * ((q - now) if direction == "forward" else -now * (gap - (now * gap).sum()))
    assert found["steps to half the mass, forward"] == taken["forward"]
    assert found["steps to half the mass, reverse"] == taken["reverse"]
    ratio = taken["reverse"] / taken["forward"]
    assert found["steps to half the mass, reverse over forward"] == pytest.approx(ratio)
    assert ratio > 1, "the card's line asks for at most 0.5; the module says why it does not hold"


# Traps


def reference_is_pinned() -> None:
    """IPO aims at a log-ratio of 10 to the first policy; with a reference that moves along, it never arrives."""
    found = trained(loss="IPO", on_policy=False, refreshes=250, learning_rate=0.2)
    assert max(found.curves["implicit margin"][1]) < 2 * b.IPO_MARGIN


def ipo_aims_at_the_margin() -> None:
    drawn = b.Draw(np.array([[3, 7]]), np.log([[0.01, 0.01]]), np.array([[1.0, 0.0]]))
    reference_SK = torch.tensor(REFERENCE_K)[None]
    policy_SK = reference_SK.clone()
    policy_SK[0, 3] += 10.0
    assert float(b.losses("IPO", policy_SK, reference_SK, drawn)) == pytest.approx(0)


def sampling_is_on_policy() -> None:
    assert trained(loss="BoN", on_policy=True, refreshes=3).values["largest k1 at the first step"] == 0


def draws_have_their_log_probabilities() -> None:
    world = b.world({"peak": b.TAIL}, 0)
    logps = [b.draw(np.tile(world.reference_K, (b.STATES, 1)), world, 0, i).logps_SN.ravel() for i in range(100)]
    surprise = -np.concatenate(logps)
    error = surprise.std() / np.sqrt(len(surprise))
    assert abs(surprise.mean() - modes.entropy(world.reference_K)) < 4 * error


def ties_teach_nothing() -> None:
    nearly_flat = 0.5 + 1e-3 * np.random.default_rng(0).random(b.BINS)
    found = trained(loss="IPO", on_policy=True, world=b.World(REFERENCE_K, nearly_flat, nearly_flat))
    assert np.max(found.values["kl to reference"]) < 1e-12


def offline_answers_are_fresh() -> None:
    seen = []
    draw = b.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(b, "draw", lambda *given: seen.append(draw(*given)) or seen[-1])
        trained(loss="IPO", on_policy=False)
    assert len({drawn.answers_SN.tobytes() for drawn in seen}) == len(seen) == 40


def the_truth_is_measured() -> None:
    """Labels that pay elsewhere than the truth does: training them must not read as success."""
    labels, truth = (b.world({"peak": peak}, 0).reward_K for peak in (30, 80))
    found = trained(loss="BoN", on_policy=True, world=b.World(REFERENCE_K, labels, truth), refreshes=80)
    assert max(found.values["reward"]) < 0.2
    assert max(found.curves["reward"][1]) < 0.2


def fault_moving_reference(patch: pytest.MonkeyPatch) -> None:
    losses = b.losses
    patch.setattr(b, "losses", lambda name, logps, reference, drawn: losses(name, logps, logps.detach(), drawn))


def fault_inverted_beta(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(b, "ipo_beta", lambda: b.IPO_MARGIN)


def fault_temperature(patch: pytest.MonkeyPatch, *, hidden: bool = False) -> None:
    draw = b.draw

    def tempered(policy_SK: np.ndarray, *given: Any) -> b.Draw:
        sharp = policy_SK / 0.7
        sharp -= np.logaddexp.reduce(sharp, -1, keepdims=True)
        drawn = draw(sharp, *given)
        return replace(drawn, logps_SN=np.take_along_axis(policy_SK, drawn.answers_SN, -1)) if hidden else drawn

    patch.setattr(b, "draw", tempered)


def fault_no_gap(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(b, "GAP", -1.0)


def fault_one_offline_draw(patch: pytest.MonkeyPatch) -> None:
    draw = b.draw
    patch.setattr(b, "draw", lambda policy, world, seed, refresh: draw(policy, world, seed, 0))


def fault_proxy_measured(patch: pytest.MonkeyPatch) -> None:
    world = b.World
    patch.setattr(b, "World", lambda reference, labels, reward: world(reference, labels, labels))


@pytest.mark.parametrize(
    ("check", "fault"),
    [
        (reference_is_pinned, fault_moving_reference),
        (ipo_aims_at_the_margin, fault_inverted_beta),
        (sampling_is_on_policy, fault_temperature),
        (draws_have_their_log_probabilities, lambda patch: fault_temperature(patch, hidden=True)),
        (ties_teach_nothing, fault_no_gap),
        (offline_answers_are_fresh, fault_one_offline_draw),
        (the_truth_is_measured, fault_proxy_measured),
    ],
    ids=lambda given: given.__name__.replace("<lambda>", "fault_hidden_temperature"),
)
def test_trap(
    check: Callable[[], None], fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    check()
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        check()


# Length rewards on a tiny language model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supervised model of random words, 2 to 12 of them."""
    from optative.generators.language import tiny
    from optative.generators.options import Tiny

    rng = np.random.default_rng(0)
    texts = [" ".join("abcdefgh"[i] for i in rng.integers(0, 8, rng.integers(2, 13))) for _ in range(400)]
    tokenizer = tiny.train_tokenizer(texts, 300)
    lm = tiny.build(Tiny(layers=1, hidden=32, heads=2, vocabulary=300, context=96), tokenizer, 0)
    documents = [tiny.document(tokenizer, text[1:], text[:1]) for text in texts]
    tiny.pretrain(lm, documents, steps=60, tokens_per_step=512, learning_rate=1e-2, seed=0)
    return tiny.save(lm, tmp_path_factory.mktemp("sft") / "model")


def lengths_world(folder: Path) -> n.World:
    prompts = [f"{a} {b} {c}" for a in "abcdefgh" for b in "abcdefgh" for c in "abcd"]
    return n.World(load_language_model(str(folder), dtype="float32"), prompts[:-16], prompts[-16:])


def practised(folder: Path, tmp_path: Path, loss: str = "DPO", on: bool = True, reward: str = n.REWARDS[0]) -> Any:
    options = {"tiny": loss, "on_policy": on, "rounds": 3, "prompts": 16}
    with TemporaryDirectory(dir=tmp_path) as files:
        return n.train(options, reward, 0, lengths_world(folder), Path(files))[0]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(n, "STEPS", 2)
    monkeypatch.setattr(n, "RATE", 1e-3)
    monkeypatch.setattr(n, "STEP", 8)
    monkeypatch.setattr(n, "LONGEST", 32)


def judged(*rewards: float) -> n.Judged:
    """Answers whose ids say which they are; all of one length but for the reward."""
    return n.Judged(Group((1,), tuple((i, i) for i in range(len(rewards)))), rewards)


def test_what_each_algorithm_learns_from() -> None:
    one = judged(-9, -3, -5, -20)
    for name in ("DPO", "IPO"):
        assert [unit.group.completion_ids for unit in n.units([one], name, 0)] == [((1, 1), (3, 3))]
    (best,) = n.units([one], "BoN", 0)
    assert (best.group.completion_ids, best.labelled, best.levels) == (((1, 1),), True, (1.0,))
    (better,) = n.units([one], "Pref-FT", 0)
    assert (better.group.completion_ids, better.levels) == (((1, 1), (2, 2)), (1.0, 1.0))


@pytest.mark.parametrize("loss", n.LOSSES)
def test_lengths_offline_and_on_policy_spend_the_same(loss: str, folder: Path, tmp_path: Path) -> None:
    found = {on: practised(folder, tmp_path, loss, on) for on in (False, True)}
    for name in ("reward queries", "gradient steps", "tail index"):
        assert found[False][name] == found[True][name], name
    assert (found[True]["reward queries"], found[True]["gradient steps"]) == (3 * 16 * n.ANSWERS, 6)
    assert found[True][n.SHARE] != found[False][n.SHARE], "from the second round on they draw other answers"
    assert set(found[True]) == {n.SHARE, *n.MOVED, *n.SPENT}
    assert found[True]["kl to reference"] > 0


def test_lengths_are_measured_and_repeatable(folder: Path, tmp_path: Path) -> None:
    minimal = practised(folder, tmp_path)
    assert minimal == practised(folder, tmp_path)
    assert np.mean(minimal[n.SHARE]) > 0.1, "answers become shorter"
    assert minimal["log-ratio of the best"] > minimal["log-ratio of the worst"]
    before = n.draw(lengths_world(folder).lm, lengths_world(folder).held_out, 0, "held out")
    start = np.mean([len(a.ids) for own in before for a in own])
    by_hand = (start - np.array(minimal["mean length"])) / (start - 1)
    assert minimal[n.SHARE] == pytest.approx(by_hand)
    cost, least = n.cost_of("modal length", before)
    assert (cost(round(start)), cost(round(start) - 2), least) == (0, 2, 0)


def test_a_cell_of_lengths_as_a_study_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from optative.generators import options as generator_options

    tiny = generator_options.Tiny(layers=1, hidden=32, heads=2, vocabulary=300, context=128)
    monkeypatch.setattr(generator_options, "Tiny", lambda: tiny)
    texts = [
        (f"{a} {b}", " w" * (1 + (i + j) % 9), "here") for i, a in enumerate("abcdef") for j, b in enumerate("abcdef")
    ]
    monkeypatch.setattr(n, "texts_of", lambda corpora: texts)
    study = m.Study(pretraining=10, rounds=1, prompts=12)
    options = m.arms(study)["online IPO"].options
    assert set(m.arms(study)) >= {f"{on} {loss}" for on in ("online", "offline") for loss in n.LOSSES}
    found = m.cell(options, 0, tmp_path)
    assert set(found.values) <= set(m.metrics())
    assert set(found.values) >= {f"{n.SHARE}, {reward}" for reward in n.REWARDS}
    assert len(list(tmp_path.iterdir())) == 1, "both rewards start from one supervised model"
    assert m.cell(options, 0, tmp_path) == found


def lengths_are_on_policy(folder: Path, tmp_path: Path) -> None:
    assert practised(folder, tmp_path)["largest k1 at the first step"] < 1e-4


def lengths_have_a_pinned_reference(folder: Path, tmp_path: Path) -> None:
    """From the second round on the policy has moved, so that the first step of a round finds rewards."""
    seen, fit = [], fitting.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "fit", lambda *given, **named: seen.append(fit(*given, **named)) or seen[-1])
        practised(folder, tmp_path)
    assert abs(seen[0][0]["rewards/margins"]) < 1e-3 < abs(seen[2][0]["rewards/margins"])


def near_ties_give_no_pair(folder: Path, tmp_path: Path) -> None:
    assert not n.units([judged(-3, -3, -3, -3), judged(-4, -3, -4, -3)], "DPO", 0)


def each_round_has_new_prompts(folder: Path, tmp_path: Path) -> None:
    asked = [prompt for own in n.rounds(lengths_world(folder).prompts, 3, 16, 0) for prompt in own]
    assert len(set(asked)) == len(asked) == 48


def fault_cold_samples(patch: pytest.MonkeyPatch) -> None:
    settings = sampling.SamplingSettings
    patch.setattr(sampling, "SamplingSettings", lambda **given: settings(**given, temperature=0.7))


def fault_reference_of_each_round(patch: pytest.MonkeyPatch) -> None:
    fit = fitting.fit

    def moved(lm: Any, *given: Any, **named: Any) -> Any:
        prepare_training(lm, None, 0, keep_start=True)
        return fit(lm, *given, **named)

    patch.setattr(fitting, "fit", moved)


def fault_any_gap(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(n, "GAP", 0.0)


def fault_same_prompts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(n, "rounds", lambda prompts, count, each, seed: [list(prompts[:each])] * count)


@pytest.mark.parametrize(
    ("check", "fault"),
    [
        (lengths_are_on_policy, fault_cold_samples),
        (lengths_have_a_pinned_reference, fault_reference_of_each_round),
        (near_ties_give_no_pair, fault_any_gap),
        (each_round_has_new_prompts, fault_same_prompts),
    ],
    ids=lambda given: given.__name__,
)
def test_trap_of_lengths(check: Any, fault: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(folder, tmp_path)
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        check(folder, tmp_path)


def test_a_model_is_made_once(folder: Path, tmp_path: Path) -> None:
    made = []

    def make() -> Any:
        made.append(load_language_model(str(folder), dtype="float32"))
        return made[-1]

    first, second = (kept(tmp_path / "a" / "b", make) for _ in range(2))
    assert len(made) == 1
    assert first.fingerprint == second.fingerprint == made[0].fingerprint


def test_openings() -> None:
    texts = [
        "one two three four five\nsix\n\nelse",
        "one two three other words here",
        "too short",
        "x" * 50 + " a b c d",
    ]
    documents = [Document(text, "here", str(i)) for i, text in enumerate(texts)]
    assert openings(documents, words=3) == [("one two three", " four five six", "here")]


# The record


def test_the_criteria_are_the_cards_and_each_is_recorded() -> None:
    fields = ("smallest_effect", "limit", "at_most")
    numbers = [getattr(c, name) for c in m.SYSTEM.criteria for name in fields if hasattr(c, name)]
    assert numbers == [0.3, 0.3, 0.08, *[0.9] * 4, 0.08, *[0.5] * 3, 0.15, 0.05]
    assert all(c.seeds == 5 for c in m.SYSTEM.criteria[:-2])
    state = standing(find("36"))
    assert [finding.criterion for finding in state.findings] == list(m.SYSTEM.criteria), "recorded and not stale"
    assert all(finding.met is not None and len(finding.effects) == 5 for finding in state.findings)
    assert state.verdict == "negative"


def test_a_recorded_cell_can_be_repeated(tmp_path: Path) -> None:
    (results,) = read_results(find("36"))
    criterion = m.SYSTEM.criteria[1]
    assert isinstance(criterion, Criterion)
    arm, baseline = arms_of(criterion)
    seed = 3
    bandit = m.FULL.model_dump(include={"refreshes", "steps", "learning_rate"})
    found = m.cell({"peak": b.TAIL, "loss": "IPO", "on_policy": True, **bandit}, seed, tmp_path)
    assert arm == m.arm("on-policy", "IPO", b.TAIL)
    assert np.mean(found.values["reward"]) == pytest.approx(results.values["reward", arm][seed], abs=0.01)
    assert results.values["reward", arm][seed] > results.values["reward", baseline][seed]
