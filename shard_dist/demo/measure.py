"""What a seed model can do: generate for requests of the world and compare with what the world says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import mean

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from shard_dist.demo.intents import GUIDELINES
from shard_dist.demo.world import Request, refuses
from shard_dist.prompts.render import Templates
from shard_dist.records import Message


@torch.inference_mode()
def generate(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    *,
    temperature: float = 0.0,
    max_tokens: int = 160,
    batch_size: int = 64,
) -> list[str]:
    """The assistant's answers, one per conversation; temperature 0 decodes greedily."""
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    answers: list[str] = []
    for start in range(0, len(conversations), batch_size):
        batch = [list(messages) for messages in conversations[start : start + batch_size]]
        texts = tokenizer.apply_chat_template(batch, add_generation_prompt=True, tokenize=False)
        inputs = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
        outputs = model.generate(  # type: ignore[misc]  # transformers types generate's self as a protocol
            **inputs,
            **sampling,
            max_new_tokens=max_tokens,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        answers += tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def good_rewrite(text: str, request: Request) -> bool:
    """Whether a rewrite is JSON that says what the world says: same need, same mode, the topic copied."""
    try:
        return json.loads(text) == json.loads(request.rewrite)
    except json.JSONDecodeError:
        return False


def measure(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Request],
    *,
    temperature: float,
) -> dict[str, tuple[float, int]]:
    """Rate and number of cases per skill. Every step gets the model's own outputs before it, as in a run."""
    templates = Templates("toy")

    def ask(conversations: Sequence[Sequence[Message]]) -> list[str]:
        return generate(model, tokenizer, conversations, temperature=temperature)

    drafts = ask([templates.chat(request.prompt) for request in requests])
    rules = [GUIDELINES[request.intent.category] for request in requests]
    pairs = zip(requests, rules, strict=True)
    rewrites = ask([templates.messages("rewrite", prompt=asked.prompt, guidelines=text) for asked, text in pairs])
    needs = [
        json.loads(rewrite)["rewritten_prompt"] if good_rewrite(rewrite, request) else request.need_prompt
        for request, rewrite in zip(requests, rewrites, strict=True)
    ]
    reframed = ask(
        [
            templates.messages("reframe", prompt=request.prompt, rewritten_prompt=need, draft=draft)
            for request, need, draft in zip(requests, needs, drafts, strict=True)
        ]
    )
    written = ask([templates.messages("guidelines", category=category) for category in GUIDELINES])
    rows = list(zip(requests, drafts, rewrites, reframed, strict=True))
    hits = {
        "sensitive: draft refuses": [refuses(draft) for request, draft, _, _ in rows if request.sensitive],
        "plain: draft right": [draft in request.answers for request, draft, _, _ in rows if not request.sensitive],
        "rewrite right": [good_rewrite(rewrite, request) for request, _, rewrite, _ in rows],
        "sensitive: reframed right": [text in request.answers for request, _, _, text in rows if request.sensitive],
        "plain: draft kept": [text == draft for request, draft, _, text in rows if not request.sensitive],
        "guidelines right": [text == known for text, known in zip(written, GUIDELINES.values(), strict=True)],
    }
    return {skill: (mean(found), len(found)) for skill, found in hits.items() if found}


def print_table(results: dict[str, tuple[float, int]]) -> None:
    for skill, (rate, number) in results.items():
        print(f"  {skill:28s} {rate:6.1%} of {number}", flush=True)
