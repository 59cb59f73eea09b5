"""Whether this code runs in a Jupyter notebook, and in which of its cells."""

from __future__ import annotations

import sys
from typing import Any


def kernel() -> Any:
    """Return the shell of the Jupyter kernel that runs this code; None in scripts and terminals."""
    # Not imported: where IPython runs, it is loaded already.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if hasattr(ipython, "get_ipython") else None  # type: ignore[union-attr]
    return shell if hasattr(shell, "kernel") else None


def cell_id(shell: Any) -> str | None:
    """Return the id of the cell that is being run; None from a front end that sends no ids."""
    message = shell.get_parent() if hasattr(shell, "get_parent") else {}  # ipykernel 6 and later
    found: str | None = (message.get("metadata") or {}).get("cellId")
    return found
