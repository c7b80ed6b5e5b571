"""The whole content of `evaluation.json` from judged answers.

Knows: which figures there are, which warnings they call for. Does not know: models, files, how answers were made.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

from optative.core.config import look_up
from optative.core.errors import InputError
from optative.evaluation import drift, independence, instructions
from optative.evaluation.figures import Figure, warning
from optative.evaluation.flips import flips
from optative.evaluation.instructions import Context
from optative.evaluation.options import (
    METRICS,
    Diversity,
    Fluency,
    Length,
    Metric,
    NegativeFlips,
)
from optative.evaluation.results import Answers, pair

SPLITS = ("held_out", "unseen_kinds", "ifeval", "validation")
TWO_MODELS = ("kl", "negative_flips")
MEASURED_IN = {
    "completion_tokens": "length",
    "distinct_2": "diversity",
    "logp_base_per_token": "fluency",
    "negative_flips": "negative_flips",
}
Row = Mapping[str, Any]


def assemble(
    rows_base: Sequence[Row],
    rows_steered: Sequence[Row] | None,
    *,
    trained_kinds: Collection[str] | None,
    trained_prompt_ids: Collection[str] = (),
    trained_prompt_hashes: Collection[str] = (),
    trained_judges: Collection[str] = (independence.BASE_LOGPS,),
    kl_values: Mapping[str, float] | None = None,
    metrics: Collection[str] | Mapping[str, Metric] | None = None,
    mode: str = "strict",
    seed: int = 0,
) -> dict[str, Any]:
    """Figures, by kind, flips and warnings of the base and the steered model on the same prompts.

    rows_base, rows_steered: rows of `samples.jsonl` of the splits held_out, unseen_kinds or ifeval (prompts of the
    public benchmark); None for the second measures one model alone. trained_kinds: kinds of instruction that training
    used, None if unknown (then nothing is `independent`). trained_judges: what else training used; DPO uses the base's
    log-probabilities as its reference. trained_prompt_ids, trained_prompt_hashes (`independence.prompt_hash`): prompts
    of the training; answers to them are taken out. kl_values: prompt id to nats per token. metrics: names, or names
    with their options; None: all that the rows allow.
    Raises InputError for a metric that was asked for by name and cannot be measured, and for rows that do not agree.
    """
    chosen = _chosen(metrics, rows_base, rows_steered, kl_values)
    known = None if trained_kinds is None else frozenset(trained_kinds) | frozenset(trained_judges)
    kl = None if kl_values is None else {str(i): v for i, v in kl_values.items()}
    context = Context(known, mode, kl, seed)
    splits, warnings = _evidence(rows_base, rows_steered, trained_prompt_ids, trained_prompt_hashes)
    figures: list[Figure] = []
    for name, options in chosen.items():
        _, measure = look_up(METRICS, name, "metric")
        measured = [figure for answers in splits for figure in measure(answers, options, context)]
        if not measured:
            raise InputError("cannot be measured: no answer carries what it needs", field=f"evaluation.{name}")
        figures += measured
    level = chosen.get("instruction_accuracy", Metric()).level
    table = [row for answers in splits for row in instructions.by_kind(answers, level, context)]
    if known is None:
        unknown = "What these models were trained on is not known here, so that no figure is called independent."
        warnings.append(warning("training_unknown", unknown))
    order = {name: i for i, name in enumerate(SPLITS)}
    figures.sort(key=lambda figure: order[figure.split])  # stable: within a split the order of the metrics stays
    return {
        "metrics": [figure.to_json() for figure in figures],
        "by_kind": table,
        "flips": {answers.split: flips(answers) for answers in splits} if rows_steered is not None else {},
        "warnings": [
            *warnings,
            *_drift_warnings(figures, chosen),
            *_accuracy_warnings(figures),
            *_answer_warnings(splits),
        ],
        "mode": mode,
        "criteria": [],
    }


def _chosen(
    metrics: Collection[str] | Mapping[str, Metric] | None,
    rows_base: Sequence[Row],
    rows_steered: Sequence[Row] | None,
    kl_values: Mapping[str, float] | None,
) -> dict[str, Metric]:
    if metrics is None:
        rows = [*rows_base, *(rows_steered or ())]
        possible = {
            "kl": kl_values is not None,
            "fluency": any(row.get("logp_base") is not None for row in rows),
            "length": all("num_tokens" in row for row in rows),
        }
        metrics = [name for name in METRICS if possible.get(name, True)]
    if not isinstance(metrics, Mapping):
        metrics = {name: cast(Metric, look_up(METRICS, name, "metric")[0]()) for name in metrics}
    return {name: o for name, o in metrics.items() if rows_steered is not None or name not in TWO_MODELS}


def _evidence(
    rows_base: Sequence[Row], rows_steered: Sequence[Row] | None, ids: Collection[str], hashes: Collection[str]
) -> tuple[list[Answers], list[dict[str, str]]]:
    """The paired answers that may serve as evidence, and warnings on those that may not."""
    for row in [*rows_base, *(rows_steered or ())]:
        if row["split"] not in SPLITS:
            raise InputError("is no evidence", field="split", found=row["split"], expected=" or ".join(SPLITS))
    base, seen = independence.split_seen(rows_base, ids, hashes)
    steered = None if rows_steered is None else independence.split_seen(rows_steered, ids, hashes)[0]
    if not base:
        raise InputError(
            "no prompt is left to evaluate: training saw all of them" if seen else "there are no answers to evaluate",
            hint="Evaluate on prompts that were kept out of the training." if seen else None,
        )
    pairing = pair(base, steered)
    if pairing.other_prompt:
        raise InputError(f"base and steered answered different prompts under the ids {_names(pairing.other_prompt)}")
    if not pairing.splits:
        raise InputError("base and steered have no prompt in common")
    warnings = []
    if seen:
        message = (
            f"{len(seen)} prompts were seen in training; their answers are no evidence and are left out: {_names(seen)}"
        )
        warnings.append(warning("seen_prompts", message))
    missing = [*pairing.only_base, *pairing.only_steered]
    if missing:
        message = (
            f"{len(missing)} prompts were answered by one of the two models only and are left out: {_names(missing)}"
        )
        warnings.append(warning("unpaired_prompts", message))
    return sorted(pairing.splits, key=lambda answers: SPLITS.index(answers.split)), warnings


def _drift_warnings(figures: Sequence[Figure], chosen: Mapping[str, Metric]) -> list[dict[str, str]]:
    found = []
    for figure in figures:
        base, steered, where = figure.base, figure.steered, f"On {figure.split}"
        if base is None or steered is None:
            continue
        ratio = figure.extra.get("ratio")
        match figure.name, chosen.get(MEASURED_IN.get(figure.name, "")):
            case "completion_tokens", Length() as limits:
                if ratio is not None and not limits.smallest_ratio <= ratio <= limits.largest_ratio:
                    tokens = f"{steered:.0f} tokens, {base:.0f} before"
                    message = f"{where} the answers are {ratio:.2f} times as long as the base's ({tokens})."
                    found.append(warning("length_ratio", message))
            case "distinct_2", Diversity() as limits:
                if ratio is not None and ratio < limits.smallest_ratio:
                    equal = figure.extra["ratio_at_equal_length"]
                    longer = equal is not None and equal >= limits.smallest_ratio
                    why = f"; at equal length it is {equal:.2f} of it: the answers grew longer" if longer else ""
                    message = f"{where} distinct-2 is {ratio:.2f} of the base's, the answers repeat more{why}."
                    found.append(warning("diversity", message))
            case "logp_base_per_token", Fluency() as limits:
                if base - steered > limits.largest_fall:
                    message = (
                        f"{where} fluency fell by {base - steered:.2f} nats a token (log-probability under the base)."
                    )
                    found.append(warning("fluency", message))
            case "negative_flips", NegativeFlips() as limits:
                if steered > limits.largest_share:
                    message = (
                        f"{where} {steered:.0%} of the prompts went from right to wrong; a higher mean hides them."
                    )
                    found.append(warning("negative_flips", message))
    return found


def _accuracy_warnings(figures: Sequence[Figure]) -> list[dict[str, str]]:
    changes = {
        figure.split: figure for figure in figures if figure.name == "prompt_accuracy" and figure.difference is not None
    }
    held_out, unseen = changes.get("held_out"), changes.get("unseen_kinds")
    found = []
    if held_out is not None and unseen is not None and (held_out.difference or 0) > 0 > (unseen.difference or 0):
        both = (
            f"Trained kinds changed by {held_out.difference:+.1%}, kinds never trained on by {unseen.difference:+.1%}"
        )
        found.append(warning("narrow_gain", f"{both}: the rules were learnt, not to follow instructions."))
    for figure in changes.values():
        low, high = figure.interval.low, figure.interval.high
        if low is not None and high is not None and low <= 0 <= high:
            message = f"On {figure.split} the interval of the change, {low:+.1%} to {high:+.1%}, includes 0."
            found.append(warning("uncertain", message))
    return found


def _answer_warnings(splits: Sequence[Answers]) -> list[dict[str, str]]:
    found = []
    for answers in splits:
        for side, rows in answers.sides.items():
            who = f"On {answers.split} the {side} model"
            blank, open_checks = drift.empty(rows), instructions.undecided(rows)
            cut = sum(row.get("finish_reason") == "length" for row in rows)
            if blank:
                found.append(
                    warning("empty_answers", f"{who} gave {blank} empty answers of {len(rows)}; they pass nothing.")
                )
            if open_checks:
                checks = sum(len(row["checks"]) for row in rows)
                found.append(warning("undecided_checks", f"{who} left {open_checks} checks of {checks} undecided."))
            if cut > len(rows) / 10:
                found.append(warning("cut_answers", f"{who} reached the token limit in {cut} answers of {len(rows)}."))
    return found


def _names(ids: Sequence[str], most: int = 10) -> str:
    return ", ".join(ids[:most]) + (f" and {len(ids) - most} more" if len(ids) > most else "")
