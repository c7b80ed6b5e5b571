"""System 57: iterations on a small base, the world's rules, published files, and the traps as planted faults."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optative.core.errors import InputError
from optative.core.rng import stream
from optative.generators.language import trained as weights_of
from optative.generators.language.load import load_language_model
from optative.objectives import checked_principles as world
from optative.objectives import published_summaries as published
from optative.objectives.principles import statements
from optative.optimizers import constitutions, mutual_information
from optative.runs.study import Measured
from optative.systems import mutual_information as m
from optative.systems.catalogue import find
from optative.systems.mutual_information import outputs
from optative.systems.mutual_information import world as sami_world
from optative.systems.record import read_results, results_of
from optative.systems.status import judge, standing

SMALL = {"layers": 1, "hidden": 64, "heads": 4, "vocabulary": 1024, "context": 128}
DOCUMENTS = (200, 800)
QUERIES = world.queries(60, stream(0, "queries"))


# The world


@pytest.mark.parametrize("choice", [*sami_world.TRAINED, *sami_world.HELD_OUT])
def test_rules_agree_with_the_grammar(choice: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    opposite = tuple(1 - c for c in choice)
    for query in QUERIES:
        text = world.answer(query, choice, rng)
        assert all(world.followed(query, choice, text)), text
        assert not any(world.followed(query, opposite, text)), text


def test_gibberish_follows_nothing_twice() -> None:
    for text in ("", "tHe of Of", "X??.x"):
        for choice in ((0, 0, 0, 0), (1, 1, 1, 1)):
            followed = world.followed(QUERIES[0], choice, text)
            assert not followed[1]
            assert not followed[2]


def test_documents_follow_weakly_and_state_everything() -> None:
    found = world.documents(2000, QUERIES, 0.6, stream(0, "documents"))
    shares = []
    for query, stated, text in found:
        lines = set(statements(stated))
        choice = tuple(int(p.wordings[1] in lines) for p in world.PRINCIPLES)
        assert lines == {p.wordings[c] for p, c in zip(world.PRINCIPLES, choice)}
        shares.append(world.followed(query, choice, text))
    assert np.mean(shares, axis=0) == pytest.approx([0.6] * 4, abs=0.04)
    assert len({stated for _, stated, _ in found}) > 300, "the order of the principles varies"


def test_held_out_combinations_are_held_out_and_balanced() -> None:
    assert len(sami_world.TRAINED) == 12
    assert np.mean(sami_world.HELD_OUT, axis=0) == pytest.approx([0.5] * 4)
    asked = constitutions.draw_asked(QUERIES, world.PRINCIPLES, sami_world.prompt, 0, only=sami_world.TRAINED)
    assert not {choice for own in asked.choices for choice in own} & set(sami_world.HELD_OUT)


# The iterations, on a base that has learnt to end its answers and little else


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


def options(**changed: Any) -> dict[str, Any]:
    small = {
        "model": SMALL,
        "documents": DOCUMENTS,
        "queries": 60,
        "held_out": 20,
        "steps": (1, 2),
        "learning_rate": 1e-3,
    }
    return small | {"temperature": 1.0, "shuffle": True} | changed


def test_cells_are_deterministic_and_the_base_is_made_once(folder: Path) -> None:
    first: Any = m.align(folder, options(), 0)
    again: Any = m.align(folder, options(), 0)
    assert json.dumps(first.curves) == json.dumps(again.curves)
    assert list(first.values[m.FOLLOWING]) == list(again.values[m.FOLLOWING])
    assert len(first.values[m.FOLLOWING]) == len(first.values[m.HELD]) == 20
    assert 0 < first.values["share of queries kept"] <= 1, "the kept share is told"
    assert len(list((folder / "bases").iterdir())) == 1
    base: Any = m.align(folder, options(steps=()), 0)
    assert m.GAIN not in base.values
    assert first.curves[m.FOLLOWING][1][0] == pytest.approx(np.mean(base.values[m.FOLLOWING]))
    assert first.curves[m.PERPLEXITY][1][0] == 1


def each_iteration_starts_from_the_base(folder: Path, patch: pytest.MonkeyPatch) -> None:
    starts, answered_by = [], []
    train, answered = mutual_information.train_mutual_information, constitutions.answered

    def weights(lm: Any) -> torch.Tensor:
        return torch.cat([p.detach().flatten().clone() for p in weights_of.trained_parameters(lm).values()])

    def spy_train(lm: Any, *given: Any, **named: Any) -> int:
        starts.append(weights(lm))
        return train(lm, *given, **named)

    def spy_answered(lm: Any, *given: Any, **named: Any) -> Any:
        answered_by.append(weights(lm))
        return answered(lm, *given, **named)

    with patch.context() as own:
        own.setattr(mutual_information, "train_mutual_information", spy_train)
        own.setattr(constitutions, "answered", spy_answered)
        m.align(folder, options(), 0)
    assert len(starts) == 2
    assert torch.equal(starts[0], starts[1]), "from the base, not from the policy that answered"
    assert not torch.equal(answered_by[0], answered_by[1]), "the second answers are the first policy's"


def halves_alternate(folder: Path, patch: pytest.MonkeyPatch) -> None:
    seen = []
    answered = constitutions.answered

    def spy(lm: Any, queries: Any, *given: Any, **named: Any) -> Any:
        seen.append(set(queries))
        return answered(lm, queries, *given, **named)

    with patch.context() as own:
        own.setattr(constitutions, "answered", spy)
        m.align(folder, options(steps=(1, 1, 1)), 0)
    assert not seen[0] & seen[1], "no policy answers queries that it was trained on"
    assert seen[0] == seen[2]


def fault_goes_on_from_the_last_policy(patch: pytest.MonkeyPatch) -> None:
    real, calls = weights_of.load_trained, []

    def only_first(lm: Any, file: Path) -> None:
        calls.append(file)
        if len(calls) <= 2:  # the base, and before the first iteration
            real(lm, file)

    patch.setattr(weights_of, "load_trained", only_first)


def fault_all_queries_always(patch: pytest.MonkeyPatch) -> None:
    class Whole(list):
        def __getitem__(self, at: Any) -> Any:
            found = list.__getitem__(self, at)
            if isinstance(at, slice) and at.step == 2:
                return list(self)
            return Whole(found) if isinstance(at, slice) else found

    real = world.queries
    patch.setattr(world, "queries", lambda count, rng: Whole(real(count, rng)))


@pytest.mark.parametrize(
    ("check", "fault"),
    [
        (each_iteration_starts_from_the_base, fault_goes_on_from_the_last_policy),
        (halves_alternate, fault_all_queries_always),
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


def test_a_base_that_does_not_follow_stops_with_advice(folder: Path) -> None:
    with pytest.raises(InputError, match="nothing to make stronger") as raised:
        m.align(folder, options(documents=(50, 50), shuffle=False), 0)
    assert "stronger base model" in str(raised.value)


def test_an_iteration_without_answers_to_learn_from_leaves_the_base(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constitutions, "answered", lambda *given, **named: ([], 0.0))
    found: Any = m.align(folder, options(shuffle=True), 0).values
    assert (found[m.GAIN], found["share of queries kept"], found[m.PERPLEXITY]) == (0.0, 0.0, 1.0)
    with pytest.raises(InputError, match="do not depend"):
        m.align(folder, options(shuffle=False), 0)


def test_answers_are_dealt_at_random_only_in_the_control(folder: Path) -> None:
    lm, _ = sami_world.base(folder / "bases", SMALL, DOCUMENTS, world.queries(80, stream(0, "queries"))[20:], 0)
    from optative.generators.language.sample import SamplingSettings

    settings = SamplingSettings(temperature=1, max_new_tokens=sami_world.NEW_TOKENS)
    given = (lm, QUERIES, world.PRINCIPLES, sami_world.prompt)
    plain, dealt = (
        constitutions.answered(*given, settings=settings, key=5, only=sami_world.TRAINED, shuffle=shuffle)
        for shuffle in (False, True)
    )
    assert plain[1] == dealt[1]
    pairs = [(a.groups[0].completion_ids, b.groups[0].completion_ids) for a, b in zip(plain[0], dealt[0])]
    assert all(set(a) == set(b) for a, b in pairs)
    assert 0.2 < np.mean([a == b for a, b in pairs]) < 0.8
    assert all(len(set(one.groups[0].completion_ids)) == 2 for one in plain[0]), "equal answers are left out"


@pytest.mark.parametrize(
    ("bounds", "following", "ratio", "flag"),
    [
        ((0.1, 0.3, 0.5), (0.6, 0.7, 0.8), (1.0, 1.0, 1.0), False),
        ((0.1, 0.3, 0.5), (0.6, 0.8, 0.7), (1.0, 1.0, 1.0), True),
        ((0.1, 0.3, 0.5), (0.6, 0.7, 0.8), (1.0, 1.0, 1.5), True),
        ((0.1, 0.3, 0.2), (0.6, 0.8, 0.7), (1.0, 1.0, 1.0), False),
    ],
)
def test_the_flag(bounds: Any, following: Any, ratio: Any, flag: bool) -> None:
    assert m.too_long(bounds, following, ratio) is flag


def test_rank_correlation() -> None:
    assert m.rank_correlation([1, 2, 3], [2, 5, 9]) == pytest.approx(1)
    assert m.rank_correlation([1, 1, 1], [2, 5, 9]) == 0


def drawn_up(options: dict[str, Any], seed: int) -> Measured:
    """What `align` would give, made up: following and bound rise together, and fall apart in the long arm."""
    if not options["steps"]:
        return Measured({m.FOLLOWING: [0.6] * 20, m.HELD: [0.6] * 20, m.BOUND: 0.1, "words an answer": 8})
    gain = 0.0 if options["shuffle"] else 0.2
    long = options["steps"][-1] > 24
    curve = [0.6, *(0.6 + gain * h / 3 + 0.001 * seed for h in (1, 2, 3))]
    values: dict[str, Any] = {m.FOLLOWING: [curve[-1]] * 20, m.HELD: [0.6 + gain / 2] * 20, m.BOUND: 0.5 + 0.1 * long}
    values |= {m.RISE: gain / 3, m.GAIN: gain, m.PERPLEXITY: 1.1, m.FLAG: float(long), "share of queries kept": 0.9}
    places = [0, 1, 2, 3]
    return Measured(values, curves={m.BOUND: (places, [c - 0.5 for c in curve]), m.FOLLOWING: (places, curve)})


def test_the_study_from_made_up_cells_meets_every_criterion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m, "align", lambda folder, options, seed: drawn_up(options, seed))
    found = m.run(m.Study(seeds=(0, 1, 2)), tmp_path / "study")
    findings = [judge(criterion, results_of(found)) for criterion in m.SYSTEM.criteria]
    assert all(finding.met for finding in findings)
    assert [row["value"] for row in found["levels"] if row["metric"] == m.RHO] == pytest.approx([1.0] * 3)
    assert found["notes"][1].startswith("The published summaries are left out")
    assert [note for note in found["notes"] if "trained too long" in note] == [
        f"{m.LONG}, seed {seed}: trained too long. The bound rose, and following or fluency fell." for seed in range(3)
    ]
    assert found["command"] == "optative systems run 57 --seeds 0,1,2"


# Published files


def test_column_bound_by_a_slow_formula() -> None:
    logps = np.array([[-3.0, -4.0], [-200.0, -180.0]])
    assert outputs.column_bound(logps)[0] == pytest.approx(math.log(math.exp(-3) / ((math.exp(-3) + math.exp(-4)) / 2)))
    assert outputs.column_bound(logps)[1] == pytest.approx(math.log(2) - 20, abs=1e-6)


def test_published_cut_and_filter() -> None:
    assert published.clean("The post is sad. Human: thanks ### x") == "The post is sad."
    assert published.kept("The post is sad.")
    for dropped in ("The post", "The post [insert name].", "The post []. .", "Response of the post."):
        assert not published.kept(dropped)


def write(folder: Path, **changed: Any) -> Path:
    (folder / "constitutions_mistral").mkdir(parents=True)
    constitution = {"positive": "1. Be brief.\n2. Be whole.", "negative": "1. Be long.\n2. Be whole."}
    (folder / "constitutions_mistral" / "0.json").write_text(json.dumps(constitution))
    for writer in published.WRITERS:
        columns = {
            "constitution": {str(i): "1. Be brief. \n2. Be whole." for i in range(3)},
            "question": {str(i): f"POST: number {i}" for i in range(3)},
            "response": {str(i): f"The post of {writer} is number {i}." for i in range(3)},
        }
        columns |= changed.get(writer, {})
        (folder / f"{writer}-x.json").write_text(json.dumps(columns))
    return folder


def test_scoring_of_files_and_what_is_wrong_with_them(tmp_path: Path) -> None:
    from tiny_models import save_tiny_model

    lm = load_language_model(str(save_tiny_model(tmp_path / "model", max_position_embeddings=512)), dtype="float32")
    folder = write(tmp_path / "good")
    found: Any = outputs.score_with(lm, folder, 3, 0).values
    assert set(found) == set(outputs.METRICS)
    gain = np.subtract(*(found[f"column bound on published summaries, {w}, nats"] for w in ("iteration-3", "base")))
    assert list(found[outputs.GAIN]) == pytest.approx(list(gain))
    with pytest.raises(InputError, match="more posts than there are"):
        outputs.score_with(lm, folder, 4, 0)
    with pytest.raises(InputError, match="the same post"):
        outputs.score_with(lm, write(tmp_path / "other", base={"question": {str(i): "x" for i in range(3)}}), 3, 0)
    swapped = {"constitution": {str(i): "1. Be whole.\n2. Be brief." for i in range(3)}}
    with pytest.raises(InputError, match="in this order"):
        outputs.score_with(lm, write(tmp_path / "swapped", **dict.fromkeys(published.WRITERS, swapped)), 3, 0)
    with pytest.raises(InputError, match="a column is missing"):
        published.read(write(tmp_path / "empty", instruct={"response": {}}))
    with pytest.raises(InputError, match="other posts"):
        published.read(write(tmp_path / "fewer", instruct={"response": {"0": "x"}}))
    with pytest.raises(InputError, match="holds no constitutions"):
        published.read(tmp_path)


def test_the_published_files_can_be_read(shared: Path) -> None:
    negatives, written = published.read(shared / "data" / "57-sami-mutual-information")
    assert {len(found) for found in negatives.values()} == {3}
    words = {w: np.mean([len(t.split()) for t in written[w]["response"].values()]) for w in published.WRITERS}
    assert words == pytest.approx({"base": 92.8, "iteration-3": 75.2, "instruct": 87.8}, abs=0.05)
    assert all(len(own["response"]) == 250 for own in written.values())
    kept = {w: np.mean([published.kept(published.clean(t)) for t in written[w]["response"].values()]) for w in written}
    assert kept["base"] == pytest.approx(231 / 250)


# The record


def test_the_criteria_are_the_cards_and_what_was_not_run_is_not_met() -> None:
    fields = ("smallest_effect", "limit")
    numbers = [getattr(c, name) for c in m.SYSTEM.criteria for name in fields if hasattr(c, name)]
    assert numbers == [0.12, 0.0, 0.7, 0.05, 0.02, 1.3, 1e-3, 1.0]
    assert all(c.seeds == 3 for c in m.SYSTEM.criteria)
    state = standing(find("57"))
    assert (state.verdict == "runs") == (not read_results(find("57")))
