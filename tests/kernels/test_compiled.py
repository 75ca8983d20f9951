"""The kernels as a GPU would get them, looked at without one: compiled for Ampere, Hopper and Blackwell."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import itertools, json
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from shard_kernels import row_kernels

LINE = [["tt.divisibility", 16]]
POINTERS = {"logits": "*bf16", "labels": "*i64", "best_ptr": "*i64"}
NUMBERS = {"pitch": "i64", "first": "i32", "columns": "i32"}

def build(kernel, capability, warps, **constants):
    signature, attrs = {}, {}
    for position, parameter in enumerate(kernel.params):
        name = parameter.name
        pointer = POINTERS.get(name, "*fp32") if name.endswith("_ptr") or name in POINTERS else None
        signature[name] = "constexpr" if name in constants else pointer or NUMBERS.get(name, "fp32")
        if pointer or name in NUMBERS:  # what the launcher finds out for Llama-3's vocabulary in eight blocks
            attrs[(position,)] = LINE
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attrs)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": warps}).asm["ptx"]

found = {}
for capability, rich in itertools.product((80, 90, 100), (False, True)):
    terms = {"CAP": rich, "ACC": tl.float32}
    fold = build(row_kernels._fold_kernel, capability, 16, TOTAL=rich, STATS=rich, BLOCK=8192, **terms)
    grad = build(row_kernels._gradient_kernel, capability, 8, BLOCK=4096, **terms)
    found.update({f"fold {capability} {rich}": fold, f"gradient {capability} {rich}": grad})
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def ptx() -> dict[str, str]:
    """By kernel, capability, and without or with all optional terms. In a process that does not interpret kernels."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_variant_compiles(ptx: dict[str, str]) -> None:
    assert len(ptx) == 12


def test_p13_no_instruction_works_in_fp64(ptx: dict[str, str]) -> None:
    """Python floats once became fp64 in peers' kernels: 24 times slower."""
    for name, code in ptx.items():
        assert ".f64" not in code, name


def test_logits_move_sixteen_bytes_at_a_time(ptx: dict[str, str]) -> None:
    """Aligned blocks of the buffer are what makes this possible; the kernels are bound by memory."""
    for name, code in ptx.items():
        assert "ld.global.v4.b32" in code, name
        if name.startswith("gradient"):
            assert "st.global.v4.b32" in code, name


def test_p23_nothing_calls_out_of_the_kernel(ptx: dict[str, str]) -> None:
    """No device library, no atomics, no arrays in local memory."""
    for name, code in ptx.items():
        instructions = [line.split() for line in code.split(".section")[0].splitlines()]
        used = {word.split(".")[0] for words in instructions for word in words[:2]}
        assert used & {"ld", "ex2", "st"} == {"ld", "ex2", "st"}, name
        assert not used & {"call", "atom", "red"}, name
        assert ".local" not in code, name


def test_p8_rows_are_addressed_in_64_bits(ptx: dict[str, str]) -> None:
    for name, code in ptx.items():
        assert "mul.lo.s64" in code or "mad.lo.s64" in code, name
