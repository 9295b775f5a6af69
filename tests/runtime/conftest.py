"""Small videos, decoders that misbehave with them, and the stand-in for a GPU."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from stand_in_device import Device, install
from xclip_deploy import Bundle, DeployedModel, TextFeatures, VideoFeatures
from xclip_deploy.runtime.sessions import SessionOptions

MakeVideo = Callable[..., Path]


Arrays = dict[str, npt.NDArray[Any]]


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Videos of random blocks by number, each drawn once in a test run."""
    folder = tmp_path_factory.mktemp("drawn")

    def draw(number: int) -> Path:
        path = folder / f"{number}.mp4"
        if not path.exists():
            rng = np.random.default_rng(number)
            with av.open(str(path), "w") as container:
                stream = container.add_stream("mpeg4", rate=2)
                stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
                for _ in range(4):
                    blocks = rng.integers(0, 255, (4, 6, 3), np.uint8).repeat(8, 0).repeat(8, 1)
                    frame = av.VideoFrame.from_ndarray(blocks, format="rgb24")
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
        return path

    return draw


@pytest.fixture
def make(drawn: Callable[[int], Path], tmp_path: Path) -> MakeVideo:
    """Put the video of a number at a path below ``videos`` in the test's folder."""

    def make_video(name: str, number: int) -> Path:
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(drawn(number), path)
        return path

    return make_video


MISBEHAVING = """
import os, signal, sys, time
from xclip_deploy.runtime.decoding import worker

read_blocks = worker.read_blocks

def read(path, reading, segmentation, alive):
    if "crash" in path.name:
        os.write(2, b"about to crash\\n")
        os.kill(os.getpid(), signal.SIGSEGV)
    if "exit" in path.name:
        os._exit(3)
    if "hang" in path.name:
        time.sleep(1000)
    if "mistake" in path.name:
        raise ValueError("a library's\\nmistake")
    if "memory" in path.name:
        raise MemoryError
    if "noise" in path.name:
        print("noise", flush=True)
        os.write(1, b"noise" * 100)
        sys.stdin.read()
    if "grow" in path.name:
        with path.open("ab") as file:
            file.write(b"more")
    if "many" in path.name:
        frames = read_blocks(path, reading, segmentation, alive)
        object.__setattr__(frames, "frames", frames.frames.repeat(50, 0))
        return frames
    return read_blocks(path, reading, segmentation, alive)

worker.read_blocks = read
worker.main()
"""


@pytest.fixture(scope="session")
def misbehaving(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A decoder that does to a video what the file's name says."""
    script = tmp_path_factory.mktemp("worker") / "misbehaving.py"
    script.write_text(MISBEHAVING)
    return (sys.executable, str(script))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """The stand-in, installed; at the end nothing may be left on it."""
    stand_in = Device()
    install(monkeypatch, stand_in)
    yield stand_in
    stand_in.check_nothing_left()


@pytest.fixture(scope="module")
def models(bundle: Bundle) -> Iterator[dict[str, DeployedModel]]:
    opened = {
        "fp32": DeployedModel(bundle, SessionOptions(device="cpu", precision="fp32")),
        "fp16": DeployedModel(bundle, SessionOptions(device="cpu", precision="fp16")),
    }
    yield opened
    for model in opened.values():
        model.close()


@pytest.fixture(scope="module")
def model(models: dict[str, DeployedModel]) -> DeployedModel:
    return models["fp32"]


@pytest.fixture(scope="module")
def texts(model: DeployedModel, golden: Arrays) -> TextFeatures:
    return model.encode_token_ids(golden["input_ids"])


@pytest.fixture(scope="module")
def videos(model: DeployedModel, golden: Arrays) -> VideoFeatures:
    return model.encode_frames(golden["frames_uint8"], golden["num_frames"])
