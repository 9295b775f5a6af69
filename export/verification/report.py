"""Render the certificate for people, as one HTML file that needs no other files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from xclip_deploy.export.verification import plots
from xclip_deploy.export.verification.certificate import Certificate, RunComparison
from xclip_deploy.export.verification.measuring import MeasuredRun, MeasuredRuns
from xclip_deploy.export.verification.rankings import Flip, RankComparison
from xclip_deploy.runtime.presentation import cut, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN_FLIPS = 12
_MAX_TEXT = 1000
_CSS = """
:root { color-scheme: light dark; --page: #fff; --ink: #1a1a1a; --quiet: #666; --line: #ddd;
        --rule: #999; --good: #1a7f37; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181c; --ink: #e8e8e8; --quiet: #a0a4aa; --line: #33373d; --rule: #6a6f76;
          --bad: #ff8a80; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
       max-width: 66rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { margin: .3rem 0 .8rem; } .quiet { color: var(--quiet); }
.verdict { display: inline-block; padding: .1rem .7rem; border-radius: 1rem; color: #fff;
           font-weight: 600; margin-left: .6rem; }
.passed { background: var(--good); } .failed { background: #b3261e; }
.wide { overflow-x: auto; margin: .4rem 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; border-bottom: 1px solid var(--rule); }
th, td { padding: .15rem .9rem .15rem 0; vertical-align: middle; white-space: nowrap; }
td.text { white-space: normal; min-width: 12rem; }
td { border-bottom: 1px solid var(--line); } .number { text-align: right; }
.bad { color: var(--bad); font-weight: 600; }
picture img { max-width: max(100%, 40rem); height: auto; display: block; }
img.frame { width: 72px; height: 72px; display: block; }
code { font-size: .9em; }
"""
_Cell = str | tuple[str, str]
"""Escaped text, or escaped text and a CSS class."""


def render_report(
    certificate: Certificate, measurement: MeasuredRuns, ranks: Sequence[RankComparison | None]
) -> str:
    """Render the page as HTML. Raises MissingExtraError where matplotlib is not installed."""
    comparisons = certificate.comparisons
    errors = _figure(
        lambda: plots.error_distributions(measurement, comparisons), "distribution of errors"
    )
    scatter = _figure(
        lambda: plots.score_scatter(measurement, comparisons), "scores and their errors"
    )
    moves = _figure(lambda: plots.rank_moves(comparisons, ranks), "ranks in the reference and here")
    parts = [
        _heading(certificate),
        "<h2>Rankings and recall</h2>",
        _summary(certificate),
        "<p class=quiet>Top-K is the share of the reference's first K videos that are among the "
        "run's first K, as the mean over the texts. A flip is a pair of videos among the first ten "
        "that a text ranks in another order than the reference. A near tie is a flip of videos "
        "whose scores in the reference differ by at most twice the tolerance; it does not count "
        "against a run.</p>",
        _recalls(certificate),
        "<h2>Errors</h2>",
        "<p>The curves show the share of elements by absolute error, the dashed line the largest "
        "error allowed. Features are elements of unit vectors, grains are similarities, logits are "
        "scores. Scores are also bounded by their root mean square (RMS), since the scorer's sharp "
        "softmaxes make the errors of a few pairs much larger than the rest.</p>",
        errors,
        *(_tensors(comparison) for comparison in comparisons),
    ]
    if scatter:
        parts += [
            "<h2>Scores</h2>",
            f"<p>Every dot is one text with one video{_sampled(measurement)}.</p>",
            scatter,
        ]
    parts.append("<h2>Where ranks moved</h2>")
    if moves:
        parts += [
            "<p>Rows are ranks in the reference, columns are ranks of the same videos in the run. "
            "A run that ranks as the reference does fills the diagonal alone.</p>",
            moves,
        ]
    for measured, comparison, rank in zip(measurement.measured, comparisons, ranks, strict=True):
        parts.append(_flips(measurement, measured, comparison, rank))
    if any(comparison.durations for comparison in comparisons):
        parts += [
            "<h2>Size and speed</h2>",
            f"<p>The reference, {_text(certificate.reference.name)}, and the runs took turns, "
            "batch by batch, while videos were being decoded, so that the ratios are approximate. "
            "<code>xclip-deploy bench</code> measures without other work.</p>",
            _costs(certificate),
        ]
    parts.append(_provenance(certificate))
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>xclip-deploy verify: {_verdict(certificate.passed)}</title>"
        f"<style>{_CSS}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _figure(draw: Callable[[], Figure | None], description: str) -> str:
    """Return a figure that scrolls where the page is narrower; "" where there is none."""
    picture = plots.as_picture(draw, description)
    return "" if picture is None else f"<div class=wide>{picture}</div>"


def _heading(certificate: Certificate) -> str:
    inputs = certificate.inputs
    verdict = _verdict(certificate.passed)
    videos = "drawn videos (synthetic)" if inputs.synthetic_videos else "videos"
    texts = "built-in texts" if inputs.built_in_texts else "texts"
    left_out = len(inputs.unreadable) + len(inputs.missing)
    parts = [
        f"<h1>Parity certificate <span class='verdict {verdict}'>{verdict}</span></h1>",
        f"<p>Reference: {_text(certificate.reference.name)}. "
        f"Shown: {inputs.num_videos} {videos} and {inputs.num_texts} {texts} "
        f"({_text(inputs.source)}{f'; {left_out} videos left out' if left_out else ''}).<br>"
        f"Bundle <code>{certificate.fingerprint[:16]}</code>, "
        f"{_text(certificate.created_utc)}, {_text(certificate.machine.cpu)}.</p>",
    ]
    if inputs.synthetic_videos:
        parts.append(
            "<p class=quiet>Synthetic videos show whether the numbers agree, but little about the "
            "effect on retrieval: give videos and captions of your own.</p>"
        )
    if certificate.failures:
        lines = "".join(f"<li class=bad>{_text(line)}</li>" for line in certificate.failures)
        parts.append(f"<ul>{lines}</ul>")
    return "\n".join(parts)


def _summary(certificate: Certificate) -> str:
    rows: list[list[_Cell]] = []
    for comparison in certificate.comparisons:
        ranking = comparison.ranking
        state: _Cell = "passed" if comparison.passed else ("FAILED", "bad")
        if ranking is None:
            rows.append([_text(comparison.run.name), *[""] * 6, state])
            continue
        rows.append(
            [
                _text(comparison.run.name),
                *(
                    (_percent(share), "number")
                    for share in (
                        ranking.top1_agreement,
                        ranking.top5_agreement,
                        ranking.top10_agreement,
                    )
                ),
                (str(ranking.flips), "number" if ranking.passed else "number bad"),
                (str(ranking.near_tie_flips), "number"),
                (
                    f"{ranking.largest_flipped_gap:.2g} of {ranking.tie_gap:.2g} logits"
                    if ranking.texts_changed
                    else "",
                    "number",
                ),
                state,
            ]
        )
    headers = ("run", "top-1", "top-5", "top-10", "flips", "near ties", "widest flip", "")
    return _table(headers, rows)


def _costs(certificate: Certificate) -> str:
    """Render sizes, and times of a batch beside the reference's."""
    rows: list[list[_Cell]] = []
    for comparison in certificate.comparisons:
        size = f"{comparison.run.size_bytes / 1e6:.1f}"
        name = _text(comparison.run.name)
        rows += [
            [
                name,
                (size, "number"),
                duration.graph.value,
                (f"{1000 * duration.median_s:.2f}", "number"),
                (f"{1000 * duration.reference_s:.2f}", "number"),
                (f"{duration.speedup:.2f}", "number"),
            ]
            for duration in comparison.durations
        ]
    headers = ("run", "size, MB", "graph", "batch, ms", "reference, ms", "times as fast")
    return _table(headers, rows)


def _recalls(certificate: Certificate) -> str:
    rows: list[list[_Cell]] = []
    for comparison in certificate.comparisons:
        for direction in ("text_to_video", "video_to_text"):
            records = [record for record in comparison.recalls if record.direction == direction]
            if not records:
                continue
            cells: list[_Cell] = [_text(comparison.run.name), direction.replace("_", " ")]
            for record in records:
                change = record.found - record.reference
                cells.append(
                    (
                        f"{record.found:.1f} ({change:+.2f})",
                        "number" if record.passed else "number bad",
                    )
                )
            cells.append((f"±{records[0].allowed_points:.2g}", "number"))
            rows.append(cells)
    if not rows:
        return "<p class=quiet>The texts belong to no videos, so there are no recalls.</p>"
    headers = ("run", "direction", "R@1, %", "R@5, %", "R@10, %", "allowed, points")
    return _table(headers, rows)


def _tensors(comparison: RunComparison) -> str:
    rows: list[list[_Cell]] = [
        [
            record.graph.value,
            _text(record.tensor),
            (_number(record.min_cosine, ".7f"), "number"),
            (_number(record.mean_cosine, ".7f"), "number"),
            (_number(record.max_abs_error, ".1e"), "number"),
            (f"{record.allowed_error:.1e}", "number"),
            (_number(record.rms_error, ".1e"), "number"),
            (_number(record.allowed_rms, ".1e"), "number"),
            "ok" if record.passed else ("FAILED", "bad"),
        ]
        for record in comparison.tensors
    ]
    headers = (
        "graph",
        "output",
        "min cosine",
        "mean cosine",
        "max error",
        "allowed",
        "RMS error",
        "allowed",
        "",
    )
    return f"<h3>{_text(comparison.run.name)}</h3>{_table(headers, rows)}"


def _flips(
    measurement: MeasuredRuns,
    measured: MeasuredRun,
    comparison: RunComparison,
    ranks: RankComparison | None,
) -> str:
    heading = f"<h3>{_text(comparison.run.name)}</h3>"
    if ranks is None:
        return heading + "<p class=bad>No ranking: the run broke off, or scores are not finite.</p>"
    if not ranks.worst:
        return heading + "<p>No text ranks two videos in another order than the reference.</p>"
    total = ranks.flips + ranks.near_tie_flips
    shown = ranks.worst[:_SHOWN_FLIPS]
    text = (
        f"<p>{total} flips in {ranks.texts_changed} of {len(measurement.texts)} texts; "
        f"the {len(shown)} with the largest gaps in the reference:</p>"
    )
    assert comparison.ranking is not None
    assert measured.logits is not None
    tie_gap = comparison.ranking.tie_gap
    rows = [_flip(measurement, measured.logits, flip, tie_gap) for flip in shown]
    headers = ("text", "above in the reference", "", "above here", "", "apart, logits", "")
    return heading + text + _table(headers, rows)


def _flip(
    measurement: MeasuredRuns, logits: npt.NDArray[np.float32], flip: Flip, tie_gap: float
) -> list[_Cell]:
    cells: list[_Cell] = [(_text(measurement.texts[flip.text] or "(empty)"), "text")]
    for column in (flip.upper, flip.lower):
        before = measurement.reference_logits[flip.text, column]
        after = logits[flip.text, column]
        cells.append(plots.thumbnail(measurement.thumbnails[column]))
        name = measurement.video_ids[column].rsplit("/", 1)[-1]
        cells.append(f"{_text(name)}<br><span class=quiet>{before:.3f} → {after:.3f}</span>")
    cells.append((f"{flip.reference_gap:.2g} → {flip.found_gap:.2g}", "number"))
    cells.append("near tie" if flip.reference_gap <= tie_gap else ("flip", "bad"))
    return cells


def _provenance(certificate: Certificate) -> str:
    machine = certificate.machine
    versions = ", ".join(f"{name} {version}" for name, version in certificate.versions.items())
    lines = [
        ", ".join((machine.cpu, f"{machine.cores} cores", *machine.gpus, machine.system)),
        f"Versions: {versions}",
        *(f"Not run: {skipped.what}: {skipped.reason}" for skipped in certificate.skipped),
        *(f"Unreadable: {reason}" for reason in certificate.inputs.unreadable),
    ]
    return "<h2>Where it ran</h2>" + "".join(f"<p>{_text(line)}</p>" for line in lines)


def _sampled(measurement: MeasuredRuns) -> str:
    return (
        f"; {plots.MOST_POINTS:,} of {measurement.reference_logits.size:,} are drawn"
        if (measurement.reference_logits.size > plots.MOST_POINTS)
        else ""
    )


def _table(headers: Sequence[str], rows: Sequence[Sequence[_Cell]]) -> str:
    numeric = [bool(rows) and isinstance(cell, tuple) and "number" in cell[1] for cell in rows[0]]
    head = "".join(
        f"<th{' class=number' if is_number else ''}>{_text(header)}</th>"
        for header, is_number in zip(headers, numeric, strict=True)
    )
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    # Where the page is narrower than the table, the table scrolls by itself.
    return (
        f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(cell: _Cell) -> str:
    if isinstance(cell, str):
        return f"<td>{cell}</td>"
    return f'<td class="{cell[1]}">{cell[0]}</td>'


def _text(value: str) -> str:
    """Escape a text for the page: its markup, and characters that act instead of showing."""
    return escape(cut(printable(value), _MAX_TEXT))


def _verdict(passed: bool) -> str:
    return "passed" if passed else "failed"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _number(value: float | None, spec: str) -> str:
    return "" if value is None else format(value, spec)
