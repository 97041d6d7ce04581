"""The roofline of a record as SVG: operations per byte of the hit experts' weights, and what was reached of it."""

import math
from html import escape

WIDTH, HEIGHT = 860, 520
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 40, 60
COLOURS = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b"]


class Axis:
    """A logarithmic scale from values to pixels."""

    def __init__(self, low, high, start, end):
        self.low, self.span = math.log10(low), math.log10(high) - math.log10(low)
        self.start, self.end = start, end

    def __call__(self, value):
        return self.start + (math.log10(value) - self.low) / self.span * (self.end - self.start)

    def decades(self):
        return [10.0**n for n in range(math.ceil(self.low - 1e-9), math.floor(self.low + self.span + 1e-9) + 1)]


def intensity(row):
    """Operations per byte."""
    return row["tflops"] * 1e12 / (row["gbps"] * 1e9)


def text(x, y, words, **attributes):
    more = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{escape(words)}</text>'


def grid(x, y):
    out = []
    for value in x.decades():
        out.append(f'<line x1="{x(value):.1f}" y1="{TOP}" x2="{x(value):.1f}" y2="{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        out.append(text(x(value), HEIGHT - BOTTOM + 18, f"{value:g}", text_anchor="middle"))
    for value in y.decades():
        out.append(f'<line x1="{LEFT}" y1="{y(value):.1f}" x2="{WIDTH - RIGHT}" y2="{y(value):.1f}" stroke="#ddd"/>')
        out.append(text(LEFT - 8, y(value) + 4, f"{value:g}", text_anchor="end"))
    return out


def roof(record, x, y, low, high):
    """The bandwidth's slope up to the dense rate, and that."""
    if not record.dense or not record.copy:
        return []
    knee = record.dense * 1e12 / (record.copy * 1e9)
    points = [(low, low * record.copy / 1e3), (min(knee, high), min(record.dense, high * record.copy / 1e3))]
    points += [(high, record.dense)] if knee < high else []
    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
    label = f"{record.copy:.0f} GB/s, {record.dense:.0f} TFLOP/s"
    return [f'<polyline points="{path}" fill="none" stroke="#333" stroke-width="2"/>', text(LEFT + 10, TOP + 16, label)]


def points(found, x, y):
    """Ours filled, the best peer of each case hollow, a colour for each preset."""
    out = []
    presets = list(dict.fromkeys(line.preset for line in found))
    for line in found:
        colour = COLOURS[presets.index(line.preset) % len(COLOURS)]
        for row, fill in [(line.best, "none"), (line.ours, colour)]:
            if row:
                about = escape(f"{row['peer']}, {line.preset}, T={line.tokens}, {line.dist}: {row['us']:g} µs")
                place = f'cx="{x(intensity(row)):.1f}" cy="{y(row["tflops"]):.1f}"'
                out.append(f'<circle {place} r="4" fill="{fill}" stroke="{colour}"><title>{about}</title></circle>')
    for i, preset in enumerate(presets):
        colour, top = COLOURS[i % len(COLOURS)], TOP + 16 + 20 * i
        out.append(f'<circle cx="{WIDTH - RIGHT + 18}" cy="{top - 4}" r="4" fill="{colour}"/>')
        out.append(text(WIDTH - RIGHT + 28, top, preset))
    out.append(text(WIDTH - RIGHT + 14, TOP + 26 + 20 * len(presets), "filled: ours, hollow: best peer"))
    return out


def svg(record, found):
    """The plot; one that says so where nothing was measured."""
    rows = [row for line in found for row in (line.ours, line.best) if row and row["gbps"] and row["tflops"]]
    body = [text(LEFT, TOP - 16, f"{record.about.get('device', '')}, {record.about.get('date', '')}", font_size="14")]
    if rows:
        ratios, rates = [intensity(row) for row in rows], [row["tflops"] for row in rows]
        low, high = min(ratios) / 2, max(ratios) * 2
        x = Axis(low, high, LEFT, WIDTH - RIGHT)
        y = Axis(min(rates) / 2, max(rates + [record.dense or 0]) * 2, HEIGHT - BOTTOM, TOP)
        body += grid(x, y) + roof(record, x, y, low, high) + points(found, x, y)
        body.append(
            text(
                (LEFT + WIDTH - RIGHT) / 2,
                HEIGHT - 16,
                "operations per byte of hit experts' weights",
                text_anchor="middle",
            )
        )
        body.append(text(18, HEIGHT / 2, "TFLOP/s", transform=f"rotate(-90 18 {HEIGHT / 2})", text_anchor="middle"))
    else:
        body.append(text(LEFT, HEIGHT / 2, "nothing was measured"))
    head = '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="12" '
    head += f'viewBox="0 0 {WIDTH} {HEIGHT}">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *body, "</svg>", ""])
