"""Generated dataset: short videos of moving shapes, with captions that compose."""

from xclip_deploy.training.datasets.generated.files import make_videos
from xclip_deploy.training.datasets.generated.scenes import Event, Scene
from xclip_deploy.training.datasets.generated.splits import SplitSizes, make_splits

__all__ = ["Event", "Scene", "SplitSizes", "make_splits", "make_videos"]
