"""The runtime on a machine without PyTorch: each test in an interpreter that cannot import it."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

BLOCK = """
import sys

class Block:
    def __init__(self, *names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def block(*names):
    assert not set(names) & set(sys.modules)
    sys.meta_path.insert(0, Block(*names))

HEAVY = ("torch", "onnx", "onnxscript", "onnx_ir", "safetensors", "transformers")
"""


def run(code: str, *arguments: object) -> str:
    """Standard output of a program; it must end well. Warnings are errors in it, too."""
    command = [sys.executable, "-W", "error", "-c", BLOCK + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_index_and_search_without_torch(bundle_path: Path, clips: Path, tmp_path: Path) -> None:
    printed = run(
        """
block(*HEAVY)
from xclip_deploy import Retriever

_, bundle, clip, gallery = sys.argv
with Retriever(bundle, device="cpu") as retriever:
    report = retriever.add(clip)
    retriever.save(gallery)
    by_text = retriever.search("a man is driving a car")
    by_video = retriever.search_by_video(clip)
with Retriever(bundle, gallery, device="cpu") as retriever:
    assert retriever.search("a man is driving a car") == by_text
import json
print(json.dumps([report.added, [r.id for r in by_text], [r.id for r in by_video]]))
assert not set(HEAVY) & set(sys.modules)
""",
        bundle_path,
        clips / "mdn_frog.webm",
        tmp_path / "gallery",
    )
    clip = str(clips / "mdn_frog.webm")
    assert json.loads(printed) == [[clip], [clip], [clip]]


@pytest.fixture
def captions(clips: Path, tmp_path: Path) -> Path:
    """A dataset of kind ``folder``: two of the clips, with a caption each."""
    path = tmp_path / "captions.csv"
    path.write_text(
        "file,caption\nmdn_frog.webm,psycho readings\nconditions/dog_square.mp4,a dog\n"
    )
    return path


def test_evaluate_a_bundle_without_torch(bundle_path: Path, clips: Path, captions: Path) -> None:
    printed = run(
        """
block(*HEAVY)
import json

from xclip_deploy import DeployedModel, Bundle, SessionOptions, evaluate, open_dataset

_, bundle, annotations, videos = sys.argv
split = open_dataset("folder", "test", annotations, videos)
found = evaluate(bundle, split, device="cpu")
with DeployedModel(Bundle.open(bundle), SessionOptions(device="cpu")) as model:
    assert evaluate(model, split).metrics == found.metrics
assert not set(HEAVY) & set(sys.modules)
assert not [name for name in sys.modules if name.startswith("xclip_deploy.training")]
print(json.dumps([found.model.kind, found.num_videos, found.num_captions]))
""",
        bundle_path,
        captions,
        clips,
    )
    assert json.loads(printed) == ["bundle", 2, 2]


def test_evaluate_a_bundle_on_the_command_line_without_torch(
    bundle_path: Path, clips: Path, captions: Path
) -> None:
    printed = run(
        """
block(*HEAVY)
from xclip_deploy.cli import main

_, bundle, annotations, videos = sys.argv
dataset = ["--dataset", "folder", "--annotations", annotations, "--videos", videos]
try:
    main(["evaluate", bundle, *dataset, "--device", "cpu", "--json"])
except SystemExit as ended:
    assert ended.code == 0, ended.code
assert not set(HEAVY) & set(sys.modules)
assert not [name for name in sys.modules if name.startswith("xclip_deploy.training")]
""",
        bundle_path,
        captions,
        clips,
    )
    assert json.loads(printed)["num_captions"] == 2


def test_evaluate_a_checkpoint_without_torch(
    checkpoint_path: Path, clips: Path, captions: Path
) -> None:
    printed = run(
        """
block(*HEAVY)
from xclip_deploy import evaluate, open_dataset
from xclip_deploy.errors import MissingExtraError

_, checkpoint, annotations, videos = sys.argv
split = open_dataset("folder", "test", annotations, videos)
try:
    evaluate(checkpoint, split)
except MissingExtraError as error:
    print(error)
""",
        checkpoint_path,
        captions,
        clips,
    )
    assert printed == (
        "evaluating a checkpoint needs torch, which is not installed; "
        "run: pip install 'xclip-deploy[train]'\n"
    )


def test_all_names_of_the_runtime_without_torch() -> None:
    run(
        """
block(*HEAVY)
import xclip_deploy

for name, module in xclip_deploy._MODULE_OF.items():
    if module.startswith("runtime."):
        getattr(xclip_deploy, name)
"""
    )


def test_the_command_line_without_torch(bundle_path: Path) -> None:
    printed = run(
        """
block(*HEAVY)
from xclip_deploy.cli import main

main(["inspect", sys.argv[1], "--json"])
""",
        bundle_path,
    )
    assert json.loads(printed)["format"] == "xclip-bundle"


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("export_bundle", "export"),
        ("load_checkpoint", "export"),
        ("CheckpointOptions", "export"),
        ("train", "train"),
    ],
)
def test_what_needs_torch_says_what_to_install(name: str, extra: str) -> None:
    printed = run(
        f"""
block(*HEAVY)
from xclip_deploy.errors import MissingExtraError

try:
    from xclip_deploy import {name}
except MissingExtraError as error:
    assert isinstance(error, ImportError)
    print(error)
"""
    )
    assert printed == (
        f"{name} needs torch, which is not installed; run: pip install 'xclip-deploy[{extra}]'\n"
    )


def test_export_on_the_command_line_without_torch(tmp_path: Path) -> None:
    printed = run(
        """
block(*HEAVY)
from xclip_deploy.cli import main

sys.stderr = sys.stdout
try:
    main(["export", sys.argv[1]])
except SystemExit as error:
    assert error.code == 3, error.code
""",
        tmp_path / "checkpoint.pt",
    )
    assert printed.startswith("error: ")
    assert printed.endswith("pip install 'xclip-deploy[export]'\n")
    assert printed.count("\n") == 1


def test_without_onnxruntime(bundle_path: Path) -> None:
    printed = run(
        """
block("onnxruntime", *HEAVY)
from xclip_deploy import Bundle, Retriever
from xclip_deploy.errors import MissingExtraError
from xclip_deploy.runtime.tokenizer import Tokenizer

Bundle.open(sys.argv[1]).verify()
Tokenizer.default().encode(["a dog"], 32)
try:
    Retriever(sys.argv[1])
except MissingExtraError as error:
    print(error)
""",
        bundle_path,
    )
    assert "onnxruntime" in printed
    assert "run: pip install 'xclip-deploy[cpu]'" in printed
    assert printed.count("\n") == 1


def test_importing_loads_nothing_heavy() -> None:
    run(
        """
import xclip_deploy

heavy = {*HEAVY, "numpy", "onnxruntime", "av", "PIL", "pydantic", "tokenizers", "ftfy", "rich"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
from xclip_deploy import Retriever

heavy = {*HEAVY, "onnxruntime", "av", "rich", "click"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    )


def test_importing_takes_no_time() -> None:
    """Less than 0.3 s over the bare interpreter; measured: 5 ms."""
    code = """
import time

started_s = time.perf_counter()
import xclip_deploy

print(time.perf_counter() - started_s)
"""
    times_s = [float(run(code)) for _ in range(5)]
    assert statistics.median(times_s) < 0.3, times_s


def test_a_gallery_in_memory_without_a_database(bundle_path: Path, clips: Path) -> None:
    """The base install has neither LanceDB nor PyArrow; what needs them names the extra."""
    printed = run(
        """
block("lancedb", "pyarrow")
from xclip_deploy import Retriever
from xclip_deploy.errors import MissingExtraError

_, bundle, clip = sys.argv
with Retriever(bundle, device="cpu") as retriever:
    retriever.add(clip)
    [hit] = retriever.search("a man is driving a car")
    assert hit.id == clip
    retriever.gallery.stats()
    for needy in (
        lambda: Retriever(bundle, "gallery", create=True),
        lambda: retriever.save("gallery"),
        lambda: retriever.search("a man", where="duration_s < 60"),
        lambda: retriever.search("a man").to_arrow(),
    ):
        try:
            needy()
        except MissingExtraError as error:
            print(error)
""",
        bundle_path,
        clips / "mdn_frog.webm",
    )
    lines = printed.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert line.endswith(
            "needs pyarrow, which is not installed; run: pip install 'xclip-deploy[gallery]'"
        )
