from typing import Any

import numpy as np
import pytest

from spectail.basics.checks import check_whole, is_whole
from spectail.errors import PruneError, TrainingError


@pytest.mark.parametrize("value", [True, False, 1.0, "1", None, 0, -3, float("nan"), np.float64(2)])
def test_what_is_no_whole_number_of_at_least_one(value: Any) -> None:
    assert not is_whole(value)
    with pytest.raises(PruneError, match=r"^samples must be a whole number of at least 1, not "):
        check_whole(PruneError, samples=value)


def test_the_least_value_counts_and_the_first_wrong_value_is_named() -> None:
    assert is_whole(0, 0)
    assert not is_whole(1, 2)
    check_whole(TrainingError, 2, a=2, b=2**70)
    with pytest.raises(TrainingError, match=r"^b must be a whole number of at least 2, not 1$"):
        check_whole(TrainingError, 2, a=2, b=1, c=0)
