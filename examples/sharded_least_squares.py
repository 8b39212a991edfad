"""Fits a model to data that no process holds whole, by two processes or by a cluster.

A damped oscillation in a hundred thousand noisy samples, which are split over the
devices of all processes; parameters are on all of them. Each process makes the samples
of its own devices only. `lineax_ext.LevenbergMarquardt` factorises the Jacobian where
its rows are, and gathers triangles of 5×5. Prints what each device held, and exits
with an error if the fit is not the one that the data were made of, or if a process
dies.

Run it as `python examples/sharded_least_squares.py`: it starts two processes on this
machine, of two CPU devices each. On a cluster, run on each of N machines I = 0, 1, …

    python sharded_least_squares.py --coordinator HOST:PORT --processes N --id I
"""

import argparse
import os
import pathlib
import socket
import subprocess
import sys
import time


SAMPLES, NOISE = 100_000, 0.1
TRUTH = (2.0, 0.5, 3.0, 0.3, 1.0)  # height, decay, frequency, phase, floor
# Without a sign of life for so long, a process is taken for dead by the others.
HEARTBEAT_SECONDS = 10


def work(coordinator: str, processes: int, index: int) -> None:
    # What lineax checks of a solve it would otherwise gather, to print it.
    os.environ.setdefault("EQX_ON_ERROR", "nan")
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.distributed.initialize(
        coordinator,
        processes,
        index,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
    import jax.numpy as jnp
    import numpy as np
    import optimistix as optx
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    import lineax_ext as lxe

    # One axis for the processes and one for the devices of each: a tree, in which the
    # triangles of a process meet before any goes over the network.
    local = jax.local_device_count()
    mesh = jax.make_mesh(
        (processes, local), ("hosts", "devices"), axis_types=(AxisType.Auto,) * 2
    )
    rows = NamedSharding(mesh, PartitionSpec(("hosts", "devices")))
    samples = -(-SAMPLES // (processes * local)) * processes * local

    def model(y, t):
        wave = jnp.exp(-y["decay"] * t) * jnp.cos(y["frequency"] * t + y["phase"])
        return y["height"] * wave + y["floor"]

    truth = dict(zip(("height", "decay", "frequency", "phase", "floor"), TRUTH))

    def make(which):
        """The samples of one device: (first, last) of its index, from its own seed."""
        start, stop, _ = which[0].indices(samples)
        t = np.linspace(0, 10, samples)[start:stop]
        return t, NOISE * np.random.default_rng(start).standard_normal(t.shape)

    shape = (samples,)
    t = jax.make_array_from_callback(shape, rows, lambda which: make(which)[0])
    noise = jax.make_array_from_callback(shape, rows, lambda which: make(which)[1])

    @jax.jit
    def fit(t, noise):
        data = model(truth, t) + noise
        solver = lxe.LevenbergMarquardt(
            rtol=1e-10,
            atol=1e-10,
            linear_solver=lxe.DampedQR(rows=rows),
            scale="jacobian",
        )
        residuals = lambda y, args: model(y, args[0]) - args[1]
        y0 = dict(zip(truth, map(jnp.asarray, (1.0, 1.0, 2.8, 0.0, 0.0))))
        sol = optx.least_squares(residuals, solver, y0, (t, data), throw=False)
        return sol.value, sol.stats["num_steps"]

    compiled = fit.lower(t, noise).compile()
    value, steps = jax.block_until_ready(compiled(t, noise))

    memory = compiled.memory_analysis()
    assert memory is not None
    matrix = samples * len(truth) * 8
    for shard in t.addressable_shards:
        start, stop, _ = shard.index[0].indices(samples)
        print(
            f"process {index}, device {shard.device.id}: samples {start} to {stop - 1} "
            f"of {samples}, {matrix / t.sharding.num_devices / 1e6:.2f} MB of a "
            f"Jacobian of {matrix / 1e6:.2f} MB; with all copies "
            f"{memory.temp_size_in_bytes / 1e6:.2f} MB",
            flush=True,
        )
    found = {name: float(x) for name, x in value.items()}
    if index == 0:
        print(f"{int(steps)} steps to", {k: round(x, 4) for k, x in found.items()})
    wrong = [name for name in truth if abs(found[name] - truth[name]) > 0.01]
    if wrong:
        sys.exit(f"process {index}: wrong {', '.join(wrong)}: {found}")
    jax.distributed.shutdown()


def start_two(limit: float = 300.0) -> int:
    """Two of this script, with two devices each; ends both as soon as one fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = os.environ.get("XLA_FLAGS", "")
    flags += " --xla_force_host_platform_device_count=2"
    script = str(pathlib.Path(__file__).resolve())
    processes = [
        subprocess.Popen(
            [sys.executable, script, "--coordinator", f"127.0.0.1:{port}",
             "--processes", "2", "--id", str(index)],
            env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        )
        for index in range(2)
    ]  # fmt: skip
    deadline = time.monotonic() + limit
    try:
        while True:
            codes = [process.poll() for process in processes]
            if any(codes):
                # Not killed at once: the other says by itself that its peer is gone.
                deadline = min(deadline, time.monotonic() + 3 * HEARTBEAT_SECONDS)
            if None not in codes:
                return max(abs(code or 0) for code in codes)
            if time.monotonic() > deadline:
                print("a process hangs", file=sys.stderr)
                return 1
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--coordinator", help="HOST:PORT of the process with --id 0")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--id", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.coordinator is None:
        return start_two()
    work(arguments.coordinator, arguments.processes, arguments.id)
    return 0


if __name__ == "__main__":
    sys.exit(main())
