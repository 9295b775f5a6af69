"""Any sequence of changes: LanceDB holds what memory holds, and snapshots stay as they were."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from gallery_samples import (
    DIM,
    FRAMES,
    NOTHING_IN_MEMORY,
    content_of,
    lance_store,
    rows_of,
    sample,
)
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from xclip_deploy.errors import DuplicateIdError, MetadataError
from xclip_deploy.runtime.gallery import GalleryStore
from xclip_deploy.runtime.gallery.memory_store import MemoryStore

# Few and short enough for clashes, and whatever a text may hold.
IDS = st.sampled_from([f"v{n}" for n in range(12)]) | st.text(
    st.characters(codec="utf-8"), min_size=1, max_size=6
)
METADATA = st.dictionaries(
    st.sampled_from(["source", "Camera", "share", "is_day", "target", "order", "rowid"]),
    st.integers(-3, 3) | st.sampled_from([0.5, True, "x", "it's \\ `a` %\0\n"]),
    max_size=3,
)


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name, "gallery")
        self.memory = MemoryStore(DIM, FRAMES)
        self.lance = lance_store(self.path, NOTHING_IN_MEMORY)
        self.kept = (self.memory.snapshot(), self.lance.snapshot())
        self.seed = 0

    def both(self, change: str, *args: object, **options: object) -> None:
        def outcome(store: GalleryStore) -> object:
            try:
                found = getattr(store, change)(*args, **options)
            except (DuplicateIdError, MetadataError) as error:
                return type(error)
            # Each store has keys of its own for the features that were put.
            return len(found) if isinstance(found, np.ndarray) else found

        assert outcome(self.memory) == outcome(self.lance)

    @rule(ids=st.lists(IDS, unique=True, min_size=1, max_size=5), replace=st.booleans(), m=METADATA)
    def put(self, ids: Sequence[str], replace: bool, m: dict[str, object]) -> None:
        self.seed += 1
        self.both("put", *sample(ids, self.seed, **m), replace=replace)

    @rule(places=st.sets(st.integers(0, 30), min_size=1, max_size=3), m=METADATA)
    def update(self, places: set[int], m: dict[str, object]) -> None:
        known = list(self.memory.snapshot().listing())
        chosen = [known[place] for place in places if place < len(known)]
        self.both("update", [video.model_copy(update={"metadata": m}) for video in chosen])

    @rule(ids=st.sets(IDS, max_size=4))
    def remove(self, ids: set[str]) -> None:
        self.both("remove", ids)

    @rule()
    def keep_a_snapshot(self) -> None:
        self.kept = (self.memory.snapshot(), self.lance.snapshot())

    @rule()
    def optimize(self) -> None:
        self.lance.optimize(lambda _what: None)

    @rule()
    def forget_old_versions(self) -> None:
        self.keep_a_snapshot()
        self.lance.optimize(lambda _what: None, timedelta(0))
        self.keep_a_snapshot()

    @rule()
    def reopen(self) -> None:
        self.lance = lance_store(self.path, NOTHING_IN_MEMORY, create=False)

    @invariant()
    def the_same(self) -> None:
        memory, lance = self.memory.snapshot(), self.lance.snapshot()
        expected = content_of(memory)
        assert content_of(lance) == expected
        assert len(memory) == len(lance) == len(expected)
        for one, other in (self.kept, (memory, lance)):
            ids = [video.id for video in one.listing()]
            assert sorted(video.id for video in other.listing()) == sorted(ids)
            found = other.find([*ids, "none"])
            assert set(found) == set(ids)
            assert [video.id for video in other.videos(rows_of(other, ids))] == ids
            np.testing.assert_array_equal(
                one.features(rows_of(one, ids)).frame_features,
                other.features(rows_of(other, ids)).frame_features,
            )
            query = np.random.default_rng(0).standard_normal((1, DIM)).astype(np.float16)
            nearest = [
                snapshot.nearest(query, 3, "duration_s <= 2")[0] for snapshot in (one, other)
            ]
            np.testing.assert_allclose(
                nearest[0].similarities, nearest[1].similarities, rtol=1e-3, atol=1e-3
            )

    def teardown(self) -> None:
        self.lance.close()
        self.folder.cleanup()


@pytest.mark.parametrize("sequences", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_any_sequence_of_changes(sequences: int) -> None:
    limits = settings(max_examples=sequences, stateful_step_count=15)
    run_state_machine_as_test(StoreMachine, settings=limits)
