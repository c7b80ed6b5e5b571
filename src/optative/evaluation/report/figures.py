"""Plots as SVG that takes its colours and its font from the page.

Knows: Matplotlib, SVG. Does not know: run folders, HTML, what a figure means.
Matplotlib draws with one reserved colour for each role; afterwards every `style` becomes a class (`f-steered`: filled,
`s-grid`: stroked in the role's colour) or a plain attribute. The page may thus forbid inline styles, and one drawing
serves light and dark. Text stays text. Equal input gives equal bytes: no dates, ids from a fixed salt.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from optative.evaluation.report.words import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 340.0  # in units of the view box: about a phone's width, so that text stays readable there
ROLES = ("ink", "muted", "grid", "base", "steered", "gain", "loss", "paper", "other")
COLOUR = {role: f"#0000{number:02x}" for number, role in enumerate(ROLES, 17)}
_ROLE = {colour: role for role, colour in COLOUR.items()}
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "optative",
    "font.size": 11.0,
    "axes.edgecolor": COLOUR["muted"],
    "axes.labelcolor": COLOUR["muted"],
    "xtick.color": COLOUR["muted"],
    "ytick.color": COLOUR["muted"],
    "text.color": COLOUR["ink"],
    "grid.color": COLOUR["grid"],
    "lines.solid_capstyle": "round",
    "axes.formatter.limits": (-4, 5),
    "axes.linewidth": 0.8,
}


@dataclass(frozen=True, slots=True)
class Dumbbell:
    """One row: base and steered value, the interval of their difference, as shares of one. `note`: small, below."""

    label: str
    note: str
    base: float
    steered: float
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Difference:
    """One row of a forest plot: a difference and its interval, in points. `note`: small, below the label."""

    label: str
    note: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Curve:
    """Values over steps. `dots`: measured now and then (held-out), drawn as points; `dashed`: so drawn."""

    steps: Sequence[float]
    values: Sequence[float]
    role: str
    dashed: bool = False
    dots: bool = False


def dumbbells(name: str, title: str, rows: Sequence[Dumbbell]) -> str:
    """Base (ring) to steered (dot), one row a kind; the band is where the steered value may lie, given the base's."""
    pitch, top, bottom = 31.0, 2.0, 38.0

    def draw(figure: Figure, height: float) -> None:
        axes = plot_axes(figure, height, left=136, right=42, top=top, bottom=bottom)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        _percent_axis(axes)
        for y, row in enumerate(rows):
            change = row.steered - row.base
            role = "muted" if abs(change) < 5e-4 else "gain" if change > 0 else "loss"
            if row.interval is not None:
                low, high = (min(max(row.base + end, 0.0), 1.0) for end in row.interval)
                axes.plot(
                    [low, high], [y, y], color=COLOUR["steered"], alpha=0.22, lw=7, solid_capstyle="butt", zorder=2
                )
            axes.plot([row.base, row.steered], [y, y], color=COLOUR[role], lw=1.8, zorder=3)
            axes.plot([row.base], [y], "o", ms=7, mfc=COLOUR["paper"], mec=COLOUR["base"], mew=1.8, zorder=4)
            axes.plot([row.steered], [y], "o", ms=7, mfc=COLOUR["steered"], mec=COLOUR["paper"], mew=0.8, zorder=5)
            _label(axes, y - 0.19, _short(row.label, 25), "ink", 10.5)
            _label(axes, y + 0.2, _short(row.note, 30), "muted", 9)
            note = f"{'+' if change > 0 else '−' if change < 0 else ''}{abs(100 * change):.0f}"
            axes.annotate(
                note, (1, y), (42, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                ha="right", va="center", color=COLOUR[role], fontsize=11, weight="bold",
            )  # fmt: skip
        axes.set_yticks([])

    return drawn(name, title, draw, top + bottom + pitch * max(len(rows), 1))


def forest(name: str, title: str, rows: Sequence[Difference]) -> str:
    """Differences with their intervals on one axis, zero marked."""
    pitch, top, bottom = 45.0, 2.0, 38.0

    def draw(figure: Figure, height: float) -> None:
        axes = plot_axes(figure, height, left=12, right=12, top=top, bottom=bottom)
        low, high = min(0.0, *(row.low for row in rows)), max(0.0, *(row.high for row in rows))
        pad = 0.06 * (high - low) or 1.0
        axes.set_xlim(low - pad, high + pad)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="x", lw=0.8)
        axes.axvline(0, color=COLOUR["muted"], lw=1.2)
        axes.set_yticks([])
        axes.set_xlabel("difference, steered − base, in points", fontsize=10.5)
        for y, row in enumerate(rows):
            role = "gain" if row.low > 0 else "loss" if row.high < 0 else "muted"
            at = y + 0.26
            axes.plot([row.low, row.high], [at, at], color=COLOUR[role], lw=2.4, zorder=3)
            axes.plot([row.value], [at], "o", ms=7.5, mfc=COLOUR[role], mec=COLOUR["paper"], mew=1, zorder=4)
            _label(axes, y - 0.3, _short(row.label, 48), "ink", 11, offset=2)
            _label(axes, y - 0.02, _short(row.note, 48), "muted", 9.5, offset=2)

    return drawn(name, title, draw, top + bottom + pitch * max(len(rows), 1))


def curves(name: str, title: str, lines: Sequence[Curve], rounds: Sequence[float] = (), zero: bool = False) -> str:
    """Curves over steps: the measured values faint, a running mean on top. `rounds`: steps where a new round starts."""

    from matplotlib.ticker import MaxNLocator

    def draw(figure: Figure, height: float) -> None:
        axes = plot_axes(figure, height, left=44, right=10, top=8, bottom=36)
        axes.grid(axis="y", lw=0.8)
        axes.set_xlabel("step", fontsize=10.5)
        for start in rounds:
            axes.axvline(start - 0.5, color=COLOUR["muted"], lw=0.8, ls=(0, (2, 3)))
        if zero:
            axes.axhline(0, color=COLOUR["muted"], lw=1)
        for line in lines:
            colour, dash = COLOUR[line.role], (0, (5, 2.2)) if line.dashed else "-"
            if line.dots:
                axes.plot(line.steps, line.values, "D", ms=6, mfc=colour, mec=COLOUR["paper"], mew=1, zorder=5)
            elif len(line.values) < 12:
                axes.plot(line.steps, line.values, color=colour, lw=2, ls=dash, zorder=4)
            else:
                steps, values = _thinned(line.steps, line.values, 400)
                axes.plot(steps, values, color=colour, lw=0.9, alpha=0.3, zorder=3)
                axes.plot(
                    *_thinned(line.steps, running_mean(line.values), 400), color=colour, lw=2.1, ls=dash, zorder=4
                )
        axes.margins(x=0.02, y=0.1)
        axes.locator_params(axis="y", nbins=5)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    return drawn(name, title, draw, 180)


def lengths(name: str, title: str, base: Sequence[float], steered: Sequence[float]) -> str:
    """Two distributions over shared bins: base filled, steered outlined; the ticks below are the medians."""

    def draw(figure: Figure, height: float) -> None:
        axes = plot_axes(figure, height, left=44, right=10, top=8, bottom=36)
        top = max(*base, *steered, 1.0)
        edges = np.linspace(0, top, 25)
        for values, role, filled in ((base, "base", True), (steered, "steered", False)):
            share = np.histogram(values, edges)[0] / len(values)
            if filled:
                axes.stairs(share, edges, fill=True, color=COLOUR[role], alpha=0.35, lw=0)
            else:
                axes.stairs(share, edges, color=COLOUR[role], lw=2)
            median = float(np.median(values))
            axes.axvline(median, color=COLOUR[role], lw=1.6, ls="-" if not filled else (0, (4, 2.5)))
        axes.grid(axis="y", lw=0.8)
        axes.set_axisbelow(True)
        axes.set_xlim(0, top)
        axes.set_xlabel("tokens in an answer", fontsize=10.5)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
        axes.locator_params(axis="y", nbins=5)

    return drawn(name, title, draw, 180)


def running_mean(values: Sequence[float]) -> list[float]:
    """Centred mean over about a tenth of the curve, with shorter windows at the ends (nothing is invented there).

    >>> running_mean([0.0, 3.0, 0.0])
    [1.5, 1.0, 1.5]
    """
    half = max(1, len(values) // 20)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return [float(value) for value in (sums[high] - sums[low]) / (high - low)]


def _thinned(steps: Sequence[float], values: Sequence[float], most: int) -> tuple[list[float], list[float]]:
    keep = np.unique(np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(int))
    return [float(steps[i]) for i in keep], [float(values[i]) for i in keep]


def plot_axes(figure: Figure, height: float, *, left: float, right: float, top: float, bottom: float) -> Axes:
    """Axes with fixed margins in view-box units: the layout never depends on how wide a font is on this machine."""
    axes = figure.add_axes((left / WIDTH, bottom / height, 1 - (left + right) / WIDTH, 1 - (top + bottom) / height))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, pad=5, labelsize=10.5)
    axes.patch.set_visible(False)
    return axes


def _percent_axis(axes: Axes) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "50", "", "100 %"])
    axes.grid(axis="x", lw=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("share followed", fontsize=10.5)


def _label(axes: Axes, y: float, text: str, role: str, points: float, offset: float = -134) -> None:
    axes.annotate(
        text, (0, y), (offset, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
        ha="left", va="center", color=COLOUR[role], fontsize=points, parse_math=False,
        bbox={"facecolor": COLOUR["paper"], "edgecolor": "none", "pad": 1},
    )  # fmt: skip


def _short(text: str, most: int) -> str:
    text = visible(text)
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def drawn(name: str, title: str, draw: Callable[[Figure, float], None], height: float) -> str:
    """The SVG of what `draw` puts on a figure of WIDTH by `height`, themed; `name` starts its ids."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # a user's matplotlibrc must not change the report
        matplotlib.rcParams.update(SETTINGS)  # type: ignore[arg-type]
        # Only widths are measured with Matplotlib's font; the reader's browser has the glyphs.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        figure.patch.set_visible(False)
        draw(figure, height)
        stream = io.StringIO()
        FigureCanvasSVG(figure).print_svg(
            stream, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return themed(stream.getvalue(), name, title)


def themed(svg: str, name: str, title: str) -> str:
    """Matplotlib's SVG as a fragment of HTML: classes for colours, ids that start with `name`, a title for readers."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if _tag(child) in ("metadata", "style"):
                parent.remove(child)
    used = set(re.findall(r'(?:url\(#|href="#)([\w.-]+)', svg))
    for element in root.iter():
        element.tag = _tag(element)
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update(_attributes(attributes, used, name))
    for gone in ("width", "height", "version"):
        root.attrib.pop(gone, None)
    root.attrib.update({"role": "img", "aria-labelledby": f"{name}-title", "stroke-linejoin": "round"})
    heading = ElementTree.Element("title", {"id": f"{name}-title"})
    heading.text = visible(title)
    root.insert(0, heading)
    text = ElementTree.tostring(root, encoding="unicode")
    return re.sub(r">\s+<", "><", text).replace("\n", " ")


def _tag(element: ElementTree.Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _attributes(given: Mapping[str, str], used: set[str], name: str) -> dict[str, str]:
    kept: dict[str, str] = {}
    for key, value in given.items():
        if key == "id":
            if value in used:
                kept[key] = f"{name}-{value}"
        elif key in ("href", "clip-path"):
            kept[key] = value.replace("#", f"#{name}-")
        elif key == "transform" and re.fullmatch(r"rotate\(-?0 .*\)", value):
            continue
        elif key != "style":
            kept[key] = value
    classes = []
    for declaration in filter(None, (part.strip() for part in given.get("style", "").split(";"))):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key in ("fill", "stroke") and value != "none":
            classes.append(f"{key[0]}-{_ROLE[value]}")  # a colour without a role would not follow the theme: KeyError
        elif key == "font":
            kept.update(_font(value))
        elif key != "font-family":
            kept[key] = value
    if classes:
        kept["class"] = " ".join(classes)
    return kept


def _font(shorthand: str) -> dict[str, str]:
    found: dict[str, Any] = {}
    if size := re.search(r"([\d.]+)px", shorthand):
        found["font-size"] = f"{size[1]}px"
    if weight := re.match(r"\s*(bold|[1-9]00)\b", shorthand):
        found["font-weight"] = weight[1]
    return found
