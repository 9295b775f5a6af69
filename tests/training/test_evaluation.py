from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from painted_splits import FILES, Colours, painted, painted_split

from xclip_deploy import (
    Bundle,
    FrameSampling,
    VideoFrames,
    evaluate,
    read_video,
)
from xclip_deploy.errors import (
    DatasetError,
    InvalidArgumentError,
    MissingExtraError,
    SessionError,
    VideoReadError,
)
from xclip_deploy.runtime.datasets import Split, SplitVideo
from xclip_deploy.runtime.evaluation import (
    FramesOrError,
    ModelIdentity,
    evaluate_matcher,
    read_split,
)
from xclip_deploy.runtime.features import Scores, TextFeatures, VideoFeatures
from xclip_deploy.runtime.progress import Progress
from xclip_deploy.runtime.sessions import SessionOptions
from xclip_deploy.runtime.tokenizer import Tokenizer
from xclip_deploy.runtime.video import VideoReading, pyav_reader
from xclip_deploy.runtime.video.reading import read_frames

# A checkpoint and a bundle, really


# What is done with a split


def test_videos_and_captions_are_encoded_once(colours: Colours) -> None:
    split = painted_split(["red", "red"], ["green"], ["blue", "blue"])
    done: list[Progress] = []
    found = evaluate_matcher(
        colours,
        split,
        frames=painted("red", "green", "blue"),
        max_batch=2,
        progress=done.append,
    )
    assert colours.batches == [[2, 2], [2]]
    assert colours.texts == list(split.captions)
    assert done == [*(Progress("videos", n, 3) for n in (1, 2, 3)), Progress("captions", 5, 5)]
    assert found.metrics.text_to_video.recall_at_1 == 100
    assert found.metrics.video_to_text.recall_at_1 == 100
    assert found.dual_softmax is None
    assert found.model == ModelIdentity("model")


def test_captions_that_are_cut_are_counted(colours: Colours) -> None:
    colours.config = colours.config.model_copy(update={"max_words": 3})  # room for one token
    split = painted_split(["red", "red"], ["green"])
    assert (
        evaluate_matcher(colours, split, frames=painted("red", "green")).to_dict()[
            "truncated_captions"
        ]
        == 0
    )
    colours.tokenizer = TwoTokens()  # type: ignore[assignment]
    found = evaluate_matcher(colours, split, frames=painted("red", "green"))
    assert found.truncated_captions == found.to_dict()["truncated_captions"] == 3


class TwoTokens:
    """A tokenizer for which every text has two tokens."""

    count_cut = Tokenizer.count_cut

    def tokenize(self, text: str) -> list[int]:
        return [1, 2 + len(text)]


def test_many_captions_come_a_few_at_a_time(colours: Colours) -> None:
    split = painted_split(["red"] * 100, ["green"] * 50)
    done: list[Progress] = []
    evaluate_matcher(colours, split, frames=painted("red", "green"), progress=done.append)
    assert done[2:] == [Progress("captions", n, 150) for n in (64, 128, 150)]
    assert len(colours.texts) == 150


def test_an_unreadable_video_is_left_out_with_its_captions(colours: Colours) -> None:
    split = replace(painted_split(["red"], ["blue", "blue"], ["green"]), missing=("gone",))
    red, green = painted("red", "green")
    frames: list[FramesOrError] = [red, VideoReadError("v1.mp4: is broken"), green]
    found = evaluate(colours, split, frames=frames, max_unreadable_share=0.5)
    assert found.video_ids == ("v0", "v2")
    assert found.video_of_caption.tolist() == [0, 1]
    assert found.similarity.tolist() == [[200, 0], [0, 200]]
    assert found.metrics.text_to_video.num_queries == 2
    assert "blue" not in colours.texts
    content = json.loads(json.dumps(found.to_dict()))
    assert content["missing"] == ["gone"]
    problem = {"id": "v1", "path": "v1.mp4", "reason": "v1.mp4: is broken"}
    assert content["unreadable"] == [problem]
    assert (content["num_videos"], content["num_captions"]) == (2, 2)
    assert content["text_to_video"]["recall_at_1"] == 100
    assert content["dual_softmax"] is None


def test_the_last_videos_are_unreadable(colours: Colours) -> None:
    split = painted_split(["red"], ["blue"], ["green"])
    frames: list[FramesOrError] = [
        *painted("red"),
        VideoReadError("broken"),
        VideoReadError("broken"),
    ]
    found = evaluate(colours, split, frames=frames, max_unreadable_share=1, max_batch=2)
    assert found.video_ids == ("v0",)


def test_unreadable_files(colours: Colours, clips: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    videos = (
        SplitVideo("text", tmp_path / "text.mp4"),
        SplitVideo("frog", clips / "mdn_frog.webm"),
        SplitVideo("damaged", clips / "edge_cases" / "decord_corrupted.mp4"),
    )
    split = Split("files/test", videos, ("red", "green", "blue"), np.arange(3))
    found = evaluate(colours, split, max_unreadable_share=0.4)
    assert found.video_ids == ("frog", "damaged")
    (unreadable,) = found.unreadable
    assert unreadable.id == "text"
    assert unreadable.path == str(tmp_path / "text.mp4")
    assert unreadable.reason.startswith(unreadable.path)
    assert [video.id for video in found.damaged] == ["damaged"]
    with pytest.raises(DatasetError, match=r"files/test: 1 of the first 1 videos cannot be read"):
        evaluate(colours, split)


def test_too_many_unreadable_videos_are_told_before_the_rest_is_read(colours: Colours) -> None:
    taken: list[int] = []

    def outcomes() -> Iterator[VideoReadError]:
        for n in range(10):
            taken.append(n)
            yield VideoReadError(f"v{n}.mp4: is broken")

    split = painted_split(*[["red"]] * 10)
    with pytest.raises(DatasetError, match=r"at most 20\.0% of 10 that cannot") as caught:
        evaluate(colours, split, frames=outcomes(), max_unreadable_share=0.2)
    assert taken == [0, 1, 2]
    assert "the last because: v2.mp4: is broken" in str(caught.value)
    with pytest.raises(DatasetError, match="expected at least one that can"):
        evaluate(colours, split, frames=outcomes(), max_unreadable_share=1)


def test_reading_stops_with_the_evaluation(colours: Colours, split: Split) -> None:
    def fail(videos: Sequence[npt.NDArray[np.uint8]]) -> VideoFeatures:
        raise RuntimeError("stop")

    colours.encode_videos = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="stop") as caught:
        evaluate(colours, split, max_batch=1)
    # The traceback is alive, and with it all that it could hold.
    assert caught.tb is not None
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("read-video")]


def test_a_video_is_looked_at_up_to_its_end(colours: Colours, clips: Path) -> None:
    dog = clips / "sam2_dog.mp4"
    videos = (SplitVideo("whole", dog), SplitVideo("cut", dog, 3.0), SplitVideo("again", dog))
    split = Split("ends/test", videos, ("red", "green", "blue"), np.arange(3))
    evaluate(colours, split)
    (lengths,) = colours.batches
    whole = len(read_video(dog, FrameSampling(max_frames=12), 64).frames)
    cut = len(read_video(dog, FrameSampling(max_frames=12, end_s=3.0), 64).frames)
    assert cut < whole
    assert lengths == [whole, cut, whole]


def test_the_rate_of_sampling(colours: Colours, clips: Path) -> None:
    videos = (SplitVideo("dog", clips / "sam2_dog.mp4"),)
    split = Split("rate/test", videos, ("red",), np.arange(1))
    found = evaluate(colours, split, frames_per_second=0.5)
    assert found.sampling == FrameSampling(frames_per_second=0.5, max_frames=12)
    evaluate(colours, split)
    (slow,), (usual,) = colours.batches
    assert usual > slow > 1


def test_frames_as_read(colours: Colours, clips: Path) -> None:
    frames = read_video(clips / "mdn_frog.webm", FrameSampling(max_frames=12), 64)
    assert isinstance(frames, VideoFrames)
    found = evaluate(colours, painted_split(["red"]), frames=[frames])
    assert found.num_videos == 1


# What is refused


def test_a_model_that_gives_no_numbers(colours: Colours) -> None:
    def score(texts: TextFeatures, videos: VideoFeatures) -> Scores:
        return Scores(np.full((len(texts), len(videos)), np.nan, np.float32), {})

    colours.score = score  # type: ignore[method-assign]
    with pytest.raises(InvalidArgumentError, match="holds NaN or infinity"):
        evaluate(colours, painted_split(["red"]), frames=painted("red"))


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_videos(colours: Colours, count: int) -> None:
    split = painted_split(["red"], ["green"])
    with pytest.raises(InvalidArgumentError, match="expected one each"):
        evaluate(colours, split, frames=painted(*["red"] * count))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"max_unreadable_share": 1.5},
            r"max_unreadable_share is 1.5 .*number from 0 to 1",
        ),
        ({"max_batch": 0}, r"max_batch is 0 .*; expected a whole number of at least 1"),
        ({"device": "cpu"}, "an opened model has its own"),
        ({"precision": "fp32"}, "an opened model has its own"),
        ({"dual_softmax": True, "dual_softmax_temperature": 0}, "temperature 0: expected a num"),
    ],
)
def test_wrong_arguments(colours: Colours, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        evaluate(colours, painted_split(["red"]), frames=painted("red"), **arguments)


def test_a_session_is_told_in_one_place(bundle: Bundle, checkpoint_path: Path) -> None:
    split, session = painted_split(["red"]), SessionOptions("cpu")
    for arguments in ({"device": "cpu"}, {"precision": "fp32"}):
        with pytest.raises(InvalidArgumentError, match="were given beside session"):
            evaluate(bundle, split, session=session, **arguments)  # type: ignore[arg-type]
    with pytest.raises(
        InvalidArgumentError, match=r"is no bundle, so PyTorch runs it: found backend among"
    ):
        evaluate(checkpoint_path, split, session=SessionOptions(backend="onnxruntime"))
    grey = [np.zeros((1, 64, 64, 3), np.uint8)]
    found = evaluate(bundle, split, session=session, device="auto", precision="auto", frames=grey)
    assert found.model.device == "cpu"


def test_an_opened_model_takes_auto(colours: Colours) -> None:
    split, frames = painted_split(["red"]), painted("red")
    found = evaluate(colours, split, device="auto", precision="auto", frames=frames)
    assert found.num_videos == 1
    with pytest.raises(InvalidArgumentError, match="an opened model has its own"):
        evaluate(colours, split, session=SessionOptions("cpu"), frames=frames)


def test_an_empty_split(colours: Colours) -> None:
    empty = Split("empty/test", (), (), np.zeros(0, np.int64))
    with pytest.raises(DatasetError, match="empty/test: holds no videos with captions"):
        evaluate(colours, empty)


def test_what_is_for_checkpoints_alone(
    bundle: Bundle, checkpoint_path: Path, colours: Colours
) -> None:
    options = load_options(max_frames=12)
    split = painted_split(["red"])
    for model in (bundle, colours):
        with pytest.raises(InvalidArgumentError, match="expected none for a bundle or a model"):
            evaluate(model, split, options=options)
    with pytest.raises(InvalidArgumentError, match=r"exported for 1; run: .* --fps 2"):
        evaluate(bundle, split, device="cpu", frames_per_second=2)
    with pytest.raises(InvalidArgumentError, match="a checkpoint is evaluated in fp32"):
        evaluate(checkpoint_path, split, precision="fp16")
    with pytest.raises(InvalidArgumentError, match="device 'tpu': expected auto, cpu or cuda"):
        evaluate(checkpoint_path, split, device="tpu")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="max_frames"):
        evaluate(checkpoint_path, split, options=load_options(max_frames=11))


def load_options(**settings: Any) -> Any:
    from xclip_deploy import CheckpointOptions

    return CheckpointOptions(**settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_checkpoint_on_a_gpu_that_is_not_there(checkpoint_path: Path) -> None:
    with pytest.raises(SessionError, match="device cuda was asked for, but this PyTorch sees no"):
        evaluate(checkpoint_path, painted_split(["red"]), device="cuda")


def test_a_checkpoint_without_torch(checkpoint_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"evaluating a checkpoint needs torch.*\[train\]"):
        evaluate(checkpoint_path, painted_split(["red"]))


def test_threads_are_put_back(checkpoint_path: Path) -> None:
    before = torch.get_num_threads()
    grey = np.zeros((1, 64, 64, 3), np.uint8)
    evaluate(checkpoint_path, painted_split(["red"]), frames=[grey], device="cpu", threads=1)
    assert torch.get_num_threads() == before


def test_videos_that_end_at_times_of_their_own_are_read_together(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = (1.5, 2.5, None, 3.5)
    reading = VideoReading(FrameSampling(max_frames=12), 32)
    expected = [
        read_frames(clips / name, reading.until(end)).frames
        for name, end in zip(FILES, ends, strict=True)
    ]
    # Each reader waits until another has begun, which would be for ever if they took turns.
    begun = threading.Barrier(2, timeout=60)
    read = pyav_reader.read_with_pyav

    def read_beside_another(path: Path, reading: VideoReading) -> VideoFrames:
        begun.wait()
        return read(path, reading)

    monkeypatch.setattr(pyav_reader, "read_with_pyav", read_beside_another)
    videos = [SplitVideo(name, clips / name, end) for name, end in zip(FILES, ends, strict=True)]
    found = list(read_split(videos, reading, threads=2))
    for outcome, frames in zip(found, expected, strict=True):
        assert isinstance(outcome, VideoFrames)
        np.testing.assert_array_equal(outcome.frames, frames)
    assert len({len(frames) for frames in expected}) > 1
