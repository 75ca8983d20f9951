"""Any OpenAI-compatible server: a teacher or a judge behind an API. The key comes from the environment only."""

from __future__ import annotations

import json
import os
from typing import Any

import openai

from shard_dist.config.schema import ModelConfig
from shard_dist.engines.protocol import CallFailed, CallRefused
from shard_dist.records import Call, Completion


class HttpEngine:
    """Retries, exponential back-off with jitter and Retry-After are the client library's (`max_retries`)."""

    def __init__(self, spec: ModelConfig) -> None:
        # Servers of one's own often want no key; the library insists on some text.
        key = os.environ.get(spec.api_key_env) or "none"
        self.spec = spec
        self.client = openai.AsyncOpenAI(
            base_url=spec.base_url, api_key=key, timeout=spec.timeout, max_retries=spec.max_retries
        )

    async def generate(self, call: Call) -> Completion:
        try:
            answer = await self.client.chat.completions.create(**self._arguments(call))
        except openai.AuthenticationError as error:
            raise ValueError(
                f"{self.spec.base_url} refused the key in ${self.spec.api_key_env}: {error.message}"
            ) from error
        except openai.APIStatusError as error:
            # 408, 409, 429 and 5xx have been retried by the client; any other 4xx is this request's own fault.
            transient = error.status_code in (408, 409, 429) or error.status_code >= 500
            if transient:
                raise CallFailed(f"{self.spec.base_url}: status {error.status_code}") from error
            raise CallRefused("server_refused", f"status {error.status_code}: {error.message[:500]}") from error
        except (openai.APIError, json.JSONDecodeError) as error:  # no connection, time-out, half an answer
            raise CallFailed(f"{self.spec.base_url}: {error}") from error
        return self._completion(answer)

    def _arguments(self, call: Call) -> dict[str, Any]:
        sampling = call.sampling
        arguments: dict[str, Any] = {
            "model": self.spec.model,
            "messages": list(call.messages),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "n": sampling.n,
            "seed": sampling.seed,
        }
        if call.schema:
            format_ = {"name": "answer", "schema": call.schema, "strict": True}
            arguments["response_format"] = {"type": "json_schema", "json_schema": format_}
        if self.spec.chat_template_kwargs:
            arguments["extra_body"] = {"chat_template_kwargs": self.spec.chat_template_kwargs}
        return arguments

    def _completion(self, answer: Any) -> Completion:
        choices = getattr(answer, "choices", None)
        if not choices:  # a server that answers 200 with something else, an HTML page for instance
            raise CallFailed(f"{self.spec.base_url}: the answer is no chat completion: {str(answer)[:200]!r}")
        # Servers name the thinking part differently; `or` because both may be present and null.
        thinking = tuple(
            getattr(choice.message, "reasoning_content", None) or getattr(choice.message, "reasoning", None) or ""
            for choice in choices
        )
        return Completion(
            texts=tuple(choice.message.content or "" for choice in choices),
            finish_reasons=tuple(choice.finish_reason or "" for choice in choices),
            prompt_tokens=answer.usage.prompt_tokens if answer.usage else 0,
            completion_tokens=answer.usage.completion_tokens if answer.usage else 0,
            thinking=thinking,
        )

    async def health(self) -> None:
        return None

    async def close(self) -> None:
        await self.client.close()
