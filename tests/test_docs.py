"""Every tutorial runs from top to bottom and writes the files that it
names; every link leads somewhere.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from spectail.allocation.allocation import describe_settings
from spectail.allocation.targets import TARGETS
from spectail.export import TOOLS
from spectail.pruning.methods import method_names
from spectail.results.records import COLUMN_TABLE
from spectail.training.rules import RULES

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
TEXTS = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("experiments/*/*.md"),
    ROOT / "benchmarks/README.md",
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        yield


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial_runs_and_writes_what_it_says(page: Any, tmp_path: Path) -> None:
    text = page.read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, page.name, "exec"), names)
    files = re.findall(r'(?:write_html|save|save_pretrained)\("([^"]+)"\)', text)
    assert any(file.endswith(".html") for file in files), "a tutorial shows a picture"
    for file in files:
        found = tmp_path / file
        assert found.stat().st_size > 0
        assert found.is_file() or list(found.iterdir())
    check = CHECKS.get(page.stem)
    if check:
        check(names)


def the_frozen_layer_lies_on_its_null(names: dict[str, Any]) -> None:
    z = names["table"]["null_z"]
    assert abs(z["4"]) < 3
    assert (z.drop("4") < -3).all()


def stripes_are_learned(names: dict[str, Any]) -> None:
    model, (images, labels) = names["model"], names["stripes"](256)
    assert (model(images).argmax(dim=1) == labels).float().mean() > 0.6
    assert len(names["balancer"].history) == 6


def heat_is_learned(names: dict[str, Any]) -> None:
    found = names["error"](names["model"](names["test"]), names["answers"])
    assert found < names["error"](names["test"], names["answers"]) / 2


def zeros_are_counted(names: dict[str, Any]) -> None:
    weights = [names["model"].get_submodule(name).weight for name in names["ratios"]]
    zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    assert zeros == pytest.approx(0.6, abs=1e-4)


CHECKS = {
    "diagnosis": the_frozen_layer_lies_on_its_null,
    "images": stripes_are_learned,
    "pde": heat_is_learned,
    "pruning": zeros_are_counted,
}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Any) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        file, _, heading = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert heading in {
                re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings
            }, link


def test_the_documentation_explains_every_column_as_the_table_does() -> None:
    text = (ROOT / "docs" / "concepts.md").read_text()
    start = text.index("| column | meaning |")
    rows = [line for line in text[start:].split("\n\n")[0].splitlines()[2:] if line]
    assert rows == [f"| {column.name} | {column.meaning} |" for column in COLUMN_TABLE]


def rows_of(page: Any, header: Any) -> list[Any]:
    """The rows of the table with this header."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    start = lines.index(header) + 2
    return list(itertools.takewhile(lambda line: line.startswith("|"), lines[start:]))


def test_the_documentation_explains_every_target_as_its_type_does() -> None:
    expected = [
        f"| `{t.name}` | {t.meaning} | {t.budget_meaning} | {describe_settings(t().settings())} |"
        for t in TARGETS
    ]
    assert rows_of("allocate.md", "| target | value | budget | by default |") == expected


def test_the_documentation_explains_every_tool_as_its_type_does() -> None:
    expected = [f"| `{tool.name}` | {tool.takes} | {tool.tried} |" for tool in TOOLS]
    assert rows_of("export.md", "| tool | takes | what was run |") == expected


def test_the_documentation_lists_every_pruning_method_and_training_rule() -> None:
    def names(page: Any, header: Any) -> list[str]:
        return [row.split("|")[1].strip(" `") for row in rows_of(page, header)]

    header = "| `--method` | pruned first | compared within | weights that stay |"
    assert names("pruning.md", header) == method_names()
    header = "| rule | scales | factor, by default | published |"
    assert names("training.md", header) == [rule.name for rule in RULES]
