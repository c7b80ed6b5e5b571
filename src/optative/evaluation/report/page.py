"""From what a run folder holds to one HTML page.

Knows: what a person wants to know first, the template, the policy of the page. Does not know: how figures are drawn
(`figures`), how numbers are written (`words`), how files are read (`reading`).
Whatever a model or a user wrote passes two filters: hidden characters become visible, then Jinja escapes. The page
runs no script, loads nothing, and its policy forbids both.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from statistics import fmean, median
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from optative.core.files import write_text
from optative.evaluation.report import figures, words
from optative.evaluation.report.reading import Comparison, RunFolder, mappings, read_run_folder, recomputed
from optative.evaluation.report.words import finite

UNCHANGED_SHOWN = 200  # of each group of unchanged verdicts; what was gained or lost is always shown whole

OUTCOMES = {
    "lost": ("Lost", "right before, wrong after"),
    "gained": ("Gained", "wrong before, right after"),
    "wrong": ("Still wrong", "wrong before and after"),
    "right": ("Still right", "right before and after"),
    "unjudged": ("Not judged", "no verdict on one or both answers"),
}

FINISHED = {"eos": "ended by itself", "stop": "stopped at a stop string", "length": "cut at the token limit"}


def write_report(folder: str | Path) -> Path:
    """Render the report of a run folder and write it there as `report.html`, whole or not at all."""
    path = Path(folder) / "report.html"
    write_text(path, render_report(Path(folder)))
    return path


def render_report(folder: Path) -> str:
    """The report of a run folder as one self-contained HTML page; the same folder gives the same bytes.

    Raises `InputError` when `folder` is no run folder or one of its files is broken. Missing files are no error: the
    page says what is not measured.
    """
    run = read_run_folder(Path(folder))
    shown = content(run)
    css = (files(__package__) / "templates" / "report.css").read_text("utf-8") + _filters(shown["examples"])
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    return _environment().get_template("report.html.j2").render(css=Markup(css), policy=policy, **shown)


def _filters(examples: Mapping[str, Any]) -> str:
    """The rules behind the radio buttons: what is not of the chosen outcome, split or kind is not displayed."""
    chosen = [(f"o-{group['code']}", ".outcome", f".g-{group['code']}") for group in examples["groups"]]
    chosen += [(f"p-{number}", ".ex", f".p{number}") for number, _ in examples["splits"]]
    chosen += [(f"k-{number}", ".ex", f".k{number}") for number, _ in examples["kinds"]]
    return "".join(
        f"#examples:has(#{radio}:checked) {what}:not({kept}){{display:none}}\n" for radio, what, kept in chosen
    )


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("optative.evaluation.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: (
            value if isinstance(value, Markup) or not isinstance(value, str) else words.visible(value)
        ),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(marked=marked, amount=words.amount, n=words.count)
    return environment


def marked(text: str) -> Markup:
    """Escaped text with each hidden character as a small, named mark."""
    mark = Markup('<abbr class="ctl" title="{}">{}</abbr>')
    return Markup("").join(
        mark.format(words.hidden(piece)[1].lower(), words.hidden(piece)[0]) if strange else piece
        for piece, strange in words.split_hidden(text)
    )


def content(run: RunFolder) -> dict[str, Any]:
    """Everything the template shows, computed; nothing here is HTML except the plots."""
    notes = [words.without_paths(note) for note in run.notes]
    checks = _recomputed_checks(run)
    return {
        "run": run,
        "name": run.name,
        "model": model_name(run),
        "status": _status(run),
        "headline": headline(run),
        "lede": lede(run),
        "tiles": _tiles(run),
        "warnings": _warnings(run, checks),
        "table": _table(run),
        "judges": _judges(run),
        "where": _where(run),
        "forest": _forest(run),
        "kinds": _kinds(run),
        "training": _training(run),
        "lengths": _lengths(run),
        "examples": _examples(run),
        "made": _made(run),
        "checks": checks,
        "notes": notes,
        "evidence": _evidence(run),
        "independence": words.INDEPENDENCE,
    }


# What was asked and what changed ------------------------------------------------------------------------------------


def model_name(run: RunFolder) -> str:
    """The base model as a person calls it: never a local path beyond its last name."""
    base = run.manifest.get("base_model")
    name = base.get("name") if isinstance(base, Mapping) else None
    if not name:
        generator = run.spec.get("generator")
        options = generator.get("language_model") if isinstance(generator, Mapping) else None
        name = options.get("model") if isinstance(options, Mapping) else None
    return str(words.without_paths(str(name))) if name else "the model"


def asked(run: RunFolder) -> str:
    """What was asked, as the rest of a sentence that starts with "asked to"."""
    if run.kind == "align":
        return "prefer the answers that were chosen in a file of preferences"
    objective = run.spec.get("objective")
    if isinstance(objective, str):
        objective = {objective: None}
    if not isinstance(objective, Mapping) or not objective:
        return ""
    return " and ".join(
        words.OBJECTIVES.get(str(name), f"meet the objective “{words.words(str(name)).lower()}”") for name in objective
    )


def figure(run: RunFolder, name: str, split: str) -> Mapping[str, Any] | None:
    """The row of `evaluation.json` with this metric and split."""
    return next((row for row in run.figures if row.get("name") == name and row.get("split") == split), None)


def main_figure(run: RunFolder) -> Mapping[str, Any] | None:
    """The figure that answers whether the objective was met."""
    for name in ("prompt_accuracy", "ranking_accuracy"):
        if row := figure(run, name, "held_out"):
            return row
    gains = [row for row in run.figures if words.metric(str(row.get("name"))).side == "gain"]
    return next(iter(gains or run.figures), None)


def headline(run: RunFolder) -> str:
    row, model = main_figure(run), model_name(run)
    if row is None:
        if run.metrics:
            steps = words.count(int(run.metrics[-1]["step"]), "step")
            return f"This run trained {model} for {steps}; what that changed has not been measured yet."
        return f"This run has neither trained nor measured {model} yet."
    name, unit = str(row.get("name")), words.metric(str(row.get("name"))).unit
    before, after = finite(row.get("base")), finite(row.get("steered"))
    if after is None:
        return f"{words.metric(name).label}: {words.NOT_MEASURED} for the steered model."
    now, was = words.amount(after, unit), words.amount(before, unit)
    split = words.split_words(row.get("split"))
    subject = {
        "prompt_accuracy": f"follows every instruction in {now} of {split}",
        "ranking_accuracy": f"ranks {now} of held-out pairs as they were preferred",
    }.get(name, f"reaches {now} ({words.metric(name).label.lower()}, {split})")
    _, verdict = words.reading(name, row.get("interval"))
    if before is None:
        return f"Steered, {model} {subject}."
    unclear = " That is no clear change." if verdict in ("unclear", "unknown") else ""
    return f"Steered, {model} {subject}; before, it was {was}.{unclear}"


def lede(run: RunFolder) -> list[str]:
    """The sentences under the headline: what was asked, how sure, who judged, and what happened elsewhere."""
    sentences = []
    if wish := asked(run):
        sentences.append(f"It was asked to {wish}.")
    row = main_figure(run)
    if row is None:
        return [*sentences, "This folder holds no evaluation, so nothing below says whether it worked."]
    name, unit = str(row.get("name")), words.metric(str(row.get("name"))).unit
    difference = words.amount(row.get("difference"), unit, signed=True)
    if finite(row.get("difference")) is not None:
        level = finite(row.get("level")) or 0.95
        sure = f"{100 * level:g}{words.SPACE}% interval {words.interval(row.get('interval'), unit)}"
        pairs = name == "ranking_accuracy"
        n = words.count(int(row["n"]), "pair" if pairs else "prompt") if finite(row.get("n")) else "an unknown number"
        both = "each scored by both models" if pairs else "each answered by both models"
        sentences.append(f"The difference is {difference} ({sure}) on {n}, {both}.")
    label, meaning = words.INDEPENDENCE.get(
        str(row.get("independence")), ("", "how independent it is was not recorded")
    )
    who = _listed(row.get("measured_by")) or "an unnamed judge"
    sentences.append(f"Judged by {who}: {meaning}.")
    unseen = figure(run, name, "unseen_kinds")
    if unseen and row.get("split") != "unseen_kinds" and finite(unseen.get("steered")) is not None:
        word, _ = words.reading(name, unseen.get("interval"))
        sentences.append(
            f"On kinds of instruction never trained on: {words.amount(unseen.get('base'), unit)} before, "
            f"{words.amount(unseen.get('steered'), unit)} after ({word}; difference "
            f"{words.interval(unseen.get('interval'), unit)})."
        )
    return sentences


def _status(run: RunFolder) -> tuple[str, str]:
    if run.manifest.get("finished") and run.figures:
        return "complete", "Complete"
    if run.figures:
        return "partial", "Evaluated; the run did not record its end"
    return "partial", "Partial: not evaluated"


def _tiles(run: RunFolder) -> list[dict[str, str]]:
    tiles: list[dict[str, str]] = []

    def change(row: Mapping[str, Any] | None, label: str) -> None:
        if row is None:
            return
        name = str(row.get("name"))
        unit = words.metric(name).unit
        word, verdict = words.reading(name, row.get("interval"))
        has_both = finite(row.get("difference")) is not None
        value = (
            words.amount(row.get("difference"), unit, signed=True)
            if has_both
            else words.amount(row.get("steered"), unit)
        )
        below = f"{words.amount(row.get('base'), unit)} → {words.amount(row.get('steered'), unit)}"
        tiles.append(_tile(label, value, below, word if has_both else "", verdict))

    main = main_figure(run)
    if main is not None:
        name = str(main.get("name"))
        change(
            main,
            _capital(words.split_words(main.get("split"))) if name == "prompt_accuracy" else words.metric(name).label,
        )
        if main.get("split") != "unseen_kinds":
            change(figure(run, name, "unseen_kinds"), "Kinds never trained on")
    for split, flips in _flips(run):
        if split == "held_out":
            lost, total = flips["lost"], sum(flips[key] for key in ("gained", "lost", "both", "neither"))
            of_right = f"{lost} of the {words.count(flips['both'] + lost, 'prompt')} it had right"
            tiles.append(
                _tile("Right before, wrong after", f"{lost} of {total}", of_right, "", "worse" if lost else "better")
            )
    length = figure(run, "completion_tokens", "held_out")
    if length and (before := finite(length.get("base"))) and (after := finite(length.get("steered"))) is not None:
        below = f"{words.amount(before, 'tokens')} → {words.amount(after, 'tokens')}"
        tiles.append(_tile("Answer length", f"{after / before:.2f} ×", below, "", "moved"))
    if distance := figure(run, "kl", "held_out"):
        value = words.amount(distance.get("steered"), "nats")
        tiles.append(_tile("Distance from the base", value, "KL divergence", "", "moved"))
    change(figure(run, "logp_base_per_token", "held_out"), "Fluency, log-prob a token")
    return tiles


def _tile(label: str, value: str, below: str, word: str, verdict: str) -> dict[str, str]:
    number, _, unit = value.partition(words.SPACE)
    if value == words.NOT_MEASURED:
        number, unit = value, ""
    return {"label": label, "value": number, "unit": unit, "below": below, "word": word, "verdict": verdict}


def _warnings(run: RunFolder, checks: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    found = [
        {"code": str(item.get("code") or ""), "message": str(words.without_paths(str(item.get("message") or "")))}
        for item in mappings(run.evaluation.get("warnings"))
    ]
    for row in run.figures:
        if row.get("independence") == "seen":
            label = words.metric(str(row.get("name"))).label
            message = f"“{label}” was judged by what training saw, on prompts that training saw. It is not evidence."
            found.append({"code": "seen", "message": message})
    found += [
        {
            "code": "figures_disagree",
            "message": f"evaluation.json and the judged answers in samples.jsonl disagree on {check['split']}: "
            f"{check['reported']} against {check['recomputed']}. Do not rely on either before you know why.",
        }
        for check in checks
        if not check["agrees"]
    ]
    return found


# What it cost, next to what it gained -------------------------------------------------------------------------------


def _table(run: RunFolder) -> list[dict[str, Any]]:
    groups: dict[str, list[dict[str, Any]]] = {"gain": [], "cost": [], "other": []}
    order = list(words.METRICS)
    rows = sorted(
        run.figures,
        key=lambda row: order.index(str(row.get("name"))) if row.get("name") in words.METRICS else len(order),
    )
    for row in rows:
        name = str(row.get("name"))
        kind = words.metric(name)
        word, verdict = words.reading(name, row.get("interval"))
        base = (
            "reference"
            if kind.to_base and finite(row.get("base")) is None
            else words.amount(row.get("base"), kind.unit)
        )
        groups[kind.side].append({
            "label": kind.label,
            "note": kind.note,
            "split": words.split_words(row.get("split")),
            "base": base,
            "steered": words.amount(row.get("steered"), kind.unit),
            "difference": words.amount(row.get("difference"), kind.unit, signed=True),
            "interval": words.interval(row.get("interval"), kind.unit),
            "n": f"{int(row['n']):,}" if finite(row.get("n")) is not None else words.NOT_MEASURED,
            "word": word,
            "verdict": verdict,
            "independence": str(row.get("independence") or ""),
            "judge": words.INDEPENDENCE.get(str(row.get("independence")), ("not recorded", ""))[0],
        })  # fmt: skip
    titles = {
        "gain": "What was asked for",
        "cost": "What it may have cost",
        "other": "Also measured",
    }
    return [{"side": side, "title": titles[side], "rows": rows} for side, rows in groups.items() if rows]


def _judges(run: RunFolder) -> list[dict[str, str]]:
    seen: dict[tuple[str, str], list[str]] = {}
    for row in run.figures:
        key = (_listed(row.get("measured_by")) or "not recorded", str(row.get("independence") or ""))
        label = words.metric(str(row.get("name"))).label.lower()
        if label not in seen.setdefault(key, []):
            seen[key].append(label)
    return [
        {
            "who": who,
            "independence": code,
            "label": words.INDEPENDENCE.get(code, ("not recorded", ""))[0],
            "meaning": words.INDEPENDENCE.get(code, ("", "how independent it is was not recorded"))[1],
            "what": ", ".join(labels),
        }
        for (who, code), labels in seen.items()
    ]


def _flips(run: RunFolder) -> list[tuple[str, dict[str, Any]]]:
    given = run.evaluation.get("flips")
    found = []
    for split, row in given.items() if isinstance(given, Mapping) else ():
        if isinstance(row, Mapping) and all(
            finite(row.get(key)) is not None for key in ("gained", "lost", "both", "neither")
        ):
            counts: dict[str, Any] = {key: int(row[key]) for key in ("gained", "lost", "both", "neither")}
            found.append((str(split), counts | {"p": finite(row.get("mcnemar_p"))}))
    return found


def _where(run: RunFolder) -> list[dict[str, Any]]:
    """Where the prompts went, one bar a split; widths in whole per mille, as attributes of an SVG."""
    bars = []
    for split, flips in _flips(run):
        total = sum(flips[key] for key in ("both", "gained", "lost", "neither"))
        at, parts = 0.0, []
        for key, label in (
            ("both", "right both times"),
            ("gained", "gained"),
            ("lost", "lost"),
            ("neither", "wrong both times"),
        ):
            width = 1000 * flips[key] / total if total else 0.0
            parts.append({"key": key, "label": label, "count": flips[key], "x": f"{at:.1f}", "width": f"{width:.1f}",
                          "middle": f"{at + width / 2:.1f}", "wide": width >= 55})  # fmt: skip
            at += width
        p = flips["p"]
        test = "" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
        bars.append({"split": _capital(words.split_words(split)), "total": total, "parts": parts, "test": test})
    return bars


def _forest(run: RunFolder) -> Markup | None:
    rows = []
    for item in run.figures:
        kind, ends = words.metric(str(item.get("name"))), words.ends_of(item.get("interval"))
        value = finite(item.get("difference"))
        if kind.unit == "share" and kind.side == "gain" and ends and value is not None:
            label = f"{kind.label}, {words.split_words(item.get('split'))}"
            rows.append(figures.Difference(label, 100 * value, 100 * ends[0], 100 * ends[1]))
    return Markup(figures.forest("forest", "Differences with their intervals", rows)) if rows else None


# By kind ------------------------------------------------------------------------------------------------------------


def _kinds(run: RunFolder) -> list[dict[str, Any]]:
    panels = []
    by_split: dict[str, list[Mapping[str, Any]]] = {}
    for row in mappings(run.evaluation.get("by_kind")):
        by_split.setdefault(str(row.get("split") or "held_out"), []).append(row)
    titles = {"held_out": "Kinds that training used", "unseen_kinds": "Kinds never trained on"}
    for split in sorted(by_split, key=lambda split: (list(titles).index(split) if split in titles else 9, split)):
        table, drawn = [], []
        rows = sorted(by_split[split], key=lambda row: (-(finite(row.get("difference")) or 0.0), str(row.get("kind"))))
        for row in rows:
            base, steered = finite(row.get("base")), finite(row.get("steered"))
            n, label = finite(row.get("n")), words.words(str(row.get("kind")))
            word, verdict = words.reading("instruction_accuracy", row.get("interval"))
            change = finite(row.get("difference"))
            if change is None and base is not None and steered is not None:
                change = steered - base
            table.append({
                "label": label, "n": int(n) if n is not None else words.NOT_MEASURED,
                "base": words.amount(base, "share"), "steered": words.amount(steered, "share"),
                "difference": words.amount(change, "share", signed=True),
                "interval": words.interval(row.get("interval"), "share"), "word": word, "verdict": verdict,
            })  # fmt: skip
            if base is not None and steered is not None:
                drawn.append(
                    figures.Dumbbell(label, int(n) if n else None, base, steered, words.ends_of(row.get("interval")))
                )
        name = f"kinds-{len(panels)}"
        title = titles.get(split, _capital(words.split_words(split)))
        svg = Markup(figures.dumbbells(name, f"{title}: share followed before and after", drawn)) if drawn else None
        fell = [row["label"] for row, item in zip(table, rows) if (finite(item.get("difference")) or 0.0) < 0]
        panels.append({"title": title, "svg": svg, "rows": table, "fell": fell})
    return panels


# Training -----------------------------------------------------------------------------------------------------------


def _training(run: RunFolder) -> list[dict[str, Any]]:
    """One panel a question; a panel appears when at least one of its metrics was recorded."""
    panels = []
    rounds = [
        float(row["step"])
        for before, row in zip(run.metrics, run.metrics[1:])
        if row.get("round") is not None and before.get("round") is not None and row["round"] != before["round"]
    ]

    def panel(title: str, note: str, *lines: tuple[str, str, str], zero: bool = False) -> None:
        drawn, legend, spoken = [], [], []
        for key, label, role in lines:
            steps, values = _series(run.metrics, key)
            dashed = key.endswith(("rejected", "nll_loss"))
            if values:
                drawn.append(figures.Curve(steps, values, role, dashed=dashed))
                legend.append((label, role, "dashed" if dashed else "line"))
                spoken.append(f"{label} from {_edge(values, True)} to {_edge(values, False)}")
            steps, values = _series(run.metrics, f"eval_{key}")
            if values:
                drawn.append(figures.Curve(steps, values, role, dots=True))
                legend.append((f"{label}, held out", role, "dots"))
        if drawn:
            name = f"steps-{len(panels)}"
            svg = Markup(figures.curves(name, f"{title} over steps", drawn, rounds, zero))
            panels.append(
                {"title": title, "note": note, "svg": svg, "legend": legend, "spoken": _capital("; ".join(spoken))}
            )

    panel(
        "Reward margin",
        "β × log-ratio to the reference, chosen minus rejected",
        ("rewards/margins", "margin", "steered"),
        zero=True,
    )
    panel(
        "Pairs ranked right",
        "share of pairs whose chosen answer has the higher reward",
        ("rewards/accuracies", "accuracy", "steered"),
    )
    panel("Rewards", "both may fall; chosen should stay above rejected",
          ("rewards/chosen", "chosen", "steered"), ("rewards/rejected", "rejected", "loss"), zero=True)  # fmt: skip
    panel("Log-probabilities", "if chosen falls far, likelihood moves elsewhere",
          ("logps/chosen", "chosen", "steered"), ("logps/rejected", "rejected", "loss"))  # fmt: skip
    panel("Loss", "of each step", ("loss", "loss", "steered"), ("nll_loss", "supervised part", "other"))
    for key in ("kl", "objective/kl"):
        panel("Distance from the base", "KL divergence over steps, in nats", (key, "KL", "steered"), zero=True)
    panel("Gradient norm", "before clipping", ("grad_norm", "norm", "muted"))
    return panels


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    found = [(float(row["step"]), value) for row in rows if (value := finite(row.get(key))) is not None]
    return [step for step, _ in found], [value for _, value in found]


def _edge(values: Sequence[float], first: bool) -> str:
    num = max(1, len(values) // 10)
    value = fmean(values[:num] if first else values[-num:])
    return words.decimal(value, 1 if abs(value) >= 10 else 3)


def _lengths(run: RunFolder) -> dict[str, Any] | None:
    base = [item.base.num_tokens for item in run.comparisons if item.base.num_tokens is not None]
    steered = [item.steered.num_tokens for item in run.comparisons if item.steered.num_tokens is not None]
    if not base or not steered:
        return None
    ends = []
    for reason in dict.fromkeys(
        [*FINISHED, *sorted({_reason(item, who) for item in run.comparisons for who in (0, 1)})]
    ):
        counts = [sum(_reason(item, who) == reason for item in run.comparisons) for who in (0, 1)]
        if any(counts):
            ends.append(
                {"label": FINISHED.get(reason, reason or "not recorded"), "base": counts[0], "steered": counts[1]}
            )
    return {
        "svg": Markup(figures.lengths("lengths", "Length of answers before and after, in tokens", base, steered)),
        "median": (f"{median(base):,.0f}", f"{median(steered):,.0f}"),
        "mean": (f"{fmean(base):,.1f}", f"{fmean(steered):,.1f}"),
        "ends": ends,
        "total": len(run.comparisons),
    }


def _reason(item: Comparison, who: int) -> str:
    return (item.base, item.steered)[who].finish_reason


# Before and after ---------------------------------------------------------------------------------------------------


def _examples(run: RunFolder) -> dict[str, Any]:
    kinds: dict[str, int] = {}
    splits: dict[str, int] = {}
    for item in run.comparisons:
        splits.setdefault(item.split, len(splits))
        for check in (*item.base.checks, *item.steered.checks):
            kinds.setdefault(str(check.get("kind")), len(kinds))
    groups, number = [], 0
    for code, (title, meaning) in OUTCOMES.items():
        items = [item for item in run.comparisons if item.outcome == code]
        if not items:
            continue
        # Where the verdict did not move, those with the largest change in checks come first.
        items.sort(key=lambda item: item.steered.num_followed - item.base.num_followed)
        shown = items if code in ("lost", "gained") else items[:UNCHANGED_SHOWN]
        entries = []
        for item in shown:
            number += 1
            entries.append(_example(item, number, kinds, splits))
        groups.append({"code": code, "title": title, "meaning": meaning, "total": len(items), "entries": entries})
    used = sorted(kinds, key=words.words)
    return {
        "groups": groups,
        "splits": [(index, _capital(words.split_words(split))) for split, index in splits.items()],
        "kinds": [(kinds[kind], words.words(kind)) for kind in used][:60],
        "total": len(run.comparisons),
    }


def _example(item: Comparison, number: int, kinds: Mapping[str, int], splits: Mapping[str, int]) -> dict[str, Any]:
    turns = _turns(item.prompt)
    mine = sorted({kinds[str(check.get("kind"))] for check in (*item.base.checks, *item.steered.checks)})
    answers = []
    for who, answer in (("base", item.base), ("steered", item.steered)):
        checks = []
        for check in answer.checks:
            state = (
                "undecided" if check.get("decided") is False else "pass" if check.get("followed") is True else "fail"
            )
            checks.append({
                "state": state,
                "word": {"pass": "passed", "fail": "failed", "undecided": "undecided"}[state],
                "sign": {"pass": "✓", "fail": "✗", "undecided": "?"}[state],
                "kind": words.words(str(check.get("kind"))),
                "wording": str(check.get("wording") or ""),
                "why": str(check.get("why") or ""),
            })  # fmt: skip
        verdict = {True: ("✓", "right", "pass"), False: ("✗", "wrong", "fail"), None: ("?", "not judged", "undecided")}
        facts = [words.amount(answer.num_tokens, "tokens")] if answer.num_tokens is not None else []
        facts += [FINISHED.get(answer.finish_reason, answer.finish_reason)] if answer.finish_reason else []
        if answer.logp_base is not None:
            facts.append(f"{words.decimal(answer.logp_base, 2)}{words.SPACE}nats a token under the base")
        answers.append({
            "who": who, "title": "Before: base" if who == "base" else "After: steered", "text": answer.text,
            "checks": checks, "verdict": verdict[answer.followed], "facts": [fact.replace(".0", "") for fact in facts[:1]] + facts[1:],
        })  # fmt: skip
    total = max(len(item.base.checks), len(item.steered.checks))
    score = f"{item.base.num_followed} → {item.steered.num_followed} of {total}" if total else ""
    return {
        "number": number, "id": item.id, "sample": item.sample, "split": splits[item.split],
        "split_words": words.split_words(item.split), "kinds": mine, "turns": turns,
        "summary": _excerpt(turns), "score": score, "answers": answers,
    }  # fmt: skip


def _turns(prompt: Any) -> list[tuple[str, str]]:
    """A prompt as (role, text) turns; plain text is one turn without a role."""
    if isinstance(prompt, list):
        return [(str(turn.get("role") or ""), _text(turn.get("content"))) for turn in mappings(prompt)]
    return [("", _text(prompt))]


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text") or part.get("type") or "") for part in mappings(content))
    return "" if content is None else str(content)


def _excerpt(turns: Sequence[tuple[str, str]], most: int = 150) -> str:
    text = " ".join((turns[-1][1] if turns else "").split())
    return (text if len(text) <= most else text[:most].rstrip() + "…") or "(empty prompt)"


# How it was made ----------------------------------------------------------------------------------------------------


def _made(run: RunFolder) -> dict[str, Any]:
    manifest = run.manifest
    seconds = manifest.get("wall_seconds")
    stages = [(str(stage), value) for stage, value in seconds.items()] if isinstance(seconds, Mapping) else []
    most = max((finite(value) or 0.0 for _, value in stages), default=0.0)
    measured = [finite(value) or 0.0 for _, value in stages]
    base = manifest.get("base_model") if isinstance(manifest.get("base_model"), Mapping) else {}
    facts: list[tuple[str, str]] = [("Base model", model_name(run))]
    for key, label in (("fingerprint", "Fingerprint of the weights"), ("template_hash", "Hash of the chat template")):
        facts.append((label, str(base.get(key) or words.NOT_MEASURED)))  # type: ignore[union-attr]
    reason = manifest.get("dtype_reason")
    facts += [
        ("Dtype", (str(manifest.get("dtype")) if manifest.get("dtype") else words.NOT_MEASURED) + (f" ({reason})" if reason else "")),
        ("Trained on", _listed(manifest.get("trained_on")) or "not recorded"),
        ("Measured by", _listed(manifest.get("measured_by")) or "not recorded"),
        ("Key of the run", str(manifest.get("key") or "not recorded")),
        ("Started", str(manifest.get("started") or "not recorded")),
        ("Finished", str(manifest.get("finished") or "not recorded")),
        ("Peak memory", words.size(manifest.get("peak_memory_bytes"))),
        ("Training steps", f"{int(run.metrics[-1]['step']):,}" if run.metrics else words.NOT_MEASURED),
    ]  # fmt: skip
    return {
        "spec": shared_spec(run),
        "facts": [(label, str(words.without_paths(value))) for label, value in facts],
        "stages": [
            {"name": _capital(words.words(stage)), "time": words.duration(value),
             "width": f"{1000 * (finite(value) or 0.0) / most:.1f}" if most else "0"}
            for stage, value in stages
        ],
        "total": words.duration(sum(measured)) if stages else words.NOT_MEASURED,
        "tables": [
            (title, flat(words.without_paths(manifest.get(key))))
            for title, key in (("Counts", "counts"), ("Data", "data"), ("Hardware", "hardware"), ("Versions", "versions"))
        ],
    }  # fmt: skip


def shared_spec(run: RunFolder) -> str | None:
    """The spec as given, with its comments; where it names local folders, the same spec with those cut."""
    if run.spec_text is None:
        return None
    if run.spec and words.without_paths(run.spec) != _listified(run.spec):
        import yaml

        cut = yaml.safe_dump(words.without_paths(run.spec), sort_keys=False, allow_unicode=True, width=100)
        return f"# Local folders are cut from this copy; spec.yaml in the run folder has them.\n{cut}"
    return "\n".join(str(words.without_paths(line)) for line in run.spec_text.splitlines())


def flat(value: Any, before: str = "") -> list[tuple[str, str]]:
    """A nested mapping as (dotted name, words) rows."""
    if isinstance(value, Mapping):
        return [row for key, item in value.items() for row in flat(item, f"{before}{key}.")]
    name = before.rstrip(".").replace("_", " ").replace(".", ": ")
    if not name:
        return []
    if isinstance(value, list):
        return [(name, ", ".join(map(str, value)) or "none")]
    if value is None or (isinstance(value, float) and finite(value) is None):
        return [(name, words.NOT_MEASURED)]
    return [(name, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))]


def _recomputed_checks(run: RunFolder) -> list[dict[str, Any]]:
    """Prompt accuracy counted again from the judged answers, beside what `evaluation.json` says."""
    found = []
    for row in run.figures:
        if row.get("name") != "prompt_accuracy" or (again := recomputed(run, str(row.get("split")))) is None:
            continue
        base, steered = finite(row.get("base")), finite(row.get("steered"))
        if base is None or steered is None:
            continue
        agrees = abs(base - again[0]) < 1e-6 and abs(steered - again[1]) < 1e-6
        found.append({
            "split": words.split_words(row.get("split")),
            "reported": f"{words.amount(base, 'share')} → {words.amount(steered, 'share')}",
            "recomputed": f"{words.amount(again[0], 'share')} → {words.amount(again[1], 'share')}",
            "n": again[2], "agrees": agrees,
        })  # fmt: skip
    return found


def _evidence(run: RunFolder) -> list[tuple[str, str, str]]:
    """Which file each part comes from, and the command that makes it again (run beside the folder)."""
    name = _quoted(run.name)
    again = f"optative report {name}"
    steer = "optative align" if run.kind == "align" else f"optative run {name}/spec.yaml --fresh"
    rows = [
        ("Headline, tiles, table of gains and costs, accuracy by kind", "evaluation.json", steer),
        ("Same prompt before and after, lengths, recount", "samples.jsonl", again),
        ("Curves of training", "metrics.jsonl", again),
        ("How it was made", "spec.yaml, resolved.json, manifest.json", again),
        ("Difference to another run, paired", "samples.jsonl of both", f"optative compare {name} ANOTHER_RUN"),
    ]
    if run.kind == "align":
        rows[0] = (rows[0][0].replace(", accuracy by kind", ""), rows[0][1], again)
    return rows


def _quoted(name: str) -> str:
    import shlex

    return shlex.quote(words.visible(name))


def _listed(value: Any) -> str:
    items: Iterable[Any] = value if isinstance(value, (list, tuple)) else [] if value in (None, "") else [value]
    texts = [
        str(item.get("name") or ", ".join(map(str, item.values()))) if isinstance(item, Mapping) else str(item)
        for item in items
    ]
    return str(words.without_paths(", ".join(text.replace("_", " ") for text in texts)))


def _listified(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _listified(item) for key, item in value.items()}
    return [_listified(item) for item in value] if isinstance(value, (list, tuple)) else value


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
