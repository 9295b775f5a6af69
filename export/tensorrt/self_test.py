"""Running new engines before they replace the old ones, where there is a GPU to run them on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.engine_set import EngineSet
from xclip_deploy.runtime.manifest import Graph
from xclip_deploy.runtime.nvidia_driver import first_gpu

_TEST_BATCH = 16

SelfTest = Callable[[Bundle, Path, EngineSet], bool]
"""Called with the bundle and the folder and description of a finished set. Returns whether the
engines could be run here; raises where they are not what their model computes."""


def verify_on_gpu(bundle: Bundle, folder: Path, engine_set: EngineSet) -> bool:
    """Hold the engines in ``folder`` against the bundle's FP32 graphs, on this machine's GPU.

    Returns False where there is no GPU, or none that these engines are for. Raises
    VerificationError, SessionError or EngineError. Never run so far: no GPU was at hand.
    """
    gpu = first_gpu()
    if gpu is None or not engine_set.runs_on(gpu.major, gpu.minor):
        return False
    from xclip_deploy.export.verification import verify_engines

    verify_engines(bundle, folder, max_batch=_largest_batch(engine_set))
    return True


def _largest_batch(engine_set: EngineSet) -> int:
    """That both encoders take, 16 at most: a test need not fill the GPU."""
    video = engine_set.engines[Graph.VIDEO_ENCODER].profiles[-1]["num_frames"]
    text = engine_set.engines[Graph.TEXT_ENCODER].profiles[-1]["token_ids"]
    return min(_TEST_BATCH, video.max[0], text.max[0])
