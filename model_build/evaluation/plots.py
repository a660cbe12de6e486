"""Plots as SVG text: no library, the same bytes for the same numbers, and they stand in one HTML file. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

__all__ = ["Points", "plot"]

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT, _MARGIN = 420, 300, 46


def plot(
    title: str,
    x_label: str,
    y_label: str,
    *,
    lines: Sequence[Points] = (),
    dots: Points = (),
    levels: Sequence[float] = (),
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
) -> str:
    """Return one <svg>: lines, dots, and dashed horizontal levels; what is not finite is left out."""
    shown = [[point for point in line if all(map(math.isfinite, point))] for line in (*lines, dots)]
    points = [point for line in shown for point in line]
    xs = x_range or _range([x for x, _ in points])
    ys = y_range or _range([y for _, y in points] + list(levels))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (min(max(x, xs[0]), xs[1]) - xs[0]) / (xs[1] - xs[0])
        up = (min(max(y, ys[0]), ys[1]) - ys[0]) / (ys[1] - ys[0])
        return _MARGIN + across * (_WIDTH - 1.4 * _MARGIN), _HEIGHT - _MARGIN - up * (_HEIGHT - 1.8 * _MARGIN)

    left, bottom = place(xs[0], ys[0])
    right, top = place(xs[1], ys[1])
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" font-family="sans-serif" font-size="11">',
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}" '
        'fill="none" stroke="#999"/>',
        f'<text x="{_WIDTH / 2}" y="16" text-anchor="middle" font-size="13">{escape(title)}</text>',
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text x="12" y="{_HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 12 {_HEIGHT / 2})">'
        f"{escape(y_label)}</text>",
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = xs[0] + share * (xs[1] - xs[0]), ys[0] + share * (ys[1] - ys[0])
        parts.append(f'<text x="{place(x, ys[0])[0]:.1f}" y="{bottom + 13:.1f}" text-anchor="middle">{x:.3g}</text>')
        parts.append(f'<text x="{left - 4:.1f}" y="{place(xs[0], y)[1] + 4:.1f}" text-anchor="end">{y:.3g}</text>')
    for level in levels:
        y = place(xs[0], level)[1]
        parts.append(f'<path d="M{left:.1f} {y:.1f}H{right:.1f}" stroke="#c60" stroke-dasharray="5 3"/>')
    for line in shown[:-1]:
        path = "L".join("{:.1f} {:.1f}".format(*place(x, y)) for x, y in line)
        parts.append(f'<path d="M{path}" fill="none" stroke="#06c" stroke-width="1.5"/>' if path else "")
    parts += ['<circle cx="{:.1f}" cy="{:.1f}" r="2.5" fill="#06c"/>'.format(*place(x, y)) for x, y in shown[-1]]
    return "\n".join([*parts, "</svg>"])


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return a range that holds all values and is not empty."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    rim = (high - low) * 0.05 or 0.5
    return low - rim, high + rim
