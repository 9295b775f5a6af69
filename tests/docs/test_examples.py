"""The examples run: each on the inputs of the pages."""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from documentation import REPOSITORY, differences
from page_runner import PageRunner

from xclip_deploy import Retriever

EXAMPLES = REPOSITORY / "examples"
pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="these tests read the repository")
NOTEBOOK = EXAMPLES / "search.ipynb"
UPDATE = bool(os.environ.get("XCLIP_DEPLOY_UPDATE_DOCS"))


def test_the_notebook_runs_and_prints_its_outputs(
    page_runner: PageRunner, capfd: pytest.CaptureFixture[str]
) -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__notebook__"}
    problems = []
    count = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        count += 1
        capfd.readouterr()
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
        printed = capfd.readouterr().out
        shown = "".join(line for output in cell["outputs"] for line in output["text"])
        if wrong := differences(shown, printed, numbers_vary=False):
            problems.append(f"{cell['id']}: {wrong}")
        cell["execution_count"] = count
        text = printed.splitlines(keepends=True)
        cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": text}] * bool(text)
    for retriever in (names["retriever"], names["moments"]):
        assert isinstance(retriever, Retriever)
        retriever.close()
    assert Path("evidence.png").stat().st_size > 10_000
    assert Path("shrinks.mp4").is_file()
    if UPDATE and problems:
        content = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        NOTEBOOK.write_text(content, encoding="utf-8")
    assert not problems, "\n".join(problems)


def test_the_notebook_is_small() -> None:
    assert NOTEBOOK.stat().st_size < 20_000


def run_example(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_one_s_own_pipeline(
    page_runner: PageRunner, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    videos = ("videos/yellow-circle.mp4", "videos/red-square.mp4")
    run_example("own_pipeline.py", monkeypatch, "xclip-bundle", *videos)
    lines = capfd.readouterr().out.splitlines()
    assert "red-square.mp4" in lines[1], "the video of the query ranks first"
    assert "yellow-circle.mp4" in lines[2]


def test_a_model_of_the_hub_that_cannot_be_had_says_so(
    page_runner: PageRunner, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(page_runner.folder / "cache"))
    with pytest.raises(SystemExit) as ended:
        run_example("hugging_face.py", monkeypatch, "org/absent", "videos", "a red square")
    assert ended.value.code == 4
    assert "hf download org/absent" in capfd.readouterr().err


@pytest.mark.slow
def test_a_model_of_the_hub(
    page_runner: PageRunner, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    transformers = pytest.importorskip("transformers")
    sizes = {"intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.CLIPConfig(
        text_config={**sizes, "hidden_size": 64},
        vision_config={**sizes, "hidden_size": 64, "image_size": 32, "patch_size": 16},
        projection_dim=32,
    )
    cache = page_runner.folder / "cache" / "models--org--small"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    transformers.CLIPModel(config).save_pretrained(cache / "snapshots" / ("0" * 40))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(page_runner.folder / "cache"))
    run_example("hugging_face.py", monkeypatch, "org/small", "videos", "a red square")
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("note: org/small was read from the hub's cache")
    assert lines[-5].startswith("1. ")


def test_the_request_to_triton_is_what_the_ensemble_takes(page_runner: PageRunner) -> None:
    """The server is not here; its configuration is."""
    request = runpy.run_path(str(EXAMPLES / "triton_client.py"))["request_of"](["a", "b"])
    page_runner.command("xclip-deploy export-triton")
    config = Path("xclip-triton/text_query/config.pbtxt").read_text(encoding="utf-8")
    [given] = request["inputs"]
    assert given["shape"] == [2, 1]
    for name in (given["name"], *(output["name"] for output in request["outputs"])):
        assert f'name: "{name}"' in config
