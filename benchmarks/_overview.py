"""`python -m benchmarks._overview`: the picture of the README, from what was measured.

Three things that a user waits for, against the number of unknowns: dense, and through
lineax_ext. Reads `results/*.json` and writes `results/overview.png`.
"""

import json
import pathlib
from typing import Any

import matplotlib


matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402


_results = pathlib.Path(__file__).parent / "results"
_PANELS = (
    # title, claim, panel, dense side, our side and its name
    (
        "a stiff solve, diffrax",
        ("automatic_structure", "Kvaerno5, Allen–Cahn"),
        ("dense", "diffrax"),
        ("AutoStructuredLinearSolver", "with lineax_ext"),
    ),
    (
        "the gradient of a stiff solve, diffrax",
        ("structured_diffrax", "gradient, Kvaerno5, Allen–Cahn"),
        ("Kvaerno5()", "diffrax"),
        ("structured(Kvaerno5())", "with lineax_ext"),
    ),
    (
        "Newton's method, optimistix",
        ("automatic_structure", "optx.Newton, boundary-value problem"),
        ("dense", "optimistix"),
        ("AutoStructuredLinearSolver", "with lineax_ext"),
    ),
)


def _points(cases: list[dict[str, Any]], side: str) -> dict[int, float]:
    found = {case["x"]: case["sides"][side].get("seconds") for case in cases}
    return {x: seconds for x, seconds in found.items() if seconds is not None}


def _read(name: str) -> dict[str, Any]:
    return json.loads((_results / f"{name}.json").read_text(encoding="utf-8"))


def _draw(axis: Any, title: str, claim: tuple[str, str], *sides: tuple[str, str]):
    name, panel = claim
    cases = [case for case in _read(name)["cases"] if case["panel"] == panel]
    curves = []
    for (side, label), colour in zip(sides, ("#b0413e", "#2a5fa5")):
        points = _points(cases, side)
        curves.append(points)
        axis.loglog(*zip(*points.items()), "o-", color=colour, lw=3, ms=8)
        if label.startswith("with"):
            place = dict(transform=axis.transAxes, ha="right")
            axis.text(0.97, 0.05, label, color=colour, **place)
        else:
            n = max(points)
            place = dict(textcoords="offset points", xytext=(10, -12))
            axis.annotate(label, (n, points[n]), color=colour, **place)
    dense, ours = curves
    n = max(dense)
    axis.plot([n, n], [ours[n], dense[n]], ":", color="0.4", lw=2)
    middle = (ours[n] * dense[n]) ** 0.5
    axis.annotate(
        f"{float(f'{dense[n] / ours[n]:.3g}'):.0f}×",
        (n, middle),
        textcoords="offset points",
        xytext=(8, -4),
        weight="bold",
    )
    axis.set(title=title, xlabel="unknowns n")
    axis.grid(alpha=0.3)


def main() -> None:
    plt.rcParams.update({"font.size": 15, "axes.titlesize": 15})
    figure, axes = plt.subplots(1, 3, figsize=(16, 5.4), layout="constrained")
    for axis, panel in zip(axes, _PANELS):
        _draw(axis, *panel)
    axes[0].set_ylabel("time of a compiled call, s")
    result = _read("structured_diffrax")
    machine, versions = result["machine"], result["versions"]
    where = f"{machine['cores']} cores of an {machine['cpu']}, float64"
    what = f"jax {versions['jax']}, same steps to the same result"
    figure.suptitle(f"{where}, {what}", fontsize=13, color="0.3")
    figure.savefig(_results / "overview.png", dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    main()
