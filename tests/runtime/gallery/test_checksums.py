from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from gallery_samples import DIM, FRAMES, MODEL, sample

from xclip_deploy.runtime.gallery import checksums as checksums_module
from xclip_deploy.runtime.gallery.checksums import COLUMNS, Part, checksums
from xclip_deploy.runtime.gallery.lance_schema import columns_of, is_whole, make_schema, to_table

SCHEMA = make_schema(MODEL, DIM, FRAMES)
FIELDS = {"n": pa.int64(), "ok": pa.bool_(), "weight": pa.float64(), "source": pa.string()}


def table() -> pa.Table:
    schema = SCHEMA
    for name, kind in FIELDS.items():
        schema = schema.append(pa.field(name, kind))
    names = ["", "a", "é" * 3000, "v" * 5000, "b"]
    videos, features = sample([name or "x" for name in names], ok=True, weight=0.5, source="cam")
    videos[1] = videos[1].model_copy(
        update={"content_sha256": None, "duration_s": None, "metadata": {"n": 7}}
    )
    return to_table(videos, features, schema)


def set_value(table: pa.Table, name: str, row: int, value: Any) -> pa.Table:
    values = table[name].to_pylist()
    values[row] = value
    place = table.schema.get_field_index(name)
    return table.set_column(
        place, table.schema.field(name), pa.array(values, table.schema.field(name).type)
    )


def test_rows_as_they_were_written_are_whole() -> None:
    rows = table()
    for part in Part:
        assert is_whole(rows, part, rows.schema).all()
        # In any order, and in pieces.
        turned = rows.take([4, 2, 0, 1])
        assert is_whole(turned, part, rows.schema).all()
        for start in range(len(rows)):
            assert is_whole(rows.slice(start, 2), part, rows.schema).all()
        assert is_whole(rows.slice(0, 0), part, rows.schema).shape == (0,)
        assert is_whole(pa.concat_tables([rows, turned]), part, rows.schema).all()


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("id", "c", Part.RECORD),
        ("id", "b\0", Part.RECORD),
        ("paths", [], Part.RECORD),
        ("paths", None, Part.RECORD),
        ("paths", ["/videos/", "b"], Part.RECORD),
        ("file_sizes", [0], Part.RECORD),
        ("file_times", [], Part.RECORD),
        ("fingerprint", None, Part.RECORD),
        ("fingerprint", "", Part.RECORD),
        ("duration_s", None, Part.RECORD),
        ("duration_s", 0.0, Part.RECORD),
        ("frame_times_s", [1.5, 0.0], Part.RECORD),
        ("frame_times_s", [0.0, 1.5, 0.0], Part.RECORD),
        ("_reading_version", 0, Part.RECORD),
        ("n", None, Part.METADATA),
        ("n", -4, Part.METADATA),
        ("ok", False, Part.METADATA),
        ("ok", None, Part.METADATA),
        ("weight", -0.5, Part.METADATA),
        ("source", "", Part.METADATA),
        ("source", None, Part.METADATA),
    ],
)
def test_another_value_is_noticed(name: str, value: Any, part: Part) -> None:
    rows = set_value(table(), name, 4, value)
    assert is_whole(rows, part, rows.schema).tolist() == [True] * 4 + [False]


def test_num_frames_belongs_to_record_and_features() -> None:
    rows = set_value(table(), "num_frames", 0, 1)
    for part in (Part.RECORD, Part.VIDEO):
        assert is_whole(rows, part, rows.schema).tolist() == [False] + [True] * 4


@pytest.mark.parametrize("part", [Part.VIDEO, Part.FRAMES])
def test_every_bit_of_a_vector_counts(part: Part) -> None:
    rows = table()
    name = COLUMNS[part][-1]
    size = rows.schema.field(name).type.list_size
    values = rows[name].combine_chunks().flatten().to_numpy()
    wanted = checksums(rows, columns_of(part, rows.schema))
    for bit in range(16 * size):
        flipped = values.copy()
        flipped.view(np.uint16)[bit // 16] ^= np.uint16(1 << bit % 16)
        column = pa.FixedSizeListArray.from_arrays(pa.array(flipped), size)
        other = rows.set_column(rows.schema.get_field_index(name), name, column)
        found = checksums(other, columns_of(part, rows.schema))
        assert (found != wanted).tolist() == [True] + [False] * 4


@pytest.mark.parametrize("dim", [1, 3, 5, 512])
def test_vectors_of_any_length(dim: int) -> None:
    rng = np.random.default_rng(dim)
    values = rng.standard_normal((50, dim)).astype(np.float16)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), dim)
    rows = pa.table({"frame_features": column})
    found = checksums(rows, ["frame_features"])
    assert len(set(found.tolist())) == len(np.unique(values, axis=0))
    np.testing.assert_array_equal(checksums(rows.slice(7, 9), ["frame_features"]), found[7:16])


def test_a_new_field_leaves_the_checksums_of_others() -> None:
    rows = table()
    more = rows.append_column("late", pa.array([None] * 5, pa.string()))
    assert is_whole(more, Part.METADATA, more.schema).all()
    assert not is_whole(set_value(more, "late", 2, "x"), Part.METADATA, more.schema)[2]


def test_values_of_two_fields_are_not_exchanged() -> None:
    rows = pa.table({"a": ["x", "y"], "b": ["y", "x"]})
    assert len(set(checksums(rows, ["a", "b"]).tolist())) == 2


def test_texts_are_hashed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["x" * (n * 7 % 50) for n in range(500)] + ["y" * 5000, "", "z"] * 3
    rows = pa.table({"source": texts})
    found = checksums(rows, ["source"])
    monkeypatch.setattr(checksums_module, "_BYTES_AT_ONCE", 64)
    np.testing.assert_array_equal(checksums(rows, ["source"]), found)


def test_lists_are_hashed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = [[0.5 * k for k in range(n * 7 % 50)] for n in range(500)] + [[1.0] * 300, []] * 3
    texts = [[f"/{k}" for k in range(n * 5 % 9)] for n in range(505)] + [None]
    rows = pa.table({"frame_times_s": numbers, "paths": texts})
    found = checksums(rows, ["frame_times_s", "paths"])
    monkeypatch.setattr(checksums_module, "_BYTES_AT_ONCE", 64)
    np.testing.assert_array_equal(checksums(rows, ["frame_times_s", "paths"]), found)
    np.testing.assert_array_equal(
        checksums(rows.slice(123, 99), ["frame_times_s", "paths"]), found[123:222]
    )


def test_many_lists_leave_little_in_memory() -> None:
    count = 1 << 18
    values = pa.array(np.arange(4 * count, dtype=np.float64))
    lists = pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32) * 4), values)
    checksums_module._powers.cache_clear()
    tracemalloc.start()
    try:
        checksums(pa.table({"frame_times_s": lists}), ["frame_times_s"])
        assert tracemalloc.get_traced_memory()[0] < 8 << 20
    finally:
        tracemalloc.stop()


def test_texts_of_every_length() -> None:
    lengths = [*range(40), 4095, 4096, 4097, 100_000]
    texts = ["é" * (length // 2) + "x" * (length % 2) for length in lengths]
    rows = pa.table({"source": texts})
    found = checksums(rows, ["source"])
    assert len(set(found.tolist())) == len(texts)
    for n in range(len(texts)):
        assert checksums(rows.slice(n, 1), ["source"])[0] == found[n]
