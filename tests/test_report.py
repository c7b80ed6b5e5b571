"""The report: what it says, what it escapes, what it does with half a run."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from optative.core.errors import InputError
from optative.evaluation.report import render_report, write_report
from optative.evaluation.report.examples import examples
from optative.evaluation.report.facts import headline, lede, recomputed_checks
from optative.evaluation.report.figures import COLOUR, Curve, Dumbbell, curves, dumbbells, running_mean, themed
from optative.evaluation.report.reading import FILES, read_run_folder, recomputed
from optative.evaluation.report.words import METRICS, NOT_MEASURED, amount, reading, visible, without_paths
from report_folder import NASTY, TRAINED, build

VOID = {"meta", "link", "input", "br", "img"}


class Page(HTMLParser):
    """Checks that tags are balanced; collects tags, attributes, ids and visible text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()} closes another tag"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("runs") / "demo-1a2b3c4d", prompts=90, unseen=24, steps=64, gain=0.22)


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return render_report(folder)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_headline_says_what_was_asked_what_changed_how_sure_and_who_judged(page: Page, folder: Path) -> None:
    row = json.loads((folder / "evaluation.json").read_text())["metrics"][0]
    assert row["name"] == "prompt_accuracy"
    h1 = headline(read_run_folder(folder))
    assert f"{100 * row['steered']:.1f}\u00a0%" in h1
    assert f"{100 * row['base']:.1f}\u00a0%" in h1
    said = " ".join(lede(read_run_folder(folder)))
    assert "follow verifiable instructions" in said
    assert f"{100 * row['interval'][0]:+.1f} to {100 * row['interval'][1]:+.1f}" in said.replace("\u2212", "-")
    assert "90\u00a0prompts" in said
    assert "the rule that training used, on prompts that training never saw" in said
    assert "never trained on" in said
    for sentence in lede(read_run_folder(folder)):
        assert " ".join(sentence.split()) in page.words


def test_costs_stand_beside_gains_and_losses_are_never_cut(page: Page, folder: Path) -> None:
    for name in ("negative_flips", "kl", "completion_tokens", "logp_base_per_token", "distinct_2", "repetition"):
        assert METRICS[name].label in page.words
    run = read_run_folder(folder)
    flips = run.evaluation["flips"]
    groups = {group["code"]: group for group in examples(run)["groups"]}
    for code in ("lost", "gained"):
        expected = sum(flips[split][code] for split in flips)
        assert groups[code]["total"] == len(groups[code]["entries"]) == expected > 0
    assert next(iter(groups)) == "lost"
    kept = {
        attributes["id"]
        for tag, attributes in page.tags
        if tag == "details" and "ex" in (attributes.get("class") or "")
    }
    assert len(kept) == sum(len(group["entries"]) for group in groups.values())


def test_checks_are_marked_with_words_not_only_colour(page: Page) -> None:
    assert "✓ passed" in page.words
    assert "✗ failed" in page.words
    assert "▲ better" in page.words
    assert "▼ worse" in page.words


def test_everything_written_by_others_is_escaped(html: str, page: Page) -> None:
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "iframe", "object", "embed", "form", "base"}
    assert [tag for tag, _ in page.tags].count("style") == 1
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on") or key == "style"]
    for nasty in (NASTY[0], NASTY[1], NASTY[2], NASTY[4]):
        assert " ".join(nasty.split()) in page.words, "shown as it was written"
    assert "49" not in re.findall(r"\{\{.{0,12}", page.words)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b\u2028\u2029\x00-\x08\x0b-\x1f\x7f-\x9f]", html)
    assert "U+202E" in page.words
    assert "U+001B" in page.words
    assert 'title="right-to-left override"' in html
    assert NASTY[5].split()[0] in page.words, "joined emoji stay whole"


def test_names_of_any_field_are_escaped(tmp_path: Path) -> None:
    """Every string of every file, keys of free mappings too, becomes one that breaks out where it is not escaped."""
    evil = "\"'><img src=x onerror=alert(1)></style></title>{{ 7*7 }}\u202e"
    run = build(tmp_path / "a <b> & 'c'", prompts=6, unseen=3, steps=8)
    fixed = {"stage", "model", "name", "split", "mode", "kind"}

    def spoil(value: object, key: str = "") -> object:
        if isinstance(value, dict):
            free = key in ("versions", "hardware", "counts", "data", "wall_seconds")
            return {(k + evil if free else k): spoil(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [spoil(item, key) for item in value]
        return value + evil if isinstance(value, str) and key not in fixed else value

    for name in ("manifest.json", "evaluation.json", "samples.jsonl", "metrics.jsonl"):
        lines = [(run / name).read_text("utf-8")]
        if name.endswith("l"):
            lines = [line for line in lines[0].split("\n") if line]
        (run / name).write_text("".join(json.dumps(spoil(json.loads(line))) + "\n" for line in lines))
    evaluation = json.loads((run / "evaluation.json").read_text())
    for row in evaluation["by_kind"]:
        row["kind"] += evil
    evaluation["metrics"].append({"name": evil, "split": evil, "base": 1, "steered": 2})
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    html = render_report(run)
    page = Page(html)
    assert "img" not in {tag for tag, _ in page.tags}
    assert "\u202e" not in html
    assert page.words.count("{{ 7*7 }}") > 20
    assert page.words.count("onerror=alert(1)") > 20


def test_nothing_is_loaded_from_outside_and_the_policy_forbids_it(html: str, page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)), "an id occurs twice"
    for tag, attributes in page.tags:
        for key in ("href", "xlink:href", "src", "action", "srcset", "data"):
            if (value := attributes.get(key)) is not None:
                assert value == "data:," or (value.startswith("#") and value[1:] in ids), (tag, key, value)
        for value in attributes.values():
            for target in re.findall(r"url\(#?([^)]*)\)", value or ""):
                assert target in ids
    style = re.search("<style>(.*?)</style>", html, re.S)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    import base64
    import hashlib

    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert f"style-src 'sha256-{digest}';" in policy
    assert "unsafe" not in policy


def test_no_number_is_nan(page: Page, folder: Path, tmp_path: Path) -> None:
    run = build(tmp_path / "run", prompts=12, unseen=4, steps=16)
    evaluation = json.loads((run / "evaluation.json").read_text())
    for row in [*evaluation["metrics"], *evaluation["by_kind"]]:
        row |= {"base": float("nan"), "difference": None, "interval": [None, float("inf")]}
    evaluation["flips"]["held_out"] |= {"mcnemar_p": None}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in steps:
        row |= {"loss": float("nan"), "grad_norm": None, "rewards/margins": float("inf")}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    broken = Page(render_report(run))
    assert NOT_MEASURED in broken.words
    for shown in (page, broken):
        assert not re.search(r"\b(nan|inf|none%|undefined|None)\b", shown.words)


def test_two_renders_are_equal_bytes(folder: Path, html: str, tmp_path: Path) -> None:
    assert render_report(folder) == html
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copytree(folder, tmp_path / "elsewhere" / folder.name)
    path = write_report(copy)
    assert path == copy / "report.html"
    assert path.read_text("utf-8") == html
    assert render_report(copy) == html, "the report is not among its own inputs"
    assert str(tmp_path) not in html


@pytest.mark.parametrize("lacking", FILES)
def test_a_missing_file_is_named_and_the_rest_is_shown(folder: Path, tmp_path: Path, lacking: str) -> None:
    copy = shutil.copytree(folder, tmp_path / folder.name)
    (copy / lacking).unlink()
    page = Page(render_report(copy))
    assert f"Not in the folder: {lacking}" in page.words
    assert "How it was made" in page.words


@pytest.mark.parametrize("present", FILES)
def test_one_file_alone_is_enough(folder: Path, tmp_path: Path, present: str) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(folder / present, tmp_path / "run" / present)
    words = Page(render_report(tmp_path / "run")).words
    if present != "evaluation.json":
        assert "holds no evaluation" in words
    if present == "metrics.jsonl":
        assert "for 64 steps; what that changed has not been measured yet" in words


def test_an_interrupted_journal_is_read_and_a_broken_one_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / folder.name)
    whole = (copy / "metrics.jsonl").read_bytes()
    (copy / "metrics.jsonl").write_bytes(whole[:-30])
    assert "metrics.jsonl ends in half a line" in Page(render_report(copy)).words
    (copy / "metrics.jsonl").write_bytes(whole[:200] + b"\n" + whole)
    with pytest.raises(InputError, match=r"metrics\.jsonl:1: not JSON"):
        render_report(copy)


def test_no_run_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        render_report(tmp_path / "absent")
    with pytest.raises(InputError, match="holds no run"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_an_alignment_has_pairs_and_no_checks(tmp_path: Path) -> None:
    run = build(tmp_path / "own-pairs", kind="align", steps=40)
    page = Page(render_report(run))
    assert "ranks 68.3 % of held‑out pairs as they were preferred; before, it was 52.5 %" in page.words
    assert "on 120 pairs, each scored by both models" in page.words
    assert "By kind" not in page.words
    assert "/home/" not in page.words
    assert "secret project" not in page.words
    assert "/srv/" not in page.words
    assert "…/pairs.jsonl" in page.words


def test_what_the_evaluation_writes_is_what_the_report_reads(folder: Path, tmp_path: Path) -> None:
    from optative.evaluation.assemble import assemble
    from optative.evaluation.ranking import assemble_ranking

    copy = shutil.copytree(folder, tmp_path / folder.name)
    rows = [json.loads(line) for line in (copy / "samples.jsonl").read_text("utf-8").split("\n") if line]
    base, steered = ([row for row in rows if row["model"] == model] for model in ("base", "steered"))
    (copy / "evaluation.json").write_text(json.dumps(assemble(base, steered, trained_kinds=TRAINED)))
    words = Page(render_report(copy)).words
    assert words.count("✓ agrees") == 2
    assert "Judged by rules (strict): the rule that training used" in words
    assert "Kinds never trained on" in words
    assert "× the base's" in words
    (copy / "evaluation.json").write_text(json.dumps(assemble(base, None, trained_kinds=None)))
    assert "Unsteered, smollm2-135m-instruct follows every instruction" in Page(render_report(copy)).words

    names = ("base_chosen", "base_rejected", "steered_chosen", "steered_rejected")
    pairs = [{"id": str(i), **dict(zip(names, (-9.0, -9.5 + i % 3, -8.0, -10.0 - i % 2)))} for i in range(40)]
    run = build(tmp_path / "own", kind="align", steps=8)
    (run / "evaluation.json").write_text(json.dumps(assemble_ranking(pairs, beta=0.1)))
    words = Page(render_report(run)).words
    assert "prefers the chosen answer in 100.0 % of held‑out pairs; chance is 50 %" in words
    assert "the source that training learnt from, on records that training never saw" in words
    assert "Pairs ranked as preferred" in words


def test_figures_that_disagree_with_the_answers_are_called_out(folder: Path, tmp_path: Path) -> None:
    assert all(check["agrees"] for check in recomputed_checks(read_run_folder(folder)))
    copy = shutil.copytree(folder, tmp_path / folder.name)
    evaluation = json.loads((copy / "evaluation.json").read_text())
    evaluation["metrics"][0]["steered"] += 0.02
    (copy / "evaluation.json").write_text(json.dumps(evaluation))
    words = Page(render_report(copy)).words
    assert "disagree on held-out prompts" in words
    assert "✗ disagrees" in words


def test_recount_averages_samples_of_a_prompt_first(tmp_path: Path) -> None:
    row = {"stage": "evaluation", "split": "held_out", "prompt": "p", "completion": "c", "checks": []}
    rows = []
    for prompt, samples in (("a", (True, True, True)), ("b", (False,))):
        for number, right in enumerate(samples):
            rows.append(row | {"id": prompt, "sample": number, "model": "base", "followed": False})
            rows.append(row | {"id": prompt, "sample": number, "model": "steered", "followed": right})
    rows.append(row | {"id": "c", "sample": 0, "model": "base", "followed": True})
    rows.append(row | {"id": "a", "sample": 0, "model": "policy", "followed": False, "stage": "round-1"})
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    run = read_run_folder(tmp_path)
    assert recomputed(run, "held_out") == (0.0, 0.5, 2)
    assert run.notes == ["1 answers have no partner from the other model and are left out of the comparison."]


def test_one_model_alone_is_not_called_steered(tmp_path: Path) -> None:
    metric = {"name": "prompt_accuracy", "split": "held_out", "value": 0.41, "interval": [0.3, 0.5], "n": 90}
    (tmp_path / "evaluation.json").write_text(json.dumps({"metrics": [metric]}))
    run = read_run_folder(tmp_path)
    assert headline(run).startswith("Unsteered, the model follows every instruction in 41.0")
    words = Page(render_report(tmp_path)).words
    assert "better" not in words, "an interval of a value is not one of a difference"


@pytest.mark.parametrize(
    ("name", "bounds", "word"),
    [
        ("prompt_accuracy", [0.01, 0.2], "better"),
        ("prompt_accuracy", [-0.2, -0.01], "worse"),
        ("prompt_accuracy", [-0.01, 0.2], "no clear change"),
        ("repetition", [0.01, 0.2], "worse"),
        ("completion_tokens", [1, 2], "higher"),
        ("prompt_accuracy", [None, None], "no interval"),
        ("prompt_accuracy", [float("nan"), 1], "no interval"),
    ],
)
def test_reading(name: str, bounds: list[float], word: str) -> None:
    assert reading(name, bounds)[0] == word


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), True, "0.3"])
def test_what_is_no_number_is_not_measured(value: object) -> None:
    assert amount(value, "share") == NOT_MEASURED


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("/srv/models/tiny base: v1", "…/tiny base: v1"),
        ("~/models/tiny", "…/tiny"),
        (r"C:\Users\ann\tiny", "…/tiny"),
        ("file:///home/ann/a.jsonl", "…/a.jsonl"),
        ("read /home/ann/a.jsonl, then /tmp/b/c.csv", "read …/a.jsonl, then …/c.csv"),
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
        ("http://localhost:8000/v1/chat", "http://localhost:8000/v1/chat"),
        ("and/or, 3/4, n/a", "and/or, 3/4, n/a"),
    ],
)
def test_local_paths_are_cut(given: str, kept: str) -> None:
    assert without_paths(given) == kept
    assert without_paths({"a": [given]}) == {"a": [kept]}


def test_hidden_characters_become_visible() -> None:
    assert visible("a\r\nb\tc") == "a\nb\tc"
    assert visible("\ufeffa\u2066b\x1b") == "[U+FEFF]a[U+2066]b[U+001B]"
    assert visible("👩‍👩‍👧 می‌خواهم") == "👩‍👩‍👧 می‌خواهم"


def test_plots_take_colours_from_the_page_and_keep_text() -> None:
    rows = [Dumbbell("<b>$x$ & \u202e", "n = 3", 0.2, 0.6, (0.1, 0.7)), Dumbbell("k", "", 0.5, 0.5, None)]
    svg = dumbbells("d", 'a "title" <b>', rows)
    assert "#0000" not in svg
    assert "style=" not in svg
    assert "f-steered" in svg
    assert "s-gain" in svg
    assert "&lt;b&gt;$x$ &amp; [U+202E]" in svg
    assert svg == dumbbells("d", 'a "title" <b>', rows)
    assert set(re.findall(r'id="([^"]+)"', svg)) >= set(re.findall(r'href="#([^"]+)"', svg))
    with pytest.raises(KeyError):
        themed('<svg xmlns="http://www.w3.org/2000/svg"><path style="fill: #123456"/></svg>', "x", "t")
    assert len(set(COLOUR.values())) == len(COLOUR)


def test_long_curves_stay_small_and_short_ones_are_drawn() -> None:
    steps = [float(i) for i in range(20000)]
    assert len(curves("c", "t", [Curve(steps, [s % 7 for s in steps], "steered")])) < 60_000
    assert "<path" in curves("c", "t", [Curve([1.0], [0.5], "steered")])


def test_running_mean_against_the_plain_formula() -> None:
    values = [float((i * 37) % 11) for i in range(57)]
    half = 57 // 20
    plain = [
        sum(values[max(0, i - half) : i + half + 1]) / len(values[max(0, i - half) : i + half + 1]) for i in range(57)
    ]
    assert running_mean(values) == pytest.approx(plain)


def test_command_prints_the_path(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from optative.cli.main import main

    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(folder / "report.html")
    assert main(["report", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(folder), "report": str(folder / "report.html")}
    assert main(["report", str(folder / "absent")]) == 2
    assert "no such folder" in capsys.readouterr().err
