"""Render the demo's results as one HTML page beside the files that it shows.

The page needs no script and no other host, and refers to files by relative paths, so that its
folder can be moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from demo.judging import Answer, Evidence, Result, differing_parts
from demo.style import CSS
from xclip_deploy.export.verification.certificate import Certificate
from xclip_deploy.runtime.presentation import counted, cut, printable

_MAX_TEXT = 500
_THEMES = ("light", "dark")


@dataclass(frozen=True)
class Step:
    """A command that the demo ran."""

    title: str
    command: str
    seconds: float


@dataclass(frozen=True)
class Recall:
    """Text-to-video recall over all captions of the gallery."""

    first: float
    """R@1, percent."""
    among_five: float
    """R@5, percent."""
    num_queries: int


@dataclass(frozen=True)
class Verification:
    """Verdict of ``verify``, and the files that it wrote."""

    certificate: Certificate
    page: Path
    """The certificate's page, or its JSON where no page was written."""


@dataclass(frozen=True)
class Outcome:
    """Everything that the page tells."""

    answers: Sequence[Answer]
    recall: Recall | None
    losses: Sequence[tuple[int, float]]
    """Step and training loss, ascending by step."""
    verification: Verification
    steps: Sequence[Step]
    notes: Sequence[str]
    """Sentences on what was not done on this machine."""
    seconds: float


def write_report(outcome: Outcome, path: Path) -> None:
    """Write the page, UTF-8. Files that it names must lie in the folder of ``path``."""
    path.write_text(render(outcome, path.parent), encoding="utf-8")


def render(outcome: Outcome, folder: Path) -> str:
    """Render the page for a place in ``folder``. Raises ValueError for a file outside of it."""
    parts = [
        _heading(outcome),
        *(_answer(number, each, folder) for number, each in enumerate(outcome.answers, 1)),
        _curve(outcome.losses),
        _verification(outcome.verification, folder),
        _steps(outcome),
    ]
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        '<link rel=icon href="data:,"><title>xclip-deploy demo</title>'
        f"<style>{CSS}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def right_of(answers: Sequence[Answer]) -> str:
    """Say how many queries find their video first."""
    right = sum(answer.is_right for answer in answers)
    verb = "finds" if right == 1 else "find"
    return f"{right} of {counted(len(answers), 'query', 'queries')} {verb} the right video first"


def recall_of(recall: Recall) -> str:
    """Say what share of all captions find their video, beside chance."""
    return (
        f"Of all {counted(recall.num_queries, 'caption')}, {recall.first:.1f} % find their own "
        f"video first (R@1), and {recall.among_five:.1f} % among the first five (R@5). "
        f"Chance would be {100 / recall.num_queries:.1f} %."
    )


def duration_of(seconds: float) -> str:
    """Return a duration in minutes and seconds: ``3 min 52 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def verdict_of(certificate: Certificate) -> str:
    """Say what was compared with what, and whether it passed."""
    runs = " and ".join(comparison.run.name for comparison in certificate.comparisons)
    inputs = certificate.inputs
    compared = (
        f"{runs or 'nothing'} compared with {certificate.reference.name} on "
        f"{counted(inputs.num_videos, 'video')} and {counted(inputs.num_texts, 'text')}"
    )
    return f"{'passed' if certificate.passed else 'failed'}: {compared}"


def _heading(outcome: Outcome) -> str:
    trained = f" for {counted(outcome.losses[-1][0], 'step')}" if outcome.losses else ""
    return (
        f"<h1>{right_of(outcome.answers)}</h1>"
        f"<p>This demo trained a small X-CLIP{trained} from random weights, exported it, and "
        f"searched videos that it had not seen. It took {duration_of(outcome.seconds)}.</p>"
        + ("" if outcome.recall is None else f"<p>{recall_of(outcome.recall)}</p>")
        + "<p class=quiet>A result is right if its video shows what the query says, word for word. "
        "Captions come in pairs that are easily mistaken: the same events in another order, or "
        "another thing that flashes. The clips have no sound.</p>"
        "<p class=quiet><b>score</b> is the model's logit: higher is better, and scores of one "
        "query alone compare. <b>sure</b> is the chance that no video without a match scores so "
        "high; look-alikes lower it, and these videos look alike.</p>"
    )


def _answer(number: int, answer: Answer, folder: Path) -> str:
    cards = [_card(answer, result, folder) for result in answer.results]
    if answer.right is not None and answer.right not in answer.results:
        cards.append(_card(answer, answer.right, folder))
    return (
        f'<section aria-labelledby="query-{number}"><h2 id="query-{number}">'
        f"“{_text(answer.query)}”</h2>"
        f"<p>{_badge(answer.is_right, 'right', 'wrong')} {_text(_sentence(answer.verdict))}</p>"
        f"<ol class=cards>{''.join(cards)}</ol>"
        f"<p class=quiet>The median score of the {counted(answer.num_videos, 'video')} is "
        f"{answer.median_score:.2f}.</p>"
        f"<details{' open' if number == 1 else ''}>"
        "<summary>Why the first result has its score</summary>"
        f"{_evidence(answer.evidence, answer.results[0], folder)}</details></section>"
    )


def _card(answer: Answer, result: Result, folder: Path) -> str:
    is_right = result == answer.right
    caption = "".join(
        f"<mark>{_text(text)}</mark>" if differs else _text(text)
        for text, differs in differing_parts(answer.query, result.caption)
    )
    source = _address(result.file, folder)
    name = _text(f"Clip at rank {result.rank}: {result.caption}")
    sure = "" if result.confidence is None else f", <span>sure {_percent(result.confidence)}</span>"
    right = "<b class=right>the right video</b>" if is_right else ""
    return (
        f"<li{' class=is-right' if is_right else ''}>"
        f'<video src="{source}" controls muted loop playsinline preload=auto '
        f'width=96 height=96 aria-label="{name}"></video>'
        f"<p><b>#{result.rank}</b> {right}</p><p>{caption}</p>"
        f"<p class=quiet><span>score {result.score:.2f}</span>{sure}</p></li>"
    )


def _evidence(evidence: Evidence, first: Result, folder: Path) -> str:
    summary = f"<p class=quiet>{_text(_sentence(evidence.summary))}</p>"
    if not evidence.pictures:
        return summary
    light, dark = (_address(evidence.pictures[theme], folder) for theme in _THEMES)
    name = _text(f"Evidence for “{first.caption}”: similarity of each word to each frame")
    return (
        f'<div class=wide tabindex=0 role=group aria-label="{name}"><picture>'
        f'<source srcset="{dark}" media="(prefers-color-scheme: dark)">'
        f'<img src="{light}" alt="{_text(evidence.summary)}"></picture></div>{summary}'
    )


def _curve(losses: Sequence[tuple[int, float]]) -> str:
    """Draw the training loss as SVG, which takes the page's colours."""
    if len(losses) < 2:
        return ""
    (first_step, first), (last_step, last) = losses[0], losses[-1]
    top = max(loss for _, loss in losses)
    scale = 1000 / max(last_step - first_step, 1), 300 / max(top, 1e-9)
    points = " ".join(
        f"{(step - first_step) * scale[0]:.1f},{300 - loss * scale[1]:.1f}" for step, loss in losses
    )
    told = (
        f"The training loss falls from {first:.2f} to {last:.2f} in {counted(last_step, 'step')}."
        if last < first
        else f"The training loss is {first:.2f} at first and {last:.2f} at last."
    )
    return (
        "<section aria-labelledby=training><h2 id=training>Training</h2>"
        f"<p>{told}</p><div class=plot><span>{top:.1f}</span>"
        f'<svg viewBox="0 0 1000 300" preserveAspectRatio=none role=img aria-label="{told}">'
        f'<path d="M0 150H1000M0 75H1000M0 225H1000"/><polyline points="{points}"/></svg>'
        f"<span>0</span><span>step {first_step:,}</span><span>{last_step:,}</span></div></section>"
    )


def _verification(verification: Verification, folder: Path) -> str:
    certificate = verification.certificate
    rows = []
    for comparison in certificate.comparisons:
        recalls = {
            record.k: record for record in comparison.recalls if record.direction != "video_to_text"
        }
        first = recalls.get(1)
        rows.append(
            f"<tr><td>{_text(comparison.run.name)}</td><td>"
            + ("" if first is None else f"{first.found:.1f} %")
            + f"</td><td>{'passed' if comparison.passed else 'failed'}</td></tr>"
        )
    failures = "".join(f"<li>{_text(failure)}</li>" for failure in certificate.failures)
    skipped = "".join(
        f"<li>{_text(f'{each.what}: {each.reason}')}</li>" for each in certificate.skipped
    )
    what, _, compared = verdict_of(certificate).partition(": ")
    assert what in ("passed", "failed")
    return (
        "<section aria-labelledby=certificate><h2 id=certificate>Certificate</h2>"
        f"<p>{_badge(certificate.passed, 'passed', 'failed')} "
        f"<code>verify</code>: {_text(compared)}.</p>"
        "<table><thead><tr><th>run</th><th>R@1</th><th>tolerances</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
        + (f"<p>Out of tolerance:</p><ul>{failures}</ul>" if failures else "")
        + f'<p><a href="{_address(verification.page, folder)}">Open the certificate</a></p>'
        + (
            f"<details><summary>Not run on this machine ({len(certificate.skipped)})</summary>"
            f"<ul>{skipped}</ul></details>"
            if skipped
            else ""
        )
        + "</section>"
    )


def _steps(outcome: Outcome) -> str:
    rows = "".join(
        f"<li><p>{_text(step.title)} <span class=quiet>({duration_of(step.seconds)})</span></p>"
        f"<code>{_text(step.command)}</code></li>"
        for step in outcome.steps
    )
    notes = "".join(f"<p>{_text(note)}</p>" for note in outcome.notes)
    return (
        "<section aria-labelledby=steps><h2 id=steps>What ran</h2>"
        f"{notes}<ol class=steps>{rows}</ol></section>"
    )


def _badge(is_good: bool, good: str, bad: str) -> str:
    return f'<b class="badge {"good" if is_good else "bad"}">{good if is_good else bad}</b>'


def _percent(share: float) -> str:
    """Return a share in whole percent; what is not all is no 100 %, what is not none no 0 %."""
    if 0.995 <= share < 1:
        return "more than 99 %"
    return "less than 1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _text(value: str) -> str:
    """Escape a text for the page: its markup, and characters that act instead of showing."""
    return escape(cut(printable(value), _MAX_TEXT))


def _address(file: Path, folder: Path) -> str:
    """Return a file's address relative to the page, escaped."""
    relative = file.resolve().relative_to(folder.resolve())
    return escape(quote(relative.as_posix(), safe="/"))
