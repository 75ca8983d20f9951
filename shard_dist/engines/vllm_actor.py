"""vLLM's AsyncLLM behind the Engine protocol: continuous batching, prefix caching, one seed per request.

Lives in an engine actor's process (`pool.py`), one instance per process. vLLM is imported here and nowhere else.
"""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
import psutil

from shard_dist.artefacts import value_hash
from shard_dist.config.schema import ModelConfig
from shard_dist.engines.protocol import CallRefused, EngineDied, EngineStats
from shard_dist.engines.text import LOGPROB_TOKENS
from shard_dist.engines.tokens import PromptTokens
from shard_dist.records import Call, Completion

# The engine core is a process of its own and outlives an actor that is killed (vllm#16259). This watcher reads a pipe
# whose other end only the actor holds: end of file means that the actor is gone, however it went.
REAPER = """
import os, signal, sys
sys.stdin.buffer.read()
for pid in map(int, sys.argv[1:]):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


def engine_arguments(spec: ModelConfig, on_cpu: bool, across_nodes: bool) -> dict[str, Any]:
    """The arguments of AsyncEngineArgs: the user's own over our defaults."""
    ranks = math.prod(spec.engine_args.get(f"{kind}_parallel_size", 1) for kind in ("tensor", "pipeline"))
    arguments: dict[str, Any] = {
        "model": spec.model,
        "tokenizer": spec.tokenizer or None,
        "revision": spec.revision or None,
        "trust_remote_code": spec.trust_remote_code,
        "enable_prefix_caching": True,  # the rows of one category share their guidelines
        # Left to itself vLLM takes Ray wherever it finds a placement group, which on one node has the wrong bundles.
        "distributed_executor_backend": "ray" if across_nodes else "mp" if ranks > 1 else None,
    }
    arguments.update(spec.engine_args)
    if spec.reasoning_parser:
        arguments["reasoning_parser"] = spec.reasoning_parser
    if on_cpu:
        # A seeded request whose prefill is chunked kills the CPU engine: "CPU Generator does not use offset".
        arguments.setdefault("enable_chunked_prefill", False)
        if "max_model_len" in arguments:
            batched = arguments.get("max_num_batched_tokens", 4096)
            arguments["max_num_batched_tokens"] = max(arguments["max_model_len"], batched)
    return arguments


class VllmEngine:
    """Raises whatever vLLM raises when it cannot boot; the actor shows that error."""

    def __init__(self, spec: ModelConfig, across_nodes: bool = False) -> None:
        from vllm import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        self.spec = spec
        if across_nodes:
            # The actor has no GPU of its own, so Ray hid them all; vLLM's workers get theirs from the placement group.
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        arguments = engine_arguments(spec, current_platform.is_cpu(), across_nodes)
        self.counts = EngineStats()
        self.engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), stat_loggers=[self._stat_logger()])
        pids = [str(child.pid) for child in psutil.Process().children(recursive=True)]
        self.reaper = subprocess.Popen([sys.executable, "-c", REAPER, *pids], stdin=subprocess.PIPE)
        config = self.engine.vllm_config
        # A pipeline works on as many batches as it has stages.
        self.slots = config.scheduler_config.max_num_seqs * config.parallel_config.pipeline_parallel_size
        self.tokenizer: Any = self.engine.get_tokenizer()
        self.prompts = PromptTokens(self.tokenizer, spec)
        self.context = self.engine.model_config.max_model_len
        self.pooling = self.engine.model_config.runner_type == "pooling"
        self.parser = self._reasoning_parser()
        self.numbers = itertools.count()

    def _reasoning_parser(self) -> Any:
        if not self.spec.reasoning_parser:
            return None
        from vllm.reasoning import ReasoningParserManager

        # Without these a parser takes a whole answer for thinking where enable_thinking is false.
        parser = ReasoningParserManager.get_reasoning_parser(self.spec.reasoning_parser)
        return parser(self.tokenizer, chat_template_kwargs=self.spec.chat_template_kwargs)

    def _stat_logger(self) -> Any:
        """A class of vLLM's that hears every step of the engine and adds it to `counts`."""
        from vllm.v1.metrics.loggers import StatLoggerBase

        counts = self.counts

        class Counting(StatLoggerBase):
            def __init__(self, vllm_config: Any, engine_index: int = 0) -> None: ...

            def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
                if scheduler_stats is not None:
                    counts.running = scheduler_stats.num_running_reqs
                    counts.waiting = scheduler_stats.num_waiting_reqs
                    counts.kv_cache_use = scheduler_stats.kv_cache_usage
                    counts.prefix_queries += scheduler_stats.prefix_cache_stats.queries
                    counts.prefix_hits += scheduler_stats.prefix_cache_stats.hits
                if iteration_stats is not None:
                    counts.prompt_tokens += iteration_stats.num_prompt_tokens
                    counts.completion_tokens += iteration_stats.num_generation_tokens

            def log_engine_initialized(self) -> None: ...

        return Counting

    def fits(self, call: Call) -> None:
        """Raise CallRefused where prompt and max_tokens exceed the context, ValueError for a kind not served here."""
        self._prompt_ids(call)

    def _prompt_ids(self, call: Call) -> list[int]:
        self._check(call.kind, call.sampling.logprobs)
        ids = self.prompts.ids(call)
        wanted = {"score": 0, "likelihood": 1}.get(call.kind, call.sampling.max_tokens)
        if len(ids) > self.context - wanted:
            raise CallRefused(
                "context_overflow",
                f"{len(ids)} prompt tokens and max_tokens {wanted} exceed the context {self.context}",
            )
        return ids

    def _check(self, kind: str, logprobs: int) -> None:
        """Raise ValueError for what the engine's settings rule out."""
        if kind == "score" and not self.pooling:
            raise ValueError(
                f"{self.spec.model!r} generates text, and a call of kind score needs a classification head: give the "
                "role a sequence classification model (engine_args: {runner: pooling, convert: classify})"
            )
        if kind != "score" and self.pooling:
            raise ValueError(
                f"{self.spec.model!r} is loaded to score (as a pooling model) and cannot answer a call of kind {kind}; "
                "give the role a model that generates, or leave runner and convert out of its engine_args"
            )
        most = self.engine.model_config.max_logprobs
        if logprobs > most >= 0:
            raise ValueError(
                f"a call asks for {logprobs} log-probabilities: raise engine_args.max_logprobs from {most}"
            )

    def _parameters(self, call: Call) -> Any:
        from vllm import PoolingParams, SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        sampling = call.sampling
        if call.kind == "score":
            return PoolingParams(task="classify", use_activation=False)  # the head's own numbers
        if call.kind == "likelihood":
            # A token must be asked for. vLLM makes logits and log-probabilities of max_num_batched_tokens of a prompt
            # at once, beside its cache: 6 bytes x tokens x vocabulary, 6 GB for 8,192 tokens of Llama 3.
            return SamplingParams(
                temperature=0.0,
                max_tokens=1,
                prompt_logprobs=0,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
        return SamplingParams(
            n=sampling.n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=sampling.seed,
            logprobs=sampling.logprobs or None,
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=StructuredOutputsParams(json=call.schema) if call.schema else None,
        )

    async def generate(self, call: Call) -> Completion:
        final = await self._run(call)
        read = len(final.prompt_token_ids or ())
        if call.kind == "score":
            return Completion(("",), ("stop",), read, 0, ("",), scores=tuple(final.outputs.data.float().tolist()))
        if call.kind == "likelihood":
            return Completion(("",), ("stop",), read, 0, ("",), scores=_likelihood(final))
        parts = [self._split_thinking(output.text) for output in final.outputs]
        return Completion(
            texts=tuple(answer for _, answer in parts),
            finish_reasons=tuple(output.finish_reason or "" for output in final.outputs),
            prompt_tokens=read,
            completion_tokens=sum(len(output.token_ids) for output in final.outputs),
            thinking=tuple(thinking for thinking, _ in parts),
            logprobs=tuple(by_text(place) for place in (final.outputs[0].logprobs or ())[:LOGPROB_TOKENS]),
        )

    async def _run(self, call: Call) -> Any:
        """vLLM's last word on a call."""
        from vllm.v1.engine.exceptions import EngineDeadError

        prompt: Any = {"prompt_token_ids": self._prompt_ids(call)}
        # Ids must not repeat over restarts of the actor: the engine refuses one that is still in flight.
        name = f"{os.getpid()}-{next(self.numbers)}-{value_hash(call.sampling.seed)[:8]}"
        start: Any = self.engine.encode if call.kind == "score" else self.engine.generate
        final = None
        try:
            async for output in start(prompt, self._parameters(call), name):
                final = output
        except EngineDeadError as error:
            raise EngineDied(str(error)) from error
        except ValueError as error:  # vLLM refuses this request (a schema it cannot compile); others are fine
            raise CallRefused("engine_refused", str(error)) from error
        assert final is not None
        assert final.finished
        return final

    def _split_thinking(self, text: str) -> tuple[str, str]:
        if self.parser is None:
            return "", text
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        request = ChatCompletionRequest(messages=[], model=self.spec.model, seed=None)
        thinking, answer = self.parser.extract_reasoning(text, request)
        return (thinking or "").strip(), (answer or "").strip()

    def stats(self) -> EngineStats:
        return self.counts

    async def health(self) -> None:
        """As the protocol has it; ValueError for a pooling model whose head does not classify."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            await self.engine.check_health()
            tasks = await self.engine.get_supported_tasks()
        except EngineDeadError as error:
            raise EngineDied(str(error)) from error
        if self.pooling and "classify" not in tasks:
            raise ValueError(
                f"{self.spec.model!r} is a pooling model for {', '.join(tasks)}, and only a sequence classification "
                "head can score; engine_args {convert: classify} has vLLM look for one"
            )

    async def close(self) -> None:
        self.engine.shutdown()
        assert self.reaper.stdin is not None
        self.reaper.stdin.close()
        self.reaper.wait()


def by_text(place: dict[int, Any]) -> dict[str, float]:
    """Log-probabilities by the tokens' texts. Tokens of one text, such as parts of a character, are added up."""
    found: dict[str, float] = {}
    for token in place.values():
        text = token.decoded_token or ""
        found[text] = float(np.logaddexp(found.get(text, -math.inf), token.logprob))
    return found


def _likelihood(final: Any) -> tuple[float, float]:
    """(sum of the log-probabilities of tokens 2 to n given those before them, n - 1)."""
    places = final.prompt_logprobs[1:]
    chosen = zip(final.prompt_token_ids[1:], places, strict=True)
    return math.fsum(place[token].logprob for token, place in chosen), float(len(places))
