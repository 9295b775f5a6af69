"""What whole videos say of a score, against PyTorch's scorer."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.runtime.grains import Grain
from xclip_deploy.runtime.model_config import ModelConfig, TemporalHead, TextConfig, VisionConfig
from xclip_deploy.runtime.scorer_weights import ScorerWeights
from xclip_deploy.runtime.search.video_grains import of_videos
from xclip_deploy.training.scorer import Scorer

SUBSETS = list(chain.from_iterable(combinations(Grain, n) for n in range(1, 5)))
WHOLE = {Grain.VIDEO_SENTENCE, Grain.VIDEO_WORD}


@pytest.mark.parametrize("subset", SUBSETS, ids=lambda grains: "+".join(g.value for g in grains))
@pytest.mark.parametrize(("projection", "mask"), [(True, False), (False, True)])
def test_it_is_the_scorers_share(subset: tuple[Grain, ...], projection: bool, mask: bool) -> None:
    config = ModelConfig(
        embed_dim=16,
        vision=VisionConfig(image_size=32, patch_size=16, width=64, layers=1, heads=1),
        text=TextConfig(width=64, layers=1, heads=1),
        max_words=7,
        max_frames=3,
        temporal_head=TemporalHead.MEAN_POOLING,
        temporal_layers=0,
        temporal_heads=0,
        temporal_positions=0,
        grains=subset,
        sentence_projection=projection,
        mask_padding=mask,
    )
    torch.manual_seed(len(subset))
    scorer = Scorer(config)
    for parameter in scorer.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    random = np.random.default_rng(5)

    def unit(*shape: int) -> np.ndarray:
        vectors = random.normal(size=(*shape, 16))
        lengths: npt.NDArray[np.float64] = np.linalg.norm(vectors, axis=-1, keepdims=True)
        return (vectors / lengths).astype(np.float32)

    text = TextFeatures(unit(1), unit(1, 7), np.array([4], np.int32))
    videos = VideoFeatures(unit(9), unit(9, 3), np.array([1, 2, 3] * 3, np.int32))
    inputs = {**vars(text), **vars(videos)}
    with torch.no_grad():
        grains = scorer(**{name: torch.from_numpy(array) for name, array in inputs.items()}).grains
    expected = sum(
        (grains[grain.value][0].numpy() for grain in subset if grain in WHOLE), np.zeros(9)
    )
    arrays = {name: value.detach().numpy() for name, value in scorer.named_parameters()}
    weights = ScorerWeights.from_arrays(arrays, config)
    found = of_videos(text, videos.video_features, weights, config)
    np.testing.assert_allclose(found, expected / len(subset), rtol=1e-4, atol=1e-5)
