"""A bi-encoder: one transformer makes a vector of a prompt and of a guideline; their product says how well they fit.

Models are directories or hub repositories in sentence-transformers' layout (modules.json, 1_Pooling/config.json), which
is read and written here without that package, or plain encoders of transformers: the mean of their tokens' vectors.
Code that ships with a model is not run, and texts get no prefix ("query: ") that a model may have been trained with.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast
from transformers.utils import cached_file

from shard_dist.artefacts import write_json
from shard_dist.data.dpr import Passage, Question
from shard_dist.retrieval.library import passage_line

MODES = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}
MODULES = ("Transformer", "Pooling", "Normalize")
SCALE = 20.0  # of cosines before the softmax: sentence-transformers' default, a temperature of 0.05
LONGEST = 512  # tokens of a text
MOST_CHARS = 20  # of a token
SPECIAL = ("[PAD]", "[CLS]", "[SEP]")
Pair = tuple[Question, Passage]


@dataclass(frozen=True)
class Fit:
    """How an encoder is trained: AdamW, the rate warmed up over a tenth of the steps and then falling to 0."""

    epochs: int = 10
    batch: int = 32
    rate: float = 1e-5
    warm_up: float = 0.1
    clip: float = 1.0


class Encoder:
    """A transformer with its tokenizer. `pooling` is cls or mean; with `normalise` products of vectors are cosines."""

    def __init__(self, model: Any, tokenizer: Any, pooling: str, normalise: bool, max_tokens: int) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.pooling, self.normalise, self.max_tokens = pooling, normalise, max_tokens

    def vectors(self, texts: Sequence[str]) -> torch.Tensor:
        """[texts, width], with gradients where they are on."""
        cut = {"padding": True, "truncation": True, "max_length": self.max_tokens}
        texts = [text[: MOST_CHARS * self.max_tokens] for text in texts]  # a tokenizer reads all before it cuts
        batch = self.tokenizer(texts, return_tensors="pt", **cut).to(self.model.device)
        hidden_BLH = self.model(**batch).last_hidden_state
        if self.pooling == "cls":
            pooled_BH = hidden_BLH[:, 0]
        else:
            mask_BL1 = batch["attention_mask"].unsqueeze(-1).to(hidden_BLH.dtype)
            pooled_BH = (hidden_BLH * mask_BL1).sum(1) / mask_BL1.sum(1)
        return normalize(pooled_BH, dim=-1) if self.normalise else pooled_BH

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], batch: int = 64) -> np.ndarray:
        """float32 [texts, width]."""
        starts = range(0, len(texts), batch)
        parts = [self.vectors(texts[start : start + batch]).float().cpu().numpy() for start in starts]
        return np.concatenate(parts or [np.empty((0, self.model.config.hidden_size), np.float32)])

    def save(self, directory: Path) -> None:
        """In sentence-transformers' layout; `load_encoder` reads it."""
        self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        names = MODULES if self.normalise else MODULES[:2]
        paths = ["", *(f"{number}_{name}" for number, name in enumerate(names[1:], start=1))]
        modules = [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
            for number, (name, path) in enumerate(zip(names, paths, strict=True))
        ]
        write_json(directory / "modules.json", modules)
        modes = {flag: mode == self.pooling for mode, flag in MODES.items()}
        width = {"word_embedding_dimension": self.model.config.hidden_size}
        write_json(directory / paths[1] / "config.json", width | modes)
        write_json(directory / "sentence_bert_config.json", {"max_seq_length": self.max_tokens, "do_lower_case": False})


def load_encoder(name: str, revision: str = "", device: str = "cpu") -> Encoder:
    """A directory or hub repository. Raises ValueError where there is none, or its layout has parts unknown here."""
    version = revision or "main"
    try:
        folder, pooling, normalise, longest = _layout(name, version)
        where = {"revision": version, "subfolder": folder, "trust_remote_code": False}
        model = AutoModel.from_pretrained(name, dtype=torch.float32, **where)
        tokenizer = AutoTokenizer.from_pretrained(name, **where)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load the encoder {name!r}: {error}") from error
    held = getattr(model.config, "max_position_embeddings", LONGEST)
    return Encoder(model.to(device), tokenizer, pooling, normalise, min(longest, held, tokenizer.model_max_length))


def _layout(name: str, revision: str) -> tuple[str, str, bool, int]:
    """Folder of the transformer, pooling, whether vectors are normalised, and the most tokens of a text."""
    modules = _json(name, "modules.json", revision)
    if modules is None:
        return "", "mean", True, LONGEST
    kinds = tuple(str(module["type"]).rsplit(".", 1)[-1] for module in modules)
    if kinds not in (MODULES, MODULES[:2]):
        raise ValueError(f"it is made of {', '.join(kinds)}; known are {', '.join(MODULES)} in this order")
    settings = _json(name, f"{modules[1]['path']}/config.json", revision) or {}
    flags = {flag for flag, on in settings.items() if flag.startswith("pooling_mode_") and on}
    pooling = next((mode for mode, flag in MODES.items() if flags == {flag}), "")
    if not pooling:
        raise ValueError(f"it pools by {sorted(flags)}; known are {', '.join(MODES.values())}")
    limits = _json(name, "sentence_bert_config.json", revision) or {}
    return modules[0]["path"], pooling, kinds == MODULES, limits.get("max_seq_length") or LONGEST


def _json(name: str, file: str, revision: str) -> Any:
    """A JSON file of a directory or hub repository, None where it has none."""
    path = cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else None


def new_encoder(
    texts: Sequence[str], seed: int, device: str = "cpu", vocabulary: int = 4096, width: int = 256
) -> Encoder:
    """A small encoder with random weights and a tokenizer made of `texts` (BPE of bytes, `vocabulary` tokens at most).

    It has no attention layers: means of tokens' vectors are what some hundred pairs can teach. Trained on 750
    questions of Do-Not-Answer it finds the kind of harm of others among its best 6 in 86 %, BM25 in 43 %; on XSTest,
    where most prompts contain the word in question, 77 and 75 % (tests/benchmarks/retrieval.py).
    """
    # Of bytes, since the trainer numbers other pieces by a hash map's order, another one in every process.
    pieces = Tokenizer(models.BPE())
    pieces.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    pieces.train_from_iterator(texts, trainer)
    ends = [(name, SPECIAL.index(name)) for name in SPECIAL[1:]]
    pieces.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = dict(zip(("pad_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, model_max_length=LONGEST, **names)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=0,
        num_attention_heads=4,
        intermediate_size=2 * width,
        max_position_embeddings=LONGEST,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = BertModel(config)
    return Encoder(model.to(device), tokenizer, "mean", True, LONGEST)


def train_encoder(encoder: Encoder, questions: Sequence[Question], fit: Fit, seed: int) -> list[float]:
    """Train on questions with their positives against the others' of a batch; the loss of every step.

    DPR (Karpukhin et al. 2020, equation 2): L = -log(e^s(q,p+) / sum over p of the batch e^s(q,p)). Other positives of
    the same question are left out of its sum. One positive is drawn per question and epoch.
    The same seed gives the same weights, on one kind of machine and number of threads.
    """
    model, draw, losses = encoder.model, random.Random(seed), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=fit.rate, eps=1e-8, weight_decay=0.0)
    total = fit.epochs * -(-len(questions) // fit.batch)
    rise = max(1, round(fit.warm_up * total))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rise, (total - step) / max(1, total - rise + 1))
    )
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for pairs in _batches(questions, fit, draw):
            loss = _loss(encoder, pairs)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), fit.clip)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    model.eval()
    return losses


def _batches(questions: Sequence[Question], fit: Fit, draw: random.Random) -> Iterator[list[Pair]]:
    for _ in range(fit.epochs):
        order = draw.sample(questions, len(questions))
        for start in range(0, len(order), fit.batch):
            yield [(question, draw.choice(question.positives)) for question in order[start : start + fit.batch]]


def _loss(encoder: Encoder, pairs: list[Pair]) -> torch.Tensor:
    passages = list(dict.fromkeys(passage for _, passage in pairs))
    places = {passage: place for place, passage in enumerate(passages)}
    queries_BH = encoder.vectors([question.text for question, _ in pairs])
    passages_PH = encoder.vectors([passage_line(passage) for passage in passages])
    scores_BP = queries_BH @ passages_PH.T * (SCALE if encoder.normalise else 1.0)
    wanted_B = torch.tensor([places[passage] for _, passage in pairs], device=scores_BP.device)
    also_BP = torch.tensor([[each in question.positives for each in passages] for question, _ in pairs])
    also_BP[torch.arange(len(pairs)), wanted_B.cpu()] = False
    return cross_entropy(scores_BP.masked_fill(also_BP.to(scores_BP.device), -torch.inf), wanted_B)
