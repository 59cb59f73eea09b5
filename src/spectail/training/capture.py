"""Know whether the present code is being recorded into a CUDA graph.

What is recorded does not happen yet, and asking the GPU for a value meanwhile is an error that
spoils the recording.
"""

from __future__ import annotations

import torch


def is_captured() -> bool:
    """Return whether the present code is being recorded into a CUDA graph."""
    if not torch.cuda.is_initialized():
        return False
    return bool(torch.cuda.is_current_stream_capturing())
