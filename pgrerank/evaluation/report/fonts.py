"""Which fonts the plots need for their texts, and which texts no font here can show."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from matplotlib import font_manager

__all__ = ["Fonts", "fonts_for"]

_LATIN = ("Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans")
_WIDER = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK TC",
    "Noto Sans CJK KR",
    "Noto Sans SC",
    "Noto Sans JP",
    "Noto Sans TC",
    "Noto Sans KR",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "Source Han Sans JP",
    "Source Han Sans",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Hiragino Sans",
    "Apple SD Gothic Neo",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "SimHei",
    "Meiryo",
    "IPAexGothic",
    "IPAGothic",
    "TakaoGothic",
    "VL Gothic",
    "NanumGothic",
    "Droid Sans Fallback",
    "Arial Unicode MS",
    "Noto Sans Thai",
    "Noto Sans Devanagari",
)


class Fonts(NamedTuple):
    """Families in the order in which a glyph is looked for, and the characters that they have."""

    families: list[str]
    covered: frozenset[str]

    def show(self, text: str) -> bool:
        """Whether there is a glyph for each of its characters."""
        return self.covered.issuperset(text)


def fonts_for(texts: Iterable[str]) -> Fonts:
    """The first Latin font that is installed, and of the others only those which these texts need.

    Fonts for Chinese, Japanese and Korean are large, so one is opened only where it adds a glyph.
    """
    installed = set(font_manager.get_font_names())
    families = [next(name for name in _LATIN if name in installed)]
    wanted = frozenset().union(*texts)
    covered = wanted & _glyphs(families[0])
    for name in _WIDER:
        if name not in installed or covered == wanted:
            continue
        if more := (wanted - covered) & _glyphs(name):
            families.append(name)
            covered |= more
    return Fonts(families, covered)


def _glyphs(family: str) -> frozenset[str]:
    font = font_manager.get_font(
        font_manager.findfont(font_manager.FontProperties(family=family), fallback_to_default=False)
    )
    return frozenset(map(chr, font.get_charmap()))
