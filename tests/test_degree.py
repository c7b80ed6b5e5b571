"""Key phrases, graded versions, and the loss that tells them apart beside any loss on preferences."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optative.core.errors import InputError
from optative.evaluation.grades import right_by_length
from optative.feedback import grades as grades_of
from optative.feedback.grades import WAYS, graded, words
from optative.generators.language import tiny
from optative.generators.language.packing import Group, Pack
from optative.generators.language.trained import prepare_training, trained_parameters
from optative.generators.options import Tiny
from optative.objectives.key_phrases import candidates, key_phrases, stop_words
from optative.optimizers import degree as m
from optative.optimizers.degree import Degree, Graded, degree_loss, features, fit_with_degree, heads_for, pooled
from optative.optimizers.fit import fit
from optative.optimizers.losses.degree import by_class, expected, in_order, most_likely
from optative.optimizers.options import DPO, LOSSES
from optative.optimizers.preference import reference_sums, sums_of
from optative.optimizers.units import Unit

TEXT = " The market costs 58 crowns, runs until Friday noon and is led by the Red Owls. The Red Owls like warm tea."
STOP = {"the", "and", "is", "by", "until"}


# Key phrases


def test_rake_by_a_slow_formula() -> None:
    phrases = candidates(TEXT, STOP)
    assert ("market", "costs", "58", "crowns") in phrases
    assert phrases.count(("red", "owls")) == 1, "a full stop ends a phrase, and `like warm tea` goes on from the other"
    for phrase, score in key_phrases(TEXT, STOP):
        slow = 0.0
        for word in phrase:
            holding = [p for p in phrases for w in p if w == word]
            slow += sum(map(len, holding)) / len(holding)
        assert score == pytest.approx(slow)
    assert next(p for p, _ in key_phrases(TEXT, STOP)) == ("red", "owls", "like", "warm", "tea")


def test_stop_words_and_what_a_text_of_them_alone_gives() -> None:
    assert len(stop_words()) == 318
    assert key_phrases("We have been there, and so have they.") == []
    found = key_phrases("We have been there, and so have they.", documents={"we": 3, "been": 1, "have": 9, "and": 9})
    assert [phrase for phrase, _ in found[:4]] == [("there",), ("so",), ("they",), ("been",)]
    assert key_phrases("") == []


# Graded versions


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("number", [2, 3, 6])
def test_each_grade_misses_all_that_the_one_before_misses(way: Any, number: int) -> None:
    found = graded(TEXT, number, np.random.default_rng(0), way=way, share=1.0 if number == 6 else 0.5)
    assert found is not None
    assert found[0] == TEXT
    assert len(set(found)) == number
    bags = [
        sorted(w for w in text.lower().replace(",", " ").replace(".", " ").split() if w != "some") for text in found
    ]
    for before, after in pairwise(bags):
        assert all(after.count(word) <= before.count(word) for word in after)
        assert len(after) < len(before)
    assert not any("  " in text for text in found)


def test_the_weightiest_phrases_go_from_everywhere() -> None:
    found = graded("Blue tea costs 5 crowns. I like blue tea costs 5 crowns. It is old.", 2, np.random.default_rng(0))
    assert found is not None
    assert "crowns" not in found[1]
    assert "It is old." in found[1]


def test_controls_are_as_long_as_they_should_be() -> None:
    rng = np.random.default_rng(0)
    rake, random, truncation, filler = (graded(TEXT, 3, rng, way=way) or () for way in WAYS)
    assert [words(t) for t in rake] == [words(t) for t in random] == [words(t) for t in truncation]
    assert {words(t) for t in filler} == {words(TEXT)}
    assert TEXT.startswith(truncation[2])
    letters = graded(TEXT, 3, rng, way="filler", length=len)  # longer in words, where each letter counts
    assert letters is not None
    assert words(letters[1]) > words(TEXT)


def test_too_little_to_take_away() -> None:
    rng = np.random.default_rng(0)
    assert graded(" Warm tea.", 3, rng) is None
    assert graded("", 2, rng) is None
    assert graded(" Warm tea.", 2, rng) == (" Warm tea.", " .")
    with pytest.raises(InputError, match="one grade"):
        graded(TEXT, 1, rng)
    with pytest.raises(InputError, match="share"):
        graded(TEXT, 3, rng, share=0.0)


# Losses of grades


@pytest.mark.parametrize("ordinal", [False, True])
def test_losses_of_grades_by_a_slow_formula(ordinal: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((5, 3 - ordinal), generator=generator, dtype=torch.float64, requires_grad=True)
    grades = [0, 1, 2, 1, 0]
    found = (in_order if ordinal else by_class)(logits, torch.tensor(grades))
    for row, grade, value in zip(logits.tolist(), grades, found.tolist()):
        if ordinal:
            p = [1 / (1 + math.exp(-x)) for x in row]
            slow = -sum(math.log(q if grade > j else 1 - q) for j, q in enumerate(p))
            mean = sum(p)
        else:
            p = [math.exp(x) / sum(map(math.exp, row)) for x in row]
            slow, mean = -math.log(p[grade]), sum(k * q for k, q in enumerate(p))
        assert value == pytest.approx(slow)
        assert float(expected(torch.tensor([row]), ordinal=ordinal)) == pytest.approx(mean)
    function = in_order if ordinal else by_class
    assert torch.autograd.gradcheck(lambda x: function(x, torch.tensor(grades)), logits)
    assert most_likely(torch.tensor([[3.0, -1.0]]), ordinal=True).tolist() == [1]
    with pytest.raises(ValueError, match="expected"):
        by_class(logits, torch.zeros(4, dtype=torch.long))


def test_length_alone() -> None:
    assert right_by_length([3, 3, 3, 7], [1, 1, 0, 0], [4, 5, 6], [1, 1, 0]).tolist() == [True, True, True]
    with pytest.raises(InputError):
        right_by_length([], [], [1], [0])


# Beside a loss on preferences


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Any]:
    tokenizer = tiny.train_tokenizer([TEXT] * 3, 300)

    def fresh() -> Any:
        lm = tiny.build(Tiny(layers=2, hidden=32, heads=2, vocabulary=320, context=128), tokenizer, 0)
        prepare_training(lm, None, 0, keep_start=True)
        return lm

    return fresh


def pairs(number: int = 12) -> tuple[list[Unit], list[Graded | None]]:
    rng = np.random.default_rng(1)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(int(i) for i in rng.integers(3, 300, length))

    units, versions = list[Unit](), list[Graded | None]()
    for i in range(number):
        prompt, chosen, rejected = ids(4), ids(9), ids(7)
        units.append(Unit(str(i), Group(prompt, (chosen, rejected))))
        own = [*(chosen[k:] for k in (0, 2, 4)), *(rejected[k:] for k in (0, 2, 4))]
        versions.append(Graded(Group(prompt, tuple(own)), (0, 0, 0, 1, 1, 1), (0, 1, 2, 0, 1, 2)))
    versions[3] = None
    return units, versions


OPTIONS = DPO(learning_rate=1e-3, schedule="constant", warmup_ratio=0.0, units_per_step=4)


def gradient(lm: Any, versions: Any, heads: Any, degree: Degree, chosen: tuple[int, ...] = (0, 1)) -> dict[str, Any]:
    parameters = trained_parameters(lm)
    for p in [*parameters.values(), *heads.parameters()]:
        p.grad = None
    torch.manual_seed(5)
    degree_loss(lm, versions, heads, degree).loss(chosen, 4).loss.backward()
    return {name: p.grad for name, p in parameters.items() if p.grad is not None}


def test_pooled_leaves_out_the_state_that_has_read_the_prompt_alone(model: Any) -> None:
    lm = model()
    group = Group((5, 6, 7), ((9, 10, 11), (12,)))
    found = pooled(lm, Pack((group,), (0,)), "mean")
    last = pooled(lm, Pack((group,), (0,)), "last")
    states = lm.model.model(input_ids=torch.tensor([[5, 6, 7, 9, 10, 11]])).last_hidden_state[0]
    assert torch.allclose(found[0], states[3:5].mean(0), atol=1e-5)
    assert torch.allclose(last[0], states[4], atol=1e-5)
    assert torch.allclose(found[1], states[2], atol=1e-5), "one token: the state that predicts it is all there is"


def test_one_version_a_step_is_right_in_the_mean(model: Any) -> None:
    lm, (_, versions) = model(), pairs()
    heads = heads_for(lm, Degree(), 0)
    whole = float(degree_loss(lm, versions, heads, Degree(versions="all")).loss((0, 1), 4).loss.detach())
    drawn = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        one = degree_loss(lm, versions, heads, Degree())
        for seed in range(200):
            torch.manual_seed(seed)
            drawn.append(float(one.loss((0, 1), 4).loss))
        torch.manual_seed(3)
        apart = float(one.loss((1,), 4).loss) + float(one.loss((0,), 4).loss)
        torch.manual_seed(3)
        together = float(one.loss((0, 1), 4).loss)
    assert np.std(drawn) > 0
    assert np.mean(drawn) == pytest.approx(whole, abs=4 * np.std(drawn) / math.sqrt(200))
    assert apart == pytest.approx(together, rel=1e-5), "the draw is the unit's, whatever it is packed with"


def test_the_whole_loss_by_a_slow_formula(model: Any) -> None:
    lm, (_, versions) = model(), pairs()
    degree = Degree(versions="all", gamma=0.3)
    heads = heads_for(lm, degree, 0)
    found = float(degree_loss(lm, versions, heads, degree).loss((0, 3, 5), 4).loss.detach())
    slow = 0.0
    for one in (versions[0], versions[5]):
        assert one is not None
        states = features(lm, [one.group], "mean")[0]
        for role in (0, 1):
            logits = heads.linear[role](states[3 * role : 3 * role + 3])
            slow -= 0.3 * float(logits.detach().log_softmax(1).diagonal().mean()) / 4
    assert found == pytest.approx(slow, rel=1e-5), "unit 3 has no versions and adds nothing"


def gradients_reach_the_model_unless_detached(lm: Any, versions: Any) -> None:
    assert any(float(g.abs().max()) > 0 for g in gradient(lm, versions, heads_for(lm, Degree(), 0), Degree()).values())
    detached = Degree(detach=True)
    heads = heads_for(lm, detached, 0)
    assert not gradient(lm, versions, heads, detached)
    assert float(heads.linear[0].weight.grad.abs().max()) > 0


def test_shared_head_and_roles(model: Any) -> None:
    lm = model()
    for degree, number in ((Degree(), 2), (Degree(shared_head=True), 1), (Degree(roles="chosen"), 1)):
        assert len(heads_for(lm, degree, 0).linear) == number
    assert heads_for(lm, Degree(ordinal=True, grades=4), 0).linear[0].out_features == 3
    with pytest.raises(ValueError, match="cannot act"):
        Degree(shared_head=True, roles="chosen")
    with pytest.raises(ValueError, match="stops at once"):
        Degree(most_perplexity=0.9)


def reference_knows_nothing_of_degrees(lm: Any, folder: Path, versions: Any, degree: Degree) -> None:
    units, _ = pairs()
    before = reference_sums(lm, units, range(len(units)), OPTIONS)
    assert all(len(own) == 2 for own in before), "the two answers, and no version of them"
    fit_with_degree(lm, units, versions, loss="dpo", options=OPTIONS, degree=degree, seed=0, folder=folder)
    assert reference_sums(lm, units, range(len(units)), OPTIONS) == before
    assert sums_of(lm, units, range(len(units)), OPTIONS) != before


def preferences_see_no_versions(model: Any, folder: Path) -> None:
    """With the language model's gradient of the degree loss cut off, the policy is, bit for bit, that without it."""
    units, versions = pairs()
    free = OPTIONS.model_copy(update={"max_grad_norm": 1e9})  # else heads would have a say in how much is clipped
    given: dict[str, Any] = {"loss": "dpo", "options": free, "seed": 0}
    beside, plain = model(), model()
    fit_with_degree(beside, units, versions, degree=Degree(detach=True), folder=folder / "beside", **given)
    fit(plain, units, folder=folder / "plain", **given)
    for own, other in zip(beside.model.parameters(), plain.model.parameters()):
        assert torch.equal(own, other)


def test_a_training_tells_versions_apart_and_goes_on_after_a_kill(model: Any, tmp_path: Path) -> None:
    units, versions = pairs()
    options = OPTIONS.model_copy(update={"checkpoint_every": 1})
    given: dict[str, Any] = {"loss": "dpo", "options": options, "degree": Degree(versions="all"), "seed": 0}
    lm = model()
    heads, lines = fit_with_degree(lm, units, versions, folder=tmp_path / "whole", **given)
    assert lines[-1]["degree/accuracies"] > 1 / 3

    class Killed(Exception):
        pass

    real, count = m.degree_loss, []

    def dies(*given: Any) -> Any:
        beside = real(*given)

        def loss(own: Any, num_units: int) -> Any:
            count.append(own)
            if len(count) == 2:
                raise Killed
            return beside.loss(own, num_units)

        return m.Beside(beside.parameters, loss)

    second = model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(m, "degree_loss", dies)
        with pytest.raises(Killed):
            fit_with_degree(second, units, versions, folder=tmp_path / "killed", **given)
    third = model()
    again, _ = fit_with_degree(third, units, versions, folder=tmp_path / "killed", **given)
    for a, b in zip([*lm.model.parameters(), *heads.parameters()], [*third.model.parameters(), *again.parameters()]):
        assert torch.equal(a, b)


def test_too_large_a_gamma_is_stopped(model: Any, tmp_path: Path) -> None:
    units, versions = pairs()
    settings = OPTIONS.model_copy(update={"learning_rate": 3e-2, "epochs": 4, "eval_every": 1})
    given: dict[str, Any] = {"loss": "dpo", "options": settings, "seed": 0}
    fit_with_degree(model(), units, versions, degree=Degree(gamma=100), folder=tmp_path / "free", **given)
    watched = Degree(gamma=100, most_perplexity=1.2)
    with pytest.raises(m.Collapsed, match="as perplexing") as raised:
        fit_with_degree(model(), units, versions, degree=watched, folder=tmp_path / "seen", held_out=units[:4], **given)
    assert "gamma" in str(raised.value)
    with pytest.raises(InputError, match="without held-out"):
        fit_with_degree(model(), units, versions, degree=watched, folder=tmp_path / "blind", **given)
    with pytest.raises(InputError, match="no answer has versions"):
        fit_with_degree(model(), units, [None] * 12, degree=Degree(), folder=tmp_path / "none", **given)


@pytest.mark.parametrize("loss", ["dpo", "ipo", "kto", "simpo", "hinge", "aot"])
def test_the_same_call_works_beside_other_losses(loss: str, model: Any, tmp_path: Path) -> None:
    units, versions = pairs()
    config: Any = LOSSES[loss].config
    options = config(learning_rate=1e-3, units_per_step=4)
    _, lines = fit_with_degree(
        model(), units, versions, loss=loss, options=options, degree=Degree(), seed=0, folder=tmp_path
    )
    assert len(lines) == 3
    assert all(math.isfinite(line["loss"]) and "degree/loss" in line for line in lines)


# Faults


def fault_detached_always(patch: pytest.MonkeyPatch) -> None:
    real = m.pooled
    patch.setattr(m, "pooled", lambda *given: real(*given).detach().requires_grad_())


def fault_reference_moves(patch: pytest.MonkeyPatch) -> None:
    real = m.fit

    def moved(lm: Any, *given: Any, **named: Any) -> Any:
        found = real(lm, *given, **named)
        prepare_training(lm, None, 0, keep_start=True)  # the policy with its heads' gradients becomes the reference
        return found

    patch.setattr(m, "fit", moved)


def test_gradients_reach_the_model_and_a_fault_is_found(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = pairs()[1]
    gradients_reach_the_model_unless_detached(model(), versions)
    fault_detached_always(monkeypatch)
    with pytest.raises(AssertionError):
        gradients_reach_the_model_unless_detached(model(), versions)


def test_the_reference_stays_and_a_fault_is_found(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = pairs()[1]
    reference_knows_nothing_of_degrees(model(), tmp_path / "a", versions, Degree())
    fault_reference_moves(monkeypatch)
    with pytest.raises(AssertionError):
        reference_knows_nothing_of_degrees(model(), tmp_path / "b", versions, Degree())


def fault_versions_are_pairs(patch: pytest.MonkeyPatch) -> None:
    real = m.fit

    def more(lm: Any, units: Any, **named: Any) -> Any:
        worse = [
            Unit(f"{u.id}'", Group(u.group.prompt_ids, (ids, ids[3:]))) for u in units for ids in u.group.completion_ids
        ]
        named["beside"] = None
        return real(lm, [*units, *worse], **named)

    patch.setattr(m, "fit", more)


def test_versions_are_no_pairs_and_a_fault_is_found(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preferences_see_no_versions(model, tmp_path / "a")
    fault_versions_are_pairs(monkeypatch)
    with pytest.raises(AssertionError):
        preferences_see_no_versions(model, tmp_path / "b")


def fault_length_goes_too(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(grades_of, "FILLER", "")


def test_filler_keeps_the_length_and_a_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    test_controls_are_as_long_as_they_should_be()
    fault_length_goes_too(monkeypatch)
    with pytest.raises(AssertionError):
        test_controls_are_as_long_as_they_should_be()
