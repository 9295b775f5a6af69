"""Errors of the service: no message carries a path, and every error has its status."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xclip_deploy import errors
from xclip_deploy.runtime.gallery import VideoFile
from xclip_deploy.runtime.moments.hit_media import HitMedia
from xclip_deploy.service.errors import (
    Refusal,
    error_of,
    headers_of,
    redacted,
    shortened,
    status_of,
)

# Folders have any characters but a slash. Excluded are what a path's start and a sentence's marks
# cannot be told from: white space at the ends, and "; " or ": " within.
FOLDER = (
    st.text(
        st.characters(exclude_characters="/\0", exclude_categories=["Cs", "Cc", "Z"]), min_size=4
    )
    | st.text(st.sampled_from("abc .-_'\"()é%äß"), min_size=4, max_size=12)
).filter(lambda name: name.strip() == name and name.strip(".") and ": " not in name)
SENTENCES = (
    "{} cannot be read: no frame; expected a video",
    "'{}' is no video",
    'could not open "{}"',
    "found {0} and {0}; expected one",
    "gallery {} holds nothing; run: xclip-deploy index /VIDEOS",
    "changed ({}) since",
    "path={}",
    "s3:/{}: is gone",
    "{}",
)


def path_of(folders: list[str], name: str) -> str:
    return "/" + "/".join([*folders, name])


@given(st.lists(FOLDER, min_size=1, max_size=4), st.sampled_from(SENTENCES))
@example(["home", "My Videos (2020)", "it's old"], "{} cannot be read")
@example(["secret", "a, b"], "'{}' is no video")
def test_no_folder_stays(folders: list[str], sentence: str) -> None:
    folders = [f"Folder{n}{name}" for n, name in enumerate(folders)]
    message = sentence.format(path_of(folders, "clip 1.mp4"))
    shown = redacted(message)
    for folder in folders:
        assert folder not in shown
    assert "clip 1.mp4" in shown


@given(st.lists(FOLDER, min_size=1, max_size=3))
def test_a_quoted_path_goes_too(folders: list[str]) -> None:
    folders = [f"Folder{n}{name}" for n, name in enumerate(folders)]
    shown = redacted(f"no video {path_of(folders, 'clip.mp4')!r} in the gallery")
    assert not any(f"Folder{n}" in shown for n in range(len(folders)))
    assert "clip.mp4" in shown
    assert "in the gallery" in shown


@given(st.lists(FOLDER, min_size=1, max_size=3), st.lists(FOLDER, max_size=2))
def test_known_folders_go_in_every_form(known: list[str], below: list[str]) -> None:
    """Libraries leave the first slash out; marks of a sentence do no harm in a known folder."""
    folder = Path("/", *(f"Known{n}{name}; x: y" for n, name in enumerate(known)))
    inner = "/".join([*(f"Below{n}{name}" for n, name in enumerate(below)), "file.lance"])
    for path in (f"{folder}/{inner}", f"{str(folder)[1:]}/{inner}"):
        shown = redacted(f"Object at location {path} not found", [folder])
        assert "Known" not in shown
        assert "Below" not in shown
        assert "file.lance not found" in shown
    assert redacted(f"gallery {folder}", [folder]) == f"gallery {folder.name}"


@given(st.text(st.characters(exclude_characters="/", exclude_categories=["Cs"]), max_size=80))
def test_a_text_without_a_slash_stays(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("found 25 frames/s; expected 30000/1001", None),
        ("a body of the type 'text/plain'", None),
        ("/data/a.mp4 is not /other/b.mp4", "a.mp4 is not b.mp4"),
        ("in (/data/videos/), nothing", "in (videos), nothing"),
        ("file:///data/x.mp4: changed", "x.mp4: changed"),
        ("tmp/x/gallery.lance/1.lance", "1.lance"),
        ("~/films/x.mp4 is no video", "x.mp4 is no video"),
    ],
)
def test_words_with_a_slash_stay_and_paths_go(message: str, shown: str | None) -> None:
    assert redacted(message) == (message if shown is None else shown)


def test_a_message_is_cut_after_its_paths() -> None:
    """A long one is cut in the middle, where half a path would not be recognized."""
    path = "/secret" + "/folder" * 400
    shown = error_of(errors.VideoReadError(f"{path}/clip.mp4: {'no frame ' * 200}")).message
    assert "secret" not in shown
    assert "folder" not in shown
    assert shown.startswith("clip.mp4: no frame")
    assert len(shown) <= errors.MAX_MESSAGE


def test_messages_are_one_printable_line() -> None:
    assert shortened("a\nb\x1b[31m") == "a b\\x1b[31m"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidArgumentError("x"), 422),
        (errors.VideoReadError("x"), 422),
        (errors.VideoNotFoundError("x"), 404),
        (errors.GalleryError("no video 'x' in the gallery"), 404),
        (errors.GallerySegmentationError("x"), 409),
        (errors.DuplicateIdError("x"), 409),
        (errors.MetadataError("x"), 422),
        (errors.GalleryIntegrityError("x"), 500),
        (errors.GalleryModelError("x"), 503),
        (errors.ClosedError("x"), 503),
        (errors.DeviceMemoryError("x"), 503),
        (errors.MissingExtraError("matplotlib", "plot", "drawing"), 501),
        (errors.MomentSourceError("a.mp4: changed since it was indexed"), 409),
        (errors.MomentSourceError("a.mp4: is gone since it was indexed"), 410),
        (Refusal(429, "TooManyRequests", "x"), 429),
        (OSError(errno.ENOSPC, "No space left on device"), 507),
        (ValueError("x"), 500),
    ],
)
def test_statuses(error: Exception, status: int) -> None:
    assert status_of(error) == status


def test_every_class_of_errors_has_a_status() -> None:
    """Errors that no request can cause are unexpected; none is forgotten by mistake."""
    offline = {"Checkpoint", "Export", "Parity", "Training", "Verification", "Output", "Bundle"}
    for name, kind in vars(errors).items():
        if not isinstance(kind, type) or not issubclass(kind, errors.XclipDeployError):
            continue
        if kind is errors.XclipDeployError or any(name.startswith(part) for part in offline):
            continue
        if name in ("UnknownLayoutError",):
            continue
        error = kind.__new__(kind)
        assert status_of(error) != 500 or kind is errors.GalleryIntegrityError, name


def test_a_full_disk_behind_another_error() -> None:
    error: Exception
    error = errors.GalleryError("gallery g cannot be written: the disk is full; make room")
    error.__cause__ = RuntimeError("LanceError(IO)")
    assert status_of(error) == 507
    error = errors.VideoReadError("x")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert status_of(error) == 507
    assert error_of(error).kind == "NoRoom"


def test_a_file_of_the_gallery_that_another_process_removed() -> None:
    """The next refresh reads its successor, so that a client may try again."""
    text = "gallery g cannot be read: a file is damaged or missing ({}); restore it from a copy"
    gone = errors.GalleryIntegrityError(text.format("lance error: Not found: 0001.lance"))
    assert status_of(gone) == 503
    assert "Retry-After" in headers_of(gone)
    assert status_of(errors.GalleryIntegrityError(text.format("checksum of row 3"))) == 500


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "gone.mp4"
    media = HitMedia("v", (VideoFile(path=str(path)),), None, None)
    with pytest.raises(errors.MomentSourceError) as caught:
        media.frames(0, 1, 1)
    assert status_of(caught.value) == 410
    assert str(tmp_path) not in error_of(caught.value).message


def test_an_unexpected_error_shows_nothing_of_itself() -> None:
    shown = error_of(ValueError("secret /etc/passwd"), "an-id")
    assert shown.kind == "UnexpectedError"
    assert "secret" not in shown.message
    assert "passwd" not in shown.message
    assert shown.request_id == "an-id"


def test_when_to_try_again() -> None:
    assert headers_of(errors.ClosedError("x")) == {"Retry-After": "2"}
    assert headers_of(Refusal(429, "X", "x", retry_after_s=12.4)) == {"Retry-After": "12"}
    assert headers_of(errors.VideoReadError("x")) == {}
