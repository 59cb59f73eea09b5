"""The direction of imports: arrows point downward only, no cycles, and results load without
torch."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SRC = Path(__file__).parent.parent / "src" / "spectail"
FLOORS = [
    {"errors"},
    {"basics"},
    {"core", "models"},
    {"presets", "results"},
    {"allocation", "evaluation"},
    {"export", "report"},
    {"analysis"},
    {"measuring"},
    {"pruning", "training"},
    {"sensitivity"},
    {"cli"},
    {"__main__"},
]
"""From the bottom up: a module may import its own floor's package and everything
below, nothing above or beside.
"""
MODELS = [
    {"subclasses"},
    {"lazy_tensor", "naming"},
    {"layout", "assembly"},
    {"source"},
    {"tied", "difference"},
    {"build"},
    {"formats"},
    {"live"},
    {"open"},
]
"""The same inside of ``models``."""


def _unit(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def _floor(unit: str, floors: list[set[str]] = FLOORS) -> int:
    return next(i for i, floor in enumerate(floors) if unit in floor)


def _files() -> list[Path]:
    return sorted(path for path in SRC.rglob("*.py") if path != SRC / "__init__.py")


def _module(path: Path) -> str:
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(tree: ast.AST) -> list[tuple[ast.stmt, str]]:
    found: list[tuple[ast.stmt, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("spectail"):
            if node.module == "spectail":
                found += [(node, f"spectail.{alias.name}") for alias in node.names]
            else:
                found.append((node, node.module))
        if isinstance(node, ast.Import):
            found += [
                (node, alias.name) for alias in node.names if alias.name.startswith("spectail")
            ]
    return found


@pytest.mark.parametrize("path", _files(), ids=_module)
def test_imports_point_downward(path: Any) -> None:
    own = _unit(_module(path))
    for _, module in _imports(ast.parse(path.read_text())):
        other = _unit(module)
        assert other == own or _floor(other) < _floor(own), (
            f"{_module(path)} imports {module}, which is not below it"
        )


@pytest.mark.parametrize("path", sorted((SRC / "models").rglob("*.py")), ids=_module)
def test_imports_inside_of_models_point_downward(path: Any) -> None:
    own = _module(path).split(".")[2:3]
    for _, module in _imports(ast.parse(path.read_text())):
        other = module.split(".")[2:3] if module.startswith("spectail.models.") else []
        if own and other and other != own:
            assert _floor(other[0], MODELS) < _floor(own[0], MODELS), (
                f"{_module(path)} imports {module}"
            )


@pytest.mark.parametrize("path", _files(), ids=_module)
def test_no_own_import_is_hidden_in_a_function(path: Any) -> None:
    tree = ast.parse(path.read_text())
    inside = [
        node for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for node, _ in _imports(f)
    ]
    assert not inside, f"{_module(path)} line {inside[0].lineno} imports inside a function"


def test_modules_import_each_other_in_no_circle() -> None:
    edges = {_module(p): {m for _, m in _imports(ast.parse(p.read_text()))} for p in _files()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for other in edges.get(module, set()):
                visit(other, (*path, module))
            done.add(module)

    for module in edges:
        visit(module, ())


@pytest.mark.parametrize(
    "statement",
    [
        "from spectail import Analysis",
        "import spectail; spectail.compare",
        "import spectail; spectail.allocate; spectail.Allocation; spectail.maps; spectail.targets",
    ],
)
def test_results_load_without_torch(statement: str) -> None:
    code = f"import sys; {statement}; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_all_resolve() -> None:
    import spectail

    assert all(getattr(spectail, name) is not None for name in spectail.__all__)
    assert callable(spectail.analyze)


def test_whatever_a_caller_can_catch_is_a_public_name() -> None:
    import spectail
    from spectail import errors

    raised = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert raised <= set(spectail.__all__)
