"""Records with values that no measurement gives are refused by field; those of real runs pass."""

import math
from typing import Any

import pytest

from spectail.allocation.allocation import Allocation
from spectail.basics.schema import SchemaError
from spectail.errors import AllocationError
from spectail.results.records import LayerRecord, RunInfo
from tests.fuzz import seeds

HUGE = 10**400
NEGATIVE = [-1.0, -1e-300, -1.7e308, HUGE, "1", True, float("nan"), float("inf")]
COUNTS = [-1, 1.5, 2**63, HUGE, True, "3", float("nan")]
FIELDS: dict[str, list[Any]] = {
    **dict.fromkeys(
        ("rows", "cols", "numel", "n_matrices", "n_tail", "n_zero", "n_windows"), COUNTS
    ),
    **dict.fromkeys(
        (
            "alpha_se",
            "alpha_null",
            "xmin",
            "lambda_max",
            "frobenius_norm_sq",
            "stable_rank",
            "weight_var",
            "seconds",
            "relative_change",
            "trap_ratio",
            "group_range",
        ),
        NEGATIVE,
    ),
    "alpha": [0.5, 0, -2.0, HUGE, "2", [2.0], float("inf")],
    "alpha_full": [0.5],
    "ks": [-0.1, 1.1, "x"],
    "ks_p": [-0.1, 2],
    "block": [-1, 1.5, "3"],
    "kind": [3, None, {}, ["q"]],
    "name": [3, None, {}],
    "status": ["fine", "OK", 1, None],
    "comparable": ["no", 1, None],
    "rounding": [
        [["int4", 0.0, 0.0]],
        [["int4", -4.0, 0.1]],
        [["int4", 4.0, -1.0]],
        [["int4", 4.0]],
    ],
    "spectrum": [
        {"edges": [5.0, -5.0], "counts": [1], "top": []},
        {"edges": [1.0], "counts": [1], "top": []},
        {"edges": [0.0, 1.0], "counts": [-1], "top": []},
        {"edges": [0.0, 1.0], "counts": [1], "top": [[0, 1.0]]},
        {"edges": [0.0, 1.0], "counts": [1], "top": [[1, 0.0]]},
        "x",
    ],
}
CASES = [(field, value) for field, values in FIELDS.items() for value in values]


def _stored() -> list[dict[str, Any]]:
    return [layer.to_dict() for layer in seeds.analysis().layers]


def test_records_of_every_kind_of_row_come_back() -> None:
    for stored, layer in zip(_stored(), seeds.analysis().layers, strict=True):
        assert LayerRecord.from_dict(stored).to_dict() == layer.to_dict()


@pytest.mark.parametrize(("field", "value"), CASES, ids=[f"{f}={str(v)[:25]}" for f, v in CASES])
def test_values_that_cannot_be_are_refused_by_field(field: str, value: Any) -> None:
    with pytest.raises(SchemaError) as caught:
        LayerRecord.from_dict(_stored()[0] | {field: value})
    assert field in str(caught.value) or field == "rounding"
    assert "\n" not in str(caught.value)


def test_null_stands_for_a_number_that_was_not_measured() -> None:
    record = LayerRecord.from_dict(_stored()[0] | {"alpha": None, "ks": None, "lambda_max": None})
    assert all(map(math.isnan, (record.alpha, record.ks, record.lambda_max)))


@pytest.mark.parametrize("value", [0, -1, 1.5, "64", True])
def test_a_window_is_at_least_one_wide(value: Any) -> None:
    with pytest.raises(SchemaError, match="window"):
        RunInfo.from_dict(seeds.analysis().run.to_dict() | {"window": value})


@pytest.mark.parametrize(
    ("target", "value"), [("sparsity", 1.5), ("bits", 65), ("freeze", 2), ("lr", -1e-3)]
)
def test_an_allocation_has_values_that_its_target_can_have(target: str, value: float) -> None:
    share = {"name": "a", "value": value, "unit": "a", "alpha": 2.0, "numel": 10}
    stored = {"format": "spectail allocation", "target": target, "budget": 0.5, "settings": {}}
    with pytest.raises(AllocationError, match=r"of a must be .*, not "):
        Allocation.from_dict(stored | {"shares": [share]})
    good = Allocation.from_dict(stored | {"shares": [share | {"value": 1}]})
    assert good["a"] == 1
