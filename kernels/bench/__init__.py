"""Benchmark of the fused loss against everything else that is installed: `make bench-kernels`, or `python -m bench`."""

import os

# Read when torch is imported: its profiler, the CPU's memory meter here, would print two lines a measurement.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
