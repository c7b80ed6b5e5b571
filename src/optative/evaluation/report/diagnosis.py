"""The pages of `optative diagnose`: pairs of a file, or learning curves of pairs.

Knows: the content of `diagnosis.json`, what stands where, what the numbers mean in words. Does not know: how they were
computed, models. Style, policy and escaping are those of a run's report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from optative.data.counts import REFUSED
from optative.evaluation.report import figures, words
from optative.evaluation.report.figures import COLOUR, Curve
from optative.evaluation.report.page import page, section
from optative.evaluation.report.words import amount, decimal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {
    "ranking_accuracy": ("Pairs ranked as preferred", "share", "log-prob of the whole answer"),
    "ranking_accuracy_per_token": ("Pairs ranked as preferred, by token", "share", "mean log-prob a token"),
    "reward_accuracy": ("Pairs ordered right by reward", "share", "log-ratios to the reference; it has 50 % itself"),
    "log_ratio_margin": ("Log-ratio of chosen over rejected", "nats", "above 0: tuned towards the chosen answers"),
}
CLASS_WORDS = {
    "right_right": ("right before and now", "base", False),
    "wrong_right": ("wrong before, right now", "gain", False),
    "right_wrong": ("right before, wrong now", "loss", False),
    "wrong_wrong": ("wrong before and now", "base", True),
}
BY_DIFFICULTY = "Pairs that the reference has wrong, by difficulty"
SKIPPED_WORDS = REFUSED | {
    "border": "the prompts of the two answers differ, or cannot be told from the answers",
    "ties": "judged equally good",
    "prompt_too_long": "the prompt leaves no room for an answer",
    "answer_too_long": "an answer does not fit whole",
    "cut_on_request": "kept, but cut as --prompt-tokens or --answer-tokens asked",
}


def pairs_page(found: Mapping[str, Any]) -> str:
    """One HTML page from the `diagnosis.json` of `diagnose pairs`; the same content gives the same bytes."""
    accuracy = found["metrics"][0]
    share = amount(accuracy["model"], "share")
    shown = {
        "what": "diagnosis of pairs",
        "source": "diagnosis.json",
        "name": words.without_paths(found["file"]),
        "headline": f"{found['model']['name']} ranks {share} of {found['n']:,} pairs as preferred",
        "lede": findings(found),
        "warnings": found["warnings"],
        "sections": [
            _ranking(found),
            _idealised(found),
            _difficulty(found),
            _hardest(found),
            _flips(found),
            _counts(found),
        ],
    }
    return page("sections.html.j2", "", shown)


def curves_page(found: Mapping[str, Any]) -> str:
    """One HTML page from the `diagnosis.json` of `diagnose curves`."""
    lowest = found["lowest_loss"]
    flipped = lowest["flip_rate"]
    share = "no pair was wrong before" if flipped is None else f"{amount(flipped['value'], 'share')} of them are right"
    shown = {
        "what": "learning curves of pairs",
        "source": "diagnosis.json",
        "name": found["run"],
        "headline": f"{found['initially_wrong']:,} of {found['n']:,} pairs start wrong; at the lowest loss {share}",
        "lede": curve_findings(found),
        "warnings": [],
        "sections": [_classes(found), _rates(found), _by_difficulty(lowest["by_difficulty"])],
    }
    return page("sections.html.j2", "", shown)


def findings(found: Mapping[str, Any]) -> list[str]:
    """What the figures of `diagnose pairs` say, in sentences for the terminal and the page."""
    accuracy, per_token = found["metrics"][:2]
    ideal, gap = found["idealised"]["raw"], found["gap"]["raw"]
    first = (
        f"Of whole answers {amount(accuracy['model'], 'share')} are ranked as preferred (the reference "
        f"{amount(accuracy['reference'], 'share')}), by token {amount(per_token['model'], 'share')}; the rule that the "
        f"shorter answer is better gets {amount(found['length']['chosen_is_shorter']['value'], 'share')}."
    )
    second = (
        f"A policy that optimised DPO perfectly would get {amount(ideal['min'], 'share')} to "
        f"{amount(ideal['max'], 'share')} over these betas (median {amount(ideal['median'], 'share')}): an alignment "
        f"gap of {amount(gap['value'], 'share', signed=True)}"
        + (f" ({words.interval(gap['interval'], 'share')})." if words.ends_of(gap["interval"]) else ".")
    )
    flips = found["flips"]["raw"]
    wrong = found["difficulty"]["reference_wrong"]
    third = (
        f"The reference has {words.count(wrong, 'pair')} in the wrong order; {flips['positive_flip']} of them are "
        f"right in the model, and {words.count(flips['negative_flip'], 'pair')} that were right are wrong now."
    )
    return [first, second, third]


def left_out(found: Mapping[str, Any]) -> str:
    """Which pairs were not scored, or not whole, in one sentence."""
    counts = [f"{n} {SKIPPED_WORDS[name]}" for name, n in found["skipped"].items() if n]
    return f"{found['n']} pairs were scored. " + (
        f"Not, or not whole: {'; '.join(counts)}." if counts else "All whole."
    )


def curve_findings(found: Mapping[str, Any]) -> list[str]:
    """What the curves say, in sentences."""
    lowest = found["lowest_loss"]
    flipped, gap = lowest["flip_rate"], lowest["reward_minus_ranking"]
    sentences = [f"The mean loss is lowest at step {lowest['step']}: {lowest['loss']:.3f}."]
    if flipped is not None:
        ends = words.ends_of(flipped["interval"])
        spread = "" if ends is None else f" (interval {amount(ends[0], 'share')} to {amount(ends[1], 'share')})"
        sentences.append(
            f"There {amount(flipped['value'], 'share')} of the {words.count(flipped['n'], 'pair')} that the reference "
            f"has wrong are right{spread}."
        )
    sentences.append(
        f"Reward accuracy is {amount(lowest['reward_accuracy'], 'share')} and ranking accuracy "
        f"{amount(lowest['ranking_accuracy'], 'share')}: {amount(gap['value'], 'share', signed=True)} between what "
        "trainers log and what the model would rather say."
    )
    return sentences


def _ranking(found: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for metric in found["metrics"]:
        label, unit, note = LABELS[metric["name"]]
        cells = [amount(metric[side], unit) for side in ("reference", "model")]
        change = [amount(metric["difference"], unit, signed=True), words.interval(metric["interval"], unit)]
        rows.append([f"{label} ({note})", *cells, _plain_interval(metric["model_interval"], unit), *change])
    length = found["length"]
    shorter = length["chosen_is_shorter"]
    baseline = amount(shorter["value"], "share")
    rows.append(
        ["Baseline: the shorter answer is the better one", "", baseline, _plain_interval(shorter["interval"], "share"),
         "", ""]
    )  # fmt: skip
    own, other = (amount(length[f"{side}_ranks_shorter_first"], "share") for side in ("model", "reference"))
    ruler = (
        f"The model gives the shorter answer more probability in {own} of the pairs of unequal length, the reference "
        f"in {other}."
    )
    head = ["Measure", "Reference", "Model", "Its interval", "Difference", "Interval"]
    return section("ranking", "What it ranks right", ruler, tables=[(None, head, rows)])


def _idealised(found: Mapping[str, Any]) -> dict[str, Any]:
    raw, token = (found["idealised"][v]["by_beta"] for v in ("raw", "per_token"))
    rows = [
        [f"{a['beta']:g}", amount(a["value"], "share"), _plain_interval(a["interval"], "share"),
         f"{a['not_fixable']:,}", amount(b["value"], "share"), _plain_interval(b["interval"], "share")]
        for a, b in zip(raw, token)
    ]  # fmt: skip
    shares = found["shares"]
    votes = f"column {shares['column']}" if shares["column"] else f"{shares['constant']:g} for every pair (assumed)"
    intro = (
        f"The best that the objective allows: reference and votes alone decide it. Vote shares: {votes}. Pairs that "
        "are not fixable stay in the wrong order however well the loss is optimised."
    )
    betas = [a["beta"] for a in raw]
    lines = [([a["value"] for a in raw], "steered", False), ([b["value"] for b in token], "other", True)]
    measured = [found["metrics"][0]["model"], found["metrics"][1]["model"]]
    svg = Markup(_over_betas("idealised", "Idealised ranking accuracy over beta", betas, lines, measured))
    legend = [("idealised, whole answers", "steered", "line"), ("idealised, by token", "other", "dashed"),
              ("the model, level lines", "muted", "line")]  # fmt: skip
    head = ["Beta", "Idealised", "Interval", "Not fixable", "By token", "Interval"]
    return section(
        "idealised", "What it could rank right", intro, [("Over beta", svg, legend, "")], [(None, head, rows)]
    )


def _difficulty(found: Mapping[str, Any]) -> dict[str, Any]:
    hard = found["difficulty"]
    edges, counts = hard["histogram"]["edges"], hard["histogram"]["counts"]
    svg = Markup(_histogram("difficulty", "Difficulty of the pairs", edges, counts))
    intro = (
        "Difficulty is how much more probable the reference finds the rejected answer, in nats: known before any "
        "training. A pair above 0 is turned round only when its loss falls below a bound that falls with difficulty."
    )
    legend = [("reference right", "gain", "band"), ("reference wrong", "loss", "band")]
    head = ["Quantile", "Difficulty, nats"]
    rows = [[f"{float(q):.0%}", decimal(value, 1)] for q, value in hard["quantiles"].items()]
    return section(
        "difficulty", "How hard the pairs are", intro, [("Pairs by difficulty", svg, legend, "")], [(None, head, rows)]
    )


def _hardest(found: Mapping[str, Any]) -> dict[str, Any]:
    betas = [f"{beta:g}" for beta in found["betas"]]
    rows = [
        [
            f"{row['id']}, line {row['line']}", row["prompt"], row["chosen"], row["rejected"],
            decimal(row["difficulty"], 1), f"{row['largest_beta']:.2g}",
            ", ".join(f"{loss:.2g}" for loss in row["required_loss"]),
            f"{row['chosen_tokens']} and {row['rejected_tokens']}", "right" if row["model_right"] else "wrong",
        ]
        for row in found["hardest"]
    ]  # fmt: skip
    head = ["Pair", "Prompt", "Chosen", "Rejected", "Difficulty", "Fixable below beta",
            f"Loss needed at beta {', '.join(betas)}", "Tokens", "Model now"]  # fmt: skip
    intro = "The pairs that the reference has most wrong. Large differences of length and wrong labels come first."
    if not rows:
        intro = "The reference has no pair in the wrong order."
    return section("hardest", "What the loss can hardly fix", intro, tables=[(None, head, rows)] if rows else [])


def _flips(found: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for variant, label in (("raw", "whole answers"), ("per_token", "by token")):
        flips = found["flips"][variant]
        counts = [f"{flips[k]:,}" for k in ("both_right", "positive_flip", "negative_flip", "both_wrong")]
        rates = [f"{amount(flips[k]['value'], 'share')} ({_plain_interval(flips[k]['interval'], 'share')})"
                 for k in ("pfr", "nfr")]  # fmt: skip
        trust = flips["backward_trust"]
        rows.append([label, *counts, *rates, words.NOT_MEASURED if trust is None else amount(trust["value"], "share")])
    head = ["Ranking", "Both right", "Wrong, then right", "Right, then wrong", "Both wrong", "Positive flips",
            "Negative flips", "Kept of what was right"]  # fmt: skip
    below = _by_difficulty(found["flips_by_difficulty"])["tables"]
    tables = [("Reference to model", head, rows), *((BY_DIFFICULTY, t["head"], t["rows"]) for t in below)]
    return section("flips", "What turned round", "Equal log-probabilities count as wrong here.", tables=tables)


def _counts(found: Mapping[str, Any]) -> dict[str, Any]:
    rows = [[SKIPPED_WORDS[name], f"{n:,}"] for name, n in found["skipped"].items() if n]
    tables: list[Any] = [("Left out, or changed", ["Why", "Pairs or records"], rows)] if rows else []
    sides = [
        [side, found[side]["name"], found[side]["dtype"], found[side]["fingerprint"][:16],
         (found[side]["adapter"] or "none")[:16], found[side]["template_hash"][:16]]
        for side in ("model", "reference")
    ]  # fmt: skip
    tables.append(("Models", ["Role", "Name", "Dtype", "Weights", "Adapter", "Template"], sides))
    intro = f"{words.count(found['n'], 'pair')} of {words.count(found['prompts'], 'prompt')} were scored. " + (
        "" if rows else "Nothing was left out."
    )
    notes = list(dict.fromkeys(note for side in ("model", "reference") for note in found[side]["notes"]))
    return section("counts", "What went in", " ".join([intro, *notes]), tables=tables)


def _classes(found: Mapping[str, Any]) -> dict[str, Any]:
    plots = []
    for key, title, zero in (
        ("share", "Share of the pairs", False),
        ("loss", "Mean loss", False),
        ("margin", "Mean reward margin", True),
    ):
        lines: list[Curve] = []
        for name, (_, role, dashed) in CLASS_WORDS.items():
            lines += _curve(found["steps"], found["classes"][name][key], role, dashed)
        legend = [(label, role, "dashed" if dashed else "line") for label, role, dashed in CLASS_WORDS.values()]
        plots.append((title, Markup(figures.curves(f"class-{key}", title, lines, zero=zero)), legend, ""))
    intro = "Each pair belongs to one class at each step: right or wrong under the reference, right or wrong now."
    return section("classes", "Four classes of pairs", intro, plots)


def _rates(found: Mapping[str, Any]) -> dict[str, Any]:
    steps = found["steps"]
    accuracy = [Curve(steps, found["reward_accuracy"], "other"), Curve(steps, found["ranking_accuracy"], "steered")]
    rates = _curve(steps, found["flip_rate"], "gain") + _curve(steps, found["lost_rate"], "loss")
    plots = [
        ("Accuracies", Markup(figures.curves("accuracies", "Reward and ranking accuracy", accuracy)),
         [("by reward, as trainers log it", "other", "line"), ("by ranking", "steered", "line")], ""),
        ("Flips", Markup(figures.curves("rates", "Flip rates", rates)),
         [("of the wrong ones, right now", "gain", "line"), ("of the right ones, wrong now", "loss", "line")], ""),
        ("Loss", Markup(figures.curves("loss", "Mean loss", [Curve(steps, found["mean_loss"], "steered")])), [],
         f"Lowest at step {found['lowest_loss']['step']}."),
    ]  # fmt: skip
    intro = "Faint: each measurement. Strong: running mean over a tenth of them."
    return section("rates", "Ranking against reward", intro, plots)


def _curve(steps: Sequence[float], values: Sequence[float | None], role: str, dashed: bool = False) -> list[Curve]:
    """The curve of the steps at which there is a value; none without any."""
    known = {step: value for step, value in zip(steps, values) if value is not None}
    return [Curve(list(known), list(known.values()), role, dashed)] if known else []


def _by_difficulty(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    shown = [
        [f"{decimal(row['difficulty'][0], 1)} to {decimal(row['difficulty'][1], 1)}", f"{row['n']:,}",
         amount(row["flipped"], "share"), _plain_interval(row["interval"], "share")]
        for row in rows
    ]  # fmt: skip
    head = ["Difficulty, nats", "Pairs", "Right now", "Interval"]
    return section("by-difficulty", BY_DIFFICULTY, "", tables=[(None, head, shown)] if shown else [])


def _plain_interval(bounds: Any, unit: str) -> str:
    ends = words.ends_of(bounds)
    return words.NOT_MEASURED if ends is None else f"{amount(ends[0], unit)} to {amount(ends[1], unit)}"


def _over_betas(
    name: str,
    title: str,
    betas: Sequence[float],
    lines: Sequence[tuple[Sequence[float], str, bool]],
    levels: Sequence[float],
) -> str:
    """Shares over beta on a logarithmic axis; a faint level line for what the model reaches, in each line's dash."""

    def draw(figure: Figure, height: float) -> None:
        axes = figures.plot_axes(figure, height, left=44, right=10, top=8, bottom=36)
        axes.grid(axis="y", lw=0.8)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlim(-0.3, len(betas) - 0.7)
        axes.set_xticks(range(len(betas)), [f"{beta:g}" for beta in betas])
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
        axes.set_xlabel("beta", fontsize=10.5)
        for (values, role, dashed), level in zip(lines, levels):
            dash: Any = (0, (5, 2.2)) if dashed else "-"
            axes.axhline(level, color=COLOUR["muted"], lw=1.2, ls=dash)
            axes.plot(range(len(betas)), values, "o", color=COLOUR[role], ms=5, mec=COLOUR["paper"], ls=dash, lw=2)

    return figures.drawn(name, title, draw, 180)


def _histogram(name: str, title: str, edges: Sequence[float], counts: Sequence[int]) -> str:
    """Counts over difficulty; the part below zero, where the reference is right, in another colour."""

    def draw(figure: Figure, height: float) -> None:
        axes = figures.plot_axes(figure, height, left=44, right=10, top=8, bottom=36)
        axes.grid(axis="y", lw=0.8)
        axes.set_axisbelow(True)
        middle = (np.asarray(edges)[:-1] + np.asarray(edges)[1:]) / 2
        for part, role in ((middle <= 0, "gain"), (middle > 0, "loss")):
            axes.bar(middle[part], np.asarray(counts)[part], np.diff(edges)[part], color=COLOUR[role], alpha=0.55, lw=0)
        axes.axvline(0, color=COLOUR["muted"], lw=1.2)
        axes.set_xlabel("log-prob of rejected minus chosen under the reference, nats", fontsize=10.5)
        axes.locator_params(axis="y", nbins=5, integer=True)

    return figures.drawn(name, title, draw, 180)
