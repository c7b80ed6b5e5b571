"""Numbers, names and untrusted text in words a person reads.

Knows: what the metric names mean, how a number is written, which characters deceive the eye, what a local path looks
like. Does not know: HTML, files. A number that is absent, NaN or infinite is "not measured", never a blank or `nan`.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, NamedTuple

NOT_MEASURED = "not measured"
MINUS, SPACE = "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"


class Metric(NamedTuple):
    """How one metric is named and read. `better`: +1 more is better, -1 less is better, 0 neither.

    `side`: "gain" for what was asked for, "cost" for what it may have cost. `to_base`: the base has no value of its
    own, because the metric is a distance from the base.
    """

    label: str
    unit: str
    better: int
    side: str
    note: str = ""
    to_base: bool = False


METRICS: Mapping[str, Metric] = {
    "prompt_accuracy": Metric("Prompts with every instruction followed", "share", 1, "gain"),
    "instruction_accuracy": Metric("Instructions followed", "share", 1, "gain"),
    "prompt_accuracy_loose": Metric("Prompts, loose reading", "share", 1, "gain", "after light clean-up of the answer"),
    "instruction_accuracy_loose": Metric("Instructions, loose reading", "share", 1, "gain", "same clean-up"),
    "ranking_accuracy": Metric("Pairs ranked as preferred", "share", 1, "gain", "by log-prob of the whole answer"),
    "ranking_accuracy_per_token": Metric(
        "Pairs ranked as preferred, by token", "share", 1, "gain", "mean log-prob a token"
    ),
    "reward_accuracy": Metric("Pairs ordered right by reward", "share", 1, "gain", "implicit reward; chance is 50 %"),
    "reward_margin": Metric("Reward margin, chosen over rejected", "number", 1, "gain", "implicit reward"),
    "label_accuracy": Metric(
        "Answers moved the way of their label", "share", 1, "gain", "implicit reward; chance is 50 %"
    ),
    "label_margin": Metric("Reward in the way of the label", "number", 1, "gain", "implicit reward"),
    "nll_per_token": Metric("Loss on the answers", "nats", -1, "gain", "negative log-likelihood per token"),
    "negative_flips": Metric("Right before, wrong after", "share", -1, "cost", "negative flips", to_base=True),
    "completion_tokens": Metric("Answer length", "tokens", 0, "cost", "mean tokens an answer"),
    "kl": Metric("Distance from the base", "nats", 0, "cost", "KL divergence", to_base=True),
    "logp_base_per_token": Metric("Fluency", "nats", 1, "cost", "mean log-prob a token, under the base"),
    "distinct_2": Metric("Variety", "number", 1, "cost", "distinct-2: share of different word pairs"),
    "repetition": Metric("Repetition", "share", -1, "cost", "text that repeats itself"),
    "chosen_logp": Metric("Log-prob of chosen answers", "nats", 1, "cost", "falls when likelihood is displaced"),
    "rejected_logp": Metric("Log-prob of rejected answers", "nats", 0, "cost"),
    "desirable_logp": Metric("Log-prob of desirable answers", "nats", 1, "cost", "falls when likelihood is displaced"),
    "undesirable_logp": Metric("Log-prob of undesirable answers", "nats", 0, "cost"),
}

SPLITS = {
    "held_out": "held-out prompts",
    "unseen_kinds": "kinds never trained on",
    "ifeval": "prompts of the public benchmark",
    "validation": "validation prompts",
    "train": "training prompts",
}

INDEPENDENCE = {
    "independent": ("independent", "a judge or rule that no training saw"),
    "same_rule_held_out": ("same rule, held out", "the rule that training used, on prompts that training never saw"),
    "seen": ("seen", "training saw this very judge on these very prompts: not evidence"),
}

OBJECTIVES = {"verifiable_instructions": "follow verifiable instructions"}


def metric(name: str) -> Metric:
    """The metric's words; a name nobody described is shown as it is, as a plain number of neither side."""
    return METRICS.get(name, Metric(words(name), "number", 0, "other"))


def words(name: str) -> str:
    """An identifier as words.

    >>> words("keywords:forbidden_words")
    'Keywords: forbidden words'
    """
    text = re.sub(r"\bjson\b", "JSON", name.replace("_", " ").replace(":", ": ").replace("  ", " ").strip())
    return text[:1].upper() + text[1:]


def split_words(split: Any) -> str:
    return SPLITS.get(str(split), words(str(split)).lower())


def kind_words(kind: str) -> tuple[str, str]:
    """A kind's own name and its family: `length:number_words` is ("Number words", "length")."""
    family, _, own = kind.rpartition(":")
    return words(own), family.replace("_", " ").replace(":", " ")


def finite(value: Any) -> float | None:
    """The value as a float, or None when it is not a finite number (booleans are not numbers here)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def amount(value: Any, unit: str, *, signed: bool = False) -> str:
    """A value with its unit; `signed` is for differences (a difference of shares is in points).

    >>> amount(0.508, "share"), amount(-0.132, "share", signed=True), amount(float("nan"), "share")
    ('50.8\\xa0%', '−13.2\\xa0points', 'not measured')
    """
    number = finite(value)
    if number is None:
        return NOT_MEASURED
    if unit == "share":
        return f"{decimal(100 * number, 1, signed)}{SPACE}{'points' if signed else '%'}"
    digits = 1 if unit == "tokens" else 3 if abs(number) < 10 else 2
    return decimal(number, digits, signed) + ("" if unit == "number" else SPACE + unit)


def decimal(number: float, digits: int, signed: bool = False) -> str:
    text = f"{abs(number):,.{digits}f}"
    zero = not text.strip("0.,")
    return ("" if zero else MINUS if number < 0 else "+" if signed else "") + text


def interval(bounds: Any, unit: str) -> str:
    """`7.6 to 19.2 points`, or "not measured"."""
    ends = ends_of(bounds)
    if ends is None:
        return NOT_MEASURED
    low, high = (amount(end, unit, signed=True) for end in ends)
    number, _, name = high.partition(SPACE)
    return f"{low.partition(SPACE)[0]} to {number}" + (SPACE + name if name else "")


def ends_of(bounds: Any) -> tuple[float, float] | None:
    if not isinstance(bounds, (list, tuple)) or len(bounds) != 2:
        return None
    low, high = finite(bounds[0]), finite(bounds[1])
    return None if low is None or high is None else (low, high)


def reading(name: str, bounds: Any) -> tuple[str, str]:
    """What a difference's interval says, in a word and a class: better, worse, higher, lower, unclear or unknown."""
    ends, better = ends_of(bounds), metric(name).better
    if ends is None:
        return "no interval", "unknown"
    if metric(name).to_base and better == 0:
        return "moved", "moved"
    if ends[0] <= 0 <= ends[1]:
        return ("unchanged", "unclear") if ends == (0.0, 0.0) else ("no clear change", "unclear")
    up = ends[0] > 0
    if better == 0:
        return ("higher", "moved") if up else ("lower", "moved")
    return ("better", "better") if up == (better > 0) else ("worse", "worse")


def duration(seconds: Any) -> str:
    """
    >>> duration(151.2), duration(3725), duration(0.42), duration(None)
    ('2\\xa0min 31\\xa0s', '1\\xa0h 2\\xa0min', '0.4\\xa0s', 'not measured')
    """
    value = finite(seconds)
    if value is None:
        return NOT_MEASURED
    if value < 10:
        return f"{value:.1f}{SPACE}s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return (f"{minutes}{SPACE}min " if minutes else "") + f"{rest}{SPACE}s"
    return f"{minutes // 60}{SPACE}h {minutes % 60}{SPACE}min"


def size(num_bytes: Any) -> str:
    value = finite(num_bytes)
    return NOT_MEASURED if value is None else f"{value / 1e9:.2f}{SPACE}GB"


def count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,}{SPACE}{one if number == 1 else many or one + 's'}"


# Characters that are invisible, or change what is seen around them. Joiners stay: emoji and several scripts need them.
_HIDDEN = re.compile(
    "[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def hidden(character: str) -> tuple[str, str]:
    """A hidden character's code and name: `("U+202E", "RIGHT-TO-LEFT OVERRIDE")`."""
    return f"U+{ord(character):04X}", unicodedata.name(character, "control character")


def split_hidden(text: str) -> list[tuple[str, bool]]:
    """The text in pieces, each with whether it is a hidden character. A carriage return before a line feed goes."""
    text = text.replace("\r\n", "\n")
    pieces, at = [], 0
    for found in _HIDDEN.finditer(text):
        if found.start() > at:
            pieces.append((text[at : found.start()], False))
        pieces.append((found.group(), True))
        at = found.end()
    return [*pieces, (text[at:], False)] if at < len(text) else pieces


def visible(text: str) -> str:
    """The text with every hidden character written as its code, for places without markup.

    >>> visible("a\\u202eb")
    'a[U+202E]b'
    """
    return "".join(f"[{hidden(piece)[0]}]" if strange else piece for piece, strange in split_hidden(text))


_ROOTS = r"(?:/|~[\w.-]*/|[A-Za-z]:[\\/]|\\\\|file:/+)"
_WHOLE_PATH = re.compile(_ROOTS + r"[^\n]*\Z")
_PATH_IN_TEXT = re.compile(rf"(?<![\w/.:\\~-]){_ROOTS}(?:[^\s/\\'\"<>|,;:]+[\\/]+)+(?=[^\s/\\'\"<>|,;:]*)")


def without_paths(value: Any) -> Any:
    """Local folders cut out of strings, lists and mappings: what is left of a path is its last name.

    >>> without_paths({"model": "/srv/models/tiny base: v1", "note": "read /home/ann/pairs.jsonl twice"})
    {'model': '…/tiny base: v1', 'note': 'read …/pairs.jsonl twice'}
    """
    if isinstance(value, str):
        if _WHOLE_PATH.match(value):
            last = re.split(r"[\\/]+", value.rstrip("\\/"))[-1]
            return f"…/{last}" if last else value
        return _PATH_IN_TEXT.sub("…/", value)
    if isinstance(value, Mapping):
        return {without_paths(key): without_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(item) for item in value]
    return value
