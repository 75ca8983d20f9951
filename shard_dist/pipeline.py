"""The whole method, top to bottom:

    prompts ──> generate ──> select ──> train ──> evaluate ──> report

Every stage reads what the one before it wrote into the run's directory. A stage whose manifest matches its inputs is
skipped, so the same command finishes a run that was killed anywhere. With recipe.rounds above 1 the middle three are
repeated, each time with the model that came out: one stage, `rounds`.
"""

from __future__ import annotations

from collections.abc import Sequence

from shard_dist.cluster import leave
from shard_dist.config.schema import Config
from shard_dist.progress import Progress
from shard_dist.rundir import Run, Stage, locked, open_run, run_stage
from shard_dist.stages import evaluate, generate, prompts, report, rounds, select, train

STAGES: tuple[Stage, ...] = (
    prompts.STAGE,
    generate.STAGE,
    select.STAGE,
    train.STAGE,
    evaluate.STAGE,
    report.STAGE,
)


def run_pipeline(config: Config, names: Sequence[str], progress: Progress) -> Run:
    """Run the named stages, in the pipeline's order. Raises ValueError for whatever a person can put right."""
    stages = stages_of(config, names)
    for stage in stages:
        stage.check(config)
    run = open_run(config)
    with locked(run):
        try:
            for stage in stages:
                run_stage(run, stage, progress)
        finally:
            leave()  # a stage joins the cluster when it needs one
    return run


def stages_of(config: Config, names: Sequence[str]) -> list[Stage]:
    """Raises ValueError where one of the stages that `rounds` repeats is asked for alone."""
    stages = [stage for stage in STAGES if stage.name in names]
    repeated = [stage for stage in stages if stage in rounds.ROUND]
    if config.recipe.rounds == 1 or not repeated:
        return stages
    if len(repeated) < len(rounds.ROUND):
        raise ValueError(
            f"recipe.rounds is {config.recipe.rounds}: generate, select and train are repeated together; use "
            "`shard-dist run`"
        )
    place = stages.index(repeated[0])
    return [*stages[:place], rounds.STAGE, *stages[place + len(repeated) :]]
