"""evaluate: every arm on the same test prompts; answers, ratings, verdicts, checks, metrics.json.

The base model is the reference; the tuned model and the arms of `evaluate.arms` are compared with it.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

from shard_dist.artefacts import file_hash, read_json, value_hash, write_json, write_rows
from shard_dist.config.load import as_dict
from shard_dist.config.schema import Backend, Config
from shard_dist.engines.rows import ListRows
from shard_dist.engines.worker import Role
from shard_dist.evaluation.arms import ANSWER_SCHEMA, PAIR_SCHEMA, RATING_SCHEMA, VERDICT_SCHEMA, Answer, Judge
from shard_dist.evaluation.capability import LIKELIHOOD_SCHEMA, Likelihood, perplexity, read_documents
from shard_dist.evaluation.claims import claims
from shard_dist.evaluation.fairness import check_fairness, families
from shard_dist.evaluation.harness import command, lm_eval
from shard_dist.evaluation.metrics import metrics
from shard_dist.judges.protocol import PointwiseJudge
from shard_dist.progress import Progress
from shard_dist.prompts.render import Templates
from shard_dist.records import Key, Prompt
from shard_dist.rundir import Run, Stage
from shard_dist.stages.generate import FINDINGS
from shard_dist.stages.judges import (
    described,
    judge_inputs,
    judge_models,
    judge_roles,
    raters,
    stage_panel,
)
from shard_dist.stages.prompts import context_length
from shard_dist.stages.roles import Engines, Runs, identify, role_of, tuned_role
from shard_dist.stages.train import leaks, test_prompts

BASE, TUNED = "base", "tuned"
CONTEXTS = f"{FINDINGS}/contexts.json"
Row = dict[str, Any]
Counts = dict[str, int]
COUNTED = ("calls", "calls_made", "ledger_hits", "prompt_tokens", "completion_tokens", "engine_restarts")


def check(config: Config) -> None:
    """A guard's format that is not at hand, an option that is not the harness's: found before anything is generated."""
    raters(config)
    capability = config.evaluate.capability
    command(Path(), capability.lm_eval, capability.lm_eval_args, Path())


def inputs(run: Run) -> dict[str, Any]:
    config = run.config
    evaluate = config.evaluate
    return {
        "prompts": run.file_hash("prompts.parquet"),
        "examples": run.file_hash("examples"),
        "settings": value_hash([as_dict(config)["evaluate"], as_dict(config)["recipe"]["answer_sampling"]]),
        "judge": judge_inputs(config, evaluate),
        "raters": [value_hash(identity) for _, identity in raters(config)],
        "agreement": [file_hash(Path(path)) for path in evaluate.agreement],
        "text": file_hash(Path(evaluate.capability.text)) if evaluate.capability.text else "",
        "chat": [dict(message) for message in Templates(config.recipe.templates).chat("")],
        "seed": config.run.seed,
        **({"contexts": run.file_hash(CONTEXTS)} if evaluate.contexts else {}),
        BASE: identify(config.models["student"]).fingerprint,
        TUNED: run.file_hash("model"),
        **{f"arm {name}": identify(config.models[role]).fingerprint for name, role in evaluate.arms.items()},
    }


def work(run: Run, progress: Progress) -> dict[str, Any]:
    config, total = run.config, dict.fromkeys(COUNTED, 0)
    prompts = test_prompts(run)
    run.require("model", "train")
    checks: Row = {"leaks": leaks(run, prompts)}
    arms, documents = arms_of(run, tuned_role(run)), documents_of(config)
    # One arm after the other: each has the machine's engines to itself.
    measured = {arm: measure_arm(run, arm, role, prompts, documents, progress, total) for arm, role in arms.items()}
    answers = {arm: rows for arm, (rows, _) in measured.items()}
    checks["fairness"] = {**check_fairness(answers), "contexts": config.evaluate.contexts}
    checks["families"] = families(config.models["student"].model, judge_models(config))
    identified = raters(config)
    judges = tuple(judge for judge, _ in identified)
    verdicts, ratings, pairs = judge_arms(run, prompts, answers, judges, progress, total)
    found = metrics(
        prompts,
        chain.from_iterable(answers.values()),
        verdicts,
        pairs,
        ratings=ratings,
        judges={judge.name: (judge.refused, judge.unsafe) for judge in judges},
        reference=BASE,
        confidence=config.evaluate.confidence,
    )
    weighed = capability_of(run, arms, {arm: rows for arm, (_, rows) in measured.items() if rows})
    found |= {"judges": described(config, identified), "checks": checks, **({"capability": weighed} if weighed else {})}
    write_json(run / "metrics.json", {**found, "claims": claims(found)})
    return {"prompts": len(prompts), "answers": sum(map(len, answers.values())), **total}


def documents_of(config: Config) -> list[str]:
    """Plain text whose likelihood is every arm's perplexity."""
    capability, context = config.evaluate.capability, context_length(config.models["student"])
    return read_documents(Path(capability.text), capability.documents, context) if capability.text else []


def arms_of(run: Run, tuned: Role) -> dict[str, Role]:
    """Every arm's model, the reference first."""
    further = {arm: role_of(run, role) for arm, role in run.config.evaluate.arms.items()}
    return {BASE: role_of(run, "student"), TUNED: tuned, **further}


def measure_arm(
    run: Run, arm: str, role: Role, prompts: list[Prompt], documents: list[str], progress: Progress, total: Counts
) -> tuple[list[Row], list[Row]]:
    """One arm's answers to every test prompt, written to answers/<arm>.parquet, and the likelihoods of `documents`."""
    with Engines(run, "evaluate", [role], role.name, progress) as engines:
        answers, likelihoods = ask_arm(run, arm, role, prompts, documents, engines)
        _add(total, engines.counts())
    write_rows(run / "answers" / f"{arm}.parquet", answers, ANSWER_SCHEMA)
    return answers, likelihoods


def ask_arm(
    run: Run, arm: str, role: Role, prompts: list[Prompt], documents: list[str], engines: Runs
) -> tuple[list[Row], list[Row]]:
    """One arm's answers to every test prompt, and the likelihoods of `documents`."""
    config = run.config
    sampling = config.recipe.answer_sampling.sampling()
    contexts = contexts_of(run) if arm in config.evaluate.contexts else {}
    program = Answer(role.name, arm, Templates(config.recipe.templates), sampling, config.run.seed, contexts)
    answers = list(engines.run(f"answers of {arm}", program, ListRows(prompts), empty=Prompt("", "", "")).ordered())
    if not documents or role.spec.backend == Backend.http:
        return answers, []
    rows = ListRows(list(enumerate(documents)))
    return answers, list(engines.run(f"likelihoods of {arm}", Likelihood(role.name, arm), rows).ordered())


def contexts_of(run: Run) -> dict[Key, str]:
    """What the recipe found for each test prompt."""
    found = read_json(run.require(CONTEXTS, "generate"))
    return {(key.partition("\n")[0], key.partition("\n")[2]): text for key, text in found.items()}


def judge_arms(
    run: Run,
    prompts: list[Prompt],
    answers: dict[str, list[Row]],
    judges: tuple[PointwiseJudge, ...],
    progress: Progress,
    total: Counts,
) -> tuple[list[Row], list[Row], list[Row]]:
    """Verdict rows and rating rows of all arms, and pair rows, written to verdicts/."""
    config = run.config
    roles = [role_of(run, name) for name in judge_roles(config.evaluate)]
    with Engines(run, "evaluate", roles, roles[0].name if roles else "", progress) as engines:
        judged = ask_judges(config, prompts, answers, judges, engines)
        _add(total, engines.counts())
    verdicts, ratings, pairs = (list(chain.from_iterable(tables)) for tables in zip(*judged, strict=True))
    for arm in answers:
        write_rows(run / "verdicts" / f"{arm}.parquet", (row for row in verdicts if row["arm"] == arm), VERDICT_SCHEMA)
    write_rows(run / "verdicts" / "ratings.parquet", ratings, RATING_SCHEMA)
    write_rows(run / "verdicts" / "pairs.parquet", pairs, PAIR_SCHEMA)
    return verdicts, ratings, pairs


def ask_judges(
    config: Config,
    prompts: list[Prompt],
    answers: dict[str, list[Row]],
    judges: tuple[PointwiseJudge, ...],
    engines: Runs,
) -> list[tuple[list[Row], list[Row], list[Row]]]:
    """Verdict, rating and pair rows of every prompt."""
    program = Judge(stage_panel(config, config.evaluate), judges)
    rows = list(zip(prompts, zip(*answers.values(), strict=True), strict=True))
    empty = (Prompt("", "", ""), tuple({**dict.fromkeys(ANSWER_SCHEMA.names, ""), "text": "yes"} for _ in answers))
    return list(engines.run("verdicts", program, ListRows(rows), empty=empty).ordered())


def capability_of(run: Run, arms: dict[str, Role], likelihoods: dict[str, list[Row]]) -> Row:
    """metrics.json `capability`: perplexity, and the tasks of lm-evaluation-harness, of arms whose weights are here."""
    config, settings = run.config, run.config.evaluate.capability
    found: Row = {}
    if likelihoods:
        rows = chain.from_iterable(likelihoods.values())
        write_rows(run / "capability" / "likelihood.parquet", rows, LIKELIHOOD_SCHEMA)
        found = perplexity(likelihoods, BASE, config.evaluate.confidence, config.run.seed)
    local = {arm: role for arm, role in arms.items() if settings.lm_eval and role.spec.backend != Backend.http}
    for arm, role in local.items():
        weights, where = Path(role.spec.model), run / "capability"
        done = lm_eval(arm, weights, role.identity.fingerprint, settings.lm_eval, settings.lm_eval_args, where)
        found.setdefault(arm, {})["lm_eval"] = done
    return found


def _add(total: Counts, counts: dict[str, int]) -> None:
    for name in total:
        total[name] += counts[name]


STAGE = Stage("evaluate", inputs, ("answers", "verdicts", "capability", "metrics.json"), work, check)
