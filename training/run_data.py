"""Data of a run: splits whose videos have all been read once."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.datasets import Split, open_dataset
from xclip_deploy.runtime.model_config import ModelConfig
from xclip_deploy.runtime.progress import ProgressFunction
from xclip_deploy.runtime.video import FrameSampling, VideoReading
from xclip_deploy.training.config import DataConfig
from xclip_deploy.training.datasets.frame_cache import FrameCache
from xclip_deploy.training.datasets.frames import (
    FrameSource,
    ReadReport,
    check_videos,
    without_unreadable,
)
from xclip_deploy.training.datasets.generated import SplitSizes, make_videos
from xclip_deploy.training.distributed import from_first

_log = logging.getLogger(__name__)

GENERATED = "generated"
"""Name of the dataset that a run makes for itself."""


class RunData:
    """Splits of a run. Every process must call the same methods in the same order."""

    def __init__(
        self,
        config: DataConfig,
        model: ModelConfig,
        folder: Path,
        on_preparation: ProgressFunction | None = None,
    ) -> None:
        """Open nothing yet.

        ``folder``: the run's; reports go there, and generated videos unless ``config`` says
        otherwise. ``on_preparation``: called while videos are made or read.
        """
        self.config = config
        self.folder = folder
        self.on_preparation = on_preparation
        cache = config.frame_cache
        if cache is None and config.dataset == GENERATED:
            cache = folder / "frame-cache"
        self.source = FrameSource(
            VideoReading(
                FrameSampling(
                    frames_per_second=config.frames_per_second, max_frames=model.max_frames
                ),
                model.vision.image_size,
                square_pixels=config.square_pixels,
            ),
            None if cache is None else FrameCache(cache, int(config.frame_cache_gb * 1e9)),
            config.slice_position,
        )

    def split(self, name: str) -> Split:
        """Return the readable part of a split; decode all of it once, which fills the cache.

        Raises DatasetError, InvalidArgumentError.
        """
        config = self.config
        dataset, annotations, videos = config.dataset, config.annotations, config.videos
        if dataset == GENERATED:
            dataset, videos = "folder", self._generated()
            annotations = videos
        if annotations is None or videos is None:
            raise InvalidArgumentError("data.annotations and data.videos must be given")
        split = open_dataset(
            dataset,
            name,
            annotations,
            videos,
            max_missing_share=config.max_missing_share,
            cut_at_annotated_end=config.cut_at_annotated_end,
        )

        def check() -> ReadReport:
            report = check_videos(
                split,
                self.source,
                num_workers=config.workers,
                on_progress=self._progress(f"reading {name}"),
            )
            path = self.folder / f"{name}_videos.json"
            report.write(path)
            if report.missing or report.unreadable:
                _log.warning(
                    "%s: of %d videos, %d without a file and %d unreadable are left out; they "
                    "are listed in %s",
                    split.name,
                    report.num_videos,
                    len(report.missing),
                    len(report.unreadable),
                    path,
                )
            return report

        return without_unreadable(split, from_first(check), config.max_unreadable_share)

    def _generated(self) -> Path:
        directory = self.config.videos or self.folder / "videos"
        sizes = SplitSizes(**self.config.generated.model_dump(exclude={"seed", "excerpts"}))
        from_first(
            lambda: str(
                make_videos(
                    directory,
                    sizes,
                    self.config.generated.seed,
                    excerpts=self.config.generated.excerpts,
                    num_workers=self.config.workers,
                    on_progress=self._progress("making videos"),
                )
            )
        )
        return directory

    def _progress(self, stage: str) -> ProgressFunction | None:
        tell = self.on_preparation
        return None if tell is None else lambda progress: tell(replace(progress, stage=stage))
