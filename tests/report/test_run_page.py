"""The page as text: its data equal the records, hostile names stay text,
nothing is asked of the network."""

import html
import json
import re
import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import spectail as st
from spectail import presets
from spectail.cli import run
from spectail.core.spec import Spec
from spectail.report.compare_page import compare_html
from spectail.report.page import addresses, embed
from spectail.report.run_page import command, full_path, report_html, spectra_data
from spectail.report.trajectory_page import trajectory_html
from spectail.results.compare import pair_layers
from spectail.results.records import COLUMNS, LayerRecord, Results
from spectail.results.trajectory import Trajectory

from .conftest import missing, ok_layer, run_of

CASES = ["transformer", "cnn", "single", "failed", "random_model", "hostile"]


def data_of(page: Any) -> Any:
    [found] = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL
    )
    return json.loads(found)


def without_scripts(page: Any) -> Any:
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


@pytest.mark.parametrize("case", CASES)
def test_embedded_rows_are_the_records(case: str, request: pytest.FixtureRequest) -> None:
    results = request.getfixturevalue(case)
    table = data_of(report_html(results))["table"]
    assert tuple(table["columns"]) == COLUMNS
    for row, layer in zip(table["rows"], results.layers, strict=True):
        back = LayerRecord.from_dict(dict(zip(COLUMNS, row, strict=True)))
        assert back.to_dict() | {"spectrum": None} == layer.to_dict() | {"spectrum": None}


@pytest.mark.parametrize(("cutoff", "main"), [("ks", True), ("median", False), ("top:0.1", False)])
def test_the_verdict_is_a_main_column_where_the_cutoff_asks_for_it(cutoff: str, main: bool) -> None:
    view = data_of(report_html(run_of([], spec=Spec(cutoff=cutoff))))["table"]["view"]
    assert {column["key"]: column["main"] for column in view}["tail_verdict"] is main


def test_every_column_of_the_page_is_one_of_the_table() -> None:
    view = data_of(report_html(run_of([])))["table"]["view"]
    keys = [column["key"] for column in view if column["key"] != "shape"]
    assert sorted({*COLUMNS} - {*keys}) == ["cols", "comparable", "rows"]
    assert len(keys) == len(set(keys))


def test_embedded_spectra_are_those_of_the_records(transformer: Results) -> None:
    spectra = data_of(report_html(transformer))["spectra"]
    drawable = [i for i, layer in enumerate(transformer.layers) if layer.spectrum]
    assert [int(i) for i in spectra["layers"]] == drawable
    stored, kept = spectra["layers"][str(drawable[3])], transformer.layers[drawable[3]].spectrum
    assert kept is not None
    assert tuple(stored["counts"]) == kept.counts
    assert list(zip(stored["ranks"], stored["values"], strict=True)) == [
        (r, pytest.approx(x, rel=1e-4)) for r, x in kept.top
    ]
    assert len(spectra["shapes"]) == 1
    heaviest = min(
        (x for x in transformer.layers if x.comparable and x.spectrum), key=lambda x: x.alpha
    )
    assert transformer.layers[spectra["first"]] is heaviest


@pytest.mark.parametrize("case", CASES)
def test_nothing_comes_from_elsewhere(case: str, request: pytest.FixtureRequest) -> None:
    html = without_scripts(report_html(request.getfixturevalue(case)))
    for _, address in addresses():  # what a reader may click; the page itself fetches nothing
        html = html.replace(f'<a rel="noreferrer" href="{address}">', "")
    assert not re.search(
        r"""<(script|link|img|iframe|object|base|form)\b|\b(src|href)=["'](?!#)|@import|url\(""",
        html,
    )
    assert "default-src 'none'" in html


def test_hostile_text_opens_no_element(hostile: Results) -> None:
    page = report_html(hostile)
    assert page.count("</script>") == 3
    assert "<!--" not in without_scripts(page)
    body = without_scripts(page)
    for tag in ("<script", "<img", "<i>x", "<b>bold", "<u>note", "<b>0"):
        assert tag not in body
    assert "&lt;script&gt;window.hacked" in body
    page.encode("utf-8")


HIDDEN = "layers.0.a\x1b[31m\0\x9b\u202ebc\u2066\u200b`d`-1"
"""A name with control characters, marks of direction and the ends of a piece of code."""
SEEN = r"layers.0.a\x1b[31m\x00\x9b\u202ebc\u2066\u200b\x60d\x60-1"


def test_what_cannot_be_seen_is_an_escape_in_words_and_figures(transformer: Results) -> None:
    """A mark of direction would turn the sentence that follows the name."""
    layers = [replace(x, name=f"{HIDDEN}{i}", kind=f"{x.kind}\u202e") for i, x in
              enumerate(transformer.layers)]  # fmt: skip
    layers.append(missing(f"{HIDDEN}0.lost", None, "q", "failed", f"lost {HIDDEN}"))
    results = run_of(layers, source=HIDDEN, notes=(f"a note on {HIDDEN}",))
    moved = replace(results, layers=tuple(replace(x, alpha=x.alpha + 1) for x in layers))
    pages = {
        "run": report_html(results),
        "compare": compare_html(pair_layers(results, moved), results, moved),
        "curves": trajectory_html(Trajectory.of({f"{HIDDEN}1": results, "b": moved, "c": results})),
    }
    for name, page in pages.items():
        text = without_scripts(page)
        texts = [text, *strings(data_of(page)["figures"])]
        assert {c for t in texts for c in t if not c.isprintable()} <= {"\n", "\xa0"}, name
        assert f"<code>{SEEN}" in text, name


def strings(values: Any) -> list[str]:
    """Every text inside of nested values but the names of groups, which are not shown."""
    if isinstance(values, dict):
        values = [value for key, value in values.items() if key != "legendgroup"]
    if isinstance(values, list):
        return [text for value in values for text in strings(value)]
    return [values] if isinstance(values, str) else []


def test_embed_is_safe_json() -> None:
    values = {
        "a": float("nan"),
        "b": ["</script>", "<!--", "\u2028", "\udc80"],
        "c": (1, float("inf")),
    }
    text = embed(values)
    assert not set("<>&") & set(text)
    assert text.isascii()
    assert json.loads(text) == {"a": None, "b": values["b"], "c": [1, None]}


def test_sections_follow_what_the_run_holds(
    transformer: Results, cnn: Results, failed: Results
) -> None:
    charts = {case: set(data_of(report_html(results))["figures"]) for case, results in
              (("transformer", transformer), ("cnn", cnn), ("failed", failed))}  # fmt: skip
    assert charts == {
        "transformer": {"depth", "spectrum", "heatmap", "full"},
        "cnn": {"depth", "spectrum"},
        "failed": set(),
    }


def test_the_page_says_what_was_asked_and_how_to_repeat_it(transformer: Results) -> None:
    body = without_scripts(report_html(transformer))
    for text in (
        "sha256:0123abcd",
        "torch 2.9.0",
        "89",
        "64 (common)",
        "spectail analyze demo --out DIR",
    ):
        assert text in body


def test_command_quotes_and_carries_every_option() -> None:
    results = run_of(
        [], source="my model/x.pt", include=("*q*",), exclude=("lm head",), full_spectrum=True
    )
    assert command(results.run) == (
        "spectail analyze 'my model/x.pt' --out DIR --aspect-ratio 1 --window common "
        "--placement tile --cutoff median --include '*q*' --exclude 'lm head' --full-spectrum"
    )


@pytest.mark.parametrize(
    "options",
    [
        {"spec": Spec(aspect_ratio=4 / 3, tolerance=1 / 7, cutoff="top:0.3333333333333333")},
        {
            "include": ["*.0.*", "*up*"],
            "exclude": ["*.1.*q*"],
            "kinds": "q,up",
            "full_spectrum": True,
        },
        {"spec": Spec(seed=3, placement="random:2"), "include": ["*.0.*"], "kinds": "q"},
        {"spec": Spec(seed=1), "base": "ba se.safetensors", "exclude": ["*up*"], "erg": True},
        {"spec": Spec(legacy=True, window=16), "types": "linear", "full_spectrum": True},
        {"spec": presets.BY_NAME["weightwatcher"], "traps": True, "exclude": ["*up*"]},
    ],
)
def test_the_command_repeats_the_run(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    drawn = torch.Generator().manual_seed(0)
    for name in ("mo del.safetensors", "ba se.safetensors"):
        weights = {
            f"model.layers.{b}.{part}_proj.weight": torch.randn(48, 64, generator=drawn)
            for b in range(2)
            for part in ("self_attn.q", "self_attn.k", "mlp.up")
        }
        save_file(weights, name)
    first = st.analyze("mo del.safetensors", **options)
    text = command(first.run)
    if text.startswith("spectail "):
        assert run([*shlex.split(text)[1:], "--quiet"]) == 0
        again = st.Analysis.load("DIR")
    else:
        head, call = text.split("\n")
        names: dict[str, Any] = {}
        exec(f"{head}\nfound = {call}", names)
        again = names["found"]
    ours, theirs = (
        {key: value for key, value in x.run.to_dict().items() if key not in ("notes", "device")}
        for x in (first, again)
    )
    assert ours == theirs
    assert first.table["alpha"].tolist() == again.table["alpha"].tolist()


def test_the_command_of_several_runs_quotes_and_carries_every_option() -> None:
    both = {"spec": Spec(window=32), "exclude": ("lm head",)}
    runs = [
        run_of([ok_layer("w", None, "linear")], source=f"my run/{i}.pt", **both) for i in (1, 2)
    ]
    page = trajectory_html(Trajectory.of({"1": runs[0], "2": runs[1]}))
    assert command(runs[0].run, ["my run/1.pt", "my run/2.pt"]) in html.unescape(page)
    assert command(runs[0].run, ["my run/1.pt", "my run/2.pt"]) == (
        "spectail analyze 'my run/1.pt' 'my run/2.pt' --out DIR --aspect-ratio 1 --window 32 "
        "--placement tile --cutoff median --exclude 'lm head'"
    )


def test_a_spec_that_the_command_line_cannot_give_is_repeated_in_python() -> None:
    text = command(run_of([], spec=Spec(legacy=True, window=32)).run)
    assert text.startswith("import spectail as st")
    assert "legacy=True" in text
    assert "window=32" in text


def test_two_thousand_layers_take_seconds_and_few_megabytes(huge: Results) -> None:
    report_html(run_of([]))
    start = time.perf_counter()
    page = report_html(huge)
    assert time.perf_counter() - start < 10
    assert len(embed(spectra_data(huge))) < 4_000_000
    assert len(page) < 16_000_000


@pytest.mark.parametrize("given", ["x" * 5000, "x" * 300, "~nobody_at_all/x", "a\0b", ""])
def test_a_source_that_no_file_can_be_is_shown_by_its_name(given: str) -> None:
    assert full_path(run_of([], given=given).run) == "demo"
