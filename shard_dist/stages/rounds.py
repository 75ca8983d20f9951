"""rounds: generate, select and train again with the model that came out, as long as the judge sees a gain.

    student ──> round 1 ──> model 1 ──> round 2 ──> model 2 ──> ...
                                └── answers to the validation prompts ──┘ judged against each other

Every round is a run of its own under rounds/<number>; the run itself shows the last one that was a gain.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import replace
from typing import Any

from shard_dist.artefacts import value_hash
from shard_dist.config.load import as_dict, identity
from shard_dist.config.schema import Config, ModelConfig
from shard_dist.data.load import prompt_rows
from shard_dist.engines.rows import ListRows
from shard_dist.engines.worker import Role
from shard_dist.evaluation.arms import Answer, Judge
from shard_dist.judges.protocol import QUESTIONS
from shard_dist.progress import Progress
from shard_dist.prompts.render import Templates
from shard_dist.records import Prompt
from shard_dist.rundir import Run, Stage, open_run, run_stage
from shard_dist.stages import generate, select, train
from shard_dist.stages.judges import judge_inputs, pairwise_roles, stage_panel
from shard_dist.stages.roles import Engines, identify, role_of, tuned_role

ROUND = (generate.STAGE, select.STAGE, train.STAGE)
SECTIONS = ("recipe.", "select.", "train.", "models.", "data.split.")
# What the run shows of the round whose model it keeps.
SHOWN = (
    *(f"{stage.name}.json" for stage in ROUND),
    *(name for stage in ROUND for name in stage.outputs),
    "train_metrics.jsonl",
)
Row = dict[str, Any]


def check(config: Config) -> None:
    for stage in ROUND:
        stage.check(config)


def inputs(run: Run) -> dict[str, Any]:
    settings = {key: digest for key, digest in identity(run.config).items() if key.startswith(SECTIONS)}
    return {
        "prompts": run.file_hash("prompts.parquet"),
        "settings": value_hash(settings),
        "seed": run.config.run.seed,
        "models": {role: identify(spec).fingerprint for role, spec in run.config.models.items()},
    }


def work(run: Run, progress: Progress) -> dict[str, Any]:
    recipe, student = run.config.recipe, run.config.models["student"]
    gains: list[Row] = []
    kept = 0
    for number in range(1, recipe.rounds + 1):
        progress.note(f"round {number} of at most {recipe.rounds}")
        inner = round_run(run, number, student)
        for stage in (*ROUND, GAIN):
            run_stage(inner, stage, progress)
        gains.append(counts_of(inner))
        if recipe.min_gain is not None and not enough(gains[-1], recipe.min_gain):
            progress.note(f"round {number} is no gain: net {gains[-1]['net']:+.3f} on {gains[-1]['n']} prompts")
            break
        kept, student = number, replace(student, model=str(inner / "model"), revision="", tokenizer="")
    show(run, kept or 1)
    return {"rounds": len(gains), "kept": kept or 1, "gains": [each["net"] for each in gains]}


def round_run(run: Run, number: int, student: ModelConfig) -> Run:
    """The run directory of a round: this configuration with the student that the round before left."""
    config = run.config
    own = replace(
        config,
        run=replace(config.run, dir=str(run / "rounds" / str(number)), ledger=run.ledger),
        models={**config.models, "student": student},
        recipe=replace(config.recipe, rounds=1),
    )
    inner = open_run(own)
    shutil.copyfile(run.require("prompts.parquet", "prompts"), inner / "prompts.parquet")
    return inner


def counts_of(inner: Run) -> Row:
    """What the round's stage `gain` found."""
    manifest = inner.manifest("gain")
    assert manifest is not None
    found: Row = manifest["counts"]
    return found


def gain_inputs(inner: Run) -> Row:
    config = inner.config
    return {
        "prompts": inner.file_hash("prompts.parquet"),
        "model": inner.file_hash("model"),
        "student": identify(config.models["student"]).fingerprint,
        "judge": judge_inputs(config, config.select),
        "settings": value_hash([as_dict(config)["select"], as_dict(config)["recipe"]["answer_sampling"]]),
        "seed": config.run.seed,
    }


def gain(inner: Run, progress: Progress) -> Row:
    """How the judge of `select` sees the round's model against the one before, on the validation prompts.

    {"n", "net": (wins - losses in helpfulness) / n, "helpfulness" and "harm": {verdict: prompts}}, where verdict "a" is
    the model before and "b" the new one.
    """
    config = inner.config
    rows = prompt_rows(inner / "prompts.parquet", ("val",))
    prompts = list(rows.read(range(len(rows))))
    answers = [_answers(inner, role, prompts, progress) for role in (role_of(inner, "student"), tuned_role(inner))]
    judges = stage_panel(config, config.select)
    roles = [role_of(inner, name) for name in pairwise_roles(config.select)]
    pairs = ListRows(list(zip(prompts, zip(*answers, strict=True), strict=True)))
    counts: dict[str, Counter[str]] = {question: Counter() for question in QUESTIONS}
    with Engines(inner, "gain", roles, config.select.judge_role, progress) as engines:
        for _, _, verdicts in engines.run("verdicts", Judge(judges, ()), pairs).ordered():
            for verdict in verdicts:
                counts[verdict["question"]][verdict["combined"]] += 1
    helpful = counts["helpfulness"]
    net = (helpful["b"] - helpful["a"]) / max(1, len(prompts))
    return {"n": len(prompts), "net": net, **{question: dict(found) for question, found in counts.items()}}


def _answers(inner: Run, role: Role, prompts: list[Prompt], progress: Progress) -> list[Row]:
    config = inner.config
    sampling = config.recipe.answer_sampling.sampling()
    program = Answer(role.name, role.name, Templates(config.recipe.templates), sampling, config.run.seed)
    with Engines(inner, "gain", [role], role.name, progress) as engines:
        rows = engines.run(f"answers of {role.name}", program, ListRows(prompts), empty=Prompt("", "", ""))
        return list(rows.ordered())


def enough(found: Row, least: float) -> bool:
    """More helpful by more than `least`, and not more harmful. Without validation prompts there is nothing to see."""
    harm = found["harm"]
    return bool(found["n"]) and found["net"] > least and harm.get("b", 0) <= harm.get("a", 0)


def show(run: Run, number: int) -> None:
    """The run's own stages are those of round `number`: links, since a model may be 140 GB."""
    for name in SHOWN:
        link, target = run / name, run / "rounds" / str(number) / name
        if link.is_symlink() or link.is_file():
            link.unlink()
        elif link.is_dir():
            shutil.rmtree(link)
        if target.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            os.symlink(os.path.relpath(target, link.parent), link)


GAIN = Stage("gain", gain_inputs, (), gain)
STAGE = Stage("rounds", inputs, ("model", "examples", "selection.json"), work, check)
