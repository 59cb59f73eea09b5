"""Exports: an allocation as a file that another tool reads. One file each, one line in the table.

JSON is ``Allocation.save``. Nothing here imports torch.
"""

from __future__ import annotations

from spectail.export.auto_round import AutoRound
from spectail.export.freezing import PEFT, Axolotl
from spectail.export.llama_cpp import LlamaCpp
from spectail.export.llm_compressor import LLMCompressor
from spectail.export.rates import Factors, Lightning, PlainTorch, Transformers
from spectail.export.tool import Tool
from spectail.export.torch_pruning import TorchPruning
from spectail.export.torchao import TorchAO

TOOLS: list[type[Tool]] = [
    LLMCompressor,
    AutoRound,
    TorchAO,
    LlamaCpp,
    TorchPruning,
    Axolotl,
    PEFT,
    Factors,
    PlainTorch,
    Transformers,
    Lightning,
]
"""All tools: the parser, the help text and the documentation's table follow from this list."""


def tool_names() -> list[str]:
    """Return the names of all tools, as the command line writes them."""
    return [tool.name for tool in TOOLS]


__all__ = [
    "PEFT",
    "TOOLS",
    "AutoRound",
    "Axolotl",
    "Factors",
    "LLMCompressor",
    "Lightning",
    "LlamaCpp",
    "PlainTorch",
    "Tool",
    "TorchAO",
    "TorchPruning",
    "Transformers",
    "tool_names",
]
