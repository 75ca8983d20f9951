"""Tests of the benchmarks' own arithmetic; the benchmarks themselves are run by hand."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package; the benchmark's modules lie beside them
