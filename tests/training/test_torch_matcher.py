from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from xclip_deploy import load_checkpoint
from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.evaluation import similarity_matrix
from xclip_deploy.training.model import XClip
from xclip_deploy.training.torch_matcher import TorchMatcher


class RowTokenizer:
    """Texts that are the numbers of rows of token ids."""

    def __init__(self, token_ids: npt.NDArray[Any]) -> None:
        self.token_ids = token_ids

    def encode(self, texts: Sequence[str], max_words: int) -> npt.NDArray[Any]:
        assert self.token_ids.shape[1] == max_words
        return self.token_ids[[int(text) for text in texts]]


@pytest.mark.parametrize("scorer_elements", [1, 3 * 32 * 12, 32 * 12 * 17, 1 << 22])
@pytest.mark.parametrize("max_batch", [3, 16])
def test_the_authors_logits_in_blocks_of_any_size(
    scorer_elements: int,
    max_batch: int,
    checkpoint_path: Path,
    golden: dict[str, npt.NDArray[Any]],
) -> None:
    matcher = TorchMatcher(load_checkpoint(checkpoint_path).build(), max_batch=max_batch)
    matcher.tokenizer = RowTokenizer(golden["input_ids"])  # type: ignore[assignment]
    pairs = zip(golden["frames_uint8"], golden["num_frames"], strict=True)
    videos = matcher.encode_videos([frames[:count] for frames, count in pairs])
    texts = [str(row) for row in range(8)]
    found = similarity_matrix(matcher, texts, videos, scorer_elements=scorer_elements)
    assert found.dtype == np.float32
    assert np.abs(found - golden["logits"]).max() < 1e-3


def test_what_the_torch_matcher_refuses(make_model: Any, checkpoint_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="has 600 token embeddings; expected the 49408"):
        TorchMatcher(make_model())
    model: XClip = load_checkpoint(checkpoint_path).build()
    with pytest.raises(InvalidArgumentError, match="max_batch 0"):
        TorchMatcher(model, max_batch=0)
    matcher = TorchMatcher(model)
    for shape in ((0, 64, 64, 3), (13, 64, 64, 3), (2, 32, 64, 3)):
        with pytest.raises(InvalidArgumentError, match=r"expected uint8 \[1 to 12, 64, 64, 3\]"):
            matcher.encode_videos([np.zeros(shape, np.uint8)])
    with pytest.raises(InvalidArgumentError, match="a video is float32"):
        matcher.encode_videos([np.zeros((1, 64, 64, 3), np.float32)])
