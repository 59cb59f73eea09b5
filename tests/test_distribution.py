"""Wheel and source distribution: what they hold, what an index shows of them, and
that the wheel works by itself.
"""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet

from spectail.analysis import FILES

ROOT = Path(__file__).parent.parent
LEFT_OUT = (
    ".git",
    ".venv",
    "build",
    "dist",
    "demo",
    "*.egg-info",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

pytest.importorskip("build")


def run(*command: str | Path, cwd: Path) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder with a source distribution made from a copy of the tree, and the wheel made
    from it.
    """
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(ROOT, folder / "tree", ignore=shutil.ignore_patterns(*LEFT_OUT))
    run(
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--outdir",
        folder / "dist",
        cwd=folder / "tree",
    )
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(built: Any) -> Any:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The interpreter of an environment with the wheel; its dependencies are the
    installed ones, spectail is not.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False, symlinks=True)
    interpreter = folder / "bin" / "python"
    pip: list[Any] = [sys.executable, "-m", "pip", "--quiet", "--python", interpreter]
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    # A folder that a .pth file names is searched, but the .pth files in it, such as that of an
    # editable install, are not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return interpreter


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Any) -> None:
    source = ROOT / "src"
    wanted = [
        path
        for path in (source / "spectail").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == {path.relative_to(source).as_posix() for path in wanted}
    assert wheel.stat().st_size < 2**20


def test_the_source_distribution_holds_what_building_testing_and_documenting_need(
    built: Any,
) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    folders = ("src", "tests", "docs", "experiments", "benchmarks")
    wanted = {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
        and not any(part.endswith((".egg-info", "__pycache__")) for part in path.parts)
    }
    wanted |= {path.name for path in ROOT.glob("*.md")} | {
        "Makefile",
        "pyproject.toml",
        "constraints.txt",
        "mkdocs.yml",
    }
    results = {
        name
        for name in wanted
        if name.endswith((".json", ".jsonl", "/tables.md")) and not name.startswith("tests")
    }
    assert wanted - results - held == set()
    assert results & held == set()


def test_an_index_page_shows_no_link_or_picture_that_leads_nowhere(wheel: Any) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata["Description-Content-Type"] == "text/markdown"
    targets = re.findall(
        r"\]\(([^)]*)\)|\]:\s*(\S+)|(?:src|href)=[\"']([^\"']*)", str(metadata.get_payload())
    )
    found = [next(filter(None, groups)) for groups in targets]
    assert found
    assert [target for target in found if not target.startswith("https://")] == []
    assert metadata.get_all("Project-URL")


def test_the_python_example_of_the_index_page_runs(python: Any, tmp_path: Path) -> None:
    (example,) = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / PROJECT["readme"]).read_text(), re.DOTALL | re.MULTILINE
    )
    check = "\nassert balancer.summary() and len(ratios) == 4\nprint(st.__file__)"
    *_, where = run(python, "-c", example + check, cwd=tmp_path).split()
    assert Path(where).is_relative_to(python.parent.parent)


def test_the_wheel_alone_analyses_a_file(python: Any, checkpoint: Path, tmp_path: Path) -> None:
    command = python.parent / "spectail"
    assert run(command, "--version", cwd=tmp_path).strip() == PROJECT["version"]
    shown = run(command, "analyze", checkpoint, "--out", tmp_path / "run", cwd=tmp_path)
    assert "Heaviest tails" in shown
    assert {path.name for path in (tmp_path / "run").iterdir()} >= set(FILES)
    assert "<script" in (tmp_path / "run" / "report.html").read_text()


def test_what_is_pinned_installs_on_the_first_release_of_the_lowest_python() -> None:
    # Debian 12 has 3.11.2. Its pip searches for ten minutes before it says that a pin needs more.
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    needed = {}
    for name in pins:
        with suppress(metadata.PackageNotFoundError):
            needed[name] = metadata.distribution(name).metadata["Requires-Python"]
    assert len(needed) > len(pins) / 2
    too_new = {n: x for n, x in needed.items() if x and not SpecifierSet(x).contains("3.11.0")}
    assert too_new == {}


def test_the_lowest_versions_are_those_that_the_project_names() -> None:
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line)
    extras = PROJECT["optional-dependencies"]
    named = [
        *PROJECT["dependencies"],
        *(extra for name in ("hf", "gguf", "onnx", "tf") for extra in extras[name]),
    ]
    bounds = dict(re.findall(r"^([\w-]+)>=([\d.]+)$", requirement)[0] for requirement in named)
    assert bounds.keys() - tested.keys() == set()
    for name, bound in bounds.items():
        assert re.sub(r"(\.0)+$", "", tested[name]) == re.sub(r"(\.0)+$", "", bound), name
