"""The scan is the scorer: on the stand-in, whose kernels run by Triton's interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np

from stand_in_device import Device
from xclip_deploy.runtime.arrays import BoolArray


def assert_near(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Every grain is exact to a hundredth of what it may be off by."""
    assert list(found) == list(expected)
    for name, array in expected.items():
        span = 2.0 if name != "logits" else 30.0
        np.testing.assert_allclose(found[name], array, rtol=0, atol=3e-6 * span, err_msg=name)


def ordered(expected: dict[str, Any], text: int, allowed: BoolArray | None, count: int) -> Any:
    """The best slots of a text by a stable sort of the scorer's own scores."""
    scores = expected["logits"][text].copy()
    if allowed is not None:
        scores[~allowed] = -np.inf
    order = np.argsort(-scores, kind="stable")[:count]
    return order[scores[order] > -np.inf]


def test_one_text_against_a_gallery(device: Device, make_case: Any, open_scan: Any) -> None:
    case = make_case(videos=9)
    expected = case.expected()
    with open_scan(case) as on:
        found = on.scan.best(case.queries, on.arrays, 4, None)
        scores = on.scan.all(case.queries, on.arrays, None)
    assert_near(scores, expected)
    (best,) = found
    assert best.slots.tolist() == ordered(expected, 0, None, 4).tolist()
    np.testing.assert_array_equal(best.scores, scores["logits"][0, best.slots])
    for name, values in best.grains.items():
        np.testing.assert_array_equal(values, scores[name][0, best.slots])
