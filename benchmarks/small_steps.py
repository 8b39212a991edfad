"""A small Levenberg–Marquardt step is no slower than optimistix's, and mostly faster.

Fifty problems from their own start: the regression problems of NIST, and some of the
nonlinear equations of CUTEst, as the package sif2jax has them. And the extended
Rosenbrock function.
Both sides take `_STEPS` steps of `LevenbergMarquardt` (the tolerances are too tight to
be met, unless y does not change at all), and what is reported is the time of a step.

A user's loop has no pauses: calls follow each other. They do so for either side in a
stretch of its own, and then in turns of some calls each; the least time counts, and
under `ratios` are those of either. Everything is compiled first.

The error is how much the sum of squares exceeds the lesser one of the two, relative to
that, or to 1e-8 of the first. Reported only: where rounding decides about a step, the
paths part. Without sif2jax there are only those of NIST; with `--quick`, two.
"""

import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array

import lineax_ext as lxe

from . import report
from .certified_fits import nist
from .cutest_fits import cutest
from .levenberg_marquardt import rosenbrock


_CUTEST = """
ARGAUSS BARDNE BEALENE BIGGS6NE BOX3NE BROWNDENE COOLHANS DEVGLA2NE ERRINROSNE EXP2NE
FBRAIN3 GULFNE HEART6 HEART8 HELIXNE JENSMPNE KOWOSBNE LUKSAN11 LUKSAN21 OSBORNE2
TRIGON1NE VESUVIA VIBRBEAMNE
""".split()

_STEPS = 30
_STRETCH_SECONDS, _TURN_SECONDS, _TURNS = 0.15, 0.01, 15
_THEIRS, _OURS = "optimistix", "lineax_ext"


class Prepared(NamedTuple):
    name: str
    shape: tuple[int, int]
    squares: Callable[[Array], Any]
    start: Array
    calls: dict[str, Callable[[], Any]]
    compile_seconds: dict[str, float]


def problems(quick: bool) -> Iterator[tuple[str, Callable[[Array], Array], Any]]:
    names = ("BoxBOD", "Misra1a") if quick else sorted(nist.PROBLEMS)
    found = [nist.PROBLEMS[name] for name in names]
    for problem in found + ([] if quick else list(cutest(most=200, only=_CUTEST))):
        yield problem.name, problem.residual, problem.starts[0]
    for n in (10,) if quick else (10, 40, 150):
        start = np.tile([-1.2, 1.0], n // 2)
        yield "Rosenbrock", lambda y: rosenbrock(y, None), start


def prepare(name: str, residual: Callable, start: Any) -> Prepared:
    start = jnp.asarray(start)
    calls, seconds = {}, {}
    for side, package in ((_THEIRS, optx), (_OURS, lxe)):
        solver = package.LevenbergMarquardt(1e-30, 1e-30)

        def fit(y, solver=solver):
            sol = optx.least_squares(
                lambda y, _: residual(y), solver, y, max_steps=_STEPS, throw=False
            )
            return sol.value, sol.stats["num_steps"]

        begin = time.perf_counter()
        compiled = jax.jit(fit).lower(start).compile()
        seconds[side] = time.perf_counter() - begin
        calls[side] = lambda f=compiled: jax.block_until_ready(f(start))
    squares = jax.jit(lambda y: jnp.sum(residual(y) ** 2))
    shape = jax.eval_shape(residual, start).size, start.size
    return Prepared(name, shape, squares, start, calls, seconds)


def _least(call: Callable[[], Any], seconds: float) -> float:
    end = stop = time.perf_counter()
    least, stop = np.inf, stop + seconds
    while end < stop:
        begin = end
        call()
        end = time.perf_counter()
        least = min(least, end - begin)
    return least


def measure(prepared: Prepared) -> dict[str, Any]:
    name, (m, n), squares, start, calls, compile_seconds = prepared
    answers = {side: call() for side, call in calls.items()}
    steps = {side: int(answer[1]) for side, answer in answers.items()}
    found = {side: float(squares(answer[0])) for side, answer in answers.items()}
    best, first = np.fmin(found[_THEIRS], found[_OURS]), float(squares(start))
    scale = max(best, 1e-8 * first)

    alone = {side: _least(call, _STRETCH_SECONDS) for side, call in calls.items()}
    in_turns = dict.fromkeys(calls, np.inf)
    for _ in range(_TURNS):
        for side, call in calls.items():
            in_turns[side] = min(in_turns[side], _least(call, _TURN_SECONDS))

    def seconds(side: str) -> float:
        return min(alone[side], in_turns[side]) / steps[side]

    def ratio(times: dict[str, float]) -> float:
        per_step = {side: times[side] / steps[side] for side in calls}
        return per_step[_THEIRS] / per_step[_OURS]

    return {
        "panel": "a step",
        "label": f"{name}, {m}×{n}",
        "xlabel": "",
        "x": f"{name}, {m}×{n}",
        "tolerance": None,
        "work_precision": False,
        "ratios": {"alone": ratio(alone), "in turns": ratio(in_turns)},
        "sides": {
            side: {
                "seconds": seconds(side),
                "ratio": seconds(_THEIRS) / seconds(side),
                "compile_seconds": compile_seconds[side],
                "error": (found[side] - best) / scale,
                "steps": steps[side],
            }
            for side in calls
        },
        "goals": [],
        "wrong": [],
    }


def summary(records: list[dict[str, Any]]) -> str:
    ratios = np.array([r["sides"][_OURS]["ratio"] for r in records])
    mean = np.exp(np.mean(np.log(ratios)))
    worst = sorted(zip(ratios, (r["label"] for r in records)))[:5]
    lines = [f"  {len(ratios)} problems: geometric mean {mean:.2f}×, the least"]
    return "\n".join(lines + [f"    {ratio:.2f}×  {name}" for ratio, name in worst])


def run(*, quick: bool, out: pathlib.Path) -> list[str]:
    title = (__doc__ or "").splitlines()[0]
    print(f"\nsmall_steps: {title}")
    records = []
    for prepared in [prepare(*problem) for problem in problems(quick)]:
        records.append(measure(prepared))
        print(report.as_text(records[-1]), flush=True)
    print(summary(records))
    report.write("small_steps", title, records, quick=quick, out=out)
    return []
