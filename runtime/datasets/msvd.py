"""MSVD: 1970 web videos with about 40 sentences each (Chen and Dolan, ACL 2011)."""

from __future__ import annotations

from pathlib import Path

from xclip_deploy.errors import AnnotationError
from xclip_deploy.runtime.datasets.annotation_files import find_annotation, read_ids
from xclip_deploy.runtime.datasets.builtin_pickle import read_builtin_pickle, text_of_pickle
from xclip_deploy.runtime.datasets.captions import CaptionCollector
from xclip_deploy.runtime.datasets.json_annotations import read_json
from xclip_deploy.runtime.datasets.split import AnnotatedVideo, SplitName

CAPTION_FILES = ("raw-captions.pkl", "raw-captions.json", "captions.json")
MAX_CHARACTERS = 1 << 26
"""Most characters of all captions. MSVD has 3 million; a pickle can hold one text many times."""
_COST_OF_A_CAPTION = 64
"""Characters that each caption counts beside its own, so that empty ones are bounded too."""


def read_msvd(folder: Path, split: SplitName) -> list[AnnotatedVideo]:
    """Read a split of MSVD. A video has several captions, in evaluation too.

    ``train_list.txt``, ``val_list.txt`` and ``test_list.txt`` hold a video id a line. The
    captions come from ``raw-captions.pkl``, ``{video_id: [[token, …], …]}``; nothing in it is
    executed. Otherwise they come from ``raw-captions.json`` or ``captions.json``,
    ``{video_id: [sentence, …]}``. A sentence may be a list of tokens there too. Tokens are
    joined with spaces.

    Args:
        folder: Folder that holds the annotation files.
        split: Name of the split.

    Raises:
        AnnotationError: A file is missing or malformed, a video is listed twice or has no
            captions, or a caption is empty.
    """
    listing = find_annotation(folder, f"{split}_list.txt")
    video_ids = read_ids(listing)
    path = find_annotation(folder, *CAPTION_FILES)
    content = read_builtin_pickle(path) if path.suffix == ".pkl" else read_json(path)
    return _collect(path, content, frozenset(video_ids)).of(video_ids, listing)


def _collect(path: Path, content: object, video_ids: frozenset[str]) -> CaptionCollector:
    if not isinstance(content, dict):
        raise AnnotationError(
            f"{path}: holds {type(content).__name__}; expected a dict of captions by video id"
        )
    captions = CaptionCollector(path)
    seen: set[str] = set()
    num_characters = 0
    for key, sentences in content.items():
        video_id = text_of_pickle(key, f"{path}: a key")
        if video_id in seen:  # once as bytes, once as text
            raise AnnotationError(f"{path}: video {video_id} occurs twice; expected it once")
        seen.add(video_id)
        if video_id not in video_ids:
            continue
        place = f"{path}: {video_id}"
        for number, sentence in enumerate(_as_sequence(sentences, place)):
            is_text = isinstance(sentence, (str, bytes))
            tokens = [sentence] if is_text else _as_sequence(sentence, f"{place}[{number}]")
            num_characters += _COST_OF_A_CAPTION + sum(
                1 + len(token) for token in tokens if isinstance(token, (str, bytes))
            )
            if num_characters > MAX_CHARACTERS:
                raise AnnotationError(
                    f"{path}: the captions have more than {MAX_CHARACTERS} characters; refused "
                    "as hostile"
                )
            text = " ".join(text_of_pickle(token, f"{place}[{number}]") for token in tokens)
            captions.add(video_id, text, f"{video_id}[{number}]")
    return captions


def _as_sequence(value: object, place: str) -> list[object] | tuple[object, ...]:
    if not isinstance(value, (list, tuple)):
        raise AnnotationError(f"{place}: {type(value).__name__}; expected a list")
    return value
