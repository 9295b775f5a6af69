"""Colours of a picture on a light or a dark page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

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

    def settings(self, families: tuple[str, ...]) -> Any:  # noqa: ANN401 - matplotlib has a type
        """Return matplotlib's settings for this theme and these fonts."""
        return {
            "font.family": list(families),
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
    ),
    "dark": Palette(
        page="#16181c",
        ink="#e8e8e8",
        quiet="#a0a4aa",
        accent="#ff6b6b",
        empty="#3a3d42",
        low="#1f232a",
        high="#7cc0ff",
    ),
}
