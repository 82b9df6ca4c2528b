"""What all figures share: the chart around a matplotlib figure, its PNG and SVG, colours, legend."""

import io
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS: Final = ("#3d85c6", "#e08a2e", "#2f9e77", "#c25b8f", "#8b7fd6", "#b59a2c", "#5aa9c9", "#a0694b")
"""Told apart by colour-blind readers, legible on white and on dark."""

MARKERS: Final = ("o", "s", "D", "^", "v", "P", "X", "*")
INK: Final = "#010203"
"""Stands for the reader's text colour; in SVG it becomes `currentColor`."""


@dataclass(frozen=True, slots=True)
class Chart:
    """One figure with the words around it."""

    name: str
    """File name without suffix."""
    title: str
    caption: str
    """Says what is drawn, from how many utterances."""
    figure: "Figure"

    def png(self, directory: Path) -> Path:
        """Writes `directory/<name>.png`, 150 dots per inch on white, with its caption: it travels without the page."""
        from matplotlib.transforms import Bbox

        self._lay_out()
        path = directory / f"{self.name}.png"
        words = textwrap.wrap(self.caption, 105)
        width, height = self.figure.get_size_inches()
        below = 0.1 + 0.16 * len(words)
        note = self.figure.text(0.01, -0.05 / height, "\n".join(words), va="top", fontsize=8, color=INK)
        whole = Bbox([[0, -below], [width, height]])
        self.figure.savefig(path, dpi=150, facecolor="white", metadata={"Software": None}, bbox_inches=whole)
        note.remove()
        return path

    def _lay_out(self) -> None:
        """Places everything once: doing it again for each file took two thirds of a report's time."""
        if self.figure.get_layout_engine() is not None:
            self.figure.draw_without_rendering()
            self.figure.set_layout_engine("none")

    def svg(self) -> str:
        """The drawing as an inline SVG element on a transparent ground, in the page's own text colour."""
        import matplotlib as mpl

        self._lay_out()
        out = io.StringIO()
        # The salt keeps ids of clip paths apart between the drawings of one page.
        with mpl.rc_context({"svg.hashsalt": self.name, "svg.fonttype": "none"}):
            self.figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        text = out.getvalue()
        # Its style element would hold for the whole page.
        text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
        text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
        text = re.sub(r'(?<=<svg )|width="[\d.]+pt" |height="[\d.]+pt" ', "", text)
        return text.replace(INK, "currentColor").replace("<svg ", '<svg role="img" ', 1)


def new(width: float, height: float, title: str) -> "tuple[Figure, Axes]":
    """An empty figure with one pair of axes in the project's style; inches."""
    figure, (axes,) = new_rows(width, height, title, 1)
    return figure, axes


def new_rows(width: float, height: float, title: str, num_rows: int) -> "tuple[Figure, list[Axes]]":
    """The same with several axes below each other, the title over the first; keeps clear of pyplot's global state."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings: Any = {
        "text.parse_math": False,  # a name from outside may hold dollar signs
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK
        ),
        "legend.frameon": False,
        "legend.labelcolor": INK,
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        rows: list[Axes] = list(figure.subplots(num_rows, squeeze=False)[:, 0])
        rows[0].set_title(title, loc="left", fontsize=11, fontweight="bold")
        for axes in rows:
            axes.grid(axis="x", color="#888888", alpha=0.3, linewidth=0.6)
    return figure, rows


def style(index: int) -> tuple[str, str]:
    """Marker and colour of the index-th series; both change, so print and colour blindness lose nothing."""
    return MARKERS[index % len(MARKERS)], COLOURS[index % len(COLOURS)]


def short(name: str) -> str:
    """A name that leaves room for the drawing and can be drawn; tables carry it whole."""
    name = "".join(c if c.isprintable() else " " for c in name)
    return name if len(name) <= 36 else f"{name[:20]}...{name[-13:]}"


def legend(axes: "Axes", title: str) -> None:
    """A legend beside the axes, where it hides no mark."""
    axes.legend(
        title=title, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, labelcolor=INK
    ).get_title().set_color(INK)
