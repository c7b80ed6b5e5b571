"""What every run ends with: exported weights, the report, the model card; and the verdict on its criterion.

Knows: the run folder. Does not know: how the figures came about.
"""

from __future__ import annotations

from typing import Any

from optative.core.events import Events
from optative.core.folder import RunFolder
from optative.generators.language.model import LanguageModel


def finish(folder: RunFolder, lm: LanguageModel, events: Events) -> None:
    """Write `adapter/` (where one was trained), `model/`, `report.html` and `README.md`; each appears whole."""
    from optative.evaluation.report import write_report
    from optative.generators.language.trained import is_full
    from optative.runs.card import write_card
    from optative.runs.export import export_adapter, export_model

    events.say("  writing the weights, the report and the model card")
    if not is_full(lm):
        export_adapter(lm, folder.adapter)
    export_model(lm, folder.model)
    write_report(folder.path)
    write_card(folder.path)


def verdict(criterion: Any, evaluation: dict[str, Any]) -> dict[str, Any]:
    """Whether the criterion is met: the difference reaches what was asked and its interval lies above zero."""
    found = next(
        (m for m in evaluation["metrics"] if m["name"] == criterion.metric and m["split"] == criterion.split), None
    )
    if found is None or found["difference"] is None:
        met, why = False, f"{criterion.metric} on {criterion.split} was not measured"
    else:
        low = found["interval"][0] if found["interval"] else None
        met = found["difference"] >= criterion.smallest_difference and low is not None and low > 0
        change = f"{found['difference']:+.3f}, interval from {'nowhere' if low is None else f'{low:+.3f}'}"
        asked = f"at least {criterion.smallest_difference:+.3f} and an interval above zero"
        why = f"{criterion.metric} on {criterion.split} changed by {change}; asked: {asked}"
    return {**criterion.model_dump(mode="json"), "met": met, "why": why}
