"""A backend that is registered from outside runs search, bench and verify; no other file knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import toy_backend

from xclip_deploy import Bundle, Retriever, SessionOptions, benchmark_sessions, verify_bundle
from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.benchmark import BenchmarkPlan
from xclip_deploy.runtime.manifest import Graph
from xclip_deploy.runtime.sessions import place
from xclip_deploy.runtime.sessions.registry import (
    backend_names,
    precision_names,
    register,
    unregister,
)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register("toy", "toy_backend:ToyBackend")
    toy_backend.RUNS.clear()
    yield
    unregister("toy")


def test_its_names_are_choices() -> None:
    assert "toy" in backend_names()
    assert "toy32" in precision_names()
    register("toy", "toy_backend:ToyBackend")  # the same again is no other
    with pytest.raises(InvalidArgumentError, match="a backend 'toy' is registered already"):
        register("toy", "somewhere:Else")
    unregister("onnxruntime")
    assert "onnxruntime" in backend_names()


@pytest.mark.parametrize(
    ("target", "match"),
    [
        ("no_such_module:Thing", "no_such_module:Thing cannot be imported"),
        ("toy_backend:Missing", "toy_backend:Missing cannot be imported"),
        ("toy_backend:ToyBackend", "has the name 'toy'; expected the same name"),
    ],
)
def test_a_broken_registration_breaks_no_other_backend(
    target: str, match: str, bundle: Bundle
) -> None:
    register("broken", target)
    try:
        with pytest.raises(InvalidArgumentError, match=match):
            SessionOptions(backend="broken")
        options = SessionOptions("cpu", "fp32", backend="onnxruntime")
        assert place(options, bundle).placement.backend == "onnxruntime"
    finally:
        unregister("broken")


@pytest.mark.parametrize("target", ["__main__:Toy", "toy_backend", ":Toy"])
def test_targets_that_other_processes_cannot_import(target: str) -> None:
    with pytest.raises(InvalidArgumentError, match="expected 'module:class'"):
        register("mine", target)


def test_it_searches(bundle: Bundle, clips: Path) -> None:
    with Retriever(bundle, session=SessionOptions(backend="toy")) as retriever:
        assert retriever.model.placement.reason == "toy was asked for: it is a toy"
        assert retriever.model.placement.arithmetic.name == "toy32"
        retriever.add(clips / "mdn_frog.webm")
        found = retriever.search("a frog")
        assert set(toy_backend.RUNS) == set(Graph)
    with Retriever(bundle, device="cpu", precision="fp32") as reference:
        assert reference.model.placement.backend == "onnxruntime"
        reference.add(clips / "mdn_frog.webm")
        assert found[0].score == pytest.approx(reference.search("a frog")[0].score, abs=1e-4)


def test_auto_takes_it_by_its_rank(bundle: Bundle) -> None:
    with Retriever(bundle, device="cpu") as retriever:
        assert retriever.model.placement.backend == "toy"
    unregister("toy")
    with Retriever(bundle, device="cpu") as retriever:
        assert retriever.model.placement.backend == "onnxruntime"


def test_it_is_measured(bundle: Bundle) -> None:
    plan = BenchmarkPlan({Graph.TEXT_ENCODER: (1,)}, seconds=0.01, rounds=1, warmup=0)
    sessions = [SessionOptions(backend="toy"), SessionOptions("cpu", "fp32", backend="onnxruntime")]
    result = benchmark_sessions(bundle, sessions, plan=plan)
    assert [session.name for session in result.sessions] == [
        "toy cpu toy32",
        "onnxruntime cpu fp32",
    ]
    assert all(found.error is None for found in result.measurements)


def test_what_a_measured_session_says_is_passed_on(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody reads what the process of a session logs, and a reason may grow as it runs."""
    monkeypatch.setenv(toy_backend.SAYS, "no graphs, at 100%")
    plan = BenchmarkPlan(
        {Graph.TEXT_ENCODER: (1, 2), Graph.SCORER: (1,)}, seconds=0.01, rounds=1, warmup=0
    )
    (session,) = benchmark_sessions(bundle, [SessionOptions(backend="toy")], plan=plan).sessions
    assert session.reason == "toy was asked for: it is a toy; no graphs, at 100%"
    assert caplog.text.count("toy cpu toy32: no graphs, at 100%") == 2, "once for each graph"


def test_it_is_verified_by_its_own_gates(bundle_copy: Path) -> None:
    certificate = verify_bundle(bundle_copy, report=False)
    (toy,) = (each for each in certificate.comparisons if each.run.backend == "toy")
    assert toy.run.name == "toy32 toy cpu"
    assert toy.passed
    (scorer, *_) = (record for record in toy.tensors if record.tensor == "video_features")
    assert scorer.allowed_error == toy_backend._GATES.feature


def test_options_that_it_does_not_read_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="streams was given with backend 'toy'"):
        SessionOptions(backend="toy", streams=3)
    with pytest.raises(InvalidArgumentError, match="backend 'toy' does not run on cuda"):
        SessionOptions(backend="toy", device="cuda")
