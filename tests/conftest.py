import gc
import itertools
import os

from flags import FLAGS


os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
# Two workers on two cores: one thread each.
for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")

import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402


jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Where in Python each operation comes from: a twentieth of the time, and never read.
jax.config.update("jax_traceback_in_locations_limit", 0)


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="the expensive sweeps too")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: runs with `--slow` only")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="runs with `--slow` only"))


_modules = itertools.count(1)
# To look for garbage while programs are traced takes a tenth of the time: that is done
# between two modules, and there what has been imported need not be looked at.
gc.disable()
gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _clear_caches():
    # Compiled programs are kept for ever otherwise: gigabytes over the whole suite. But
    # files share operations and what is traced of `jax.numpy`, a twelfth of their time.
    yield
    if next(_modules) % 2 == 0:
        eqx.clear_caches()
        jax.clear_caches()
        gc.collect()
