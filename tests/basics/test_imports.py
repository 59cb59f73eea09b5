"""Modules imported in the background are there at the end; a missing one is its user's error."""

import sys
import threading
from pathlib import Path

import pytest

from spectail.basics.imports import importing


def test_modules_are_imported_when_the_block_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "slow_library.py").write_text(
        "import sys, threading\nassert sys.let_it_go_on.wait(60)\n"
        "WHERE = threading.current_thread().name\n"
    )
    monkeypatch.setattr(sys, "let_it_go_on", threading.Event(), raising=False)
    with importing("slow_library"):
        assert not hasattr(sys.modules.get("slow_library"), "WHERE")
        sys.let_it_go_on.set()  # type: ignore[attr-defined]
    assert sys.modules.pop("slow_library").WHERE == "spectail-imports"


def test_a_missing_module_is_an_error_only_for_who_uses_it() -> None:
    with importing("no_such_library_anywhere"):
        pass
    with pytest.raises(ValueError, match="own"), importing("no_such_library_anywhere"):
        raise ValueError("own")
