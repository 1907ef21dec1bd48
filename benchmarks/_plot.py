"""A plot as SVG, without a library: lines over two logarithmic axes, with names at their ends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap

WIDTH, HEIGHT = 960, 560
LEFT, RIGHT, TOP, BOTTOM = 80, 250, 64, 60
#: between two names, and between two lines of notes, in units of the drawing
LEADING = 15
COLOURS = ("#0b5fa5", "#c8501e", "#2a8c4a", "#7a3fa0", "#a3352f", "#12808c", "#8a6d0b", "#666666")
DASHES = ("", "7 3", "2 3")

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line: its points in the order of their first value; all values are above 0."""

    name: str
    points: Sequence[Point]
    #: drawn broad
    ours: bool = False


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis from `low` to `high`, drawn from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Where `value` is drawn."""
        part = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + part * (self.end - self.start)

    def decades(self) -> Iterable[float]:
        """The powers of ten on it."""
        first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        return (10.0**power for power in range(first, last + 1))


def plot(title: str, across: str, up: str, lines: Sequence[Series], notes: Sequence[str]) -> str:
    """The drawing. `across` and `up` name the axes; `notes` stand below it, a line each."""
    points = [point for line in lines for point in line.points]
    first, second = ([point[which] for point in points] for which in (0, 1))
    x = Axis(min(first) / 1.3, max(first) * 1.3, LEFT, WIDTH - RIGHT)
    y = Axis(min(second) / 1.5, max(second) * 1.5, HEIGHT - BOTTOM, TOP)
    height = HEIGHT + LEADING * (len(notes) + 1)
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"\n'
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        _text(LEFT, 26, title, 'font-size="16"'),
        *(_rule(x.place(d), TOP, x.place(d), HEIGHT - BOTTOM) for d in x.decades()),
        *(_rule(LEFT, y.place(d), WIDTH - RIGHT, y.place(d)) for d in y.decades()),
        *(_text(x.place(d), HEIGHT - BOTTOM + 18, f"{d:g}", _MIDDLE) for d in x.decades()),
        *(_text(LEFT - 8, y.place(d) + 4, f"{d:,.0f}", _END) for d in y.decades()),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - BOTTOM + 38, across, _MIDDLE),
        _text(LEFT, TOP - 12, up, _END + ' dx="40"'),
    ]
    names = _apart([y.place(line.points[-1][1]) for line in lines])
    for number, (line, name) in enumerate(zip(lines, names, strict=True)):
        drawn += _line(line, number, x, y, name)
    drawn += [_text(20, HEIGHT + LEADING * n, note, _SMALL) for n, note in enumerate(notes)]
    return "\n".join([*drawn, "</svg>", ""])


_MIDDLE, _END, _SMALL = 'text-anchor="middle"', 'text-anchor="end"', 'font-size="11" fill="#444"'


def _text(x: float, y: float, text: str, more: str = "") -> str:
    line = f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(text)}</text>'
    # SVG shows a line end as a blank, so a long line can end at any blank.
    return "\n".join(wrap(line, 100, break_long_words=False, break_on_hyphens=False))


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def _line(line: Series, number: int, x: Axis, y: Axis, name: float) -> list[str]:
    colour = COLOURS[number % len(COLOURS)]
    dash = DASHES[number // len(COLOURS) % len(DASHES)]
    width = 2.5 if line.ours else 1.2
    places = [(x.place(a), y.place(b)) for a, b in line.points]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    end, edge = places[-1], WIDTH - RIGHT + 14
    return [
        f'<polyline points="{path}"\nfill="none" stroke="{colour}" stroke-width="{width}" '
        f'stroke-dasharray="{dash}"/>',
        *(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{width}" fill="{colour}"/>' for a, b in places),
        f'<polyline points="{end[0]:.1f},{end[1]:.1f} {edge},{name:.1f}" fill="none" '
        f'stroke="{colour}" stroke-width="0.5"/>',
        _text(edge + 4, name + 4, line.name, f'fill="{colour}"'),
    ]


def _apart(wanted: Sequence[float]) -> list[float]:
    """Where names go that want to be at `wanted`, so that none covers another."""
    placed = dict.fromkeys(range(len(wanted)), 0.0)
    last = HEIGHT - BOTTOM + LEADING
    for number in sorted(placed, key=lambda n: -wanted[n]):
        last = placed[number] = min(wanted[number], last - LEADING)
    return [max(placed[number], 0) for number in range(len(wanted))]
