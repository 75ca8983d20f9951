"""Whether the libraries that are installed can be imported, and whether torch can use the GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from shard_dist.doctor.asked import Asked
from shard_dist.doctor.finding import Finding, Level
from shard_dist.doctor.gpus import nvidia
from shard_dist.doctor.machines import Machines, NoAnswer, answered, everywhere
from shard_dist.doctor.versions import INSTALL

PATIENCE = 120.0  # seconds: a cold environment on a file server takes one minute
# In a process of its own: what breaks here may break it with a signal, and a second CUDA context costs memory.
LOADING = """
import json, warnings
warnings.simplefilter("ignore")
out = {"error": "", "cuda": "", "gpus": 0}
try:
    import torch
    out["cuda"], out["gpus"] = torch.version.cuda or "", torch.cuda.device_count()
    if out["gpus"]:
        torch.cuda.init()
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
except Exception as error:
    lines = str(error).strip().splitlines()
    out["error"] = f"{type(error).__name__}: {lines[-1] if lines else ''}"
print("\\n" + json.dumps(out))
"""


def loading(seconds: float) -> dict[str, Any]:
    """`error` of importing torch and the classes of transformers ("" if it works), torch's `cuda` and its `gpus`."""
    # Ray hides the GPUs from a process that has none of its own.
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES" or value}
    command = [sys.executable, "-c", LOADING]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return {"error": f"importing torch and transformers has not ended after {seconds:g} s", "cuda": "", "gpus": 0}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = done.stderr.strip().splitlines()[-1:] or [""]
        return {"error": f"importing them ended with code {done.returncode}: {last[0]}", "cuda": "", "gpus": 0}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def libraries(machines: Machines, asked: Asked) -> list[Finding]:
    """Whether torch, the model classes of transformers and, where there are GPUs, CUDA work on every node."""
    shown = machines.ask(nvidia, everywhere(machines), 70)
    found, findings = answered("libraries load", machines.ask(loading, everywhere(machines, PATIENCE), PATIENCE + 10))
    for node, there in found.items():
        findings.append(judge(node, there))
        gpus, runs, _ = ([], "", "") if isinstance(shown[node], NoAnswer) else shown[node]
        if gpus:
            findings.append(judge_cuda(node, len(gpus), runs, there))
    return findings


def judge(node: str, there: dict[str, Any]) -> Finding:
    build = f"CUDA {there['cuda']}" if there["cuda"] else "a CPU build"
    if not there["error"]:
        return Finding("libraries load", node, Level.ok, f"torch is {build}; model classes can be imported")
    todo = INSTALL if "has not ended" not in there["error"] else "put the environment on a local disk or into the image"
    # Both are compiled against one torch; transformers imports them where they are installed, and fails with them.
    if any(word in there["error"].lower() for word in ("torchvision", "torchaudio")):
        todo = f"pip uninstall torchvision torchaudio, or install the builds that belong to this torch ({build})"
    return Finding("libraries load", node, Level.fail, there["error"], todo)


def judge_cuda(node: str, shown: int, runs: str, torch: dict[str, Any]) -> Finding:
    """`runs`: the newest CUDA of the driver. Within a major version every minor one runs (since CUDA 11)."""
    built = torch["cuda"]
    if not built:
        todo = "install a CUDA build of torch (requirements/gpu.lock)"
        return Finding("CUDA", node, Level.fail, f"{shown} GPUs, but torch is a CPU build", todo)
    newer = bool(runs) and int(built.partition(".")[0]) > int(runs.partition(".")[0])
    if newer or torch["gpus"] < shown:
        text = f"torch is built for CUDA {built} and sees {torch['gpus']} of {shown} GPUs; the driver runs CUDA {runs}"
        todo = (
            f"install a driver for CUDA {built}, or a torch that is built for {runs}"
            if newer
            else (
                "CUDA_VISIBLE_DEVICES or the container hides GPUs, or one has fallen off the bus (Xid errors in dmesg)"
            )
        )
        return Finding("CUDA", node, Level.fail, text + (f": {torch['error']}" if torch["error"] else ""), todo)
    return Finding("CUDA", node, Level.ok, f"torch is built for CUDA {built}, the driver runs {runs or 'it'}")
