"""The picture of results: every cell in its place, no text beyond its cell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.moments import GridCell, plot_results
from xclip_deploy.runtime.moments.grid import MAX_CELLS
from xclip_deploy.runtime.theme import PALETTES, Theme

pytest.importorskip("matplotlib", reason="the extra plot is not installed")
WHITE = 255


def coloured(colour: tuple[int, int, int], height: int = 90, width: int = 160) -> GridCell:
    rgb = np.full((height, width, 3), colour, np.uint8)
    return GridCell.of(rgb, 1, 23.456, "talk.mp4", 3723.5, 3731.5)


def read(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.array(Image.open(path).convert("RGB"))


def test_titles_of_results() -> None:
    cell = GridCell.of(None, 3, 23.456, "talk.mp4", 3723.5, 3731.5)
    assert cell.title == "3. 1:02:03.5 – 1:02:11.5 · 23.46"
    assert GridCell.of(None, 1, -2, "a.mp4").title == "1. -2.00"


def test_cells_stand_in_rows(tmp_path: Path) -> None:
    colours = [(250, 0, 0), (0, 200, 0), (0, 0, 250), (200, 0, 200), (0, 200, 200)]
    plot_results([coloured(colour) for colour in colours], tmp_path / "g.png", columns=3)
    pixels = read(tmp_path / "g.png")
    places = []
    for colour in colours:
        rows, columns = np.nonzero((np.abs(pixels.astype(int) - colour) < 12).all(axis=2))
        assert len(rows) > 30_000
        places.append((float(rows.mean()), float(columns.mean())))
    (a, b, c), (d, e) = places[:3], places[3:]
    assert a[0] == pytest.approx(b[0], abs=2) == pytest.approx(c[0], abs=2)
    assert a[1] < b[1] < c[1]
    assert d[0] > a[0] + 150
    assert (d[1], e[1]) == pytest.approx((a[1], b[1]), abs=2)


def test_long_names_stay_in_their_cells(tmp_path: Path) -> None:
    name = "/".join(["a very long folder"] * 20) + "/the $end$ of it.mp4"
    cells = [GridCell(None, name, name, name), GridCell(None, "", "", "")]
    plot_results(cells, tmp_path / "g.png")
    pixels = read(tmp_path / "g.png")
    middle = pixels.shape[1] // 2
    # The gap between the cells and the margins hold nothing.
    assert (pixels[:, middle - 6 : middle + 6] == WHITE).all()
    assert (pixels[:, :15] == WHITE).all()
    assert (pixels[:, -15:] == WHITE).all()
    assert (pixels[-15:] == WHITE).all()


@pytest.mark.parametrize("theme", PALETTES)
def test_a_file_that_is_gone_is_a_grey_box(tmp_path: Path, theme: Theme) -> None:
    for reason, name in (("the file is gone", "g.png"), ("", "h.png")):
        plot_results([GridCell(None, "1", "x.mp4", reason)], tmp_path / name, theme=theme)
    with_reason, without = read(tmp_path / "g.png"), read(tmp_path / "h.png")
    assert bytes(without[100, 150]) == bytes.fromhex(PALETTES[theme].empty[1:])
    assert (with_reason[60:140] != without[60:140]).any()


@pytest.mark.parametrize("count", [0, MAX_CELLS + 1])
def test_counts_that_are_none(tmp_path: Path, count: int) -> None:
    with pytest.raises(InvalidArgumentError, match="expected 1 to 400"):
        plot_results([GridCell(None, "1")] * count, tmp_path / "g.png")
    assert list(tmp_path.iterdir()) == []


def test_places_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be written"):
        plot_results([GridCell(None, "1")], tmp_path / "none" / "g.png")
    with pytest.raises(InvalidArgumentError, match="columns"):
        plot_results([GridCell(None, "1")], tmp_path / "g.png", columns=0)
