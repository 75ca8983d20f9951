"""A process that has imported the trainer and forks ranks of a process group: torchrun without 10 s of imports a rank.

Each line of its standard input is a request in JSON: {"script", "arguments", "ranks", "port", "output", "done"}. Every
rank runs `script` with what it prints in the file `output`; the first that fails ends the others, as torchrun has it.
The exit code lies in the file `done` at the end.
"""

import json
import os
import runpy
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import deepspeed  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401


def rank(request: dict[str, Any], number: int) -> None:
    size = str(request["ranks"])
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(request["port"])}
    sys.argv = [request["script"], *request["arguments"]]
    code = 1
    try:
        runpy.run_path(request["script"], run_name="__main__")
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # DeepSpeed and gloo leave threads behind


def launch(request: dict[str, Any]) -> int:
    """Fork the ranks and wait for them."""
    running = set()
    for number in range(request["ranks"]):
        child = os.fork()
        if not child:
            rank(request, number)
        running.add(child)
    failure = 0
    while running:
        child, status = os.wait()
        running.discard(child)
        if status and not failure:
            failure = abs(os.waitstatus_to_exitcode(status))
            for other in running:
                os.kill(other, signal.SIGKILL)
    return failure


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # what has ended is gone, and no zombie
    for line in sys.stdin:
        request = json.loads(line)
        if os.fork():
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = launch(request)
        done = Path(request["done"])
        done.with_suffix(".partial").write_text(str(code))
        done.with_suffix(".partial").rename(done)
        os._exit(0)


if __name__ == "__main__":
    main()
