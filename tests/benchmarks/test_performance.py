"""The run of everything, at toy sizes, and the comparison of two runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import compare, performance
from benchmarks.machine import OtherLoad, Surroundings
from benchmarks.measured import Part, Quartiles, Run, Series, speedup
from benchmarks.performance_report import number, report
from benchmarks.roofline import pair_flops, text_flops, video_flops
from benchmarks.setting import TORCH_FP32, model_config
from benchmarks.targets import Goal, disk_bound_s, goals
from xclip_deploy import Bundle


def surroundings() -> Surroundings:
    machine = {"cpu": "one", "cores": 2, "memory_bytes": 1 << 30, "system": "Linux"}
    return Surroundings("2026-01-01", machine, ["avx2"], {}, {"python": "3"}, "", [0.0])


def run_of(series: Sequence[Series]) -> Run:
    settings = {"model": "small", "videos": "generated", "seed": 0, "is_toy": True}
    return Run(surroundings(), settings, (Part("encoders", tuple(series)),))


def scattered(centre: float, seed: int, rounds: int = 9) -> tuple[float, ...]:
    noise = np.random.default_rng(seed).normal(1, 0.02, rounds)
    return tuple((centre * noise).tolist())


def series(contender: str, samples: Sequence[float], *, is_yardstick: bool = False) -> Series:
    return Series("video encoder", 1, contender, tuple(samples), is_yardstick=is_yardstick)


Compared = Callable[..., tuple[int, str]]


@pytest.fixture
def compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Compared:
    def status_and_words(before: Run, after: Run, *words: str) -> tuple[int, str]:
        for name, run in (("before", before), ("after", after)):
            run.write(tmp_path / f"{name}.json")
        files = [str(tmp_path / f"{name}.json") for name in ("before", "after")]
        status = compare.main([*files, *words])
        said = capsys.readouterr()
        return status, said.out + said.err

    return status_and_words


def test_one_part_at_a_toy_size(checkpoint_path: Path, bundle_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    arguments = ["--toy", "--output", tmp_path, "--work", tmp_path / "work", "--only", "scorer"]
    arguments += ["--checkpoint", checkpoint_path, "--bundle", bundle_path]
    performance.main([str(word) for word in arguments])
    run = Run.read(tmp_path / "performance.json")
    assert [part.name for part in run.parts] == ["scorer"]
    part = run.part("scorer")
    assert part is not None
    assert part.series
    assert all(min(each.samples) > 0 for each in run.series if each.unit == "s")
    page = (tmp_path / "performance.md").read_text(encoding="utf-8")
    for goal in goals(run):
        assert f"| {goal.name} |" in page


@pytest.mark.slow  # test_one_part_at_a_toy_size goes the same way with one of the parts
def test_everything_at_toy_sizes(
    checkpoint_path: Path, bundle_path: Path, bundle: Bundle, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    arguments = ["--toy", "--output", tmp_path, "--work", tmp_path / "work"]
    arguments += ["--checkpoint", checkpoint_path, "--bundle", bundle_path]
    performance.main([str(word) for word in arguments])
    assert {file.name for file in tmp_path.iterdir()} == {
        "performance.json",
        "performance.md",
        "performance.png",
        "performance-dark.png",
        "work",
    }
    run = Run.read(tmp_path / "performance.json")
    assert [part.name for part in run.parts] == list(performance.PARTS)
    assert all(part.series and part.seconds > 0 for part in run.parts)
    assert all(min(each.samples) > 0 for each in run.series if each.unit == "s")
    assert len({each.key for each in run.series}) == len(run.series)
    page = (tmp_path / "performance.md").read_text(encoding="utf-8")
    for goal in goals(run):
        assert f"| {goal.name} |" in page
    # What was computed is right: FP32 graphs give PyTorch's features, the search finds its hits.
    cosines = [run.fact(f"lowest {kind} cosine, onnxruntime fp32") for kind in ("video", "word")]
    assert all(isinstance(cosine, float) and cosine > 0.9999 for cosine in cosines)
    assert run.fact("recall@10 of two stages, 50 videos in memory") == 1.0
    assert run.find("indexing")[0].work == 3
    # Another call keeps the other parts, since machine and model are the same.
    performance.main([*map(str, arguments), "--only", "scorer"])
    again = Run.read(tmp_path / "performance.json")
    assert again.part("encoders") == run.part("encoders")
    assert again.part("scorer") != run.part("scorer")


def test_a_slower_series_is_flagged(compared: Compared) -> None:
    before = run_of([series("onnxruntime fp32", scattered(1.0, 1))])
    after = run_of([series("onnxruntime fp32", scattered(1.1, 2))])
    status, said = compared(before, after)
    assert (status, "slower" in said) == (1, True)
    assert compared(after, before)[0] == 0


def test_noise_is_not_flagged(compared: Compared) -> None:
    for seed in range(20):
        before = run_of([series("onnxruntime fp32", scattered(1.0, seed))])
        after = run_of([series("onnxruntime fp32", scattered(1.0, 100 + seed))])
        status, said = compared(before, after)
        assert status == 0, said


def test_the_limit_follows_the_scatter(compared: Compared) -> None:
    wide = (0.6, 0.8, 1.0, 1.2, 1.4, 1.6)
    before = run_of([series("onnxruntime fp32", wide)])
    after = run_of([series("onnxruntime fp32", [1.1 * each for each in wide])])
    assert compared(before, after)[0] == 0  # ten per cent, which test_a_slower... flags


def test_a_yardstick_is_no_regression_but_is_named(compared: Compared) -> None:
    before, after = (
        run_of([series(TORCH_FP32, scattered(centre, 3), is_yardstick=True)])
        for centre in (1.0, 1.5)
    )
    status, said = compared(before, after)
    assert status == 0
    assert "1 yardsticks changed too" in said


def test_relative_comparison_cancels_the_load(compared: Compared) -> None:
    def run(load: float, own: float) -> Run:
        reference = scattered(2.0 * load, 4)
        mine = [each * own for each in reference]
        return run_of(
            [
                series(TORCH_FP32, reference, is_yardstick=True),
                series("onnxruntime fp32", mine),
            ]
        )

    assert compared(run(1.0, 0.5), run(1.5, 0.5))[0] == 1
    assert compared(run(1.0, 0.5), run(1.5, 0.5), "--relative")[0] == 0
    assert compared(run(1.0, 0.5), run(1.0, 0.6), "--relative")[0] == 1


def test_few_samples_give_no_verdict(compared: Compared) -> None:
    before, after = (run_of([series("onnxruntime fp32", [each] * 3)]) for each in (1.0, 9.0))
    status, said = compared(before, after)
    assert (status, "too few samples" in said) == (0, True)


def test_runs_that_do_not_compare(compared: Compared, tmp_path: Path) -> None:
    run = run_of([series("onnxruntime fp32", scattered(1.0, 1))])
    other = replace(run, settings={**run.settings, "model": "large"})
    assert compared(run, other) == (
        2,
        "error: the runs differ in model: 'small' before, 'large' after\n",
    )
    machine = {**run.surroundings.machine, "cores": 8}
    elsewhere = replace(run, surroundings=replace(run.surroundings, machine=machine))
    status, said = compared(run, elsewhere)
    assert (status, "--relative" in said) == (2, True)
    assert compared(run, replace(run, parts=()))[0] == 2
    (tmp_path / "else.json").write_text(json.dumps({"videos": 3}))
    assert compare.main([str(tmp_path / "else.json"), str(tmp_path / "before.json")]) == 2


def test_speedup_pairs_rounds() -> None:
    slow, fast = series("a", [1.0, 10.0, 100.0]), series("b", [0.5, 5.0, 50.0])
    assert speedup(slow, fast) == Quartiles(2.0, 2.0, 2.0)


def test_verdicts_of_goals() -> None:
    found = Quartiles(2.5, 2.7, 2.9)
    assert Goal("", 2.6, found=found).verdict == "within scatter"
    assert Goal("", 2.4, found=found).verdict == "reached"
    assert Goal("", 3.0, found=found).verdict == "missed"
    assert Goal("", 3.0, at_most=True, found=found).verdict == "reached"
    assert Goal("", 2.4, at_most=True, found=found).verdict == "missed"
    assert Goal("", 2.4).verdict == "not measured"
    assert Goal("", 2.4, found=found, samples=1).verdict == "too few rounds"


def test_a_busy_machine_is_named() -> None:
    quiet = run_of([series("onnxruntime fp32", [1.0])])
    settings = {**quiet.settings, "is_toy": False}
    for others, is_named in ((0.01, False), (0.5, True)):
        parts = tuple(replace(part, others=others) for part in quiet.parts)
        page = report(replace(quiet, settings=settings, parts=parts))
        assert ("ratios and shares may be wrong" in page) == is_named


def test_the_load_of_others_is_measured() -> None:
    load = OtherLoad()
    end_s = time.process_time() + 0.1
    while time.process_time() < end_s:
        pass
    share = load.share()
    assert share is None or 0 <= share <= 1


def test_bound_of_a_search_from_disk() -> None:
    scorer = Series("scorer", 1, "onnxruntime fp32", (0.01,), work=1000, item="pairs")
    facts: dict[str, float | str] = {
        "bytes of the files, 500 videos": 3e6,
        "files read from disk or cache, bytes/s, 500 videos": 1e9,
    }
    run = run_of([scorer])
    assert disk_bound_s(run, 500) is None
    slow_scorer = replace(run, parts=(*run.parts, Part("search", (), facts)))
    assert disk_bound_s(slow_scorer, 500) == pytest.approx(0.005)
    facts["files read from disk or cache, bytes/s, 500 videos"] = 1e8
    assert disk_bound_s(slow_scorer, 500) == pytest.approx(0.03)


def test_operations_of_the_published_size() -> None:
    config = model_config(is_toy=False)
    # ViT-B/32 takes 4.41 G multiply-adds an image, attention and all.
    assert video_flops(config) / 12 / 2 == pytest.approx(4.41e9, rel=0.01)
    assert text_flops(config) == pytest.approx(2.46e9, rel=0.01)
    assert pair_flops(config) == 2 * 512 * (1 + 32 + 12 + 32 * 12)


@pytest.mark.parametrize(
    ("value", "text"), [(1234.5, "1,234"), (12.34, "12.3"), (1.234, "1.23"), (0.99984, "0.99984")]
)
def test_numbers_for_people(value: float, text: str) -> None:
    assert number(value) == text
