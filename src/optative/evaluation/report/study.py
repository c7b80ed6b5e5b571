"""The page of a study: what was asked of it, arms side by side, paired differences, curves, how it was made.

Knows: the content of `study.json`, what stands where. Does not know: how cells were computed, how criteria are judged.
Style, policy and escaping are those of a run's report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from optative.evaluation.report import figures, words
from optative.evaluation.report.figures import COLOUR, Curve
from optative.evaluation.report.page import page, section
from optative.evaluation.report.words import MINUS, decimal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROLES = ("steered", "gain", "loss", "other", "base")  # of the arms of a panel; the next five are dashed
JUDGED = {
    "independent": "no training saw what judges it",
    "same_rule_held_out": "the rule of training, on what training did not see",
}
ANSWERS = ("Asked", "Mean over seeds", "By seed: difference, or room to the limit", "Verdict")
SIGNS = {
    "higher": "higher in each seed",
    "lower": "lower in each seed",
    "equal": "equal in each seed",
    "mixed": "the sign differs",
}


def study_page(found: Mapping[str, Any], answers: Sequence[Sequence[str]] = ()) -> str:
    """One HTML page from `study.json`; the same content gives the same bytes.

    answers: of each criterion what was asked, what was measured, the effect in each seed, and the verdict.
    """
    seeds = words.count(len(found["seeds"]), "seed")
    shown = {
        "what": "study",
        "source": "study.json",
        "name": found["name"],
        "headline": found["title"],
        "lede": [f"{words.count(len(found['arms']), 'arm')}, {seeds}, each cell whole.", *found["notes"]],
        "warnings": [],
        "sections": [*_asked(answers), _side_by_side(found), _differences(found), *_curves(found), _made(found)],
    }
    return page("sections.html.j2", "", shown)


def _asked(answers: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    if not answers:
        return []
    verdicts = Counter(row[-1] for row in answers)
    told = ", ".join(f"{number} {verdict}" for verdict, number in verdicts.items())
    intro = (
        f"{words.count(len(answers), 'line')}, written down before the first full study, which they are for: {told}. "
        "A difference is met when its mean over seeds reaches what was asked and no seed has the other sign; a bound "
        "when it holds in every seed."
    )
    return [section("asked", "What was asked", intro, tables=[(None, ANSWERS, answers)])]


def _panels(found: Mapping[str, Any]) -> dict[str, list[str]]:
    panels: dict[str, list[str]] = {}
    for name, arm in found["arms"].items():
        panels.setdefault(arm["panel"], []).append(name)
    return panels


def _side_by_side(found: Mapping[str, Any]) -> dict[str, Any]:
    """A plot a panel of its first metric, and all figures of all arms in tables."""
    values: dict[tuple[str, str], list[float]] = {}
    for row in found["levels"]:
        values.setdefault((row["metric"], row["arm"]), []).append(row["value"])
    plots: list[Any] = []
    tables: list[Any] = []
    for number, (panel, arms) in enumerate(_panels(found).items()):
        metrics = [m for m in found["metrics"] if any((m, arm) in values for arm in arms)]
        main = next(iter(metrics), None)
        if main is not None:
            rows = [(arm, values[main, arm]) for arm in arms if (main, arm) in values]
            title = f"{main}: {panel}" if panel else main
            plots.append(
                (title, Markup(_strip(f"arms-{number}", title, rows)), [], "A dot a seed, the bar their mean.")
            )
        body = [
            ["Mean over seeds", *metrics],
            *([arm, *(figure(fmean(values[m, arm])) if (m, arm) in values else "" for m in metrics)] for arm in arms),
        ]
        if len(metrics) > len(arms):  # rather long than wide
            body = [list(row) for row in zip(*body)]
        tables.append((panel or None, body[0], body[1:]))
    return section("arms", "Arms side by side", "", plots, tables)


def _differences(found: Mapping[str, Any]) -> dict[str, Any]:
    tables: list[Any] = []
    for metric, about in found["metrics"].items():
        rows = [
            [
                row["arm"],
                row["baseline"],
                figure(row["mean"], signed=True),
                SIGNS[row["sign"]],
                "; ".join(_one_seed(one) for one in row["seeds"]),
            ]
            for row in found["table"]
            if row["metric"] == metric
        ]
        if any(row[3] != SIGNS["equal"] for row in rows):
            head = ["Arm", "Against", "Mean difference", "Sign", "By seed, with 95 % intervals over items"]
            tables.append((f"{metric} ({JUDGED.get(about['judged'], about['judged'])})", head, rows, len(tables) > 0))
    intro = (
        "Arms are paired inside each seed, item by item. An interval speaks of the items of one seed; over seeds, "
        "agreement in sign is what counts. A figure without items has no interval."
    )
    return section("differences", "Paired differences", intro, tables=tables)


def figure(value: float, signed: bool = False) -> str:
    """With three decimals, and a small one with its power of ten.

    >>> figure(0.12345), figure(-4e-6, signed=True), figure(0.0), figure(1e-17)
    ('0.123', '−4e-06', '0.000', '0.000')
    """
    if 1e-9 < abs(value) < 5e-4:
        return (MINUS if value < 0 else "+" if signed else "") + f"{abs(value):.0e}"
    return decimal(value, 3 if abs(value) < 10 else 2, signed)


def _one_seed(row: Mapping[str, Any]) -> str:
    ends = words.ends_of(row["interval"])
    spread = "" if ends is None else f" ({figure(ends[0], signed=True)} to {figure(ends[1], signed=True)})"
    return f"seed {row['seed']}: {figure(row['difference'], signed=True)}{spread}"


def _curves(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A section a panel; in it a plot a curve, with the mean over seeds of each arm."""
    sections = []
    for number, (panel, arms) in enumerate(_panels(found).items()):
        names = dict.fromkeys(
            name for arm in arms for cell in found["cells"] if cell["arm"] == arm for name in cell["curves"]
        )
        plots = []
        for index, name in enumerate(names):
            lines, legend = [], []
            for place, arm in enumerate(arms):
                own = [c["curves"][name] for c in found["cells"] if c["arm"] == arm and name in c["curves"]]
                if own:
                    role, dashed = ROLES[place % len(ROLES)], place // len(ROLES) % 2 == 1
                    lines += [Curve(steps, values, role, dashed) for steps, values in _mean_curve(own)]
                    legend.append((arm, role, "dashed" if dashed else "line"))
            svg = Markup(figures.curves(f"curve-{number}-{index}", f"{name} over steps", lines))
            plots.append((name, svg, legend, ""))
        if plots:
            title = f"Over steps: {panel}" if panel else "Over steps"
            sections.append(section(f"curves-{number}", title, "Mean over seeds.", plots))
    return sections


def _mean_curve(own: Sequence[Any]) -> list[tuple[list[float], list[float]]]:
    """The mean of curves over the same steps; curves over different steps are drawn one by one."""
    if all(steps == own[0][0] for steps, _ in own):
        return [(own[0][0], [fmean(values) for values in zip(*(values for _, values in own))])]
    return [(steps, values) for steps, values in own]


def _made(found: Mapping[str, Any]) -> dict[str, Any]:
    facts = [
        ["Command", found["command"]],
        ["Seeds", ", ".join(map(str, found["seeds"]))],
        ["Time of all cells", words.duration(sum(cell["seconds"] for cell in found["cells"]))],
        ["Longest cell", words.duration(max(cell["seconds"] for cell in found["cells"]))],
        ["Hash of the criteria", found["criteria"] or "none"],
        ["Finished", found["finished"]],
        *([name, str(value)] for name, value in found["hardware"].items()),
        *([name, value] for name, value in found["versions"].items()),
    ]
    options = [
        [name, ", ".join(f"{key} {value}" for key, value in arm["options"].items())]
        for name, arm in found["arms"].items()
    ]
    tables = [("Facts", ["What", "Value"], facts), ("Options of the arms", ["Arm", "Options"], options, True)]
    return section("made", "How it was made", "", tables=tables)


def _strip(name: str, title: str, rows: Sequence[tuple[str, Sequence[float]]]) -> str:
    """One row an arm: a dot a seed and a bar at their mean."""
    pitch, top, bottom = 31.0, 6.0, 26.0

    def draw(figure: Figure, height: float) -> None:
        axes = figures.plot_axes(figure, height, left=12, right=12, top=top, bottom=bottom)
        axes.grid(axis="x", lw=0.8)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks([])
        axes.margins(x=0.04)
        for y, (label, values) in enumerate(rows):
            axes.plot(values, [y + 0.18] * len(values), "o", ms=6, mfc=COLOUR["steered"], mec=COLOUR["paper"], mew=0.8)
            axes.plot([fmean(values)] * 2, [y, y + 0.36], color=COLOUR["ink"], lw=1.6)
            axes.annotate(
                words.visible(label), (0, y - 0.2), (2, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", ha="left", va="center", color=COLOUR["ink"], fontsize=10.5,
                parse_math=False,
            )  # fmt: skip

    return figures.drawn(name, title, draw, top + bottom + pitch * max(len(rows), 1))
