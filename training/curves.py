"""Loss and validation of a run as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Here and not in the function: what is missing must not be found out after days of training.
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from xclip_deploy.runtime.atomic import replaced_file


def draw_curves(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw a run's log (:meth:`RunFolder.records`) to a PNG file."""
    steps = [record for record in records if "loss" in record]
    validations = [record for record in records if "validation" in record]
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss_axes, recall_axes = figure.subplots(1, 2)
    loss_axes.plot([r["step"] for r in steps], [r["loss"] for r in steps], linewidth=0.8)
    loss_axes.set(xlabel="step", ylabel="loss", title="Training loss")
    if steps and min(r["loss"] for r in steps) > 0:
        loss_axes.set_yscale("log")
    for direction, label in (("text_to_video", "text → video"), ("video_to_text", "video → text")):
        recalls = [r["validation"][direction]["recall_at_1"] for r in validations]
        recall_axes.plot([r["step"] for r in validations], recalls, marker="o", label=label)
    recall_axes.set(xlabel="step", ylabel="R@1, %", title="Validation", ylim=(0, 100))
    if validations:
        recall_axes.legend()
    for axes in (loss_axes, recall_axes):
        axes.grid(alpha=0.3)
    with replaced_file(path) as partial:
        FigureCanvasAgg(figure).print_png(str(partial))  # type: ignore[no-untyped-call]
