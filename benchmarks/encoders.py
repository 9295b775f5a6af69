"""Measure the encoders: every backend and arithmetic beside PyTorch, by batch size.

Also measure how the cost grows with threads and with the valid frames of a video.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from benchmarks.interleaving import measure
from benchmarks.measured import Part, Series
from benchmarks.roofline import (
    text_flops,
    text_weights,
    video_flops,
    video_weights,
    weight_traffic,
)
from benchmarks.setting import MAX_BATCH, TEXT, TORCH_FP32, YARDSTICKS, Matcher, Setting
from xclip_deploy import DeployedModel
from xclip_deploy.errors import VideoError
from xclip_deploy.runtime.resources import usable_cores
from xclip_deploy.runtime.video import read_videos

VIDEO, ONE_TEXT = "video encoder", "text encoder"
BY_THREADS, BY_FRAMES = "video encoder by threads", "video encoder by frames"
_ROUNDS = {1: 9}
"""Rounds by batch; larger batches average within a run and get fewer."""
_FEWEST_ROUNDS = 5


def measure_encoders(setting: Setting) -> Part:
    """Measure videos and texts a second by batch size, and how far features are from FP32."""
    batches = (1, 2) if setting.is_toy else (1, 4, 8)
    texts = (1,) if setting.is_toy else (1, 32)
    series: list[Series] = []
    config = setting.config
    with setting.matchers() as matchers:
        for batch in batches:
            videos = setting.frames(batch)
            series += measure(
                VIDEO,
                batch,
                {name: partial(each.encode_videos, videos) for name, each in matchers.items()},
                setting.turns(_ROUNDS.get(batch, _FEWEST_ROUNDS)),
                yardsticks=YARDSTICKS,
                traffic_bytes=weight_traffic(
                    matchers, video_weights(config), sum(video.nbytes for video in videos)
                ),
                work=batch,
                item="videos",
                flops=batch * video_flops(config),
            )
        for batch in texts:
            series += measure(
                ONE_TEXT,
                batch,
                {n: partial(each.encode_texts, [TEXT] * batch) for n, each in matchers.items()},
                setting.turns(31 if batch == 1 else 9),
                yardsticks=YARDSTICKS,
                traffic_bytes=weight_traffic(matchers, text_weights(config), 0.0),
                work=batch,
                item="texts",
                flops=batch * text_flops(config),
            )
        facts = {**setting.refusals, **closeness(setting, matchers)}
    return Part("encoders", tuple(series), facts)


def closeness(setting: Setting, matchers: Mapping[str, Matcher]) -> dict[str, float | str]:
    """Return the lowest cosine to PyTorch's FP32 of each contender and feature.

    It compares frames of up to eight videos. The weights may be random, which says less than a
    trained model's features; ``xclip-deploy verify`` and ``evaluate`` judge those.
    """
    wanted = 2 if setting.is_toy else 8
    reading = setting.bundle.manifest.video_reading()
    found = read_videos(setting.videos(wanted), reading)
    videos = [frames.frames for _, frames in found if not isinstance(frames, VideoError)]
    texts = [TEXT, "two red squares"]

    def features(matcher: Matcher) -> dict[str, npt.NDArray[np.float32]]:
        of_videos, of_texts = matcher.encode_videos(videos), matcher.encode_texts(texts)
        return {
            "video": of_videos.video_features,
            "frame": of_videos.frame_features,
            "sentence": of_texts.sentence_features,
            "word": of_texts.word_features,
        }

    wide = features(matchers[TORCH_FP32])
    return {
        f"lowest {kind} cosine, {name}": float((wide[kind] * narrow).sum(axis=-1).min())
        for name, matcher in matchers.items()
        if name != TORCH_FP32
        for kind, narrow in features(matcher).items()
    }


def measure_growth(setting: Setting) -> Part:
    """Measure the video encoder by number of threads, and by valid frames of each video."""
    batch, rounds = 1 if setting.is_toy else 2, setting.turns(5)
    config, series = setting.config, []
    videos = setting.frames(batch)
    cores = usable_cores()
    counts = [1 << power for power in range(cores.bit_length()) if 1 << power <= cores]
    for threads in counts:
        models = _open(setting, threads)
        runs = {name: partial(model.encode_videos, videos) for name, model in models.items()}
        series += measure(
            BY_THREADS,
            threads,
            runs,
            rounds,
            work=batch,
            item="videos",
            flops=batch * video_flops(config),
        )
        _close(models)
    models = _open(setting, None)
    most = config.max_frames
    for frames in sorted({max(1, most * quarter // 4) for quarter in (1, 2, 3, 4)}):
        short = setting.frames(batch, frames)
        by_frames: dict[str, Callable[[], object]] = {
            name: partial(model.encode_videos, short) for name, model in models.items()
        }
        series += measure(
            BY_FRAMES,
            frames,
            by_frames,
            rounds,
            work=batch,
            item="videos",
            flops=batch * video_flops(config, frames),
        )
    _close(models)
    return Part("growth", tuple(series))


def _open(setting: Setting, threads: int | None) -> dict[str, DeployedModel]:
    return {
        name: DeployedModel(setting.bundle, replace(options, threads=threads), MAX_BATCH)
        for name, options in setting.sessions.items()
    }


def _close(models: Mapping[str, DeployedModel]) -> None:
    for model in models.values():
        model.close()
