"""Retrieval of guidelines on real questions: recall@k of BM25 and of the encoder. Prints one JSON object and writes it.

    python tests/benchmarks/retrieval.py [--data ../shared/data] [--seeds 3] [--out build/bench/retrieval.json]

Two libraries of "Title: text" lines made of labels, and pairs of questions with their line, a fifth of the questions
held out by a hash of their key: Do-Not-Answer's kinds of harm, which its questions hardly ever name (61 lines, 939
questions), and XSTest's types with the word in focus, which most of its prompts contain (346 lines, 450 prompts).
Over the same lines, for the same held-out questions:

    bm25      the words that a question and a line share: what a library has before anybody trained on it
    expanded  BM25 over each line with the training questions that led to it: it has seen what the encoder has
    dense     the recipe's own encoder, random weights, trained on the training pairs for 10 epochs
    hybrid    the ranks of dense and expanded, fused: the recipe's default

Then the de-duplication: sentences of Do-Not-Answer's answers through the library.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from shard_dist.artefacts import write_json
from shard_dist.data.dpr import read_questions
from shard_dist.records import Prompt
from shard_dist.retrieval.bm25 import BM25
from shard_dist.retrieval.build import RetrieverOptions, build, expanded
from shard_dist.retrieval.library import Guideline, Library
from shard_dist.retrieval.search import recall

SENTENCE = re.compile(r"(?<=[.!?])\s+")
Written = list[tuple[Prompt, list[Guideline]]]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def harms(data: Path) -> Written:
    """Every question with its kind of harm; a kind without a title of its own has its type's."""
    found = []
    for row in read(data / "do_not_answer" / "questions.csv"):
        title, _, text = " ".join(row["specific_harms"].split()).partition(": ")
        guideline = Guideline(title, text) if text else Guideline(row["types_of_harm"], title)
        found.append((Prompt("do_not_answer", row["id"], row["question"]), [guideline]))
    return found


def contrasts(data: Path) -> Written:
    """Every prompt of XSTest with its type and focus."""
    rows = read(data / "xstest" / "prompts.csv")
    return [
        (Prompt("xstest", row["id"], row["prompt"]), [Guideline(row["type"], row["focus"] or row["note"] or "none")])
        for row in rows
    ]


def measure(written: Written, seed: int, k: int) -> dict[str, Any]:
    options = RetrieverOptions(held_out=0.2, k=k, library_similarity=1.0)
    with tempfile.TemporaryDirectory() as place:
        started = time.perf_counter()
        search, found = build(written, options, Path(place), seed)
        seconds = time.perf_counter() - started
        training, held = (list(read_questions(Path(place) / f"pairs_{part}.json")) for part in ("train", "held_out"))
    lines = [guideline.line for guideline in search.guidelines]
    seen = recall(BM25(expanded(lines, training)), lines, held, k)
    return {**found, "recall": {**found["recall"], "expanded": seen}, "seconds": round(seconds, 2)}


def all_seeds(written: Written, seeds: int, k: int) -> dict[str, Any]:
    """The mean over seeds, which decide who is held out and how the encoder begins, and every run."""
    runs = [measure(written, seed, k) for seed in range(seeds)]
    names = runs[0]["recall"]
    return {"recall": {name: statistics.mean(run["recall"][name] for run in runs) for name in names}, "runs": runs}


def deduplicate(data: Path, count: int) -> dict[str, Any]:
    """`count` sentences of the answers as guidelines, one after the other into a library."""
    rows = read(data / "do_not_answer" / "answers_human.csv")
    sentences = (part for row in rows for part in SENTENCE.split(row["response"]) if 40 < len(part) < 250)
    lines = [Guideline("Line", sentence) for sentence, _ in zip(sentences, range(count), strict=False)]
    library = Library(RetrieverOptions.library_similarity)
    started = time.perf_counter()
    for line in lines:
        library.add(line)
    return {"lines": len(lines), "kept": len(library.guidelines), "seconds": round(time.perf_counter() - started, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--k", type=int, default=6)
    parser.add_argument("--lines", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=Path("build/bench/retrieval.json"))
    words = parser.parse_args()
    result = {
        "k": words.k,
        "do_not_answer": all_seeds(harms(words.data), words.seeds, words.k),
        "xstest": all_seeds(contrasts(words.data), words.seeds, words.k),
        "deduplication": deduplicate(words.data, words.lines),
    }
    write_json(words.out, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
