"""One process that has imported the trainer and forks a child for every job named on its standard input.

A training of seconds then costs no start of torch, transformers and DeepSpeed, which is 10 s on two cores.
"""

import os
import sys
import traceback
from pathlib import Path

import deepspeed  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

from shard_dist.training.job import read_job
from shard_dist.training.loop import train_loop

for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            train_loop(read_job(Path(line.strip())))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
