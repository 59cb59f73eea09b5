"""The pages in a real browser: offline, without an error, at two widths, in both colour schemes."""

import csv
import dataclasses
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spectail.report.compare_page import compare_html
from spectail.report.curves import shown_range, spectrum_curves
from spectail.report.run_page import report_html
from spectail.results.compare import pair_layers
from spectail.results.records import Results
from tests.pruning import test_page as prune_page

WIDE, PHONE = (1280, 900), (390, 844)
OVERFLOW = "document.documentElement.scrollWidth <= window.innerWidth"
DRAWN = (
    "document.getElementById('spectrum').data.map(t => [t.meta, Array.from(t.x), Array.from(t.y)])"
)


def until(page: Any, expression: Any, seconds: float = 5.0) -> None:
    """Wait for a condition from outside: the page's policy lets Playwright's
    own waiting evaluate nothing."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"still not so after {seconds} s: {expression}"
        page.wait_for_timeout(20)


class Opened:
    """A page that was opened from disk, and everything that went wrong in it."""

    def __init__(
        self, browser: Any, path: Path, size: tuple[int, int] = WIDE, scheme: str = "light"
    ) -> None:
        self.errors: list[str] = []
        self.context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, offline=True
        )
        self.page = self.context.new_page()
        self.page.route("http://**/*", self._refuse)
        self.page.route("https://**/*", self._refuse)
        self.page.on(
            "console",
            lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None,
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready=yes]", timeout=30_000)

    def _refuse(self, route: Any) -> None:
        self.errors.append(f"asked the network for {route.request.url}")
        route.abort()

    def close(self) -> None:
        self.context.close()
        assert self.errors == []


@pytest.fixture(scope="module")
def pages(
    tmp_path_factory: pytest.TempPathFactory,
    transformer: Results,
    cnn: Results,
    failed: Results,
    hostile: Results,
    huge: Results,
) -> dict[str, Any]:
    """Every page once, on disk."""
    folder = tmp_path_factory.mktemp("pages")
    runs = {
        "transformer": transformer,
        "cnn": cnn,
        "failed": failed,
        "hostile": hostile,
        "huge": huge,
        "endless": dataclasses.replace(
            transformer,
            layers=tuple(
                dataclasses.replace(x, name=f"{x.name}{'_on' * 80}", kind=f"{x.kind}{'_on' * 40}")
                for x in transformer.layers
            ),
        ),
    }
    made = {name: report_html(results) for name, results in runs.items()}
    moved = [
        dataclasses.replace(x, alpha=x.alpha + 0.01 * (i % 9))
        for i, x in enumerate(transformer.layers[:-3])
    ]
    other = dataclasses.replace(transformer, layers=tuple(moved))
    made["compare"] = compare_html(pair_layers(transformer, other), transformer, other)
    made["prune"] = prune_page.html(prune_page.pruned())
    for name, html in made.items():
        (folder / f"{name}.html").write_text(html, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in made}


@pytest.fixture
def opened(browser: Any, pages: dict[str, Any]) -> Iterator[Any]:
    """Opens a page by name; afterwards nothing may have gone wrong in it."""
    seen = []

    def open_page(name: str, size: tuple[int, int] = WIDE, scheme: str = "light") -> Any:
        seen.append(Opened(browser, pages[name], size, scheme))
        return seen[-1].page

    yield open_page
    for one in seen:
        one.close()


@pytest.fixture(scope="module")
def shared(browser: Any, pages: dict[str, Any]) -> Iterator[Any]:
    """The transformer's page at full width: plotly.js takes seconds to start,
    so that many tests share one."""
    one = Opened(browser, pages["transformer"])
    yield one
    one.close()


@pytest.fixture
def report(shared: Any) -> Iterator[Any]:
    """The shared page with its filters cleared; the test may not leave an error behind."""
    page = shared.page
    page.fill("#filter", "")
    page.select_option("#kind", "")
    page.select_option("#status", "")
    yield page
    assert shared.errors == []


@pytest.mark.parametrize("name", ["transformer", "cnn", "failed", "endless"])
def test_opens_without_error_or_sideways_scroll(opened: Any, name: str) -> None:
    page = opened(name, PHONE, "dark")
    assert page.evaluate(OVERFLOW)
    page.check("#wide")
    assert page.evaluate(OVERFLOW)
    page.set_viewport_size({"width": WIDE[0], "height": WIDE[1]})
    page.wait_for_timeout(200)
    assert page.evaluate(OVERFLOW)
    assert page.locator("tbody tr").count() > 0


def test_long_words_break_inside_their_column(opened: Any) -> None:
    page = opened("endless")
    assert page.evaluate(
        "[...document.querySelectorAll('.words dd')].every((x) => x.scrollWidth <= x.clientWidth)"
    )


def test_the_wide_page_has_no_sideways_scroll(report: Any) -> None:
    assert report.evaluate(OVERFLOW)


def test_the_scheme_changes_page_and_charts(report: Any) -> None:
    look = (
        "[getComputedStyle(document.body).backgroundColor, "
        "document.getElementById('depth').layout.font.color]"
    )
    page = report
    light = page.evaluate(look)
    page.emulate_media(color_scheme="dark")
    until(
        page, f"JSON.stringify({look}) !== {json.dumps(json.dumps(light, separators=(',', ':')))}"
    )
    dark = page.evaluate(look)
    page.emulate_media(color_scheme="light")
    assert light[0] != dark[0]
    assert light[1] != dark[1]


def test_choosing_a_layer_draws_the_curves_of_its_record(report: Any, transformer: Results) -> None:
    page = report
    before = page.evaluate(DRAWN)
    index = next(
        i
        for i, layer in enumerate(transformer.layers)
        if layer.name == "model.layers.3.mlp.down_proj"
    )
    page.select_option("#layer", str(index))
    after = page.evaluate(DRAWN)
    assert after != before
    layer = transformer.layers[index]
    assert layer.spectrum is not None
    curves = spectrum_curves(layer, layer.spectrum, transformer.run.spec.cutoff)
    assert {meta for meta, _, _ in after} == set(curves)
    for meta, x, y in after:
        assert np.allclose(x, curves[meta].x, rtol=2e-4), meta
        assert np.allclose(y, curves[meta].y, rtol=2e-4, atol=1e-5), meta
    shown = page.evaluate("document.getElementById('spectrum').layout.xaxis.range")
    assert shown == pytest.approx(shown_range(layer.spectrum, curves), abs=1e-3)
    assert f"{layer.alpha:.3f} ± 0.020" in page.inner_text("#facts")


def test_arrows_rows_and_points_choose_too(report: Any, transformer: Results) -> None:
    page = report
    first = page.input_value("#layer")
    page.click("#next")
    assert page.input_value("#layer") != first
    page.click("#previous")
    assert page.input_value("#layer") == first
    page.click("td.name button >> text=model.layers.2.self_attn.v_proj")
    chosen = transformer.layers[int(page.input_value("#layer"))].name
    assert chosen == "model.layers.2.self_attn.v_proj"
    assert page.locator("tr.current").count() == 1
    ring = page.evaluate("document.getElementById('depth').data.find(t => t.meta === 'chosen').x")
    assert list(ring) == [2]
    page.locator("#depth").scroll_into_view_if_needed()
    place = page.evaluate(
        """() => { const d = document.getElementById('depth'), b = d.getBoundingClientRect();
        const x = d._fullLayout.xaxis, y = d._fullLayout.yaxis;
        const q = d.data.find(t => t.name === 'q');
        return [b.x + x._offset + x.d2p(q.x[5]), b.y + y._offset + y.d2p(q.y[5])]; }"""
    )
    page.mouse.move(*place)
    page.wait_for_selector("#depth .hoverlayer .hovertext")
    page.mouse.click(*place)
    until(
        page,
        "document.getElementById('layer').selectedOptions[0].text.includes('layers.5.self_attn.q')",
    )


def test_keyboard_alone_sorts_and_chooses(report: Any) -> None:
    page = report
    page.focus("th button >> text=Kind")
    page.keyboard.press("Enter")
    assert page.get_attribute("th:has-text('Kind')", "aria-sort") == "ascending"
    assert page.evaluate("document.activeElement.textContent") == "Kind"
    page.focus("tbody tr:nth-child(3) td.name button")
    page.keyboard.press("Enter")
    assert page.locator("tbody tr:nth-child(3)").get_attribute("class") == "current"


def column(page: Any, n: int) -> Any:
    """The texts of a column; of the first one the names alone, without the reasons below them."""
    cells = f"tbody td:nth-child({n})" + (" > :first-child" if n == 1 else "")
    found = page.eval_on_selector_all(cells, "cells => cells.map(c => c.textContent)")
    return [text.replace("\N{MINUS SIGN}", "-") for text in found]


def test_sorting_goes_both_ways_and_missing_values_stay_last(report: Any) -> None:
    page = report
    page.click("th button >> text=Alpha")
    up = column(page, 2)
    page.click("th button >> text=Alpha")
    down = column(page, 2)
    numbers = [float(x) for x in up if x != "–"]
    assert numbers == sorted(numbers)
    assert [float(x) for x in down if x != "–"] == numbers[::-1]
    assert up[-13:] == down[-13:] == ["–"] * 13
    page.click("th button >> text=Layer")
    names = column(page, 1)
    assert names.index("model.layers.2.router") < names.index("model.layers.10.router")


def test_filters_narrow_the_table_and_say_how_far(report: Any) -> None:
    page = report
    page.fill("#filter", "layers.3. PROJ")
    assert page.locator("tbody tr").count() == 7
    assert page.inner_text("#count") == "7 of 102 layers"
    page.select_option("#kind", "gate")
    assert column(page, 1) == ["model.layers.3.mlp.gate_proj"]
    page.fill("#filter", "nothing like it")
    assert "No layer matches" in page.inner_text("tbody")
    page.fill("#filter", "")
    page.select_option("#kind", "")
    page.select_option("#status", "skipped")
    assert page.locator("tbody tr").count() == 12
    assert "short side 8 is below 16" in page.inner_text("tbody")
    page.select_option("#status", "not comparable")
    assert column(page, 1) == ["model.head.conv2"]


def test_the_reason_is_seen_without_scrolling_sideways(opened: Any) -> None:
    page = opened("transformer", PHONE)
    page.select_option("#status", "skipped")
    seen = page.eval_on_selector(
        "tbody tr td .reason",
        "r => { const b = r.getBoundingClientRect(); return [b.left, b.right, innerWidth]; }",
    )
    assert 0 <= seen[0] < seen[1] <= seen[2]


def test_a_layer_is_found_by_typing_its_name(report: Any, transformer: Results) -> None:
    report.fill("#find", "model.layers.7.mlp.up_proj")
    until(report, "document.getElementById('find').value === ''")
    chosen = transformer.layers[int(report.input_value("#layer"))]
    assert chosen.name == "model.layers.7.mlp.up_proj"


def test_the_rows_shown_are_downloaded_with_all_columns(report: Any) -> None:
    report.select_option("#kind", "gate")
    with report.expect_download() as waiting:
        report.click("#csv")
    rows = list(csv.DictReader(waiting.value.path().read_text().splitlines()))
    assert [row["name"] for row in rows] == column(report, 1)
    assert all(float(row["alpha"]) > 1 and row["reason"] == "" for row in rows)


def test_formulas_are_text_in_the_download(opened: Any, hostile: Results) -> None:
    page = opened("hostile")
    with page.expect_download() as waiting:
        page.click("#csv")
    rows = list(csv.DictReader(io.StringIO(waiting.value.path().read_text(errors="replace"))))
    assert len(rows) == len(hostile.layers)
    assert all(row["name"][0] not in "=+-@\t\r" for row in rows)


def test_a_cell_of_many_layers_lists_them_in_the_table(opened: Any, huge: Results) -> None:
    page = opened("huge")
    page.locator("#heatmap").scroll_into_view_if_needed()
    place = page.evaluate(
        """() => { const d = document.getElementById('heatmap'), b = d.getBoundingClientRect();
        const x = d._fullLayout.xaxis, y = d._fullLayout.yaxis;
        return [b.x + x._offset + x.d2p(3), b.y + y._offset + y.d2p(4)]; }"""
    )
    page.mouse.move(*place)
    page.wait_for_selector("#heatmap .hoverlayer .hovertext")
    page.mouse.click(*place)
    until(page, "document.getElementById('filter').value !== ''")
    kind = page.input_value("#kind")
    expected = [x.name for x in huge.layers if x.block == 3 and x.kind == kind]
    assert column(page, 1) == expected
    assert len(expected) > 1


def test_contents_lead_to_every_section(report: Any) -> None:
    targets = report.eval_on_selector_all(
        ".contents a", "links => links.map(a => a.getAttribute('href').slice(1))"
    )
    sections = report.eval_on_selector_all("main section", "all => all.map(s => s.id)")
    assert targets == sections


def test_decimals_of_a_column_align(report: Any) -> None:
    ranks = [text for text in column(report, 8) if text != "–"]
    assert len({len(text.partition(".")[2]) for text in ranks}) == 1


def test_legend_buttons_hide_and_show_a_kind(report: Any) -> None:
    page = report
    button = page.locator("[data-legend=depth] button", has_text="gate")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    state = (
        "document.getElementById('depth').data.filter(t => t.legendgroup === 'gate').map(t "
        "=> t.visible)"
    )
    assert page.evaluate(state) == [False]
    button.click()
    assert page.evaluate(state) == [True]


def test_hostile_names_are_shown_and_never_run(opened: Any, hostile: Results) -> None:
    page = opened("hostile")
    assert page.evaluate("window.hacked === undefined")
    assert page.locator("main script, main img, main u").count() == 0
    shown = column(page, 1)
    for layer, text in zip(hostile.layers, shown, strict=True):
        assert (
            text.encode("utf-16", "replace") == layer.name.encode("utf-16", "replace")
            or "\ufffd" in text
        )
    for i in range(len(hostile.layers) - 1):
        page.select_option("#layer", str(i))


def test_two_thousand_layers_stay_usable(opened: Any) -> None:
    page = opened("huge", PHONE)
    assert page.locator("tbody tr").count() == 2000
    page.fill("#filter", "layers.39. experts.7.")
    assert page.locator("tbody tr").count() == 1
    page.click("tbody td.name button")
    assert page.input_value("#layer") == str(39 * 50 + 7)
    assert page.evaluate(OVERFLOW)


def test_comparison_page_sorts_and_marks_the_row_of_a_point(opened: Any) -> None:
    page = opened("compare")
    page.click("th button >> text=Change")
    change = [float(x) for x in column(page, 6) if x != "–"]
    assert change == sorted(change)
    page.select_option("#status", "only in A")
    assert page.locator("tbody tr").count() == 3
    page.click("tbody tr:nth-child(1) td.name button")
    assert page.locator("tr.current").count() == 1
    assert page.evaluate(OVERFLOW)
    page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    page.check("#wide")
    until(page, OVERFLOW)


def test_pruning_page_draws_its_charts_and_a_point_opens_its_row(opened: Any) -> None:
    page = opened("prune", PHONE)
    assert page.evaluate("document.getElementById('ratios').data.length") == 6
    assert page.evaluate("document.getElementById('selection').data[0].y.length") == 2
    assert page.locator("tbody tr").count() == 14
    page.select_option("#status", "left out")
    assert page.locator("tbody tr").count() == 2
    assert page.evaluate("window.hacked === undefined")
    page.select_option("#status", "")
    page.click("tbody tr:nth-child(4) td.name button")
    assert page.locator("tr.current td.name").inner_text() == "model.layers.1.mlp.up_proj"
    assert page.evaluate(OVERFLOW)
    page.set_viewport_size({"width": WIDE[0], "height": WIDE[1]})
    page.check("#wide")
    until(page, OVERFLOW)


def test_printing_turns_charts_light_and_shows_the_whole_table(report: Any) -> None:
    ink = "document.getElementById('depth').layout.font.color"
    light = report.evaluate(ink)
    report.emulate_media(color_scheme="dark")
    until(report, f"{ink} !== '{light}'")
    report.emulate_media(media="print", color_scheme="dark")
    report.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert report.evaluate(ink) == light
    assert (
        report.evaluate("getComputedStyle(document.querySelector('.scroller')).maxHeight") == "none"
    )
    report.evaluate("window.dispatchEvent(new Event('afterprint'))")
    report.emulate_media(media="screen", color_scheme="light")
