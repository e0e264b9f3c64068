# SPDX-License-Identifier: GPL-2.0-only
"""What tests/bench/run has measured, told: medians, the targets beside them, a table and a page.

A point is {"rounds": [round…], "dropped": N, "disturbed": bool, and what tells it from the others}; a round
is {"class": "near" or "far", server: result…}, its results taken one after the other, so that ratios are
those of one round. "disturbed": no round was left alone, and what is there is of those that were not.
"""
import html
import math
import statistics

SERVERS = {"vqlaned": "#0b6e4f", "qemu-storage-daemon": "#c8553d", "floor": "#777777", "raw io_uring": "#2f6db5"}
CLASSES = ("near", "far")


def value(result, field):
    for key in field.split("."):
        result = result[key]
    return result


def spread(values):
    """Median, least and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": len(values)}


def of_rounds(point, which, compute):
    """The spread of compute(round) over the rounds of class @which; None without any."""
    values = [compute(r) for r in point["rounds"] if r["class"] == which]
    return spread(values) if values else None


def figure(point, which, server, field):
    return of_rounds(point, which, lambda r: value(r[server], field))


def ratio(point, which, a, b, field):
    return of_rounds(point, which, lambda r: value(r[a], field) / value(r[b], field))


def classes_of(point):
    return [c for c in CLASSES if any(r["class"] == c for r in point["rounds"])]


def find(points, **what):
    return next((p for p in points if all(p.get(k) == v for k, v in what.items())), None)


def servers_of(point):
    return [s for s in SERVERS if s in point["rounds"][0]]


# ---- Targets

def judge(got, limit, at_least, point=None):
    """Whether @got is within @limit, and by how much not. Rounds that were disturbed decide nothing."""
    if point and point["disturbed"]:
        return "not judged: disturbed"
    good = got >= limit if at_least else got <= limit
    return "met" if good else f"missed by {abs(got / limit - 1):.0%}"


def span(s, form):
    return f"{form.format(s['median'])} ({s['min']:.3g} to {s['max']:.3g})"


def null_targets(points):
    for depth in (32, 128):
        point = find(points, block=4096, queues=1, depth=depth)
        for c in classes_of(point) if point else ():
            limit = {"near": 10, "far": 6}[c]
            s = ratio(point, c, "vqlaned", "qemu-storage-daemon", "iops")
            yield (f"null, 4 KiB, depth {depth}, {c}: IOPS of the peer's", f"≥ {limit} ×", span(s, "{:.1f} ×"),
                   judge(s["median"], limit, True, point))
            s = ratio(point, c, "vqlaned", "floor", "server_cpu_ns_per_request")
            yield (f"null, 4 KiB, depth {depth}, {c}: CPU of the floor's", "≤ 2 ×", span(s, "{:.2f} ×"),
                   judge(s["median"], 2, False, point))
    point = find(points, block=4096, queues=1, depth=1)
    for c in classes_of(point) if point else ():
        s = of_rounds(point, c, lambda r: r["vqlaned"]["latency_ns"]["avg"] - r["floor"]["latency_ns"]["avg"])
        yield (f"null, 4 KiB, depth 1, {c}: latency above the floor", "≤ 100 ns near", span(s, "{:.0f} ns"),
               judge(s["median"], 100, False, point) if c == "near" else "no target for far")
        s = ratio(point, c, "vqlaned", "qemu-storage-daemon", "iops")
        yield (f"null, 4 KiB, depth 1, {c}: IOPS of the peer's", "≥ 8 ×", span(s, "{:.1f} ×"),
               judge(s["median"], 8, True, point))


def model_targets(point):
    for c in classes_of(point):
        s = of_rounds(point, c, lambda r: r["nvme"]["ns_per_request"] - r["null"]["ns_per_request"])
        yield (f"NVMe model, 4 KiB, depth 32, {c}: more than null", "≤ 30 ns", span(s, "{:.0f} ns"),
               judge(s["median"], 30, False, point))
        s = of_rounds(point, c, lambda r: r["nvme"]["poller_ns_per_request"] - r["null"]["poller_ns_per_request"])
        yield (f"… of the poller's time, {c}", "", span(s, "{:.0f} ns"), "the rest is the model's")


def file_targets(points):
    point = find(points, depth=1)
    for c in classes_of(point) if point else ():
        s = ratio(point, c, "vqlaned", "raw io_uring", "latency_ns.avg")
        yield (f"file, depth 1, {c}: latency of raw io_uring's", "≤ 1.05 ×", span(s, "{:.3f} ×"),
               judge(s["median"], 1.05, False, point))
    point = find(points, depth=128)
    for c in classes_of(point) if point else ():
        s = ratio(point, c, "vqlaned", "qemu-storage-daemon", "server_cpu_ns_per_request")
        yield (f"file, depth 128, {c}: CPU of the peer's", "< 1 ×", span(s, "{:.3f} ×"),
               judge(s["median"], 1, False, point))


def scale_targets(part):
    point = part["busy"]
    for c in classes_of(point):
        s = of_rounds(point, c, lambda r: 100 * (1 - r["1024"]["iops"] / r["1"]["iops"]))
        yield (f"1024 disks, {c}: the busy one loses", "< 3 %", span(s, "{:.1f} %"),
               judge(s["median"], 3, False, point))
    idle = part["idle"]["1024"]
    yield ("1024 disks, all idle: CPU", "< 1 %", f"{idle['cpu_percent']:.3f} %", judge(idle["cpu_percent"], 1, False))
    each = part["bytes_per_disk"] / 1024
    yield ("1024 disks: memory of each", "≤ 64 KiB", f"{each:.1f} KiB", judge(each, 64, False))


def remap_targets(tables):
    first, last = tables[0], tables[-1]
    yield (f"remap, {first['chunks']} chunks, random", "≤ 5 ns", f"{first['random']:.1f} ns",
           judge(first["random"], 5, False))
    yield (f"remap, {last['chunks']} chunks, random", "one memory access", f"{last['random']:.1f} ns",
           "a figure to compare with the machine's")


def vm_targets(part):
    for what, limit, words in (("VDUSE", 1 / 3, "≤ 1/3"), ("nvme driver", 1.5, "≤ 1.5 ×")):
        got = part["ratios"][f"kernel lane / {what}"]
        yield f"kernel lane, depth 1: instructions of {what}", words, f"{got:.2f} ×", judge(got, limit, False)


def interrupt_targets(points):
    for point in points:
        for c in classes_of(point):
            s = ratio(point, c, "vqlaned", "qemu-storage-daemon", "iops")
            yield (f"interrupts, 4 KiB, depth {point['depth']}, {c}: IOPS of the peer's", "≥ 2 ×", span(s, "{:.1f} ×"),
                   judge(s["median"], 2, True, point))


TARGETS = {"null": null_targets, "interrupts": interrupt_targets, "model": model_targets, "file": file_targets,
           "scale": scale_targets, "remap": remap_targets, "vm": vm_targets}


def targets(report):
    """Rows (what, target, figure, verdict), of the parts that were measured."""
    return [row for part, rows in TARGETS.items() if part in report for row in rows(report[part])]


# ---- Tables

def count(n):
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.3g}"


def duration(ns):
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns:.0f} ns"


def point_rows(points):
    """A row for each server of each point and class."""
    yield ("load", "CPUs", "server", "IOPS", "min to max", "avg", "p50", "p99", "p99.9", "CPU/request", "rounds")
    for point in points:
        for c in classes_of(point):
            for server in servers_of(point):
                iops = figure(point, c, server, "iops")
                cpu = figure(point, c, server, "server_cpu_ns_per_request")
                latency = [duration(figure(point, c, server, f"latency_ns.{p}")["median"])
                           for p in ("avg", "p50", "p99", "p999")]
                yield (point["name"], c, server, count(iops["median"]), f"{count(iops['min'])} to {count(iops['max'])}",
                       *latency, duration(cpu["median"]), f"{iops['rounds']}{' disturbed' if point['disturbed'] else ''}")


def scale_rows(part):
    yield ("disks attached", "IOPS of one busy", "min to max", "CPU when idle", "memory of the daemon")
    for disks, idle in part["idle"].items():
        busy = [spread([r[disks]["iops"] for r in part["busy"]["rounds"] if r["class"] == c])
                for c in classes_of(part["busy"])]
        for s in busy:
            yield (disks, count(s["median"]), f"{count(s['min'])} to {count(s['max'])}", f"{idle['cpu_percent']:.3f} %",
                   f"{idle['memory_bytes'] / (1 << 20):.1f} MiB")


def remap_rows(tables):
    yield "chunks", "random", "sequential"
    for t in tables:
        yield count(t["chunks"]), f"{t['random']:.1f} ns", f"{t['sequential']:.1f} ns"


def model_rows(point):
    yield "engine", "CPUs", "a request", "min to max", "of the poller's time"
    for c in classes_of(point):
        for engine in ("null", "nvme"):
            s = figure(point, c, engine, "ns_per_request")
            own = figure(point, c, engine, "poller_ns_per_request")
            yield engine, c, f"{s['median']:.1f} ns", f"{s['min']:.1f} to {s['max']:.1f} ns", f"{own['median']:.1f} ns"


def vm_rows(part):
    yield "way of a 4 KiB read", "depth 1", "depth 32"
    for name, depths in part["figures"].items():
        yield name, *(f"{depths[d]['median']:.0f} instructions" for d in ("1", "32"))


def tables(report):
    """(title, rows, the first being the head) of all that was measured."""
    titles = {"null": ("null targets", point_rows), "interrupts": ("null targets, a driver that sleeps", point_rows),
              "model": ("the poll lane alone, 4 KiB, depth 32", model_rows), "file": ("a file", point_rows),
              "scale": ("many disks, one busy (null target, 4 KiB, depth 32)", scale_rows),
              "remap": ("a look-up in a disk's table", remap_rows),
              "vm": ("instructions of a host", vm_rows)}
    for part, (title, rows) in titles.items():
        if part in report:
            yield title, list(rows(report[part]))
    rows = targets(report)
    if rows:
        yield "targets", [("what", "target", "measured: median (min to max)", "verdict"), *rows]


def text(report):
    out = []
    for title, rows in tables(report):
        widths = [max(len(str(r[i])) for r in rows) for i in range(len(rows[0]))]
        out += ["", title, ""]
        out += ["  ".join(str(cell).ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows]
    return "\n".join(out)


# ---- The page

def ticks(low, high, logarithmic):
    if logarithmic:
        return [10.0 ** e for e in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)]
    return [low + (high - low) * i / 5 for i in range(6)]


def chart(title, x_label, series, x_form, y_form, y_log, x_ticks=None):
    """An SVG of @series: (name, [(x, y)…]); x is logarithmic."""
    width, height, left, right, top, bottom = 560, 340, 70, 12, 30, 46
    xs = [x for _, points in series for x, _ in points]
    ys = [y for _, points in series for _, y in points]
    low_x, high_x = min(xs), max(max(xs), min(xs) * 1.01)
    low_y, high_y = (10 ** math.floor(math.log10(min(ys))), 10 ** math.ceil(math.log10(max(ys)) + 1e-9)) if y_log \
        else (0.0, 1.0)

    def place(v, low, high, logarithmic, begin, end):
        part = math.log(v / low) / math.log(high / low) if logarithmic else (v - low) / (high - low)
        return begin + part * (end - begin)

    def px(x):
        return place(x, low_x, high_x, True, left, width - right)

    def py(y):
        return place(y, low_y, high_y, y_log, height - bottom, top)

    out = [f'<svg viewBox="0 0 {width} {height}" role="img"><title>{html.escape(title)}</title>'
           f'<text x="{left}" y="18" class="title">{html.escape(title)}</text>']
    for y in ticks(low_y, high_y, y_log):
        out.append(f'<line x1="{left}" x2="{width - right}" y1="{py(y):.1f}" y2="{py(y):.1f}" class="grid"/>'
                   f'<text x="{left - 6}" y="{py(y) + 4:.1f}" class="end">{y_form(y)}</text>')
    for x in x_ticks or ticks(low_x, high_x, True):
        out.append(f'<line x1="{px(x):.1f}" x2="{px(x):.1f}" y1="{top}" y2="{height - bottom}" class="grid"/>'
                   f'<text x="{px(x):.1f}" y="{height - bottom + 16}" class="middle">{x_form(x)}</text>')
    out.append(f'<text x="{(left + width - right) / 2}" y="{height - 8}" class="middle">{html.escape(x_label)}</text>')
    for i, (name, points) in enumerate(series):
        line = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)
        out.append(f'<polyline points="{line}" fill="none" stroke="{SERVERS[name]}" stroke-width="2"/>'
                   f'<text x="{width - right - 10}" y="{height - bottom - 12 - 16 * i}" fill="{SERVERS[name]}" class="end">'
                   f'{html.escape(name)}</text>')
    out.append("</svg>")
    return "".join(out)


def latency_cdf(point, which, server):
    """(latency, part of all requests that took no longer) over all rounds of the class."""
    counts = {}
    for r in point["rounds"]:
        for floor, n in r[server].get("histogram", ()) if r["class"] == which else ():
            counts[floor] = counts.get(floor, 0) + n
    total, seen, points = sum(counts.values()), 0, []
    for floor in sorted(counts):
        seen += counts[floor]
        points.append((max(floor, 1), seen / total))
    # The last ten-thousandth is long and flat.
    return [p for i, p in enumerate(points) if i == 0 or points[i - 1][1] < 0.9999]


def charts(report):
    points = report.get("null", [])
    for c in CLASSES:
        for depth in (1, 32):
            point = find(points, block=4096, queues=1, depth=depth)
            if point and c in classes_of(point):
                series = [(s, latency_cdf(point, c, s)) for s in servers_of(point)]
                yield chart(f"Latency, null, 4 KiB, depth {depth}, CPUs {c}: part of the requests", "latency",
                            series, duration, lambda y: f"{y:.0%}", False)
        by_depth = [p for p in points if p["block"] == 4096 and p["queues"] == 1 and c in classes_of(p)]
        if len(by_depth) > 1:
            series = [(s, [(p["depth"], figure(p, c, s, "iops")["median"]) for p in by_depth])
                      for s in servers_of(by_depth[0])]
            yield chart(f"IOPS by depth, null, 4 KiB, one queue, CPUs {c}", "depth", series, lambda x: f"{x:.0f}", count,
                        True, [p["depth"] for p in by_depth])


STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1180px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:0 0 1.5em;font-variant-numeric:tabular-nums;font-size:14px}
td,th{padding:.2em .8em .2em 0;text-align:left;border-bottom:1px solid #ddd;white-space:nowrap}
figure{display:inline-block;width:48%;min-width:420px;margin:0 1% 1em 0}svg{width:100%}
svg text{font-size:11px}svg .title{font-size:13px;font-weight:600}svg .grid{stroke:#e4e4e4}
svg .end{text-anchor:end}svg .middle{text-anchor:middle}.met{color:#0b6e4f}.missed{color:#b3261e}"""


def cells(row, tag):
    def kind(cell):
        word = str(cell).split(" ")[0]
        return f' class="{word}"' if word in ("met", "missed") else ""
    return "<tr>" + "".join(f"<{tag}{kind(c)}>{html.escape(str(c))}</{tag}>" for c in row) + "</tr>"


def page(report):
    out = ['<!doctype html><html lang="en"><meta charset="utf-8"><title>vqlane: make bench</title>',
           f"<style>{STYLE}</style><h1>vqlane: make bench</h1><table>"]
    out += [cells(pair, "td") for pair in report["machine"].items()]
    out.append("</table><ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in report["method"]) + "</ul>")
    out += [f"<figure>{svg}</figure>" for svg in charts(report)]
    for title, rows in reversed(list(tables(report))):  # the targets first
        out += [f"<h2>{html.escape(title)}</h2><table>", cells(rows[0], "th"), *(cells(r, "td") for r in rows[1:]),
                "</table>"]
    return "\n".join(out) + "</html>\n"
