"""Flags of XLA for what runs once: `python tests/flags.py` prints them."""

import importlib.metadata


# One thread, as what runs beside it has a core too. Most of the time goes to compiling:
# LLVM optimises what then runs once, and the emitters of fusions, which XLA has no
# longer a flag for in jaxlib 0.12, took six tenths of what is left.
FLAGS = (
    "--xla_cpu_multi_thread_eigen=false",
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
    # jaxlib 0.10 races with itself in loops: one compiled program, several results.
    "--xla_cpu_enable_concurrency_optimized_scheduler=false",
)
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS += ("--xla_cpu_use_fusion_emitters=false",)

if __name__ == "__main__":
    print(*FLAGS)
