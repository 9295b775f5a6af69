"""Colours of pictures on a light or a dark page, and PNG files in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import InvalidArgumentError, MissingExtraError
from xclip_deploy.runtime.arguments import as_choice
from xclip_deploy.runtime.files import replaced_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Theme = Literal["light", "dark"]


@dataclass(frozen=True)
class Palette:
    """The colours of one theme, as matplotlib takes them."""

    page: str
    ink: str
    quiet: str
    """Ink of what matters less: notes, and tokens that are no words."""
    accent: str
    """Colour of the best moment, and of words that the score does not need."""
    empty: str
    """Fill of the box of a frame that cannot be shown."""
    low: str
    """Colour of the least similarity of the map."""
    high: str
    """Colour of its greatest similarity."""
    series: tuple[str, ...]
    """Colours of lines and bars, which most colour-blind people tell apart."""

    def shade(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the colours of values from 0 to 1: RGB [..., 3], of 0 to 1."""
        from matplotlib.colors import to_rgb

        low, high = np.array(to_rgb(self.low)), np.array(to_rgb(self.high))
        # The power spreads the upper half, where words differ.
        shares = np.clip(values, 0, 1)[..., None] ** 1.5
        return np.asarray(low + (high - low) * shares)

    def ink_on(self, rgb: npt.NDArray[np.float64]) -> str:
        """Return black or white, whichever can be read on a colour."""
        return "black" if float(rgb @ (0.299, 0.587, 0.114)) > 0.55 else "white"

    def settings(self, families: tuple[str, ...] = ()) -> Any:  # noqa: ANN401 - matplotlib has a type
        """Return matplotlib's settings for this theme. ``families``: fonts, or its own."""
        from cycler import cycler

        fonts = {"font.family": list(families)} if families else {}
        return {
            **fonts,
            "axes.prop_cycle": cycler(color=self.series),
            "grid.color": self.quiet,
            "legend.edgecolor": self.quiet,
            "figure.facecolor": self.page,
            "axes.facecolor": self.page,
            "savefig.facecolor": self.page,
            "text.color": self.ink,
            "axes.labelcolor": self.ink,
            "axes.edgecolor": self.quiet,
            "axes.titlecolor": self.ink,
            "xtick.color": self.ink,
            "ytick.color": self.ink,
        }


PALETTES: Mapping[Theme, Palette] = {
    "light": Palette(
        page="#ffffff",
        ink="#1a1a1a",
        quiet="#6a6a6a",
        accent="#d62728",
        empty="#d2d2d2",
        low="#f4f7fb",
        high="#08519c",
        # These are Okabe and Ito's.
        series=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a6a6a"),
    ),
    "dark": Palette(
        page="#16181c",
        ink="#e8e8e8",
        quiet="#a0a4aa",
        accent="#ff6b6b",
        empty="#3a3d42",
        low="#1f232a",
        high="#7cc0ff",
        series=("#56b4e9", "#ff9052", "#2fc79a", "#e6a3c8", "#f0c24b", "#8fa8ff", "#a0a4aa"),
    ),
}


def can_draw() -> bool:
    """Return whether matplotlib, which pictures need, can be imported."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def require_matplotlib(purpose: str) -> None:
    """Import matplotlib. Raises MissingExtraError, which names the purpose."""
    if not can_draw():
        raise MissingExtraError("matplotlib", "plot", purpose)


@contextmanager
def drawing_in(theme: Theme, families: tuple[str, ...] = ()) -> Iterator[Palette]:
    """Set matplotlib's colours for a block that makes and writes a figure; yield the palette.

    Raises InvalidArgumentError for another theme.
    """
    import matplotlib as mpl

    palette = PALETTES[as_choice("theme", theme, Theme)]
    with mpl.rc_context(palette.settings(families)):
        yield palette


def write_png(draw: Callable[[], Figure], path: Path, theme: Theme = "light") -> None:
    """Write the figure that ``draw`` makes, whole or not at all.

    Raises InvalidArgumentError where the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with drawing_in(theme):
        canvas: Any = FigureCanvasAgg(draw())  # its methods have no types
        try:
            with replaced_file(path) as partial:
                canvas.print_png(str(partial))
        except OSError as error:
            raise InvalidArgumentError(f"{path} cannot be written: {error.strerror}") from error


def write_pngs(draw: Callable[[], Figure], path: Path) -> None:
    """Write a figure for light pages to ``path``, and for dark ones beside it.

    The name of the second ends in ``-dark``. Raises InvalidArgumentError.
    """
    write_png(draw, path)
    write_png(draw, path.with_stem(f"{path.stem}-dark"), "dark")
