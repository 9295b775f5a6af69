# ruff: noqa: ARG005 - every entry of the table takes the world, and few of them all of it
"""No public function answers a wrong argument with an error from inside."""

from __future__ import annotations

import importlib
import inspect
import math
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from public_cases import (
    CASES,
    Case,
    World,
    drawn_features,
    records,
)

import xclip_deploy
from xclip_deploy import (
    AsyncRetriever,
    Bundle,
    DeployedModel,
    Gallery,
    Retriever,
    XclipDeployError,
)
from xclip_deploy.errors import BundleNotFoundError, InvalidArgumentError
from xclip_deploy.runtime.cluster import create_shards

WRONG: dict[str, Callable[[], object]] = {
    "none": lambda: None,
    "one": lambda: 1,
    "fraction": lambda: 1.5,
    "nan": lambda: math.nan,
    "infinity": lambda: math.inf,
    "negative": lambda: -1,
    "huge": lambda: 10**30,
    "empty text": lambda: "",
    "blank": lambda: " ",
    "bytes": lambda: b"x",
    "object": object,
    "no members": list,
    "members": lambda: [None],
    "mapping": dict,
    "array of texts": lambda: np.array(["a", "b"]),
    "array of decimals": lambda: np.zeros((2, 3)),
    "array of no dimension": lambda: np.array(1),
    "empty array": lambda: np.zeros(0, np.uint8),
    "missing path": lambda: "no/such/path",
    "zero byte": lambda: "a\0b",
    "long text": lambda: "x" * 3000,
}
MAX_MESSAGE = 1000


class ReachedError(XclipDeployError):
    """The arguments were taken and the work would begin."""


@pytest.fixture(scope="module")
def opened(
    bundle: Bundle, clips: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """A filled gallery in memory and one on disk, opened once for all cases."""
    base = tmp_path_factory.mktemp("world")
    folder = base / "work"
    folder.mkdir()
    clip = base / "videos" / "clip.mov"
    clip.parent.mkdir()
    shutil.copyfile(clips / "edge_cases/decord_video_90.mov", clip)
    with Retriever(bundle, device="cpu") as retriever:
        stored = Gallery.open(base / "stored", bundle.manifest, create=True)
        for gallery in (retriever.gallery, stored):
            gallery.add(records("v0", "v1"), drawn_features(bundle, 2))
        create_shards(base / "sharded", bundle.manifest, 2)
        sharded = base / "sharded"
        yield World(bundle, retriever, retriever.gallery, stored, clip, folder, sharded)
        stored.close()


@pytest.fixture
def world(opened: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The galleries, in a working folder in which nothing may appear."""
    monkeypatch.chdir(opened.folder)
    yield opened
    empty(opened.folder)
    for gallery in (opened.gallery, opened.stored):
        assert not restore(gallery, opened.bundle), "the case left a changed gallery"


def test_the_table_has_every_public_name() -> None:
    assert set(xclip_deploy.__all__) - {"XclipDeployError"} <= set(CASES)


@pytest.mark.parametrize("name", sorted(CASES))
def test_wrong_arguments(name: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name](world)
    if case.reached is not None:
        module, _, attribute = case.reached.rpartition(".")

        def reached(*_args: object, **_options: object) -> None:
            raise ReachedError("reached")

        monkeypatch.setattr(importlib.import_module(module), attribute, reached)
    parameters = [
        each.name
        for each in inspect.signature(case.function).parameters.values()
        if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        and not each.name.startswith("_")
    ]
    if case.good:
        assert set(case.good) <= set(parameters)
    faults = []
    for parameter in parameters:
        for kind, make in WRONG.items():
            call = partial(case.function, **{**case.good, parameter: make()})
            is_refused, fault = outcome_of(call, world.folder)
            # What is accepted may change the gallery, which the next call needs as it was.
            gallery = gallery_of(case, world)
            if gallery is not None and restore(gallery, world.bundle) and is_refused:
                fault = fault or "refused, and changed the gallery"
            if fault:
                faults.append(f"{parameter}, {kind}: {fault}")
    assert not faults, "\n" + "\n".join(faults)


def gallery_of(case: Case, world: World) -> Gallery | None:
    """Return the gallery that a case can change: its own, or its retriever's."""
    owner = getattr(case.function, "__self__", None)
    if isinstance(owner, Gallery):
        return owner
    return world.gallery if owner is world.retriever else None


def restore(gallery: Gallery, bundle: Bundle) -> bool:
    """Put back the videos of a gallery; return whether it had changed."""
    found = sorted(gallery, key=lambda video: video.id)
    if found == records("v0", "v1"):
        return False
    gallery.remove([video.id for video in found])
    gallery.add(records("v0", "v1"), drawn_features(bundle, 2))
    return True


def outcome_of(call: Callable[[], object], folder: Path) -> tuple[bool, str | None]:
    """Call; return whether it refused, and what is wrong with that, or None."""
    try:
        made = call()
    except XclipDeployError as error:
        message = str(error)
        if "\n" in message or not 0 < len(message) <= MAX_MESSAGE:
            return True, f"message of {len(message)} characters: {message[:300]!r}"
        if left := sorted(path.name for path in folder.iterdir()):
            empty(folder)
            return True, f"refused, and left {left}"
        return True, None
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        empty(folder)
        return True, f"{type(error).__name__}: {str(error)[:300]}"
    if isinstance(made, (Retriever, Gallery, DeployedModel)):
        made.close()
    elif isinstance(made, AsyncRetriever):
        made.retriever.close()
    empty(folder)
    return False, None


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@pytest.mark.parametrize(
    "call",
    [
        lambda w: w.retriever.add(""),
        lambda w: w.retriever.add([""]),
        lambda w: Bundle.open(""),
        lambda w: Gallery.open("", w.bundle.manifest, create=True),
        lambda w: Retriever(""),
        lambda w: Retriever(w.bundle, "", create=True),
        lambda w: w.retriever.save(""),
        lambda w: w.gallery.save(""),
        lambda w: w.retriever.read_video(""),
        lambda w: xclip_deploy.export_bundle(w.clip, ""),
        lambda w: xclip_deploy.train(xclip_deploy.resolve_config("demo"), ""),
    ],
)
def test_an_empty_text_is_not_the_current_folder(
    call: Callable[[World], object], world: World
) -> None:
    shutil.copyfile(world.clip, world.folder / "clip.mov")
    with pytest.raises(InvalidArgumentError, match="not empty"):
        call(world)
    assert [path.name for path in world.folder.iterdir()] == ["clip.mov"]


def test_a_path_that_is_not_there(world: World) -> None:
    with pytest.raises(BundleNotFoundError, match="run: xclip-deploy export"):
        Retriever("no/such/bundle")
