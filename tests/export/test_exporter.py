"""checkpoint → bundle: what is written, what is refused, what is left alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from xclip_deploy import Bundle, CheckpointOptions, Retriever, export_bundle, load_checkpoint
from xclip_deploy.cli.program import cli
from xclip_deploy.errors import ExportError, InvalidArgumentError, ParityError
from xclip_deploy.export.exporter import ExportResult
from xclip_deploy.runtime.grains import Grain
from xclip_deploy.runtime.manifest import Graph, ParityMethod, Precision, Preprocessing
from xclip_deploy.runtime.model_config import Family, TemporalHead
from xclip_deploy.runtime.progress import Progress
from xclip_deploy.runtime.video.preprocessing import CLIP_MEAN, CLIP_STD
from xclip_deploy.training.checkpoints import save_checkpoint, to_authors_state_dict
from xclip_deploy.training.checkpoints.parameters import model_fingerprint

PUBLISHED_FINGERPRINT = "cd58cdfb0e16e4d9cc8ee69ada722488dc4ea079420296d85f3d82996a003378"
"""Of the golden checkpoint, as the first release of the exporter wrote it."""

COMPARED = tuple(each for each in Precision if each is not Precision.INT8_WEIGHTS)
"""Precisions whose export needs neither NNCF nor OpenVINO."""


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_bundle_of_the_golden_checkpoint(bundle: Bundle) -> None:
    bundle.verify()
    manifest = bundle.manifest
    assert set(contents(bundle.path)) == {*manifest.files, "manifest.json"}
    assert manifest.model.family is Family.XCLIP
    assert manifest.model.temporal_head is TemporalHead.TRANSFORMER
    assert (manifest.model.max_words, manifest.model.max_frames) == (32, 12)
    assert manifest.provenance.checkpoint == "pytorch_model.bin"
    assert manifest.provenance.layout == "X-CLIP"
    assert manifest.provenance.versions["torch"] == torch.__version__
    assert set(manifest.graphs) == {Precision.FP32, Precision.FP16}


@pytest.mark.slow
def test_bf16_and_int8_beside_the_others(every_precision: ExportResult, bundle: Bundle) -> None:
    extended = every_precision.bundle
    extended.verify()
    manifest = extended.manifest
    assert extended.precisions == COMPARED
    assert set(manifest.tolerances) == set(Precision)
    assert set(contents(extended.path)) == {*manifest.files, "manifest.json"}
    # The same features as without them: galleries fit both.
    assert manifest.fingerprint == bundle.manifest.fingerprint
    for precision in (Precision.FP32, Precision.FP16):
        for graph in Graph:
            found = extended.graph_sha256(graph, precision)
            assert found == bundle.graph_sha256(graph, precision)
    # The scorer computes in FP32 whatever the encoders do, and is not written again.
    files = {precision: manifest.graphs[precision][Graph.SCORER].file for precision in COMPARED}
    assert files[Precision.BF16] == files[Precision.FP16]
    assert files[Precision.INT8] == files[Precision.FP32]
    for graph in (Graph.VIDEO_ENCODER, Graph.TEXT_ENCODER):
        sizes = {precision: manifest.graph_bytes(graph, precision) for precision in manifest.graphs}
        assert sizes[Precision.INT8] < 0.4 * sizes[Precision.FP32]
        assert sizes[Precision.BF16] == pytest.approx(sizes[Precision.FP16], rel=0.01)


@pytest.mark.slow
def test_how_each_precision_was_compared_is_on_record(every_precision: ExportResult) -> None:
    records = every_precision.parity
    assert all(record.passed for record in records)
    methods = {record.precision: record.method for record in records}
    assert methods.pop(Precision.BF16) is ParityMethod.ROUNDED
    assert set(methods.values()) == {ParityMethod.ONNX_RUNTIME}
    worst = {
        precision: max(
            record.max_abs_error
            for record in records
            if record.precision is precision and record.min_cosine is not None
        )
        for precision in COMPARED
    }
    order = [Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8]
    assert sorted(worst, key=lambda precision: worst[precision]) == order


@pytest.mark.slow
def test_int8_encoders_search(every_precision: ExportResult, clips: Path) -> None:
    scores: dict[str, dict[str, float]] = {}
    for precision in ("fp32", "int8"):
        with Retriever(every_precision.bundle, device="cpu", precision=precision) as retriever:
            retriever.add([clips / "sam2_dog.mp4", clips / "mdn_frog.webm"])
            hits = retriever.search("a dog on a leash", k=2)
            scores[precision] = {str(hit.path): hit.score for hit in hits}
    assert scores["int8"].keys() == scores["fp32"].keys()
    for path, score in scores["fp32"].items():
        assert scores["int8"][path] != score
        assert scores["int8"][path] == pytest.approx(score, abs=2)  # logits, scaled by 100


def test_the_parity_table_covers_every_output_and_shows_rounding(bundle: Bundle) -> None:
    records = bundle.manifest.parity
    expected = {
        (precision, graph, tensor.name)
        for precision, graphs in bundle.manifest.graphs.items()
        for specs in (graphs, bundle.manifest.video_parts[precision])
        for graph, spec in specs.items()
        for tensor in spec.outputs
    }
    assert {(record.precision, record.graph, record.tensor) for record in records} == expected
    assert all(record.passed for record in records)
    for record in records:
        # A comparison that compares nothing would show zeros.
        assert record.max_abs_error > 0
        if record.precision is Precision.FP16 and record.graph is not Graph.SCORER:
            assert record.max_abs_error > 1e-5


@pytest.mark.slow
def test_progress_counts_every_step(small_export: Path) -> None:
    steps = json.loads((small_export / "steps.json").read_text())
    assert [done for done, _, _ in steps] == list(range(len(steps)))
    assert {total for _, total, _ in steps} == {len(steps) - 1}
    assert steps[-1][2] == "done"
    assert all("int8" not in label and "bf16" not in label for _, _, label in steps)


@pytest.mark.slow
def test_the_command_with_every_precision(
    write_checkpoint: Any, make_model: Any, tmp_path: Path
) -> None:
    output = tmp_path / "bundle"
    checkpoint = write_checkpoint(make_model(scorer_noise=0.02))
    words = ["export", str(checkpoint), "-o", str(output), "--int8", "--bf16"]
    result = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert result.exit_code == 0
    assert Bundle.open(output).precisions == tuple(Precision)
    done = [line for line in result.stderr.splitlines() if line.startswith("[")]
    total = len(done)
    assert [line.split("]")[0] for line in done] == [f"[{n}/{total}" for n in range(1, total + 1)]
    sizes = next(line for line in result.stdout.splitlines() if line.startswith("size of"))
    assert sizes.split()[2:] == ["fp32", "fp16", "bf16", "int8"]
    assert "bf16: ONNX Runtime cannot run these graphs" in result.stdout
    assert "with each result rounded to the precision" in result.stdout


@pytest.mark.slow
def test_clip4clip_is_exported_and_searched(
    write_checkpoint: Any, make_model: Any, tmp_path: Path, clips: Path
) -> None:
    model = make_model(
        grains=(Grain.VIDEO_SENTENCE,),
        sentence_projection=False,
        temporal_head=TemporalHead.LSTM,
    )
    path = tmp_path / "clip4clip.pt"
    torch.save(to_authors_state_dict(model.config, model.state_dict()), path)
    options = CheckpointOptions(max_words=10, max_frames=5)
    result = export_bundle(path, tmp_path / "bundle", options=options, frames_per_second=2)
    assert result.bundle.manifest.model.family is Family.CLIP4CLIP
    with Retriever(result.bundle) as retriever:
        retriever.add(clips / "intel_asl_walk.mkv", segment="whole")
        (hit,) = retriever.search("a woman in yellow")
        snapshot, rows = retriever.gallery.snapshot(), np.array([0])
        (stored,) = snapshot.videos(rows)
        assert len(stored.frame_times_s) == 5  # 3 s, two a second
        text = retriever.encode_texts(["a woman in yellow"])
        video = snapshot.features(rows)
    assert hit.grains is not None
    assert hit.grains.frame_word is None
    cosine = float(text.sentence_features[0] @ video.video_features[0].astype(np.float32))
    assert hit.grains.video_sentence == pytest.approx(cosine, abs=1e-4)
    scale = float(model.scorer.logit_scale.detach().exp())
    assert hit.score == pytest.approx(scale * cosine, abs=1e-3)


@pytest.mark.slow
def test_fp16_that_ruins_the_embeddings_is_caught_and_the_old_bundle_stands(
    write_checkpoint: Any, make_model: Any, small_export: Path, tmp_path: Path
) -> None:
    """Weights that FP32 takes in its stride overflow FP16: the export must not let them pass."""
    output = tmp_path / "bundle"
    shutil.copytree(small_export / "bundle", output)
    before = contents(output)
    model = make_model()
    mlp = model.text_encoder.transformer.resblocks[0].mlp
    with torch.no_grad():
        mlp.c_fc.weight *= 1e7
        mlp.c_proj.weight *= 1e-7
    with pytest.raises(ParityError, match="fp16/text_encoder sentence_features") as caught:
        export_bundle(write_checkpoint(model), output)
    assert caught.value.exit_code == 5
    records = {(record.precision, record.tensor): record for record in caught.value.records}
    assert not records[Precision.FP16, "sentence_features"].passed
    assert records[Precision.FP32, "sentence_features"].passed
    assert contents(output) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
@pytest.mark.parametrize("precision", [Precision.BF16, Precision.INT8])
def test_weights_that_an_extra_precision_ruins_are_caught(
    write_checkpoint: Any, make_model: Any, tmp_path: Path, precision: Precision
) -> None:
    """What FP32 and FP16 take in their stride: the message names the option to leave out."""
    model = make_model(scorer_noise=0.02)
    with torch.no_grad():
        if precision is Precision.INT8:
            # One activation a thousand times the others takes the whole range of the scale
            # that all share, though nothing reads it.
            block = model.text_encoder.transformer.resblocks[0]
            block.ln_2.bias[0] += 1000
            block.mlp.c_fc.weight[:, 0] = 0
        else:
            # A large value that all have in common, which the layer norms take off again: for
            # what is left beside it, BF16 has eight bits, FP16 eleven.
            model.text_encoder.positional_embedding += 0.3
    output = tmp_path / "bundle"
    expected = f"without --{precision.value} the export passes"
    with pytest.raises(ParityError, match=expected) as caught:
        export_bundle(write_checkpoint(model), output, bf16=True, int8=True)
    failed = {record.precision for record in caught.value.records if not record.passed}
    assert failed == {precision}
    assert not output.exists()


def test_a_killed_export_leaves_the_old_bundle(
    bundle_path: Path, checkpoint_path: Path, tmp_path: Path
) -> None:
    output = tmp_path / "bundle"
    shutil.copytree(bundle_path, output)
    before = contents(output)
    program = Path(sys.executable).with_name("xclip-deploy")
    command: list[str | Path] = [program, "export", checkpoint_path, "-o", output]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    waited_s = 0.0
    while not list(tmp_path.glob(".bundle.partial-*")) and waited_s < 120:
        assert process.poll() is None
        time.sleep(0.05)
        waited_s += 0.05
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert contents(output) == before
    Bundle.open(output).verify()
    assert list(tmp_path.glob(".bundle.partial-*"))

    def interrupt(progress: Progress) -> None:
        if progress.note.startswith("exporting"):
            raise KeyboardInterrupt

    # The next one clears up after the killed one, and after itself.
    with pytest.raises(KeyboardInterrupt):
        export_bundle(checkpoint_path, output, progress=interrupt)
    assert not list(tmp_path.glob(".bundle.partial-*"))
    assert contents(output) == before


def test_a_folder_that_is_no_bundle_is_not_replaced(checkpoint_path: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InvalidArgumentError, match="exists and is no bundle"):
        export_bundle(checkpoint_path, tmp_path)
    file = tmp_path / "thesis.txt"
    with pytest.raises(InvalidArgumentError, match="exists and is no bundle"):
        export_bundle(checkpoint_path, file)
    assert file.read_text() == "years of work"


def test_unwritable_output(checkpoint_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ExportError, match="cannot be written"):
        export_bundle(checkpoint_path, file / "bundle")


@pytest.mark.parametrize("rate", [0, -1.0, float("nan"), float("inf")])
def test_impossible_frame_rates(checkpoint_path: Path, tmp_path: Path, rate: float) -> None:
    with pytest.raises(InvalidArgumentError, match="frames_per_second"):
        export_bundle(checkpoint_path, tmp_path / "bundle", frames_per_second=rate)


def test_a_vocabulary_that_is_not_clips(
    write_checkpoint: Any, make_model: Any, tmp_path: Path
) -> None:
    from xclip_deploy.runtime.model_config import TextConfig

    model = make_model(text=TextConfig(width=64, layers=1, heads=1, vocab_size=1000))
    with pytest.raises(ExportError, match="1000 token embeddings"):
        export_bundle(write_checkpoint(model), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_the_fingerprint_is_of_weights_and_settings_alone(make_model: Any, tmp_path: Path) -> None:
    """Not of the file they came in: a gallery outlives a re-saved checkpoint."""
    from xclip_deploy import load_checkpoint

    model = make_model()
    names = to_authors_state_dict(model.config, model.state_dict())
    torch.save({f"module.{name}": tensor for name, tensor in names.items()}, tmp_path / "a.pt")
    save_file(names, tmp_path / "b.safetensors")
    loaded = [load_checkpoint(tmp_path / name) for name in ("a.pt", "b.safetensors")]
    size = model.config.vision.image_size
    preprocessing = Preprocessing(image_size=size, mean=CLIP_MEAN, std=CLIP_STD)
    first, second = (
        model_fingerprint(checkpoint.state_dict, checkpoint.config, 1, preprocessing)
        for checkpoint in loaded
    )
    assert first == second
    assert loaded[0].source_sha256 != loaded[1].source_sha256
    assert model_fingerprint(loaded[0].state_dict, loaded[0].config, 2, preprocessing) != first
    changed = dict(loaded[0].state_dict)
    changed["scorer.logit_scale"] = changed["scorer.logit_scale"] + 1e-3
    assert model_fingerprint(changed, loaded[0].config, 1, preprocessing) != first


@pytest.mark.slow
@pytest.mark.parametrize("is_said_by", ["option", "checkpoint"])
def test_square_pixels_are_part_of_the_model_where_they_are_on(
    bundle_path: Path, checkpoint_path: Path, tmp_path: Path, is_said_by: str
) -> None:
    program = Path(sys.executable).with_name("xclip-deploy")
    words = ["export", checkpoint_path, "--square-pixels", "-o", tmp_path / "bundle"]
    if is_said_by == "checkpoint":
        loaded, path = load_checkpoint(checkpoint_path), tmp_path / "weights.pt"
        save_checkpoint(path, loaded.config, loaded.state_dict, square_pixels=True)
        words = ["export", path, "-o", tmp_path / "bundle"]
    subprocess.run([program, *map(str, words)], check=True, capture_output=True)
    published, square = Bundle.open(bundle_path).manifest, Bundle.open(tmp_path / "bundle").manifest
    assert square.preprocessing.square_pixels
    assert square.video_reading().square_pixels
    assert not published.video_reading().square_pixels
    assert square.fingerprint != published.fingerprint
    # Off, nothing of it is stored: published bundles stay as they are.
    assert "square_pixels" not in (bundle_path / "manifest.json").read_text()
    assert published.fingerprint == PUBLISHED_FINGERPRINT
