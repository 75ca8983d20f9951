"""The tests of the fused loss share `oracle`, which lies beside them: tests are no package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
