"""Train a small model on generated videos, export, build engines, verify, index, search.

The demo runs the ``xclip-deploy`` commands that a user would type. It ends with a page that shows
what the searches found.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path

from demo.report import (
    Outcome,
    Recall,
    Step,
    Verification,
    duration_of,
    recall_of,
    right_of,
    verdict_of,
    write_report,
)
from demo.searching import find_answers, read_captions
from xclip_deploy import Bundle
from xclip_deploy.export.verification.certificate import (
    CERTIFICATE_DIRECTORY,
    CERTIFICATE_NAME,
    REPORT_NAME,
    Certificate,
    read_certificate,
)

# The demo trains on fewer videos and for fewer steps than the preset, so that it takes a few
# minutes. Its gallery holds short videos alone, so that excerpts would only cost steps.
# Validation chooses nothing.
BUDGET: Mapping[str, object] = {
    "data.generated.train": 1920,
    "data.generated.val": 2,
    "data.generated.excerpts": "false",
    "data.validation_split": "null",
    "optimization.epochs": 24,
}
QUICK: Mapping[str, object] = {
    **BUDGET,
    "data.generated.train": 96,
    "optimization.epochs": 3,
    "optimization.batch_size": 32,
}
QUERIES = (
    "a red square moves right, then a blue triangle grows",
    "a blue triangle grows, then a red square moves right",
    "a red square moves right while a green square flashes",
    "a green triangle shrinks",
)
_OUT_OF_TOLERANCE = 13
"""Exit status of ``verify`` where something is out of tolerance."""
_WIDTH = 80


def main() -> None:
    """Run the demo in a folder below the current directory."""
    parser = argparse.ArgumentParser(prog="dev.py demo", description=(__doc__ or "").strip())
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder to fill")
    parser.add_argument(
        "--quick", action="store_true", help="train for a few steps: all runs, little is found"
    )
    options = parser.parse_args()
    Demo(options.output, QUICK if options.quick else BUDGET).run()


class Demo:
    """One run of the demo."""

    def __init__(self, output: Path, budget: Mapping[str, object]) -> None:
        """Open nothing yet. ``budget``: settings of the training."""
        self.output, self.budget = output, budget
        self.training, self.bundle = output / "run", output / "xclip-bundle"
        self.gallery = output / "xclip-gallery"
        self.videos = self.training / "videos"
        self.steps: list[Step] = []
        self.notes: list[str] = []

    def run(self) -> None:
        """Run all steps, write the page, and say what was found.

        Exits with the status of ``verify`` where something is out of tolerance, and with 1 where
        another step fails.
        """
        started_s = time.monotonic()
        if self.training.exists():
            sys.exit(
                f"{self.training} is left from an earlier demo; "
                f"run: rm -r {shlex.quote(str(self.output))}"
            )
        self.output.mkdir(parents=True, exist_ok=True)
        self._make_bundle()
        status = self._verify()
        self._search()
        print("\nJudging the results and drawing their evidence", flush=True)
        outcome = self._outcome(started_s)
        page = self.output / "index.html"
        write_report(outcome, page)
        _tell(outcome, page)
        sys.exit(status)

    def _make_bundle(self) -> None:
        words = [word for name, value in self.budget.items() for word in _setting(name, value)]
        self._step(
            "Training a small X-CLIP from random weights, on generated videos",
            ("train", "--preset", "demo", *words, "-o", self.training),
        )
        self._step(
            "Exporting the checkpoint to a bundle",
            ("export", self.training / "last.pt", "-o", self.bundle),
        )
        title = "Building FP16 TensorRT engines"
        if importlib.util.find_spec("tensorrt_rtx") is None:
            _head(title)
            self.notes.append(
                "No engines were built: tensorrt-rtx is not installed here (it has no wheels for "
                "this platform)."
            )
            print(f"skipped. {self.notes[-1]}")
        else:
            self._step(title, ("build-trt", "--fp16", self.bundle))

    def _verify(self) -> int:
        """Compare all precisions with PyTorch; return the exit status, 0 or that of a failure."""
        captions = ("--videos", self.videos, "--captions", self.videos / "captions.csv")
        return self._step(
            "Comparing every precision with PyTorch, on 200 videos that the model has not seen",
            ("verify", self.bundle, "--checkpoint", self.training / "last.pt", *captions),
            allowed=_OUT_OF_TOLERANCE,
        )

    def _search(self) -> None:
        broken, test_videos = self.output / "broken.mp4", self.videos / "test"
        broken.write_bytes(next(test_videos.glob("*.mp4")).read_bytes()[:500])
        places = ("--bundle", self.bundle, "--gallery", self.gallery)
        self._step(
            "Indexing these videos, and a file that is broken on purpose",
            ("index", test_videos, broken, *places),
        )
        self._step("Searching by text", ("search", *QUERIES, "-k", 3, *places))

    def _outcome(self, started_s: float) -> Outcome:
        captions = read_captions(self.videos)
        answers = find_answers(
            QUERIES, self.bundle, self.gallery, captions, self.output / "evidence"
        )
        certificate = read_certificate(Bundle.open(self.bundle))
        assert certificate is not None
        pages = [self.bundle / CERTIFICATE_DIRECTORY / n for n in (REPORT_NAME, CERTIFICATE_NAME)]
        lines = (self.training / "log.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        return Outcome(
            answers=answers,
            recall=_recall(certificate),
            losses=[(record["step"], record["loss"]) for record in records if "loss" in record],
            verification=Verification(certificate, next(p for p in pages if p.is_file())),
            steps=self.steps,
            notes=self.notes,
            seconds=time.monotonic() - started_s,
        )

    def _step(self, title: str, arguments: tuple[object, ...], allowed: int = 0) -> int:
        """Print and run an xclip-deploy command; return its status, 0 or ``allowed``."""
        _head(title)
        words = [str(argument) for argument in arguments]
        command = f"xclip-deploy {shlex.join(words)}"
        print(f"$ {command}", flush=True)
        started_s = time.monotonic()
        program = str(Path(sys.executable).parent / "xclip-deploy")
        status = subprocess.run([program, *words], check=False).returncode
        if status not in (0, allowed):
            sys.exit(f"xclip-deploy {words[0]} failed with status {status}")
        self.steps.append(Step(title, command, time.monotonic() - started_s))
        return status


def _setting(name: str, value: object) -> tuple[str, str]:
    return "--set", f"{name}={value}"


def _recall(certificate: Certificate) -> Recall | None:
    """Return the recall of the graphs that ran; None where scores are not finite."""
    for comparison in certificate.comparisons:
        found = {
            record.k: record.found
            for record in comparison.recalls
            if record.direction == "text_to_video"
        }
        if found:
            return Recall(found[1], found[5], certificate.inputs.num_texts)
    return None


def _head(text: str) -> None:
    print(f"\n== {text}", flush=True)


def _tell(outcome: Outcome, page: Path) -> None:
    """Print which results are right, how long the demo took and which file to open."""
    _head("Right or wrong")
    for answer in outcome.answers:
        print(answer.query)
        _say(f"{'right' if answer.is_right else 'wrong'}: {answer.verdict}", "  ")
    print()
    _say(right_of(outcome.answers) + ".")
    if outcome.recall is not None:
        _say(recall_of(outcome.recall))
    _say(f"Certificate {verdict_of(outcome.verification.certificate)}.")
    print(f"\nThe demo took {duration_of(outcome.seconds)}. Open its page in a browser:")
    print(page)


def _say(text: str, indent: str = "") -> None:
    lines = textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
