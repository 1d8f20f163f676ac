"""A figure as a file, and as SVG that lives within HTML."""

from __future__ import annotations

import io
import re
from pathlib import Path
from xml.etree import ElementTree

from matplotlib.figure import Figure

from pgrerank.evaluation.report.style import COLOURS

_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_VARIABLES = {colour: f"var(--plot-{name})" for name, colour in COLOURS.items()}
_PNG_DPI = 220


def write_png(figure: Figure, file: Path) -> None:
    """The figure on white, 1012 pixels wide."""
    figure.savefig(file, format="png", dpi=_PNG_DPI, facecolor=COLOURS["paper"])


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """The figure for HTML: its ids begin with `name`, its colours are the page's variables.

    Text stays text, in the page's own font, so that the browser finds the glyphs; it scales with
    its container, and `description` tells it to those who can't see it.
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True)
    # matplotlib wrote it just now, and it declares no entities
    root = ElementTree.fromstring(out.getvalue())  # noqa: S314
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    for element in root.iter():
        _at_home(element, name)
    for length in ("width", "height"):
        del root.attrib[length]
    root.attrib |= {"class": "plot", "role": "img", "aria-label": description}
    return _without_prefixes(root)


def _at_home(element: ElementTree.Element, name: str) -> None:
    if (own := element.attrib.pop("id", None)) is not None:
        element.set("id", f"{name}-{own}")
    if (link := element.attrib.pop(_LINK, None)) is not None:
        element.set("href", f"#{name}-{link.removeprefix('#')}")
    if clip := element.get("clip-path"):
        element.set("clip-path", clip.replace("url(#", f"url(#{name}-"))
    if style := element.get("style"):
        style = re.sub(r"#[0-9a-f]{6}", lambda found: _VARIABLES.get(found[0], found[0]), style)
        element.set("style", re.sub(r"font-family:[^;]*(;|$)", "", style))


def _without_prefixes(root: ElementTree.Element) -> str:
    """HTML knows SVG's elements by their bare names."""
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
    return ElementTree.tostring(root, encoding="unicode")
