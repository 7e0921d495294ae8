"""Lines in an SVG, both axes logarithmic. No library: what is plotted here is half a dozen points."""

import html
import math

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 80, 20, 44, 56
COLOURS = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd"]


def lines(path, title, x_label, y_label, series, x_ticks):
    """`series` is {name: [(x, y)]}, `x_ticks` is [(x, text)]."""
    points = [point for line in series.values() for point in line]
    x_place = _scale([x for x, _ in points], LEFT, WIDTH - RIGHT, exact=True)
    y_place = _scale([y for _, y in points], HEIGHT - BOTTOM, TOP, exact=False)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-size="13" '
        f'font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, 22, title, "start", bold=True),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x_label),
        f'<g transform="translate(18 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)">{_text(0, 0, y_label)}</g>',
    ]
    for x, text in x_ticks:
        at = x_place(x)
        parts.append(_line(at, TOP, at, HEIGHT - BOTTOM))
        parts.append(_text(at, HEIGHT - BOTTOM + 18, text))
    for y in _ticks([y for _, y in points]):
        at = y_place(y)
        parts.append(_line(LEFT, at, WIDTH - RIGHT, at))
        parts.append(_text(LEFT - 8, at + 4, f"{y:,g}", "end"))
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [(x_place(x), y_place(y)) for x, y in line]
        path_points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path_points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in places]
        at = LEFT + 10 + number * 300
        parts.append(f'<rect x="{at}" y="30" width="12" height="4" fill="{colour}"/>')
        parts.append(_text(at + 18, 37, name, "start"))
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")


def _bounds(values):
    """Powers of ten with 1, 2, 5 in between, around the values."""
    steps = [m * 10.0**e for e in range(-6, 16) for m in (1, 2, 5)]
    low = max(step for step in steps if step <= min(values))
    high = min(step for step in steps if step >= max(values) and step > low)
    return low, high, [step for step in steps if low <= step <= high]


def _ticks(values):
    return _bounds(values)[2]


def _scale(values, begin, end, exact):
    low, high = (min(values), max(values)) if exact else _bounds(values)[:2]
    width = math.log(high / low) or 1.0
    return lambda value: begin + (end - begin) * math.log(value / low) / width


def _line(x1, y1, x2, y2):
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="#ddd"/>'


def _text(x, y, text, anchor="middle", bold=False):
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{html.escape(text)}</text>'
