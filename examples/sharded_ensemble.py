"""A thousand fits on eight devices, which have nothing to say to each other.

Decays with rates from 1 to 20, each fitted by `lineax_ext.LevenbergMarquardt`, all from
one start: on some devices they take twice as many steps as on others. With
`lineax_ext.sharded_vmap` each device goes through its own fits and stops when they are
done; the compiled program has no collective. Prints what each device held and how many
steps it took, and exits with an error if a fit has not found its decay.

Run it as `python examples/sharded_ensemble.py`. Without accelerators it makes eight
devices of the CPU.
"""

import os
import sys


os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optimistix as optx  # noqa: E402
from jax.sharding import AxisType, NamedSharding, PartitionSpec  # noqa: E402

import lineax_ext as lxe  # noqa: E402


PER_DEVICE = 125
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute")


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    devices = jax.device_count()
    mesh = jax.make_mesh((devices,), ("lanes",), axis_types=(AxisType.Auto,))
    lanes = NamedSharding(mesh, PartitionSpec("lanes"))

    t = jnp.linspace(0, 1, 50)
    rates = np.linspace(1, 20, devices * PER_DEVICE)
    data = jax.device_put(3 * np.exp(-rates[:, None] * np.asarray(t)), lanes)

    def fit(y0, data):
        residuals = lambda y, data: y[0] * jnp.exp(-y[1] * t) - data
        solver = lxe.LevenbergMarquardt(1e-10, 1e-10, scale="jacobian")
        sol = optx.least_squares(residuals, solver, y0, data, throw=False)
        return sol.value, sol.stats["num_steps"]

    fits = jax.jit(lxe.sharded_vmap(fit, lanes, in_axes=(None, 0)))
    y0 = jnp.array([1.0, 1.0])
    compiled = fits.lower(y0, data).compile()
    text = compiled.as_text() or ""
    found = [name for name in COLLECTIVES if name in text]
    value, steps = compiled(y0, data)

    for shard in steps.addressable_shards:
        start, stop, _ = shard.index[0].indices(steps.size)
        print(
            f"device {shard.device.id}: rates {rates[start]:.1f} to "
            f"{rates[stop - 1]:.1f}, {int(shard.data.max())} steps"
        )
    print("collectives:", ", ".join(found) or "none")
    error = float(np.max(np.abs(np.asarray(value)[:, 1] / rates - 1)))
    print(f"largest relative error of a rate: {error:.1e}")
    if found or not error < 1e-6:
        sys.exit("a wrong rate, or a collective")


if __name__ == "__main__":
    main()
