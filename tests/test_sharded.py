"""Rows on several devices, in processes of their own: JAX counts its devices once."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import pytest
from helpers import slow
from sharded import CHECKS, HEARTBEAT_SECONDS


# One check of each promise; the others run with `--slow`. A group is one test, with one
# process, which another worker would start again.
QUICK = (
    "along_one_axis",
    "nothing_of_the_size_of_the_matrix",
    "memory_falls_as_one_over_the_devices",
    "gram_operators_reduce",
    "errors",
)
# Needs the checks of equinox, which the others leave out.
CHECKED = ("checked_derivatives_move_more_only_where_they_fail",)
_program = pathlib.Path(__file__).with_name("sharded.py")


def _start(*arguments):
    root = str(_program.parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    environment["EQX_ON_ERROR"] = "raise" if arguments == CHECKED else "nan"
    return subprocess.Popen(
        [sys.executable, str(_program), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


OTHERS = tuple(name for name in CHECKS if name not in QUICK + CHECKED)


@pytest.mark.parametrize(
    "names", (QUICK, slow(OTHERS), slow(CHECKED)), ids=("quick", "others", "checked")
)
def test_on_eight_devices(names):
    out, err = _start(*names).communicate(timeout=600)
    assert out, err
    tracebacks = json.loads(out.splitlines()[-1])
    assert tuple(tracebacks) == names
    failed = [f"{name}\n{x}" for name, x in tracebacks.items() if x is not None]
    if failed:
        pytest.fail("\n".join(failed), pytrace=False)


def _two(*second):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first, other = _start("--process", 0, port), _start("--process", 1, port, *second)
    return first, other


@pytest.mark.slow
def test_two_processes():
    processes = _two()
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run():
    first, other = _two("--dies")
    try:
        other.communicate(timeout=300)
        start = time.monotonic()
        # The first one waits for triangles that do not come.
        _, err = first.communicate(timeout=300)
    finally:
        first.kill()
    assert first.returncode != 0
    assert "another task died" in err or "peer" in err, err
    # A lost connection is an error at once; else the heartbeat ends the run.
    assert time.monotonic() - start < 12 * HEARTBEAT_SECONDS
