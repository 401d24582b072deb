"""A matplotlib renderer that writes only paths and texts, with presentation attributes."""

from __future__ import annotations

from collections.abc import Mapping
from math import cos, radians, sin
from typing import Any

import numpy as np
from markupsafe import escape
from matplotlib.backend_bases import RendererBase
from matplotlib.colors import to_hex
from matplotlib.path import Path
from matplotlib.transforms import Affine2D, Transform

LETTERS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "z"}
CAPS = {"projecting": "square"}
ANCHORS = {"left": "start", "center": "middle", "right": "end"}


class Renderer(RendererBase):
    """Draws one figure.

    Args:
        width, height: size of the drawing in points.
        colours: replacements of colours, such as variables of a style sheet.
    """

    def __init__(self, width: float, height: float, colours: Mapping[str, str]) -> None:
        super().__init__()
        self.svg = ""
        self._size = width, height
        self._colours = colours

    def get_canvas_width_height(self) -> tuple[float, float]:
        return self._size

    def points_to_pixels(self, points: Any) -> Any:
        return points

    def draw_path(self, gc: Any, path: Path, transform: Transform, rgbFace: Any = None) -> None:
        down = transform + Affine2D().scale(1, -1).translate(0, self._size[1])
        steps = [
            LETTERS[code] + ("" if code == Path.CLOSEPOLY else " ".join(_short(end) for end in np.ravel(ends)))
            for ends, code in path.iter_segments(down, simplify=False)
        ]
        drawn = {"d": " ".join(steps), "fill": "none" if rgbFace is None else self._colour(rgbFace)}
        if gc.get_linewidth():
            opacity, dashes, cap = gc.get_rgb()[3], gc.get_dashes()[1], gc.get_capstyle()
            drawn |= {"stroke": self._colour(gc.get_rgb()), "stroke-width": _short(gc.get_linewidth())}
            drawn |= {"stroke-linejoin": gc.get_joinstyle()} | (
                {} if cap == "butt" else {"stroke-linecap": CAPS.get(cap, cap)}
            )
            drawn |= {} if opacity == 1 else {"stroke-opacity": _short(opacity)}
            drawn |= {} if dashes is None else {"stroke-dasharray": " ".join(f"{dash:g}" for dash in dashes)}
        self._write("path", drawn)

    def draw_text(
        self, gc: Any, x: float, y: float, s: str, prop: Any, angle: float, ismath: Any = False,
        mtext: Any = None,
    ) -> None:  # fmt: skip
        """Anchor a text at matplotlib's alignment point, as the browser's font has other widths."""
        left, top = mtext.get_transform().transform(mtext.get_unitless_position())
        across, along = sin(radians(angle)), cos(radians(angle))
        beside = across * (x - left) + along * (y - (self._size[1] - top))
        place = {"x": _short(left + beside * across), "y": _short(self._size[1] - top + beside * along)}
        turned = {"transform": f"rotate({_short(-angle)} {place['x']} {place['y']})"} if angle else {}
        self._write("text", place | turned | {"text-anchor": ANCHORS[mtext.get_ha()]}, s)

    def _colour(self, rgb: Any) -> str:
        colour = to_hex(rgb)
        return self._colours.get(colour, colour)

    def _write(self, tag: str, attributes: Mapping[str, str], text: str = "") -> None:
        written = "".join(f' {name}="{escape(value)}"' for name, value in attributes.items())
        self.svg += f"<{tag}{written}>{escape(text)}</{tag}>" if text else f"<{tag}{written}/>"


def _short(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")
