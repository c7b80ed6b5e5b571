"""The facts of a run in words: what was asked, what changed, how sure, who judged, what it cost.

Knows: run folders as `reading` gives them. Does not know: HTML, Markdown, plots. The page and the model card say the
same because both take it from here. Texts that a model or a user wrote come out as they are: who shows them escapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optative.evaluation.report import words
from optative.evaluation.report.reading import RunFolder, mappings, recomputed
from optative.evaluation.report.words import finite


def model_name(run: RunFolder) -> str:
    """The base model as a person calls it: never a local path beyond its last name."""
    base = run.manifest.get("base_model")
    name = base.get("name") if isinstance(base, Mapping) else None
    if not name:
        generator = run.spec.get("generator")
        options = generator.get("language_model") if isinstance(generator, Mapping) else None
        name = options.get("model") if isinstance(options, Mapping) else None
    return str(words.without_paths(str(name))).removeprefix("…/") if name else "the model"


def asked(run: RunFolder) -> str:
    """What was asked, as the rest of a sentence that starts with "asked to"."""
    if run.kind == "align":
        if _supervised(run):
            return "give the answers of a file"
        return "prefer the answers that were preferred in a file"
    objective = run.spec.get("objective")
    if isinstance(objective, str):
        objective = {objective: None}
    if not isinstance(objective, Mapping) or not objective:
        return ""
    return " and ".join(
        words.OBJECTIVES.get(str(name), f"meet the objective “{words.words(str(name)).lower()}”") for name in objective
    )


def _supervised(run: RunFolder) -> bool:
    optimizer = run.spec.get("optimizer")
    return isinstance(optimizer, Mapping) and "sft" in optimizer


def figure(run: RunFolder, name: str, split: str) -> Mapping[str, Any] | None:
    """The row of `evaluation.json` with this metric and split."""
    return next((row for row in run.figures if row.get("name") == name and row.get("split") == split), None)


def main_figure(run: RunFolder) -> Mapping[str, Any] | None:
    """The figure that answers whether the objective was met."""
    first = ("nll_per_token",) if _supervised(run) else ()
    for name in (*first, "prompt_accuracy", "reward_accuracy", "ranking_accuracy", "label_accuracy"):
        for split in ("held_out", "ifeval"):
            if row := figure(run, name, split):
                return row
    gains = [row for row in run.figures if words.metric(str(row.get("name"))).side == "gain"]
    return next(iter(gains or run.figures), None)


_CHANCE = ("reward_accuracy", "label_accuracy")  # the base is at 50 % by definition


def headline(run: RunFolder) -> str:
    """The answer in one sentence: how often the steered model does what was asked, and the base before it."""
    row, model = main_figure(run), model_name(run)
    if row is None:
        if run.metrics:
            steps = words.count(int(run.metrics[-1]["step"]), "step")
            return f"This run trained {model} for {steps}; what that changed has not been measured yet."
        return f"This run has neither trained nor measured {model} yet."
    name, unit = str(row.get("name")), words.metric(str(row.get("name"))).unit
    before, after = finite(row.get("base")), finite(row.get("steered"))
    value = before if after is None else after
    if value is None:
        return f"{words.metric(name).label}: {words.NOT_MEASURED}."
    now, split = words.amount(value, unit), split_of(run, row)
    does = {
        "prompt_accuracy": f"follows every instruction in {now} of {split}",
        "reward_accuracy": f"prefers the chosen answer in {now} of {split}; chance is 50{words.SPACE}%",
        "ranking_accuracy": f"ranks {now} of {split} as they were preferred",
        "label_accuracy": f"moved {now} of {split} the way of their label; chance is 50{words.SPACE}%",
        "nll_per_token": f"has a loss of {now} per token on {split}",
    }.get(name, f"reaches {now} ({words.metric(name).label.lower()}, {split})")
    if after is None:
        return f"Unsteered, {model} {does}."
    was = f"; before, it was {words.amount(before, unit)}" if before is not None and name not in _CHANCE else ""
    _, verdict = words.reading(name, row.get("interval"))
    unclear = " That is no clear change." if was and verdict in ("unclear", "unknown") else ""
    return f"Steered, {model} {does}{was}.{unclear}"


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
        scored = run.kind == "align"
        item = {"nll_per_token": "answer", "label_accuracy": "answer"}.get(name, "pair" if scored else "prompt")
        n = words.count(int(row["n"]), item) if finite(row.get("n")) else "an unknown number"
        both = "each scored by both models" if scored else "each answered by both models"
        sentences.append(f"The difference is {difference} ({sure}) on {n}, {both}.")
    _, meaning = independence(run, row)
    who = listed(row.get("measured_by")) or "an unnamed judge"
    sentences.append(f"Judged by {who}: {meaning}.")
    unseen = figure(run, name, "unseen_kinds")
    if unseen and row.get("split") != "unseen_kinds" and finite(unseen.get("steered")) is not None:
        word, _ = words.reading(name, unseen.get("interval"))
        sentences.append(
            f"On kinds of instruction never trained on: {words.amount(unseen.get('base'), unit)} before, "
            f"{words.amount(unseen.get('steered'), unit)} after ({word}; difference "
            f"{words.interval(unseen.get('interval'), unit)})."
        )
    ranked = figure(run, "ranking_accuracy", "held_out")
    if ranked and ranked is not row and finite(ranked.get("steered")) is not None:
        before, after = (words.amount(ranked.get(side), "share") for side in ("base", "steered"))
        sentences.append(f"By the log-probability of the answers alone, {before} before and {after} after.")
    return sentences


def independence(run: RunFolder, row: Mapping[str, Any]) -> tuple[str, str]:
    """How independent the judge of a figure was, as a label and a sentence."""
    label, meaning = words.INDEPENDENCE.get(
        str(row.get("independence")), ("not recorded", "how independent it is was not recorded")
    )
    if run.kind == "align" and row.get("independence") == "same_rule_held_out":
        meaning = "the source that training learnt from, on records that training never saw"
    return label, meaning


def warnings(run: RunFolder, checks: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
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


def figure_table(run: RunFolder) -> list[dict[str, Any]]:
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
            "note": _noted(kind.note, row),
            "split": split_of(run, row),
            "base": base,
            "steered": words.amount(row.get("steered"), kind.unit),
            "difference": "–" if kind.to_base and finite(row.get("difference")) is None
            else words.amount(row.get("difference"), kind.unit, signed=True),
            "interval": words.interval(row.get("interval"), kind.unit),
            "n": f"{int(row['n']):,}" if finite(row.get("n")) is not None else words.NOT_MEASURED,
            "word": word,
            "verdict": verdict,
            "independence": str(row.get("independence") or ""),
            "judge": independence(run, row)[0],
        })  # fmt: skip
    titles = {
        "gain": "What was asked for",
        "cost": "What it may have cost",
        "other": "Also measured",
    }
    return [{"side": side, "title": titles[side], "rows": rows} for side, rows in groups.items() if rows]


def _noted(note: str, row: Mapping[str, Any]) -> str:
    ratio = finite(row.get("ratio"))
    return note if ratio is None else f"{note}; {ratio:.2f}{words.SPACE}× the base's".removeprefix("; ")


def judges(run: RunFolder) -> list[dict[str, str]]:
    seen: dict[tuple[str, str], list[str]] = {}
    for row in run.figures:
        key = (listed(row.get("measured_by")) or "not recorded", str(row.get("independence") or ""))
        label = words.metric(str(row.get("name"))).label.lower()
        if label not in seen.setdefault(key, []):
            seen[key].append(label)
    return [
        {
            "who": who,
            "independence": code,
            "label": independence(run, {"independence": code})[0],
            "meaning": independence(run, {"independence": code})[1],
            "what": ", ".join(labels),
        }
        for (who, code), labels in seen.items()
    ]


def flips(run: RunFolder) -> list[tuple[str, dict[str, Any]]]:
    given = run.evaluation.get("flips")
    found = []
    for split, row in given.items() if isinstance(given, Mapping) else ():
        if isinstance(row, Mapping) and all(
            finite(row.get(key)) is not None for key in ("gained", "lost", "both", "neither")
        ):
            counts: dict[str, Any] = {key: int(row[key]) for key in ("gained", "lost", "both", "neither")}
            found.append((str(split), counts | {"p": finite(row.get("mcnemar_p"))}))
    return found


def recomputed_checks(run: RunFolder) -> list[dict[str, Any]]:
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
            "split": split_of(run, row),
            "reported": f"{words.amount(base, 'share')} → {words.amount(steered, 'share')}",
            "recomputed": f"{words.amount(again[0], 'share')} → {words.amount(again[1], 'share')}",
            "n": again[2], "agrees": agrees,
        })  # fmt: skip
    return found


def shared_spec(run: RunFolder) -> str | None:
    """The spec as given, with its comments; where it names local folders, the same spec with those cut."""
    if run.spec_text is None:
        return None
    if run.spec and words.without_paths(run.spec) != _listified(run.spec):
        import yaml

        cut = yaml.safe_dump(words.without_paths(run.spec), sort_keys=False, allow_unicode=True, width=100)
        return f"# Local folders are cut from this copy; spec.yaml in the run folder has them.\n{cut}"
    return "\n".join(str(words.without_paths(line)) for line in run.spec_text.splitlines())


def total_time(run: RunFolder) -> str:
    seconds = run.manifest.get("wall_seconds")
    measured = (
        [value for item in seconds.values() if (value := finite(item)) is not None]
        if isinstance(seconds, Mapping)
        else []
    )
    return words.duration(sum(measured)) if measured else words.NOT_MEASURED


def flat(value: Any, before: str = "") -> list[tuple[str, str]]:
    """A nested mapping as rows of (name, words): `{"pairs": {"held_out": 3}}` gives `("pairs: held out", "3")`."""
    if isinstance(value, Mapping):
        return [row for key, item in value.items() for row in flat(item, f"{before}{key}.")]
    name = before.rstrip(".").replace("_", " ").replace(".", ": ")
    if not name:
        return []
    for ending, shown in ((" bytes", words.size), (" seconds", words.duration)):
        if name.endswith(ending) and finite(value) is not None:
            return [(name.removesuffix(ending), shown(value))]
    if isinstance(value, list):
        return [(name, ", ".join(map(str, value)) or "none")]
    if value is None:
        return [(name, "none")]
    if isinstance(value, float) and finite(value) is None:
        return [(name, words.NOT_MEASURED)]
    return [(name, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))]


def listed(value: Any) -> str:
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


def split_of(run: RunFolder, row: Mapping[str, Any]) -> str:
    text = words.split_words(row.get("split"))
    items = {"nll_per_token": "answers", "label_accuracy": "answers", "label_margin": "answers"}
    return text.replace("prompts", items.get(str(row.get("name")), "pairs")) if run.kind == "align" else text


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]
