"""What is kept and shown of a measurement: a table, a JSON file, a figure."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import textwrap
import types
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np


# Times are worth little if something else was running when the work began.
_LOAD_AT_START = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
_most_bars = 12
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def _versions() -> dict[str, str]:
    names = ("jax", "jaxlib", "equinox", "lineax", "optimistix", "numpy", "lineax_ext")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **versions}


def _machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": {name: os.environ[name] for name in _THREADS if name in os.environ},
        "load_at_start": _LOAD_AT_START,
        "platform": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
    }


def _with_prefix(value: float | None, unit: str) -> str:
    if value is None:
        return "—"
    prefixes = {1e9: "G", 1e6: "M", 1e3: "k", 1.0: "", 1e-3: "m", 1e-6: "µ"}
    factor = next((f for f in prefixes if value >= f), 1.0)
    digits = f"{value / factor:#.3g}".rstrip(".") if value else "0"
    return f"{digits} {prefixes[factor]}{unit}"


def as_text(record: dict[str, Any]) -> str:
    """The table of one case."""
    lines = [f"    {record['label']}"]
    for name, side in record["sides"].items():
        if "absent" in side:
            lines.append(f"      {name:<26} not measured: {side['absent']}")
            continue
        ratio = "" if side["ratio"] is None else f"{side['ratio']:.2f}×"
        line = f"      {name:<26}{_with_prefix(side['seconds'], 's'):>9}{ratio:>10}"
        line += f"   compile {_with_prefix(side.get('compile_seconds'), 's'):>7}"
        line += f"   memory {_with_prefix(side.get('temporary_bytes'), 'B'):>7}"
        line += f"   error {side['error']:.0e}"
        line += f"   {side['steps']} steps" if "steps" in side else ""
        line += f"   ({side['note']})" if "note" in side else ""
        lines.append(line + "   WRONG" * (name in record["wrong"]))
    for goal in record["goals"]:
        met = "met" if goal["found"] >= goal["factor"] else "MISSED"
        lines.append(
            f"      goal: {goal['side']} at least {goal['factor']:.3g}× as fast as "
            f"{goal['than']}: {goal['found']:.3g}×, {met}"
        )
    return "\n".join(lines)


def read(name: str, out: pathlib.Path) -> list[dict[str, Any]]:
    """The cases of `out/<name>.json`, if there are any."""
    path = out / f"{name}.json"
    if not path.exists():
        return []
    return json.loads(path.read_text(encoding="utf-8"))["cases"]


def save(
    name: str, title: str, records: list[Any], *, quick: bool, out: pathlib.Path
) -> dict[str, Any]:
    """Writes `out/<name>.json`, with versions, machine and command."""
    result = {
        "claim": name,
        "title": title,
        "command": f"python -m benchmarks {name}{' --quick' if quick else ''}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": _versions(),
        "machine": _machine(),
        "cases": records,
    }
    four_digits = lambda number: float(f"{float(number):.4g}")
    result = json.loads(json.dumps(result), parse_float=four_digits)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False)
    (out / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    return result


def write(
    name: str,
    title: str,
    records: list[dict[str, Any]],
    *,
    quick: bool,
    out: pathlib.Path,
    pictures: Mapping[str, tuple[str, ...]] = types.MappingProxyType({}),
) -> None:
    """Writes `out/<name>.json` and `out/<name>.png`; and of some panels alone those
    `pictures`, by name, of which there are any."""
    result = save(name, title, records, quick=quick, out=out)
    try:
        draw(result, out, pictures)
    except ImportError:
        print("  no figure: matplotlib is not installed")


def draw(
    result: dict[str, Any], out: pathlib.Path, pictures: Mapping[str, tuple[str, ...]]
) -> None:
    """The figures of what was saved."""
    _draw(result, out / f"{result['claim']}.png")
    for picture, panels in pictures.items():
        some = [case for case in result["cases"] if case["panel"] in panels]
        if some:
            _draw(result | {"cases": some}, out / f"{picture}.png")


def _draw(result: dict[str, Any], path: pathlib.Path) -> None:
    """A panel for each group of cases: lines on log–log axes, with slopes; or bars; or
    of many cases a performance profile."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels: dict[str, list[dict[str, Any]]] = {}
    for record in result["cases"]:
        panels.setdefault(record["panel"], []).append(record)
    # Legible at half of the size, on a page 700 pixels wide.
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    size = (6 * columns, 5.2 * rows + 0.6)
    plt.rcParams.update({"font.size": 13})
    figure, axes = plt.subplots(
        rows, columns, figsize=size, squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (panel, records) in zip(axes.flat, panels.items()):
        if not isinstance(records[0]["x"], str):
            _draw_lines(axis, records)
        elif len(records) <= _most_bars:
            _draw_bars(axis, records)
        else:
            _draw_profile(axis, records)
        axis.set_title("\n".join(textwrap.wrap(panel, 48)), fontsize=13)
        axis.grid(alpha=0.3)
        _, labels = axis.get_legend_handles_labels()
        axis.legend(
            fontsize=11,
            ncols=2 if max(map(len, labels), default=0) <= 24 else 1,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.15),
        )
    machine, versions = result["machine"], result["versions"]
    where = f"{machine['cores']} × {machine['cpu']}, jax {versions['jax']}, lineax "
    title = "\n".join(textwrap.wrap(result["title"], 52 * columns))
    figure.suptitle(f"{title}\n{where}{versions['lineax']}", fontsize=13)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _series(records: list[dict[str, Any]]) -> Iterator[tuple[str, list[int], list]]:
    """For each side: its name, the indices of the cases it has, and its seconds."""
    for name in dict.fromkeys(name for r in records for name in r["sides"]):
        seconds = [r["sides"].get(name, {}).get("seconds") for r in records]
        at = [i for i, s in enumerate(seconds) if s is not None]
        yield name, at, [seconds[i] for i in at]


def _draw_lines(axis: Any, records: list[dict[str, Any]]) -> None:
    precision = records[0].get("work_precision", False)
    for name, at, seconds in _series(records):
        errors = [records[i]["sides"][name]["error"] for i in at]
        x = errors if precision else [records[i]["x"] for i in at]
        label = name if at else "_"  # one that was not measured keeps its colour
        if (
            len(x) >= 3 and not precision
        ):  # of the last three points: the first ones are overhead
            slope = np.polyfit(np.log(x[-3:]), np.log(seconds[-3:]), 1)[0]
            label += f", slope {round(slope, 1) + 0.0:.1f}"  # no −0.0
        axis.loglog(x, seconds, "o-", label=label)
    xlabel = "error" if precision else records[0]["xlabel"]
    axis.set(xlabel=xlabel, ylabel="seconds")
    sizes = [r["x"] for r in records]
    if not precision and max(sizes) < 20 * min(sizes):  # powers of ten say too little
        axis.set_xticks(sizes, [f"{x:,}" for x in sizes])
        axis.minorticks_off()


def _draw_bars(axis: Any, records: list[dict[str, Any]]) -> None:
    """How many times as fast as the first side; the times stand beside the bars."""
    # An optional peer may be missing: the first side is the first that was measured in
    # all cases.
    series = [side for side in _series(records) if len(side[1]) > 0]
    first, _, baseline = next(side for side in series if len(side[1]) == len(records))
    height = 0.8 / len(series)
    for k, (name, at, seconds) in enumerate(series):
        y = [i + (k + 0.5) * height - 0.4 for i in at]
        bars = axis.barh(y, [baseline[i] / s for i, s in zip(at, seconds)], height)
        bars.set_label(name)
        labels = [_with_prefix(s, "s") for s in seconds]
        axis.bar_label(bars, labels, padding=3, fontsize=10)
    axis.margins(x=0.3)
    axis.set(xlabel=f"times as fast as {first}")
    short = [", ".join(r["label"].split(", ")[:2]) for r in records]
    names = [textwrap.fill(name, 18) for name in short]
    axis.set_yticks(range(len(records)), names, fontsize=10)
    axis.invert_yaxis()


def _draw_profile(axis: Any, records: list[dict[str, Any]]) -> None:
    """The share of the cases that a side solves within a multiple of the least time
    that any takes (Dolan and Moré 2002, doi:10.1007/s101070100263)."""

    def solved_in(record, name) -> float:
        side = record["sides"].get(name, {})
        tolerance, error = record["tolerance"], side.get("error")
        right = tolerance is None or (error is not None and error <= tolerance)
        return side["seconds"] if right and side.get("seconds") else np.inf

    names = list(dict.fromkeys(name for r in records for name in r["sides"]))
    seconds = np.array([[solved_in(r, name) for name in names] for r in records])
    with np.errstate(invalid="ignore"):  # of a case that nobody solves
        multiples = seconds / seconds.min(axis=1, keepdims=True)
    end = 1.1 * multiples[np.isfinite(multiples)].max()
    for name, x in zip(names, multiples.T):
        x = np.sort(x[np.isfinite(x)])
        share = np.arange(len(x) + 1) / len(records)
        x, share = np.append(np.append(1, x), end), np.append(share, share[-1])
        axis.step(x, share, where="post", label=name)
    axis.set_xscale("log")
    axis.set(
        xlabel="multiple of the least time",
        ylabel=f"share of {len(records)} problems solved",
        ylim=(0, 1.05),
    )
