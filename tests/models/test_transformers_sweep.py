"""Every model class of transformers: weights by owner and by name agree, and
files meet their live models.

All classes in the tables of the auto classes are built on the meta device from their
default configurations with few layers (see ``sweep``), and compared with what
``save_pretrained`` would write.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

ROLES = {
    "cohere_asr": (
        "a position table that is an nn.Embedding in memory and a bare tensor in the file"
    ),
    "inkling2": "a position table that is an nn.Embedding in memory and a bare tensor in the file",
    "step3p7": "a position table that is an nn.Embedding in memory and a bare tensor in the file",
}
"""Model types whose roles differ between memory and file, and why."""

_CONVOLUTIONS = "three short convolutions in the file are one in memory"
_FUSED = "the file fuses what memory keeps apart, under a name that does not say how"
_TABLE = "a position table that is no weight in the file, or is not saved"
UNPAIRED = {
    "bailing_hybrid": _CONVOLUTIONS,
    "glm5_next": _CONVOLUTIONS,
    "glm5_next_text": _CONVOLUTIONS,
    "kimi_linear": _CONVOLUTIONS,
    "olmo_hybrid": _CONVOLUTIONS,
    "dots3_note": _FUSED,
    "gradium_phonon_tts": _FUSED,
    "inkling_mm_model": _FUSED,
    "inkling2": _FUSED,
    "inkling2_text": _FUSED,
    "kimi_k25": _FUSED,
    "molmo2": _FUSED,
    "molmo2_text": _FUSED,
    "nemo_speechlm": _FUSED,
    "cohere_asr": _TABLE,
    "marian": _TABLE,
    "step3p7": _TABLE,
}
"""Model types in which some layer of the file or of the live model has no partner, and why."""


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    from .sweep.swept import Swept, sweep, without_partner

    found: dict[str, Any] = {
        "built": 0,
        "pairs": 0,
        "missing": Counter(),
        "roles": {},
        "pairs wrong": {},
        "covered": {},
        "alone": {},
    }
    for result in sweep():
        if not isinstance(result, Swept):
            found["missing"][result[1]] += 1
            continue
        found["built"] += 1
        found["pairs"] += len(result.pairing.pairs)
        kind, name = result.case.model_type, str(result.case)
        for key, faults in (
            ("roles", result.wrong_roles()),
            ("pairs wrong", result.wrong_pairs()),
            ("covered", result.wrongly_covered()),
            ("alone", [layer.name for layer in without_partner(result)]),
        ):
            if faults:
                found[key].setdefault(kind, []).append((name, faults[:3]))
    return found


def test_the_sweep_is_complete(results: Any) -> None:
    from .sweep.classes import LIBRARIES

    assert results["built"] > 1500
    assert results["pairs"] > 100_000
    assert set(results["missing"]) <= set(LIBRARIES)


def test_owners_and_names_agree_on_what_a_weight_matrix_is(results: Any) -> None:
    assert {k: v for k, v in results["roles"].items() if k not in ROLES} == {}
    assert set(results["roles"]) == set(ROLES)


def test_file_names_meet_live_names(results: Any) -> None:
    assert results["pairs wrong"] == {}
    assert {k: v for k, v in results["alone"].items() if k not in UNPAIRED} == {}
    assert set(results["alone"]) == set(UNPAIRED)


def test_a_sparsity_covers_weight_matrices_only(results: Any) -> None:
    assert results["covered"] == {}
