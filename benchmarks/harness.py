"""How a claim is declared and measured.

A claim is a module of this folder: a docstring, whose first line says what is claimed,
and a function `cases(quick: bool) -> Iterator[Case]`. A `Case` is one problem and the
sides that solve it.

Every side is compiled ahead of time, with its inputs as arguments and not as constants,
and run once before it is timed. The sides of a case then take turns in one process, and
the least time of one call, `block_until_ready` included, is what is reported; with it
the time of tracing and compiling, the temporary memory of the compiled program, and the
error of the answer. An error above the tolerance of its case fails the run.
"""

import contextlib
import dataclasses
import importlib
import importlib.metadata as metadata
import pathlib
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import lineax as lx
import numpy as np

from . import report


jax.config.update("jax_enable_x64", True)

if "lineax_ext" in sys.modules:
    raise ImportError("`benchmarks` must be imported before `lineax_ext`.")
_PLAIN = {fn: dict(fn.registry) for fn in vars(lx).values() if hasattr(fn, "registry")}

# A turn is one call, or as many as fit; a case, two turns for each side, or as many as
# fit, and no more than `_MAX_TURNS`. The rest before a turn is for the threads of the
# other side: OpenBLAS lets its own spin for some 25 ms after a call.
_TURN_SECONDS, _MAX_TURNS, _REST_SECONDS = 0.02, 60, 0.03
# Where the warm-up took longer, it is the only call.
_LONG_SECONDS = 5.0


class Side(NamedTuple):
    """One way to solve a problem. A bare function stands for `Side(fn)`."""

    fn: Callable[..., Any] | None  # `None`: not measured, and `note` says why
    plain: bool = False  # traced with lineax's own rules, as without `lineax_ext`
    host: bool = False  # outside of JAX: called as it is, on NumPy arrays
    may_fail: bool = False  # a wrong answer is reported, and does not fail the run
    once: bool = False  # slow: it is called once, and that is what is timed
    compile_seconds: float | None = None  # of a `host` side that was compiled before
    note: str = ""


def plain(fn: Callable[..., Any]) -> Side:
    """A side that sees lineax as it is where `lineax_ext` was never imported."""
    return Side(fn, plain=True)


def absent(reason: str) -> Side:
    """A side that is not measured in this case, and why."""
    return Side(None, note=reason)


def peer(package: str, make: Callable[[Any], Callable[..., Any]]) -> Side:
    """`make(package)`, a function of NumPy arrays; or that it is not installed."""
    name = package.partition(".")[0]
    try:
        module = importlib.import_module(package)
    except ImportError:
        return absent(f"{name} is not installed")
    version = getattr(importlib.import_module(name), "__version__", None)
    version = metadata.version(name) if version is None else version
    return Side(make(module), host=True, note=f"{name} {version}")


class Goal(NamedTuple):
    """`side` is to be at least `factor` times as fast as `than`."""

    side: str
    than: str
    factor: float


@dataclasses.dataclass(frozen=True)
class Case:
    """One problem, and the sides that solve it.

    **Arguments:**

    - `panel`: the group that the case belongs to, one panel of the figure.
    - `x`: its place there: a number, for lines against `xlabel`; or a name, for bars.
    - `sides`: functions of `*args`, by name. Ratios are taken to the first one.
    - `args`: pytrees of arrays.
    - `error`: of what a side returned, from an independent referee.
    - `steps`: the number of steps in what a side returned, if it tells.
    - `goals`: what is claimed. Reported only: a clock fails no run.
    - `seconds`: for how long the sides take turns.
    - `work_precision`: whether the figure shows times against errors, and not x.
    """

    panel: str
    x: float | str
    sides: Mapping[str, Side | Callable[..., Any]]
    args: tuple[Any, ...]
    error: Callable[[Any], float]
    tolerance: float = 1e-8
    xlabel: str = "n"
    steps: Callable[[Any], int | None] | None = None
    goals: tuple[Goal, ...] = ()
    seconds: float = 6.0
    work_precision: bool = False


@contextlib.contextmanager
def plain_lineax() -> Iterator[None]:
    """Puts lineax's own rules back in place of those that `lineax_ext` registered."""

    def register(rules):
        for fn, by_class in rules.items():
            for cls, rule in by_class.items():
                fn.register(cls, rule)

    ours = {fn: {c: fn.registry[c] for c in rules} for fn, rules in _PLAIN.items()}
    register(_PLAIN)
    try:
        yield
    finally:
        register(ours)


def _prepare(side: Side, args: tuple) -> tuple[Callable[[], Any], dict[str, Any]]:
    """A call without arguments, and what compiling it took."""
    assert side.fn is not None
    fn = side.fn
    noted: dict[str, Any] = {"note": side.note} if side.note else {}
    if side.host:
        args = jax.tree_util.tree_map(np.asarray, args)
        if side.compile_seconds is not None:
            noted["compile_seconds"] = side.compile_seconds
        return lambda: fn(*args), noted
    jax.clear_caches()  # otherwise the second side finds what the first one traced
    jax.block_until_ready(jax.jit(lambda x: x + 1)(0.0))
    with plain_lineax() if side.plain else contextlib.nullcontext():
        start = time.perf_counter()
        compiled = jax.jit(fn).lower(*args).compile()
        seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    temporary = None if memory is None else memory.temp_size_in_bytes
    noted = {**noted, "compile_seconds": seconds, "temporary_bytes": temporary}
    return lambda: jax.block_until_ready(compiled(*args)), noted


def _least_times(
    calls: dict[str, Callable[[], Any]], first: dict[str, float], seconds: float
) -> dict[str, float]:
    least = dict(first)
    calls = {name: call for name, call in calls.items() if first[name] < _LONG_SECONDS}
    stop = time.perf_counter() + seconds
    for turn in range(_MAX_TURNS):
        if turn >= 2 and time.perf_counter() > stop:
            break
        for name, call in calls.items():
            time.sleep(_REST_SECONDS)
            end = turn_start = time.perf_counter()
            while end - turn_start < _TURN_SECONDS:
                begin = time.perf_counter()
                call()
                end = time.perf_counter()
                least[name] = min(least[name], end - begin)
    return least


def measure(case: Case, *, quick: bool = False) -> dict[str, Any]:
    """The record of one case, for the JSON file; if `quick`, of one call a side."""
    calls, sides, warm_up, wrong = {}, {}, {}, []
    for name, side in case.sides.items():
        side = side if isinstance(side, Side) else Side(side)
        if side.fn is None:
            sides[name] = {"absent": side.note}
            continue
        calls[name], sides[name] = _prepare(side, case.args)
        begin = time.perf_counter()
        answer = calls[name]()
        warm_up[name] = time.perf_counter() - begin
        if side.once:
            del calls[name]
        sides[name]["error"] = float(case.error(answer))
        if not sides[name]["error"] <= case.tolerance and not side.may_fail:
            wrong.append(name)
        if case.steps is not None and (steps := case.steps(answer)) is not None:
            sides[name]["steps"] = int(steps)
        del answer
    least = warm_up if quick else _least_times(calls, warm_up, case.seconds)
    first = least.get(next(iter(case.sides)))
    for name, seconds in least.items():
        ratio = None if first is None else first / seconds
        sides[name] = {"seconds": seconds, "ratio": ratio, **sides[name]}
    goals = [] if quick else case.goals
    return {
        "panel": case.panel,
        "label": case.x if isinstance(case.x, str) else f"{case.xlabel} = {case.x}",
        "xlabel": case.xlabel,
        "x": case.x,
        "tolerance": case.tolerance,
        "work_precision": case.work_precision,
        "sides": sides,
        "goals": [
            {**g._asdict(), "found": least[g.than] / least[g.side]} for g in goals
        ],
        "wrong": wrong,
    }


def run(
    claim: types.ModuleType, *, quick: bool, out: pathlib.Path, only: str = ""
) -> list[str]:
    """Measures all cases of a claim; prints, and writes `out/<claim>.json` and `.png`.

    With `only`, the cases that `claim.cases(quick, only)` has; others that the JSON
    file holds are kept in it.

    **Returns:** a line for every side whose answer was wrong.
    """
    name = claim.__name__.rpartition(".")[2]
    title = (claim.__doc__ or name).strip().splitlines()[0]
    print(f"\n{name}: {title}")
    records = []
    for case in claim.cases(quick, only) if only else claim.cases(quick):
        if not records or case.panel != records[-1]["panel"]:
            print(f"\n  {case.panel}")
        records.append(measure(case, quick=quick))
        print(report.as_text(records[-1]), flush=True)
    kept = report.read(name, out) if only else []
    new = {(r["panel"], r["label"]) for r in records}
    kept = [r for r in kept if (r["panel"], r["label"]) not in new]
    pictures = getattr(claim, "PICTURES", {})
    report.write(name, title, kept + records, quick=quick, out=out, pictures=pictures)
    return [f"{name}, {r['label']}: {side}" for r in records for side in r["wrong"]]
