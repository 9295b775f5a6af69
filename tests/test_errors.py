"""Errors say what is wrong in one short line, whatever a file holds."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from xclip_deploy import errors, load_checkpoint, open_dataset
from xclip_deploy.errors import MAX_MESSAGE, XclipDeployError

KINDS = sorted(
    (
        kind
        for kind in vars(errors).values()
        if inspect.isclass(kind) and issubclass(kind, XclipDeployError)
    ),
    key=lambda kind: kind.__name__,
)
LONG = "x" * 50_000


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_message_is_cut_in_its_middle(kind: type[XclipDeployError]) -> None:
    if kind is errors.MissingExtraError:
        error: XclipDeployError = errors.MissingExtraError("package", "extra", f"begin {LONG}")
        end = "pip install 'xclip-deploy[extra]'"
    else:
        error = kind(f"begin {LONG}; run: the command")
        end = "; run: the command"
    for each in (error, pickle.loads(pickle.dumps(error))):
        message = str(each)
        assert len(message) == MAX_MESSAGE
        assert message.startswith("begin xxx")
        assert message.endswith(end)


def test_other_messages_are_left_as_they_are() -> None:
    assert str(XclipDeployError("")) == ""
    assert str(XclipDeployError()) == ""
    for length in (1, MAX_MESSAGE):
        assert str(XclipDeployError("m" * length)) == "m" * length
    assert len(str(XclipDeployError("m" * (MAX_MESSAGE + 1)))) == MAX_MESSAGE


def checkpoint(content: object) -> Callable[[Path], object]:
    def load(folder: Path) -> object:
        torch.save(content, folder / "model.pt")
        return load_checkpoint(folder / "model.pt")

    return load


def script_of(pickled: bytes) -> Callable[[Path], object]:
    def load(folder: Path) -> object:
        (folder / "model.pt").write_bytes(pickled)
        return load_checkpoint(folder / "model.pt")

    return load


def dataset(name: str, files: dict[str, str | bytes]) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        for file, content in files.items():
            raw = content if isinstance(content, bytes) else content.encode()
            (folder / file).write_bytes(raw)
        return open_dataset(name, "test", folder, folder)

    return read


@pytest.mark.parametrize(
    "read",
    [
        checkpoint({f"{n}.{'y' * 900}": torch.ones(1) for n in range(30)}),
        checkpoint({f"{n}{LONG}": {"a.weight": torch.ones(1)} for n in range(30)}),
        checkpoint({f"ema_{n}{LONG}": {"a.weight": torch.ones(1)} for n in range(30)}),
        checkpoint({f"{n}{LONG}": n for n in range(30)}),
        script_of(b"\x80\x02c" + LONG.encode() + b"\nf\n."),
        dataset("folder", {"captions.csv": f"{LONG},b\nc,d\n"}),
        dataset("folder", {"captions.jsonl": f'{{"{LONG}": 1}}'}),
        dataset("folder", {"captions.csv": f"file,caption,split\na,b,{LONG}\n"}),
        dataset("lsmdc", {"LSMDC16_challenge_1000_publictect.csv": f"{LONG}\t\t\t\t\t\n"}),
        dataset("didemo", {"test_list.txt": f"{LONG}\n{LONG}"}),
        dataset("msvd", {"test_list.txt": "a", "raw-captions.pkl": f"c{LONG}\nf\n.".encode()}),
        dataset("msvd", {"test_list.txt": LONG, "captions.json": "{}"}),
        dataset("activitynet", {"val_1.json": f'{{"{LONG}": {{"{LONG}": 1}}}}'}),
    ],
)
def test_what_a_file_holds_makes_no_long_message(
    read: Callable[[Path], object], tmp_path: Path
) -> None:
    with pytest.raises(XclipDeployError) as caught:
        read(tmp_path)
    message = str(caught.value)
    assert 0 < len(message) <= MAX_MESSAGE
    assert "\n" not in message
    assert message.startswith(str(tmp_path))
