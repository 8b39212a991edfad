"""Claims of speed, each measured by `python -m benchmarks`. See `harness.py`."""

# First of all imports: it keeps lineax's own rules before `lineax_ext` replaces them.
from . import harness as harness
