"""Which engines are taken, and what is said of those that cannot be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stand_in_device import write_engines
from stand_in_device.plans import RTX_VERSION, VERSION
from xclip_deploy import Bundle
from xclip_deploy.errors import EngineError
from xclip_deploy.runtime.cuda.runtime_api import CudaDevice
from xclip_deploy.runtime.engine_set import SIDECAR_NAME, BuildOptions, Flavour, engine_file
from xclip_deploy.runtime.manifest import Graph, Precision
from xclip_deploy.runtime.sessions.native.engine_choice import choose_engines, read_plan

GPU = CudaDevice(0, "a GPU", (8, 9))
OTHER_GPU = CudaDevice(0, "an older GPU", (7, 5))
RTX = Flavour.RTX


def refused(match: str, bundle: Bundle, gpu: CudaDevice = GPU, **changes: Any) -> str:
    wanted = {"flavour": RTX, "version": RTX_VERSION, "precision": "auto"} | changes
    with pytest.raises(EngineError, match=match) as caught:
        choose_engines(bundle, gpu=gpu, **wanted)
    message = str(caught.value)
    assert "\n" not in message
    assert f"run: xclip-deploy build-trt {bundle.path}" in message
    return message


def test_no_engines(fresh: Bundle) -> None:
    message = refused("has no fp16 or fp32 engines of flavour rtx .none at all.", fresh)
    assert message.endswith("--fp16 --flavor rtx")
    write_engines(fresh, Flavour.TENSORRT)
    refused("has no fp16 or fp32 engines of flavour rtx .none at all.", fresh)
    write_engines(fresh, RTX)
    message = refused("has no fp32 engines of flavour rtx .fp16.", fresh, precision="fp32")
    assert message.endswith("--fp32 --flavor rtx")


def test_the_best_of_several(fresh: Bundle) -> None:
    def chosen(**changes: Any) -> str:
        wanted = {"flavour": RTX, "version": RTX_VERSION} | changes
        return choose_engines(fresh, gpu=GPU, **wanted).folder.name

    write_engines(fresh, RTX, Precision.FP32)
    assert chosen() == f"rtx-{RTX_VERSION}-fp32-portable"
    write_engines(fresh, RTX)
    assert chosen() == f"rtx-{RTX_VERSION}-fp16-portable"
    assert chosen(precision="fp32") == f"rtx-{RTX_VERSION}-fp32-portable"
    write_engines(fresh, RTX, target="sm89", options=BuildOptions(compute_capabilities=("sm89",)))
    assert chosen() == f"rtx-{RTX_VERSION}-fp16-sm89"
    # What does not fit is passed over.
    write_engines(fresh, RTX, target="sm86", created_utc="2030-01-01T00:00:00+00:00")
    assert chosen() == f"rtx-{RTX_VERSION}-fp16-sm89"


def test_another_version(fresh: Bundle) -> None:
    folder = write_engines(fresh, RTX, version="1.6.0.1")
    message = refused("was built with tensorrt_rtx 1.6.0.1, this machine has tensorrt_rtx", fresh)
    assert f"this machine has tensorrt_rtx {RTX_VERSION}; " in message
    assert str(folder) in message


@pytest.mark.parametrize(
    ("version", "fits"),
    [(VERSION, True), ("10.17.0.1", True), ("10.9.0.1", False), ("11.4.0.1", False)],
)
def test_engines_for_later_versions(fresh: Bundle, version: str, fits: bool) -> None:
    write_engines(fresh, Flavour.TENSORRT, options=BuildOptions(version_compatible=True))
    if fits:
        choose_engines(fresh, Flavour.TENSORRT, version, GPU)
    else:
        message = refused("was built with", fresh, flavour=Flavour.TENSORRT, version=version)
        assert message.endswith("--version-compatible")


def test_the_lean_runtime_takes_version_compatible_engines_alone(fresh: Bundle) -> None:
    folder = write_engines(fresh, Flavour.TENSORRT)
    with pytest.raises(EngineError, match="is not version-compatible") as e:
        choose_engines(fresh, Flavour.TENSORRT, VERSION, GPU, is_lean=True)
    assert "lean runtime alone" in str(e.value)
    assert str(e.value).endswith("--version-compatible"), "the command that mends it"
    compatible = BuildOptions(version_compatible=True)
    shutil.rmtree(folder)
    assert write_engines(fresh, Flavour.TENSORRT, options=compatible) == folder
    for version in (VERSION, "10.17.0.1"):
        chosen = choose_engines(fresh, Flavour.TENSORRT, version, GPU, is_lean=True)
        assert chosen.folder == folder
    with pytest.raises(EngineError, match="was built with"):
        choose_engines(fresh, Flavour.TENSORRT, "11.4.0.1", GPU, is_lean=True)


def test_another_gpu(fresh: Bundle) -> None:
    write_engines(fresh, Flavour.TENSORRT)
    changes = {"flavour": Flavour.TENSORRT, "version": VERSION}
    refused("was built for sm89, this machine has an older GPU .sm75.", fresh, OTHER_GPU, **changes)
    write_engines(fresh, RTX, target="sm86", options=BuildOptions(compute_capabilities=("sm86",)))
    message = refused("was built for sm86, this machine has a GPU .sm89.", fresh)
    assert "--compute-capability" not in message  # which would bring the same about


def test_rtx_for_an_older_gpu(fresh: Bundle) -> None:
    """Portable engines run from 8.0 on, so that building the same again would not help."""
    write_engines(fresh, RTX)
    message = refused("was built for portable, this machine has an older GPU", fresh, OTHER_GPU)
    assert message.endswith("--flavor rtx --compute-capability sm75")


@pytest.mark.parametrize("has_engines", [False, True])
def test_rtx_where_it_cannot_run(fresh: Bundle, has_engines: bool) -> None:
    if has_engines:
        write_engines(fresh, RTX, version="1.2.0")
    h100 = CudaDevice(0, "NVIDIA H100", (9, 0))
    message = refused("^TensorRT-RTX does not support compute capability 9.0 ", fresh, h100)
    assert message.endswith("--flavor tensorrt")


def test_engines_of_another_model(fresh: Bundle) -> None:
    write_engines(fresh, RTX, fingerprint="ab" * 32)
    message = refused("was built for model abababababab…, the bundle is model ", fresh)
    assert fresh.manifest.fingerprint[:12] in message


def test_engines_of_another_graph(fresh: Bundle) -> None:
    folder = write_engines(fresh, RTX)
    edit(folder, lambda content: content["engines"]["scorer"].update(graph_sha256="cd" * 32))
    message = refused("scorer.engine was built from graph cdcdcdcdcdcd…, the bundle has", fresh)
    assert fresh.graph_sha256(Graph.SCORER, Precision.FP16)[:12] in message


def test_engines_of_a_precision_that_the_bundle_no_longer_has(fresh: Bundle) -> None:
    write_engines(fresh, RTX)
    manifest = fresh.manifest
    graphs = {Precision.FP32: manifest.graphs[Precision.FP32]}
    only_fp32 = replace(fresh, manifest=manifest.model_copy(update={"graphs": graphs}))
    refused("was built from fp16 graphs, the bundle has fp32", only_fp32)


def test_several_that_do_not_fit(fresh: Bundle) -> None:
    write_engines(fresh, RTX, version="1.6.0.1")
    write_engines(fresh, RTX, version="1.5.0.1", created_utc="2030-01-01T00:00:00+00:00")
    message = refused("was built with tensorrt_rtx 1.5.0.1", fresh)
    assert message.endswith("(and 1 other sets do not fit)")


def edit(folder: Path, change: Callable[[Any], None]) -> None:
    content = json.loads((folder / SIDECAR_NAME).read_text())
    change(content)
    (folder / SIDECAR_NAME).write_text(json.dumps(content))


# The plans themselves


def test_a_whole_plan(fresh: Bundle) -> None:
    folder = write_engines(fresh, RTX)
    chosen = choose_engines(fresh, RTX, RTX_VERSION, GPU)
    for graph in Graph:
        assert read_plan(chosen, graph) == (folder / engine_file(graph)).read_bytes()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda _: b"", "scorer.engine is empty, [0-9,]+ bytes were built"),
        (lambda plan: plan[:-1], "scorer.engine has [0-9,]+ bytes, [0-9,]+ were built"),
        (lambda plan: plan + b"x", "scorer.engine has [0-9,]+ bytes, [0-9,]+ were built"),
        (lambda plan: b"X" + plan[1:], "scorer.engine was altered: its SHA-256 is "),
        (None, "scorer.engine cannot be read .No such file"),
    ],
)
def test_a_damaged_plan(
    fresh: Bundle, damage: Callable[[bytes], bytes] | None, expected: str
) -> None:
    file = write_engines(fresh, RTX) / "scorer.engine"
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    chosen = choose_engines(fresh, RTX, RTX_VERSION, GPU)
    with pytest.raises(EngineError, match=expected) as caught:
        read_plan(chosen, Graph.SCORER)
    assert f"run: xclip-deploy build-trt {fresh.path} --fp16 --flavor rtx" in str(caught.value)
