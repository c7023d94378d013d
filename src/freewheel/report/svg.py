"""A Matplotlib figure as inline SVG: text as text, colours as CSS variables, ids that do not clash."""

from __future__ import annotations

import html
import io
import re
from typing import Any, NamedTuple

from matplotlib.backend_bases import GraphicsContextBase
from matplotlib.backends.backend_svg import RendererSVG
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.text import Text

from freewheel.report import plots

_ANCHORS = {"left": "start", "center": "middle", "right": "end"}
_VARIABLES = {
    plots.SURFACE: "--surface",
    plots.INK: "--ink",
    plots.MUTED: "--muted",
    plots.GRID: "--grid",
    **{color: f"--series-{index}" for index, color in enumerate(plots.SERIES)},
}


class _Word(NamedTuple):
    text: str
    x: float
    y: float
    angle: float
    anchor: str
    size: float
    weight: str
    color: str


class _Renderer(RendererSVG):
    """Draws everything but text, which it collects.

    Matplotlib chooses between text and outlines by a global setting, which another thread may be using;
    outlines would also cost ten times the bytes, and nobody could select or search them.
    """

    def __init__(self, width: float, height: float, buffer: io.StringIO) -> None:
        super().__init__(width, height, buffer)  # type: ignore[no-untyped-call]  # Matplotlib's is untyped
        self.words: list[_Word] = []

    def draw_text(
        self,
        gc: GraphicsContextBase,
        x: float,
        y: float,
        s: str,
        prop: FontProperties,
        angle: float,
        ismath: Any = False,
        mtext: Text | None = None,
    ) -> None:
        anchor = "left"
        if (
            mtext is not None and angle == 0
        ):  # the reader's font has other widths: keep the anchor, not the left edge
            anchor = mtext.get_horizontalalignment()
            x = mtext.get_transform().transform(mtext.get_unitless_position())[0]
        weight = "600" if prop.get_weight() == "bold" else "400"
        color = to_hex(gc.get_rgb())
        self.words.append(_Word(s, x, y, angle, _ANCHORS[anchor], prop.get_size_in_points(), weight, color))


def to_svg(figure: Figure, name: str, label: str) -> str:
    """The ``<svg>`` element of a figure.

    Args:
        figure: one of ``plots.figures``.
        name: unique in the page; the ids in the element begin with it.
        label: what the plot shows, for those who cannot see it.
    """
    width, height = figure.get_figwidth() * 72, figure.get_figheight() * 72
    buffer = io.StringIO()
    dpi = figure.dpi
    figure.set_dpi(72)  # the unit of SVG here
    try:
        renderer = _Renderer(width, height, buffer)
        figure.draw(renderer)
        renderer.finalize()  # type: ignore[no-untyped-call]  # Matplotlib's is untyped
    finally:
        figure.set_dpi(dpi)
    words = "\n".join(_element(word) for word in renderer.words)
    body = _body(buffer.getvalue())
    opening = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(label)}">'
    return f"{opening}\n{_own_ids(_variables(body), name)}\n{_variables(words)}\n</svg>"


def _body(document: str) -> str:
    """What is inside ``<svg>``, less the metadata and the style sheet, which would act on the whole page."""
    inside = document[document.index(">", document.index("<svg")) + 1 : document.rindex("</svg>")]
    inside = re.sub(
        r"<metadata>.*?</metadata>|<style\b.*?</style>|<defs>\s*</defs>", "", inside, flags=re.DOTALL
    )
    return re.sub(r"<defs>\s*</defs>|<!--.*?-->", "", inside, flags=re.DOTALL).strip()


def _element(word: _Word) -> str:
    turn = f' transform="rotate({-word.angle:g} {word.x:.2f} {word.y:.2f})"' if word.angle else ""
    style = f"font-size: {word.size:g}px; font-weight: {word.weight}; fill: {word.color}"
    place = f'x="{word.x:.2f}" y="{word.y:.2f}" text-anchor="{word.anchor}"'
    return f'<text {place} style="{style}"{turn}>{html.escape(word.text)}</text>'


def _variables(svg: str) -> str:
    """Replaces the light colours in style attributes by the variables of the page."""
    pattern = "|".join(map(re.escape, _VARIABLES))

    def in_style(match: re.Match[str]) -> str:
        return re.sub(pattern, lambda color: f"var({_VARIABLES[color.group()]})", match.group())

    return re.sub(r'style="[^"]*"', in_style, svg)


def _own_ids(svg: str, name: str) -> str:
    """Numbers the ids anew: unique in the page, and the same whenever the same figure is drawn."""
    known = {old: f"{name}-{number}" for number, old in enumerate(re.findall(r'\bid="([^"]+)"', svg))}
    used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg))
    wanted = {part for pair in used for part in pair if part}
    svg = re.sub(
        r' id="([^"]+)"', lambda m: f' id="{known[m.group(1)]}"' if m.group(1) in wanted else "", svg
    )
    svg = re.sub(r"url\(#([^)]+)\)", lambda m: f"url(#{known.get(m.group(1), m.group(1))})", svg)
    return re.sub(
        r'(?:xlink:)?href="#([^"]+)"', lambda m: f'href="#{known.get(m.group(1), m.group(1))}"', svg
    )
