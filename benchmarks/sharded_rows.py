"""TSQR on p devices does 1/p of the work, holds 1/p of the matrix, gathers triangles.

Counted and not timed: virtual devices share the cores of one machine. One program for
64 of them is compiled for meshes of p = 1, 2, …, 64, in one axis and in two, and read:

- flops: of the QRs that it calls, m' n' of each from its shape, 2 n'² (m' − n'/3);
- bytes: of the triangles that a device receives in its gathers;
- memory: arguments, results and temporaries of one device, from XLA.

Beside each stands the model of Demmel, Grigori, Hoemmen, Langou (2012, Table 1), for a
binary tree: 2 n² m/p − 2 n³/3 + (2 n³/3) log₂ p flops, and n²/2 log₂ p numbers, on the
critical path. A gather along an axis of q devices is one message where the tree has
log₂ q, and brings (q − 1) n² numbers, zeros of the triangles included. All devices of
the axis then do the same QR, of 2 n³ (q − 1/3) flops.
"""

import json
import math
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

from . import report


_DEVICES = 64
_GEQRF = re.compile(r"\(f64\[([\d,]+)\].*custom_call_target=\"lapack_dgeqrf_ffi\"")
_GATHER = re.compile(r"= f64\[([\d,]+)\].* all-gather\(")


def _shape(text: str) -> tuple[int, int]:
    *_, m, n = map(int, text.split(","))
    return m, n


def count(m: int, n: int, mesh_shape: tuple[int, ...]) -> dict[str, Any]:
    """What `QRMultiply(rows=...).init` of an m×n matrix does on one device."""
    import jax
    import jax.numpy as jnp
    import lineax as lx
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    import lineax_ext as lxe

    names = tuple(f"axis{i}" for i in range(len(mesh_shape)))
    p = math.prod(mesh_shape)
    mesh = jax.make_mesh(
        mesh_shape,
        names,
        axis_types=(AxisType.Auto,) * len(names),
        devices=jax.devices()[:p],
    )
    rows = NamedSharding(mesh, PartitionSpec(names))

    def init(matrix):
        return lxe.QRMultiply(rows=rows).init(lx.MatrixLinearOperator(matrix), {}).qr

    matrix = jax.ShapeDtypeStruct((m, n), jnp.float64, sharding=rows)
    compiled = jax.jit(init).lower(matrix).compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text is not None and memory is not None
    # The program of one device: the shapes in it are what this one holds.
    shapes = [_shape(x) for x in _GEQRF.findall(text)]
    flops = sum(2 * b * b * (a - b / 3) for a, b in shapes)
    gathered = [math.prod(_shape(x)) for x in _GATHER.findall(text)]
    # Of the minor axis first. Its own triangle a device need not receive.
    received = sum(x - n * n for x in gathered)
    model = 2 * n * n * m / p - 2 * n**3 / 3 + 2 * n**3 / 3 * math.log2(p)
    return {
        "m": m,
        "n": n,
        "devices": p,
        "mesh": list(mesh_shape),
        "flops": flops,
        "flops of a binary tree": model,
        "bytes received": 8 * received,
        "bytes of a binary tree": 8 * n * n / 2 * math.log2(p),
        "gathers": len(gathered),
        "memory": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes,
        "largest QR": max(shapes),
    }


def _meshes(quick: bool):
    for p in (1, 8, 64) if quick else (1, 2, 4, 8, 16, 32, 64):
        yield (p,)
        if p >= 16:
            q = 2 ** (int(math.log2(p)) // 2)
            yield (p // q, q)


def _count_all(quick: bool) -> list[dict[str, Any]]:
    import jax

    jax.config.update("jax_enable_x64", True)
    n, rows = (10, 640) if quick else (50, 4000)
    records = []
    for mesh_shape in _meshes(quick):
        p = math.prod(mesh_shape)
        for panel, m in (("strong", rows * _DEVICES), ("weak", rows * p)):
            records.append({"panel": panel, **count(m, n, mesh_shape)})
    return records


def run(*, quick: bool, out: pathlib.Path) -> list[str]:
    """Counts in a process of its own; writes `out/sharded_rows.json` and `.png`."""
    flags = os.environ.get("XLA_FLAGS", "")
    flags += f" --xla_force_host_platform_device_count={_DEVICES}"
    command = [sys.executable, "-m", "benchmarks.sharded_rows"]
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command + ["--quick"] * quick,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    records = json.loads(done.stdout.splitlines()[-1])
    title = (__doc__ or "").splitlines()[0]
    print(f"\nsharded_rows: {title}")
    for r in records:
        mesh = "×".join(map(str, r["mesh"]))
        print(
            f"  {r['panel']:<7}{r['m']:>8}×{r['n']}  p = {mesh:<6}"
            f"{r['flops'] / 1e6:9.1f} Mflop (tree: "
            f"{r['flops of a binary tree'] / 1e6:.1f})"
            f"{r['bytes received'] / 1e3:9.1f} kB (tree: "
            f"{r['bytes of a binary tree'] / 1e3:.1f})"
            f"{r['memory'] / 1e6:9.2f} MB"
        )
    report.save("sharded_rows", title, records, quick=quick, out=out)
    try:
        _draw(records, out / "sharded_rows.png")
    except ImportError:
        print("  no figure: matplotlib is not installed")
    return _wrong(records)


def _wrong(records: list[dict[str, Any]]) -> list[str]:
    """Where memory or work does not fall as 1/p, or more than triangles is moved."""
    wrong = []
    one = next(r for r in records if r["panel"] == "strong" and r["devices"] == 1)
    for r in records:
        n, p = r["n"], r["devices"]
        # Copies of a stack of triangles: gathered, its QR, its transposes.
        triangles = 6 * 8 * n * n * sum(r["mesh"])
        if r["panel"] == "strong" and r["memory"] > one["memory"] / p + triangles:
            wrong.append(f"sharded_rows, {r['mesh']}: memory {r['memory']}")
        if r["bytes received"] > 8 * n * n * sum(r["mesh"]):
            wrong.append(f"sharded_rows, {r['mesh']}: bytes {r['bytes received']}")
        extra = 2 * n**3 * sum(r["mesh"])
        if r["flops"] > 2 * n * n * r["m"] / p + extra:
            wrong.append(f"sharded_rows, {r['mesh']}: flops {r['flops']}")
    return wrong


def _draw(records: list[dict[str, Any]], path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(14, 8), layout="constrained")
    columns = (
        ("flops", "flops of a binary tree"),
        ("bytes received", "bytes of a binary tree"),
        ("memory", None),
    )
    for row, panel in zip(axes, ("strong", "weak")):
        for axis, (counted, model) in zip(row, columns):
            for axes_count, marker in ((1, "o-"), (2, "s--")):
                chosen = [
                    r
                    for r in records
                    if r["panel"] == panel and len(r["mesh"]) == axes_count
                ]
                x = [r["devices"] for r in chosen]
                label = f"counted, mesh of {axes_count} axes"
                axis.plot(x, [r[counted] for r in chosen], marker, label=label)
                if model is not None and axes_count == 1:
                    axis.plot(x, [r[model] for r in chosen], "k:", label=model)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")  # without the zero bytes of one device
            axis.set(title=f"{panel} scaling: {counted} per device", xlabel="devices")
            axis.grid(alpha=0.3)
            axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    print(json.dumps(_count_all("--quick" in sys.argv)))
