"""The report in a real browser: phone and desktop, light and dark, offline, filtered without scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optative.evaluation.report import write_report
from report_folder import build

pytestmark = pytest.mark.browser
VIEWS = [(width, scheme) for width in (375, 1280) for scheme in ("light", "dark")]

# Smallest contrast (WCAG 2) of any text a reader sees, with its element; backgrounds are looked up through ancestors.
CONTRAST = """() => {
  const parse = c => { const m = c.match(/[\\d.]+/g).map(Number); return m.length > 3 ? m : [...m, 1] };
  const channel = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2]);
  const behind = e => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor); if (c[3] === 1) return c; } return [255, 255, 255, 1] };
  let worst = [99, '', ''];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n; (n = walker.nextNode());) {
    const e = n.parentElement;
    if (!n.textContent.trim() || e.closest('title, .skip') || !e.getClientRects().length) continue;
    const style = getComputedStyle(e), front = parse(e.closest('svg') ? style.fill : style.color);
    const [a, b] = [light(front), light(behind(e))].sort((x, y) => y - x), ratio = (a + 0.05) / (b + 0.05);
    if (ratio < worst[0]) worst = [ratio, e.outerHTML.slice(0, 120), n.textContent.trim().slice(0, 40)];
  }
  return worst }"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(build(tmp_path_factory.mktemp("runs") / "demo-1a2b3c4d", prompts=60, unseen=20, steps=64))


@pytest.fixture(scope="module")
def alignment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(build(tmp_path_factory.mktemp("runs") / "own-pairs", kind="align", steps=40))


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
@pytest.mark.parametrize("which", ["report", "alignment"])
def test_readable_on_every_screen(
    browser: Any, request: pytest.FixtureRequest, which: str, width: int, scheme: str
) -> None:
    path: Path = request.getfixturevalue(which)
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page, messages, requests = context.new_page(), [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("dialog", lambda dialog: messages.append(dialog.message))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert messages == []
    assert [url for url in requests if url != path.as_uri()] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    worst, element, text = page.evaluate(CONTRAST)
    assert worst >= 4.5, (worst, element, text)
    smallest = page.evaluate(
        "Math.min(...[...document.querySelectorAll('.plot text')].map(t => t.getBoundingClientRect().height))"
    )
    assert smallest >= 8, "the text of a plot is too small to read"
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] < 128")
    assert dark == (scheme == "dark")
    context.close()


def test_filters_work_without_scripts(browser: Any, report: Path) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    total = page.locator(".ex").count()
    lost = page.locator(".g-lost .ex").count()
    assert page.locator(".ex:visible").count() == total > lost > 0
    page.get_by_text("Lost", exact=False).locator("xpath=self::label").click()
    assert page.locator(".ex:visible").count() == lost
    page.locator("label[for=o-all]").click()
    page.locator("label[for=p-1]").click()
    assert 0 < page.locator(".ex:visible").count() == page.locator(".ex.p1").count() < total
    page.locator("label[for=p-0]").click()
    page.locator("summary", has_text="Only one kind").click()
    page.locator("label[for=k-0]").click()
    assert 0 < page.locator(".ex:visible").count() == page.locator(".ex.p0.k0").count() < total
    first = page.locator(".ex:visible").first
    assert not first.locator(".answers").is_visible()
    first.locator("summary").click()
    assert first.locator(".a-base pre").is_visible()
    assert first.locator(".a-steered pre").is_visible()
    context.close()
