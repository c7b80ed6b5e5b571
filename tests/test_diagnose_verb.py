"""`optative diagnose` end to end on tiny models: slow re-computation, cache, skipped pairs, pages, wrong input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optative.cli.main import main
from optative.core.errors import InputError
from optative.core.events import Silent
from optative.core.rng import stream
from optative.data.pair_steps import PairSteps, write_pair_steps
from optative.evaluation.diagnosis import Scored, diagnose
from optative.evaluation.report.diagnosis import curves_page, pairs_page
from optative.generators.language.adapters import add_lora, lora_parameters, save_adapter
from optative.generators.language.load import load_language_model
from optative.generators.options import LoraOptions
from optative.runs.diagnose import Length, diagnose_curves, diagnose_pairs
from report_folder import NASTY
from test_report import Page
from test_report_browser import CONTRAST
from tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return str(save_tiny_model(folder / "tuned", seed=0)), str(save_tiny_model(folder / "start", seed=1))


def records(n: int = 12) -> list[dict[str, Any]]:
    rng = stream("records")
    words = ["river", "stone", "cloud", "apple", "train", "music", "night", "paper"]

    def text(most: int) -> str:
        return " ".join(rng.choice(words, rng.integers(1, most)))

    return [
        {
            "prompt": f"{text(4)} {i}?",
            "chosen": f" {text(6)}.",
            "rejected": f" {text(6)}!",
            "votes": 0.6 + 0.03 * i,
        }
        for i in range(n)
    ]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "pairs.jsonl", records())


def asked(file: Path, models: tuple[str, str], **more: Any) -> dict[str, Any]:
    return diagnose_pairs(file, models[0], models[1], dtype="float32", events=Silent(), **more)


def slow(model: str, prompt: str, answer: str) -> float:
    """Summed log-probability, one token at a time, by Transformers alone."""
    lm = load_language_model(model, dtype="float32")
    before = lm.tokenizer.encode(prompt)
    ids, total = list(before), 0.0
    for token in [*lm.tokenizer.encode(answer, add_special_tokens=False), lm.tokenizer.eos_token_id]:
        with torch.no_grad():
            logits = lm.model(torch.tensor([ids], device=lm.device)).logits[0, -1].double()
        total += float(logits.log_softmax(-1)[token])
        ids.append(token)
    return total


def test_scores_are_those_of_a_slow_computation(models: tuple[str, str], file: Path, tmp_path: Path) -> None:
    found = asked(file, models, out=tmp_path / "d", limit=3)
    lines = [json.loads(line) for line in (tmp_path / "d" / "pairs.jsonl").open()]
    for line, record in zip(lines, records()):
        for side, name in zip(("model", "reference"), models):
            for which in ("chosen", "rejected"):
                exact = slow(name, record["prompt"], record[which])
                assert line[f"{side}_{which}"] == pytest.approx(exact, abs=1e-3)
                assert line[f"{side}_{which}_tokens"] == len(record[which]) + 1
        hard = line["reference_rejected"] - line["reference_chosen"]
        assert line["difficulty"] == pytest.approx(hard)
    right = [line["model_chosen"] > line["model_rejected"] for line in lines]
    assert found["metrics"][0]["model"] == pytest.approx(np.mean(right))
    assert found["n"] == 3


def test_figures_agree_with_a_recount_of_the_pairs(models: tuple[str, str], file: Path, tmp_path: Path) -> None:
    found = asked(file, models, out=tmp_path / "d", betas=[0.1, 1.0])
    lines = [json.loads(line) for line in (tmp_path / "d" / "pairs.jsonl").open()]
    for i, beta in enumerate((0.1, 1.0)):
        ideal = [-line["difficulty"] + math.log(3) / beta > 0 for line in lines]
        assert found["idealised"]["raw"]["by_beta"][i]["value"] == pytest.approx(np.mean(ideal))
        assert found["idealised"]["raw"]["by_beta"][i]["not_fixable"] == len(ideal) - sum(ideal)
    flips = found["flips"]["raw"]
    assert flips["both_right"] + flips["positive_flip"] + flips["negative_flip"] + flips["both_wrong"] == 12
    assert flips["accuracy_new"] == pytest.approx(found["metrics"][0]["model"])
    assert (found["prompts"], found["n"]) == (12, 12)
    less = [np.sign(x["model_rejected_tokens"] - x["model_chosen_tokens"]) for x in lines]
    assert sum(less) != 0
    assert found["length"]["chosen_is_shorter"]["value"] == pytest.approx(np.mean(less) / 2 + 0.5)
    first = [(x["model_chosen"] > x["model_rejected"]) == (sign > 0) for x, sign in zip(lines, less) if sign]
    assert found["length"]["model_ranks_shorter_first"] == pytest.approx(np.mean(first))
    assert found["gap"]["raw"]["value"] == pytest.approx(
        found["idealised"]["raw"]["median"] - found["metrics"][0]["model"]
    )
    hardest = [row["difficulty"] for row in found["hardest"]]
    assert hardest == sorted((line["difficulty"] for line in lines if line["difficulty"] > 0), reverse=True)
    for row in found["hardest"]:
        assert row["required_loss"][0] == pytest.approx(math.log1p(math.exp(-0.1 * row["difficulty"])))
        assert row["largest_beta"] == pytest.approx(math.log(3) / row["difficulty"])


def test_a_second_call_reads_the_scores_and_gives_the_same_bytes(
    models: tuple[str, str], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optative.runs import diagnose as verb

    first = asked(file, models, out=tmp_path / "d")
    kept = {n: (tmp_path / "d" / n).read_bytes() for n in ("diagnosis.json", "pairs.jsonl", "report.html")}

    def refuse(*_: Any) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr(verb, "summed", refuse)
    assert asked(file, models, out=tmp_path / "d") == first
    assert {n: (tmp_path / "d" / n).read_bytes() for n in kept} == kept
    other = asked(file, models, out=tmp_path / "d", betas=[3.0], vote_share=0.9)
    assert other["betas"] == [3.0]
    with pytest.raises(AssertionError, match="scored again"):  # other tokens are other scores
        asked(file, models, out=tmp_path / "d", length=Length(answer=4))


def test_an_interrupted_call_goes_on_where_it_was(models: tuple[str, str], tmp_path: Path) -> None:
    """A crash in the middle of the second chunk: what is whole stays, the rest is scored again, to the same bytes."""
    file = written(tmp_path / "pairs.jsonl", records(40))
    whole = asked(file, models, out=tmp_path / "d")
    for journal in (tmp_path / "d" / "stages").glob("scores-*.jsonl"):
        first, second = journal.read_bytes().splitlines(keepends=True)
        journal.write_bytes(first + second[: len(second) // 2])
    assert asked(file, models, out=tmp_path / "d") == whole


def test_what_does_not_fit_is_counted_and_cuts_are_only_made_on_request(
    models: tuple[str, str], tmp_path: Path
) -> None:
    rows = records(4)
    rows[0]["chosen"] = " long" * 30
    rows[1]["prompt"] = "long " * 50
    rows += [{"prompt": "a", "chosen": "b", "rejected": "b"}, {"prompt": "a", "chosen": "", "rejected": "b"}]
    file = written(tmp_path / "pairs.jsonl", rows)
    skipped = asked(file, models, out=tmp_path / "d", length=Length(100))["skipped"]
    counts = {k: v for k, v in skipped.items() if v}
    assert counts == {"identical": 1, "empty": 1, "prompt_too_long": 1, "answer_too_long": 1}
    cut = asked(file, models, out=tmp_path / "c", length=Length(100, prompt=20, answer=10))
    assert (cut["n"], cut["skipped"]["cut_on_request"], cut["skipped"]["answer_too_long"]) == (4, 4, 0)
    lines = [json.loads(line) for line in (tmp_path / "c" / "pairs.jsonl").open()]
    assert max(line["model_chosen_tokens"] for line in lines) == 10
    with pytest.raises(InputError, match=r"no pair fits: .*4 an answer would be cut"):
        asked(file, models, out=tmp_path / "e", length=Length(20, prompt=19))


def test_prompts_that_differ_are_counted(models: tuple[str, str], tmp_path: Path) -> None:
    turns = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: {}\n\nAssistant: {}"
    rows = [
        {"chosen": turns.format("Say it", "river"), "rejected": turns.format("Say it", f"stone {i}")} for i in (1, 2)
    ]
    rows.append({"chosen": turns.format("One", "river"), "rejected": turns.format("Two", "stone")})
    file = written(tmp_path / "pairs.jsonl", rows)
    found = asked(file, models, out=tmp_path / "d")
    assert (found["format"], found["n"], found["skipped"]["border"]) == ("hh", 2, 1)
    assert found["prompts"] == 1


def test_shares_of_a_column(models: tuple[str, str], file: Path, tmp_path: Path) -> None:
    found = asked(file, models, shares="votes", out=tmp_path / "d", betas=[0.2])
    lines = [json.loads(line) for line in (tmp_path / "d" / "pairs.jsonl").open()]
    assert [line["share"] for line in lines] == [r["votes"] for r in records()]
    ideal = [-x["difficulty"] + math.log(x["share"] / (1 - x["share"])) / 0.2 > 0 for x in lines]
    assert found["idealised"]["raw"]["median"] == pytest.approx(np.mean(ideal))
    assert found["shares"] == {"column": "votes", "constant": None, "mean": pytest.approx(0.765)}
    rows = records(4)
    rows[0]["chosen"] = " long" * 30
    asked(written(tmp_path / "skips.jsonl", rows), models, shares="votes", out=tmp_path / "s", length=Length(100))
    kept = [json.loads(line)["share"] for line in (tmp_path / "s" / "pairs.jsonl").open()]
    assert kept == [row["votes"] for row in rows[1:]]  # a skipped pair takes its votes with it
    rows[2]["votes"] = "80%"
    wrong = written(tmp_path / "wrong.jsonl", rows)
    with pytest.raises(InputError, match=r"wrong\.jsonl:3: votes: not a share; found '80%', expected 0 to 1"):
        asked(wrong, models, shares="votes", out=tmp_path / "w")
    with pytest.raises(InputError, match="the nearest is 'votes'"):
        asked(file, models, shares="vote", out=tmp_path / "v")


def test_an_adapter_is_the_model_and_its_base_the_reference(
    models: tuple[str, str], file: Path, tmp_path: Path
) -> None:
    lm = load_language_model(models[1], dtype="float32")
    add_lora(lm, LoraOptions(rank=2), seed=0)
    with torch.no_grad():
        for name, parameter in lora_parameters(lm).items():
            if "lora_B" in name:
                parameter.copy_(torch.from_numpy(stream(name).normal(0, 0.3, tuple(parameter.shape))))
    save_adapter(lm, tmp_path / "adapter")
    tuned = diagnose_pairs(
        file, models[1], models[1], adapter=tmp_path / "adapter", dtype="float32", out=tmp_path / "d", events=Silent()
    )
    assert tuned["model"]["adapter"]
    assert tuned["reference"]["adapter"] is None
    assert tuned["model"]["fingerprint"] == tuned["reference"]["fingerprint"]
    assert tuned["metrics"][3]["model"] != 0
    assert "same_model" not in [w["code"] for w in tuned["warnings"]]
    same = diagnose_pairs(file, models[1], models[1], dtype="float32", out=tmp_path / "s", events=Silent())
    assert "same_model" in [w["code"] for w in same["warnings"]]
    assert same["flips"]["raw"]["nfr"]["value"] == 0
    assert same["metrics"][2]["model"] == 0.5


def test_the_verb_prints_json_or_words_and_the_folder(
    models: tuple[str, str], file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["diagnose", "pairs", str(file), "--model", models[0], "--reference", models[1], "--dtype", "float32"]
    assert main([*command, "--out", str(tmp_path / "d"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {**json.loads((tmp_path / "d" / "diagnosis.json").read_text()), "folder": str(tmp_path / "d")}
    assert main([*command, "--out", str(tmp_path / "d")]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "d")
    assert "ranking_accuracy_per_token" in said.err
    assert "12 pairs were scored. All whole." in said.err
    assert str(tmp_path) not in (tmp_path / "d" / "report.html").read_text()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--shares", "votes", "--vote-share", "0.8"], "cannot act beside --shares"),
        (["--vote-share", "1"], "--vote-share: not a share"),
        (["--beta", "0"], "--beta: not a beta"),
        (["--shares", "prompt_votes"], "unknown column"),
        (["--limit", "0"], "--limit"),
        (["--format", "ranked"], "completions: missing"),
        (["--adapter", "nowhere"], "nowhere"),
    ],
)
def test_wrong_options_end_with_code_2(
    more: list[str], says: str, models: tuple[str, str], file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["diagnose", "pairs", str(file), "--model", models[0], "--reference", models[1]]
    assert main([*command, "--out", str(tmp_path / "d"), *more]) == 2
    assert says in capsys.readouterr().err


def test_files_without_pairs_and_models_that_are_none(models: tuple[str, str], tmp_path: Path, capsys: Any) -> None:
    ties = written(tmp_path / "t.jsonl", [{"prompt": "a", "completion": "b", "label": True}])
    with pytest.raises(InputError, match="holds no strict pair"):
        asked(ties, models, out=tmp_path / "d")
    file = written(tmp_path / "pairs.jsonl", records(2))
    assert main(["diagnose", "pairs", str(file), "--model", models[0]]) == 2
    assert "--reference" in capsys.readouterr().err
    with pytest.raises(InputError, match="no such folder"):
        asked(file, (models[0], "./nowhere"), out=tmp_path / "n")
    with pytest.raises(InputError, match="no such file"):
        asked(tmp_path / "none.jsonl", models, out=tmp_path / "n")


def fake(n: int, seed: int = 0) -> dict[str, Any]:
    """A diagnosis of made-up scores, with the fields that the wiring adds."""
    rng = stream("fake", seed)
    sides = [Scored(*rng.normal(-60, 15, (2, n)), *rng.integers(3, 80, (2, n))) for _ in range(2)]
    found = diagnose([f"p{i}" for i in range(n)], *sides, [0.75] * n)
    for row in found["hardest"]:
        row.pop("index")
        row |= {"line": 1, "prompt": NASTY[0], "chosen": NASTY[2], "rejected": NASTY[3]}
    facts = {"name": NASTY[0], "dtype": "float32", "fingerprint": "f" * 64, "adapter": None, "template_hash": "t" * 64,
             "notes": [NASTY[1]]}  # fmt: skip
    return {
        "file": NASTY[4], "model": facts, "reference": facts, "skipped": {"ties": 3, "border": 0},
        "shares": {"column": None, "constant": 0.75, "mean": 0.75}, **found,
    }  # fmt: skip


def test_the_page_is_whole_escaped_and_the_same_twice() -> None:
    found = fake(50)
    html = pairs_page(found)
    assert html == pairs_page(json.loads(json.dumps(found)))
    page = Page(html)  # balanced tags
    assert "script" not in [tag for tag, _ in page.tags]
    assert "img" not in [tag for tag, _ in page.tags]
    assert html.count("<svg") >= 2
    assert "nan" not in page.words.lower().split()
    assert "U+202E" in html
    assert "alert(1)" in page.words  # shown as text
    (policy,) = (a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in str(policy)
    assert "judged equally good" in page.words
    for one in (fake(1), fake(2, 3)):
        Page(pairs_page(one))


def test_equal_lengths_and_few_pairs_do_not_break_the_figures() -> None:
    ones = np.full(2, 5)
    side = Scored(np.array([-1.0, -2.0]), np.array([-2.0, -2.0]), ones, ones)
    found = diagnose(["a", "b"], side, side, [0.6, 0.3])
    json.dumps(found, allow_nan=False)
    assert found["length"]["model_ranks_shorter_first"] is None
    assert [w["code"] for w in found["warnings"]][:3] == ["few_pairs", "same_model", "label_against_votes"]


def test_curves_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = stream("run")
    ref = rng.normal(-50, 9, (2, 40))
    moved = np.arange(6)[:, None] * rng.uniform(0, 1, 40)
    found = PairSteps(
        np.arange(6) * 5, tuple(map(str, range(40))), ref[0] + moved, ref[1] - moved, *ref,
        *rng.integers(3, 9, (2, 40)), beta=0.1,
    )  # fmt: skip
    write_pair_steps(tmp_path / "run" / "pairs.parquet", found)
    assert main(["diagnose", "curves", str(tmp_path / "run"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["run"], told["n"], told["lowest_loss"]["step"]) == ("run", 40, 25)
    wrong = ref[0] <= ref[1]
    now = (ref[0] + moved[5] > ref[1] - moved[5])[wrong]
    assert told["lowest_loss"]["flip_rate"]["value"] == pytest.approx(now.mean())
    assert sum(row["n"] for row in told["lowest_loss"]["by_difficulty"]) == wrong.sum()
    html = (tmp_path / "run" / "curves" / "report.html").read_text()
    assert html.count("<svg") >= 6
    Page(html)
    assert curves_page(told) == html
    assert main(["diagnose", "curves", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "run" / "curves")
    assert "25 (lowest)" in said.err
    with pytest.raises(InputError, match=r"holds no pairs\.parquet"):
        diagnose_curves(tmp_path)


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(375, "light"), (1280, "dark")])
def test_the_page_is_readable_on_every_screen(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    (tmp_path / "report.html").write_text(pairs_page(fake(80)))
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page, messages = context.new_page(), []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto((tmp_path / "report.html").as_uri())
    assert messages == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    worst, element, text = page.evaluate(CONTRAST)
    assert worst >= 4.5, (worst, element, text)
    context.close()


@pytest.mark.model
def test_real_pairs_under_the_real_model(default_model_folder: Path, shared: Path, tmp_path: Path) -> None:
    """Card 51, B, small: deterministic, agrees with one slow computation, and ranks by length."""
    from optative.data.files import source

    (source_file,) = source(shared / "data" / "51-preference-rankings" / "hh_harmless_base_test.jsonl.gz").files
    found = diagnose_pairs(
        source_file, str(default_model_folder), str(default_model_folder), limit=6, dtype="float32",
        length=Length(prompt=32, answer=16), out=tmp_path / "d", events=Silent(),
    )  # fmt: skip
    assert found["n"] == 6
    lines = [json.loads(line) for line in (tmp_path / "d" / "pairs.jsonl").open()]
    assert all(line["model_chosen"] == line["reference_chosen"] < 0 for line in lines)
    assert max(line["model_chosen_tokens"] for line in lines) <= 16
