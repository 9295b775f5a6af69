from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from xclip_deploy import Bundle
from xclip_deploy.runtime.manifest import Graph, Manifest, Precision, checksum


def content_of(manifest: Manifest) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(manifest.to_json())
    return content


@pytest.fixture
def content(bundle: Bundle) -> dict[str, Any]:
    """Of a real manifest, without its checksum: free to be changed."""
    content = content_of(bundle.manifest)
    del content["checksum"]
    return content


def test_round_trip(bundle: Bundle, content: dict[str, Any]) -> None:
    again = Manifest.model_validate(content)
    assert again == bundle.manifest
    assert again.to_json() == bundle.manifest.to_json()


def test_checksum_covers_everything_but_itself(bundle: Bundle, content: dict[str, Any]) -> None:
    with_checksum = content_of(bundle.manifest)
    assert with_checksum["checksum"] == checksum(with_checksum) == checksum(content)
    for key, value in content.items():
        for changed in (content | {key: [value]}, {k: v for k, v in content.items() if k != key}):
            assert checksum(changed) != checksum(content), key


def test_checksum_does_not_depend_on_the_order_of_keys(content: dict[str, Any]) -> None:
    backwards = dict(reversed(content.items()))
    assert list(backwards) != list(content)
    assert checksum(backwards) == checksum(content)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
def test_checksum_survives_a_round_trip_through_json(value: Any) -> None:
    content = {"format": "xclip-bundle", "value": value}
    again = json.loads(json.dumps(content, indent=3, ensure_ascii=False))
    assert checksum(again) == checksum(content)


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "fp32/../../x",
        "/etc/passwd",
        "//etc/passwd",
        "..",
        "",
        "./x",
        "fp32//x",
        "fp32/",
        "fp32/./x",
        "..\\x",
        "C:\\x",
        "x\0y",
    ],
)
def test_a_path_that_leads_outside_is_refused(content: dict[str, Any], name: str) -> None:
    content["files"][name] = next(iter(content["files"].values()))
    with pytest.raises(ValidationError, match="no plain path within the bundle"):
        Manifest.model_validate(content)


@pytest.mark.parametrize("name", ["x", "fp32/x.onnx.data", "a b", "..x", "x..", "é", "a:b"])
def test_a_plain_path_is_accepted(content: dict[str, Any], name: str) -> None:
    content["files"][name] = next(iter(content["files"].values()))
    assert name in Manifest.model_validate(content).files


@pytest.mark.parametrize("graph", list(Graph))
def test_a_precision_without_one_of_its_graphs_is_refused(
    content: dict[str, Any], graph: Graph
) -> None:
    del content["graphs"]["fp16"][graph.value]
    with pytest.raises(ValidationError, match=f"fp16 lacks {graph.value}"):
        Manifest.model_validate(content)


def test_one_precision_is_enough_and_none_is_not(content: dict[str, Any]) -> None:
    for kind in ("graphs", "video_parts", "fused_graphs"):
        del content[kind]["fp16"]
    assert tuple(Manifest.model_validate(content).graphs) == (Precision.FP32,)
    content["graphs"] = content["video_parts"] = content["fused_graphs"] = {}
    with pytest.raises(ValidationError, match="holds no graphs"):
        Manifest.model_validate(content)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("frames_per_second", 0),
        ("frames_per_second", float("inf")),
        ("frames_per_second", float("nan")),
        ("fingerprint", "abc"),
        ("fingerprint", "G" * 64),
        ("format", "xclip-gallery"),
        ("schema_version", 3),
        ("unknown", 1),
        ("model", {}),
        ("tokenizer", None),
    ],
)
def test_values_out_of_range_are_refused(content: dict[str, Any], key: str, value: Any) -> None:
    content[key] = value
    with pytest.raises(ValidationError):
        Manifest.model_validate(content)


def test_file_records_are_checked(content: dict[str, Any]) -> None:
    record = content["files"]["tokenizer.json"]
    for wrong in ({"size_bytes": -1}, {"sha256": "0" * 63}, {"sha256": "A" * 64}, {"more": 1}):
        content["files"]["tokenizer.json"] = record | wrong
        with pytest.raises(ValidationError):
            Manifest.model_validate(content)
