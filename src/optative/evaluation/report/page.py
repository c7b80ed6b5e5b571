"""From what a run folder holds to one HTML page.

Knows: what stands where, the template, the policy of the page. Does not know: how files are read (`reading`), what the
facts are in words (`facts`, `words`), how plots are drawn (`figures`).
Whatever a model or a user wrote passes two filters: hidden characters become visible, then Jinja escapes. The page
runs no script, loads nothing, and its policy forbids both.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from statistics import fmean, median
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from optative.core.files import write_text
from optative.evaluation.report import figures, words
from optative.evaluation.report.examples import FINISHED, examples
from optative.evaluation.report.facts import (
    capital,
    figure,
    figure_table,
    flat,
    flips,
    headline,
    judges,
    lede,
    listed,
    main_figure,
    model_name,
    recomputed_checks,
    shared_spec,
    split_of,
    total_time,
    warnings,
)
from optative.evaluation.report.reading import Comparison, RunFolder, mappings, read_run_folder
from optative.evaluation.report.words import finite


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
    return page("report.html.j2", _filters(shown["examples"]), shown)


def page(template: str, extra_css: str, shown: Mapping[str, Any]) -> str:
    """A template of this package as one HTML page that carries its style and forbids everything else."""
    css = (files(__package__) / "templates" / "report.css").read_text("utf-8") + extra_css
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    return _environment().get_template(template).render(css=Markup(css), policy=policy, **shown)


def section(code: str, title: str, intro: str, plots: Sequence[Any] = (), tables: Sequence[Any] = ()) -> dict[str, Any]:
    """One section of `sections.html.j2`. Plots: (title, svg, legend, caption); tables: (title, head, rows, folded)."""
    names = ("title", "svg", "legend", "caption")
    return {
        "code": code,
        "title": title,
        "intro": intro,
        "plots": [dict(zip(names, plot)) for plot in plots],
        "tables": [{"folded": False, **dict(zip(("title", "head", "rows", "folded"), table))} for table in tables],
    }


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
    environment.filters.update(marked=marked, n=words.count)
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
    checks = recomputed_checks(run)
    return {
        "run": run,
        "name": run.name,
        "model": model_name(run),
        "status": _status(run),
        "headline": headline(run),
        "lede": lede(run),
        "tiles": _tiles(run),
        "warnings": warnings(run, checks),
        "table": figure_table(run),
        "judges": judges(run),
        "where": _where(run),
        "forest": _forest(run),
        "kinds": _kinds(run),
        "training": _training(run),
        "kl_at_the_end": _kl_at_the_end(run),
        "lengths": _lengths(run),
        "examples": examples(run),
        "made": _made(run),
        "checks": checks,
        "notes": notes,
        "evidence": _evidence(run),
    }


def _status(run: RunFolder) -> tuple[str, str]:
    if run.manifest.get("finished") and run.figures:
        return "complete", "Complete"
    if run.figures:
        return "partial", "Evaluated; the run did not record its end"
    return "partial", "Partial: not evaluated"


def _tiles(run: RunFolder) -> list[dict[str, str]]:
    tiles: list[dict[str, str]] = []
    main = main_figure(run)
    split = str(main.get("split")) if main else "held_out"

    def change(row: Mapping[str, Any] | None, label: str) -> None:
        if row is None:
            return
        name = str(row.get("name"))
        unit = words.metric(name).unit
        word, verdict = words.reading(name, row.get("interval"))
        has_both = finite(row.get("difference")) is not None
        alone = row.get("base") if finite(row.get("steered")) is None else row.get("steered")
        value = words.amount(row.get("difference"), unit, signed=True) if has_both else words.amount(alone, unit)
        before = words.amount(row.get("base"), unit)
        before = before.partition(words.SPACE)[0] if unit == "nats" and before != words.NOT_MEASURED else before
        below = f"{before} → {words.amount(row.get('steered'), unit)}" if has_both else ""
        tiles.append(_tile(label, value, below, word if has_both else "", verdict))

    if main is not None:
        name = str(main.get("name"))
        change(
            main,
            capital(split_of(run, main)) if name == "prompt_accuracy" else words.metric(name).label,
        )
        if main.get("split") != "unseen_kinds":
            change(figure(run, name, "unseen_kinds"), "Kinds never trained on")
    for own, counted in flips(run):
        if own == split:
            lost, total = counted["lost"], sum(counted[key] for key in ("gained", "lost", "both", "neither"))
            of_right = f"of {counted['both'] + lost:,} right before"
            tiles.append(
                _tile("Right before, wrong after", f"{lost} of {total}", of_right, "", "worse" if lost else "better")
            )
    length = figure(run, "completion_tokens", split)
    if length and (before := finite(length.get("base"))) and (after := finite(length.get("steered"))) is not None:
        below = f"{words.decimal(before, 1)} → {words.amount(after, 'tokens')}"
        tiles.append(_tile("Answer length", f"{after / before:.2f} ×", below, "", "moved"))
    if distance := figure(run, "kl", split):
        value = words.amount(distance.get("steered"), "nats")
        tiles.append(_tile("Distance from the base", value, "KL divergence", "", "moved"))
    change(figure(run, "logp_base_per_token", split), "Fluency, log-prob a token")
    for name in ("ranking_accuracy", "reward_margin", "chosen_logp"):
        if main is not None and name != main.get("name"):
            change(figure(run, name, split), words.metric(name).label)
    return tiles


def _tile(label: str, value: str, below: str, word: str, verdict: str) -> dict[str, str]:
    number, _, unit = value.partition(words.SPACE)
    if value == words.NOT_MEASURED:
        number, unit = value, ""
    return {"label": label, "value": number, "unit": unit, "below": below, "word": word, "verdict": verdict}


def _where(run: RunFolder) -> list[dict[str, Any]]:
    """Where the prompts went, one bar a split; widths in whole per mille, as attributes of an SVG."""
    bars = []
    for split, counted in flips(run):
        total = sum(counted[key] for key in ("both", "gained", "lost", "neither"))
        at, parts = 0.0, []
        for key, label in (
            ("both", "right both times"),
            ("gained", "gained"),
            ("lost", "lost"),
            ("neither", "wrong both times"),
        ):
            width = 1000 * counted[key] / total if total else 0.0
            parts.append({"key": key, "label": label, "count": counted[key], "x": f"{at:.1f}", "width": f"{width:.1f}",
                          "middle": f"{at + width / 2:.1f}", "wide": width >= 55})  # fmt: skip
            at += width
        p = counted["p"]
        test = (
            ""
            if p is None
            else "p\N{NO-BREAK SPACE}<\N{NO-BREAK SPACE}0.001"
            if p < 0.001
            else f"p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{p:.3f}"
        )
        bars.append({"split": capital(words.split_words(split)), "total": total, "parts": parts, "test": test})
    return bars


def _forest(run: RunFolder) -> Markup | None:
    rows = []
    for item in run.figures:
        kind, ends = words.metric(str(item.get("name"))), words.ends_of(item.get("interval"))
        value = finite(item.get("difference"))
        if kind.unit == "share" and kind.side == "gain" and ends and value is not None:
            note = capital(split_of(run, item))
            rows.append(figures.Difference(kind.label, note, 100 * value, 100 * ends[0], 100 * ends[1]))
    return Markup(figures.forest("forest", "Differences with their intervals", rows)) if rows else None


def _kinds(run: RunFolder) -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = []
    by_split: dict[str, list[Mapping[str, Any]]] = {}
    for row in mappings(run.evaluation.get("by_kind")):
        trained, split = row.get("trained"), str(row.get("split") or "held_out")
        if isinstance(trained, bool):
            split = "held_out" if trained else "unseen_kinds"
        by_split.setdefault(split, []).append(row)
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
                own, family = words.kind_words(str(row.get("kind")))
                note = ", ".join(filter(None, (family, f"n = {int(n)}" if n is not None else "")))
                drawn.append(figures.Dumbbell(own, note, base, steered, words.ends_of(row.get("interval"))))
        name = f"kinds-{len(panels)}"
        title = titles.get(split, capital(words.split_words(split)))
        svg = Markup(figures.dumbbells(name, f"{title}: share followed before and after", drawn)) if drawn else None
        fell = [row["label"] for row, item in zip(table, rows) if (finite(item.get("difference")) or 0.0) < 0]
        panels.append({"title": title, "svg": svg, "rows": table, "fell": fell})
    return panels


def _training(run: RunFolder) -> list[dict[str, Any]]:
    """One panel a question; a panel appears when at least one of its metrics was recorded."""
    panels: list[dict[str, Any]] = []
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
                {"title": title, "note": note, "svg": svg, "legend": legend, "spoken": capital("; ".join(spoken))}
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


def _kl_at_the_end(run: RunFolder) -> str:
    """The distance that the evaluation measured, where training did not follow it step by step; else nothing."""
    if any(finite(row.get(key)) is not None for row in run.metrics for key in ("kl", "objective/kl")):
        return ""
    row = figure(run, "kl", "held_out")
    return words.amount(row.get("steered"), "nats") if row else ""


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


def _made(run: RunFolder) -> dict[str, Any]:
    manifest = run.manifest
    seconds = manifest.get("wall_seconds")
    stages = [(str(stage), value) for stage, value in seconds.items()] if isinstance(seconds, Mapping) else []
    most = max((finite(value) or 0.0 for _, value in stages), default=0.0)
    base = manifest.get("base_model") if isinstance(manifest.get("base_model"), Mapping) else {}
    facts: list[tuple[str, str]] = [("Base model", model_name(run))]
    for key, label in (("fingerprint", "Fingerprint of the weights"), ("template_hash", "Hash of the chat template")):
        facts.append((label, str(base.get(key) or words.NOT_MEASURED)))  # type: ignore[union-attr]
    reason = manifest.get("dtype_reason")
    notes = base.get("notes") if isinstance(base, Mapping) else None
    facts += [("About the base", str(note)) for note in notes] if isinstance(notes, list) else []
    facts += [
        ("Dtype", str(manifest.get("dtype") or words.NOT_MEASURED) + (f" ({reason})" if reason else "")),
        ("Trained on", listed(manifest.get("trained_on")) or "not recorded"),
        ("Measured by", listed(manifest.get("measured_by")) or "not recorded"),
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
            {"name": capital(words.words(stage)), "time": words.duration(value),
             "width": f"{1000 * (finite(value) or 0.0) / most:.1f}" if most else "0"}
            for stage, value in stages
        ],
        "total": total_time(run),
        "tables": [
            (title, flat(words.without_paths(manifest.get(key))))
            for title, key in ((key.capitalize(), key) for key in ("counts", "data", "hardware", "versions"))
        ],
    }  # fmt: skip


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
