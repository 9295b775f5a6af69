"""Measure the scorer on an FP16 gallery: pairs of texts and videos a second, beside PyTorch."""

from __future__ import annotations

from functools import partial

import numpy as np

from benchmarks.galleries import World
from benchmarks.interleaving import measure
from benchmarks.measured import Part, Series
from benchmarks.roofline import pair_flops
from benchmarks.setting import TORCH_FP32, YARDSTICKS, Setting
from xclip_deploy import DeployedModel
from xclip_deploy.runtime.features import TextFeatures

PAIRS = "scorer"


def measure_scorer(setting: Setting) -> Part:
    """Measure one text and 32 texts against 1,000 videos; ``size`` is the number of texts.

    PyTorch runs in FP32 alone: BF16 changes which video comes first.
    """
    config = setting.config
    count = 50 if setting.is_toy else 1000
    videos = World(count, config.embed_dim, config.max_frames).videos(0, count)
    traffic = float(videos.frame_features.nbytes + videos.video_features.nbytes)
    series: list[Series] = []
    with setting.matchers() as matchers:
        contenders = {
            name: matcher
            for name, matcher in matchers.items()
            if name == TORCH_FP32 or isinstance(matcher, DeployedModel)
        }
        for number in (1, 4) if setting.is_toy else (1, 32):
            texts = text_features(setting, number)
            series += measure(
                PAIRS,
                number,
                {name: partial(each.score, texts, videos) for name, each in contenders.items()},
                setting.turns(21 if number == 1 else 9),
                yardsticks=YARDSTICKS,
                traffic_bytes=dict.fromkeys(contenders, traffic),
                work=number * count,
                item="pairs",
                flops=number * count * pair_flops(config),
            )
    return Part("scorer", tuple(series))


def text_features(setting: Setting, count: int) -> TextFeatures:
    """Return synthetic features of ``count`` texts of the model's full length."""
    config = setting.config
    world = World(count, config.embed_dim, config.max_frames)
    near = world.videos(0, count).video_features.astype(np.float32)
    sentences, words = world.queries(near, config.max_words)
    return TextFeatures(sentences, words, np.full(count, config.max_words, np.int32))
