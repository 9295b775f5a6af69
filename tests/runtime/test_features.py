"""How work is cut into batches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xclip_deploy.runtime.arrays import slices
from xclip_deploy.runtime.features import SCORER_ELEMENTS, texts_at_once, videos_at_once
from xclip_deploy.runtime.model_config import ModelConfig, TextConfig, VisionConfig

VISION = VisionConfig(image_size=32, patch_size=16, width=64, layers=1, heads=1)
TEXT = TextConfig(context_length=40, vocab_size=49408, width=64, layers=1, heads=1)
CONFIG = ModelConfig(embed_dim=96, max_words=32, max_frames=12, vision=VISION, text=TEXT)
PAIR = 32 * 12


@given(st.integers(0, 200), st.integers(-3, 60))
def test_slices_cover_everything_once(total: int, step: int) -> None:
    found = list(slices(total, step))
    assert [n for part in found for n in range(part.start, part.stop)] == list(range(total))
    assert all(part.stop - part.start == max(1, step) for part in found[:-1])
    assert all(0 < part.stop - part.start <= max(1, step) for part in found)


@pytest.mark.parametrize(
    ("elements", "texts", "videos"),
    [
        (1, 1, 1),
        (17 * PAIR, 17, 1),
        (64 * PAIR, 64, 1),
        (640 * PAIR + 1, 64, 10),
        (SCORER_ELEMENTS, 64, 170),
    ],
)
def test_the_scorer_s_block(elements: int, texts: int, videos: int) -> None:
    assert texts_at_once(CONFIG, elements) == texts
    assert videos_at_once(CONFIG, texts, elements) == videos


def test_frame_embeddings_count_where_a_text_is_alone() -> None:
    """One text has 32 words, and a frame's embedding 96 numbers."""
    assert videos_at_once(CONFIG, 1, 10 * 12 * 96) == 10
    assert videos_at_once(CONFIG, 4, 10 * 12 * 96) == 7
