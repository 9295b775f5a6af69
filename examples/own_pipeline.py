"""Search with frames and an index of one's own: the encoders and the scorer alone.

    python own_pipeline.py xclip-bundle video.mp4 [more.mp4 ...]

A program that decodes videos itself hands their frames over as NumPy arrays. This one decodes with
PyAV, keeps the embeddings in a file, and ranks the videos for each line of standard input, or for
one query if there are none.
"""

from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from xclip_deploy import Retriever, VideoFeatures

QUERY = "a red square moves right"


def main() -> None:
    """Encode the videos, store their embeddings, and rank them."""
    if len(sys.argv) < 3:
        sys.exit((__doc__ or "").strip())
    bundle, *paths = sys.argv[1:]
    with Retriever(bundle) as model:  # without a gallery
        # uint8 RGB [n, height, width, 3] each, at the model's rate; resized and cropped for us.
        videos = model.encode_videos([one_frame_a_second(path) for path in paths])
        store(videos, Path("embeddings.npz"))
        videos = load(Path("embeddings.npz"))
        texts = model.encode_texts([QUERY])
        scores = model.score(texts, videos)  # logits [texts, videos], and each grain alike
        print(QUERY)
        for place in np.argsort(-scores.logits[0]):
            parts = ", ".join(
                f"{name} {grain[0, place]:.2f}" for name, grain in scores.grains.items()
            )
            print(f"  {scores.logits[0, place]:.1f}  {Path(paths[place]).name}  ({parts})")


def one_frame_a_second(path: str) -> npt.NDArray[np.uint8]:
    """Decode a video, and keep the first frame of every second."""
    frames: dict[int, npt.NDArray[np.uint8]] = {}
    with av.open(path) as container:
        for frame in container.decode(video=0):
            frames.setdefault(int(frame.time or 0), frame.to_ndarray(format="rgb24"))
    return np.stack([frames[second] for second in sorted(frames)])


def store(videos: VideoFeatures, path: Path) -> None:
    """Write embeddings as FP16, which loses no more than the rounding of unit vectors."""
    np.savez(
        path,
        video=videos.video_features.astype(np.float16),
        frames=videos.frame_features.astype(np.float16),
        num_frames=videos.num_frames,
    )


def load(path: Path) -> VideoFeatures:
    """Read the embeddings again."""
    with np.load(path) as arrays:
        return VideoFeatures(arrays["video"], arrays["frames"], arrays["num_frames"])


if __name__ == "__main__":
    main()
