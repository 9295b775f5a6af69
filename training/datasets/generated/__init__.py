"""Generated datasets: short and long videos of moving shapes, with captions that compose."""

from xclip_deploy.training.datasets.generated.files import make_videos
from xclip_deploy.training.datasets.generated.long_videos import LongVideoSizes, make_long_videos
from xclip_deploy.training.datasets.generated.scenes import Event, Scene
from xclip_deploy.training.datasets.generated.splits import SplitSizes, make_splits

__all__ = [
    "Event",
    "LongVideoSizes",
    "Scene",
    "SplitSizes",
    "make_long_videos",
    "make_splits",
    "make_videos",
]
