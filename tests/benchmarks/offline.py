"""One offline `LLM.chat`, in a process of its own: the yardstick of `real`.

    python offline.py SPEC.json

SPEC has `model`, `arguments` and `ready`, a path that appears once the model is loaded. After that every line of the
standard input names a file of calls, `[{messages, sampling, schema}]`; `<file>.done` appears with the seconds that
they took and the tokens that came.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from shard_dist.artefacts import write_json


def parameters(call: dict[str, Any]) -> SamplingParams:
    """Of one request, as the program's engine has them."""
    schema = call["schema"]
    return SamplingParams(
        **call["sampling"],
        output_kind=RequestOutputKind.FINAL_ONLY,
        structured_outputs=StructuredOutputsParams(json=schema) if schema else None,
    )


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    llm = LLM(model=spec["model"], **spec["arguments"])
    Path(spec["ready"]).touch()
    for line in sys.stdin:
        path = Path(line.strip())
        calls = json.loads(path.read_text())
        begin = time.monotonic()
        outputs = llm.chat([call["messages"] for call in calls], [parameters(call) for call in calls], use_tqdm=False)
        seconds = time.monotonic() - begin
        tokens = sum(len(sample.token_ids) for output in outputs for sample in output.outputs)
        write_json(path.with_name(path.name + ".done"), {"seconds": seconds, "completion_tokens": tokens})


if __name__ == "__main__":
    main()
