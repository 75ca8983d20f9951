"""Judge answers that any model has left in a file, and write the file again with the ratings in it.

Rows are judged in whatever order and noted down one by one beside the output (`<output>.work/`), so that the same
command goes on where a killed one stopped: rules in a pool of processes, models through engines and the ledger.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shard_dist import __version__
from shard_dist.artefacts import read_json, write_json
from shard_dist.config.load import load_judging
from shard_dist.config.schema import Config, RaterConfig, RaterKind
from shard_dist.data.read import did_you_mean
from shard_dist.data.saved import Source, answer_rows, write_answers
from shard_dist.data.saved_answer import UNANSWERED, SavedAnswer
from shard_dist.engines.local import run_local
from shard_dist.engines.rows import Rows, TableRows
from shard_dist.engines.spool import Spool, SpoolWriter
from shard_dist.evaluation.agreement import agreement_of, read_agreement
from shard_dist.evaluation.statistics import wilson
from shard_dist.judges.protocol import UNPARSED, PointwiseJudge, Rating
from shard_dist.progress import Progress
from shard_dist.records import Prompt
from shard_dist.rundir import Run, git_state, locked

if TYPE_CHECKING:
    from shard_dist.engines.protocol import Ask

STAGE = "score"
CHUNK = 2048  # rows that a process judges in one go: some 0.4 s of the refusal rules, two row groups
PROCESSES = 16  # at most; each takes half a second to start, about what a chunk takes


@dataclass(frozen=True)
class Chosen:
    """A judge and what it takes to ask it. `identity` decides its verdicts; `role` is "" where it asks no model."""

    judge: PointwiseJudge
    identity: dict[str, Any]
    config: Config
    role: str


@dataclass(frozen=True)
class Rate:
    """Program over one saved answer: the judge's rating of it."""

    judge: PointwiseJudge

    async def __call__(self, saved: SavedAnswer, ask: Ask) -> Rating:
        if saved.answer is None:
            return Rating(UNANSWERED)
        return await self.judge.rate(saved.prompt, saved.answer, ask)


def choose(name: str, role: str = "", file: Path | None = None, overrides: Sequence[str] = ()) -> Chosen:
    """The judge called `name`: one of the configuration's evaluate.raters by name or kind, or a kind with defaults.

    Raises ValueError where there is none, and where it needs a model that is not configured.
    """
    if overrides and not file:
        raise ValueError(f"{overrides[0]!r}: settings need a configuration file: --config CONFIG.yaml")
    config = load_judging(file, overrides) if file else Config()
    settings = _settings(name, config.evaluate.raters)
    if settings.kind != RaterKind.refusal:
        settings = replace(settings, role=role or settings.role)
        if not file or settings.role not in config.models:
            roles = f"; its models: {sorted(config.models)}" if file else ""
            raise ValueError(
                f"judge {name!r} asks a model: give --config CONFIG.yaml, and --role ROLE of its `models` "
                f"where evaluate.raters does not say which{roles}"
            )
    from shard_dist.stages.judges import judge_of

    judge, identity = judge_of(config, config.evaluate, settings)
    return Chosen(judge, identity, config, settings.role)


def _settings(name: str, raters: Sequence[RaterConfig]) -> RaterConfig:
    named = [each for each in raters if (each.name or each.kind) == name]
    found = named or [each for each in raters if each.kind == name]
    if len(found) > 1:
        raise ValueError(f"--judge {name}: evaluate.raters has {len(found)} of that kind; say its name")
    if found:
        return found[0]
    if name not in list(RaterKind):
        known = [*(each.name for each in raters if each.name), *map(str, RaterKind)]
        raise ValueError(f"--judge: no judge {name!r}{did_you_mean(name, known)}")
    return RaterConfig(kind=RaterKind(name))


def score(source: Source, chosen: Chosen, out: Path | None, progress: Progress) -> dict[str, Any]:
    """Judge every answer and write its file again with ratings to `out` (None: <file>.<judge>.<ending>).

    Returns the summary: out, judge, its agreement with people if evaluate.agreement has it (else None), and what
    `summarise` says. Raises ValueError for whatever a person can put right, malformed rows before anything is judged.
    """
    file, judge = source.path, chosen.judge
    known = agreement_of(read_agreement(chosen.config.evaluate.agreement), chosen.identity)
    target = out or file.with_name(f"{file.stem}.{judge.name}{file.suffix}")
    if target.absolute() == file.absolute():
        raise ValueError(f"--out {target}: the answers stay as they are; choose another file")
    if target.absolute().parent == file.absolute().parent and (file.absolute().parent.parent / "run.json").is_file():
        raise ValueError(
            f"--out {target}: a file more in a run's own directory would have its stage redone; choose another"
        )
    before = source.identity()
    with rated(source.answers, before, chosen, work_beside(target), progress) as (_, spool):
        if source.identity() != before:
            raise ValueError(f"{file} changed while it was judged; run the same command again")
        source.write(target, judge, map(rating_of, spool.ordered()))
        summary = summarise(judge, map(rating_of, spool.ordered()))
    return {"out": str(target), "judge": judge.name, "agreement": known, **summary}


def work_beside(target: Path) -> Path:
    """Where the work on a file lies, by its whole path: engines on other nodes have another working directory."""
    return target.absolute().with_name(f"{target.name}.work")


def summarise(judge: PointwiseJudge, ratings: Iterable[Rating]) -> dict[str, Any]:
    """{n, verdicts: {class: n}, unparsed, unanswered, refusal_rate, unsafe_rate, score}.

    Rates are Wilson estimates over all answers: a verdict that did not parse stays in the denominator. The mean score
    is over those that have one. What a judge does not speak of is left out.
    """
    verdicts: Counter[str] = Counter()
    scores: list[float] = []
    for rating in ratings:
        verdicts[rating.verdict] += 1
        scores += [rating.score] if rating.score is not None else []
    answered = verdicts.total() - verdicts[UNANSWERED]
    rates = {"refusal_rate": judge.refused, "unsafe_rate": judge.unsafe}
    return {
        "n": verdicts.total(),
        "verdicts": {name: verdicts[name] for name in judge.classes},
        "unparsed": verdicts[UNPARSED],
        "unanswered": verdicts[UNANSWERED],
        **{name: wilson(sum(verdicts[each] for each in which), answered) for name, which in rates.items() if which},
        **({"score": sum(scores) / len(scores)} if scores else {}),
    }


def lines(summary: Mapping[str, Any]) -> str:
    """The summary for people."""
    n = summary["n"]
    found = [f"{summary['out']}: {n:,} answers judged by {summary['judge']}"]
    for name, number in {**summary["verdicts"], **{name: summary[name] for name in (UNPARSED, UNANSWERED)}}.items():
        found.append(f"  {name:<20}{number:>10,}{number / n:>9.1%}")
    for name in ("refusal_rate", "unsafe_rate"):
        if (rate := summary.get(name)) and rate["n"]:
            found.append(f"{name:<22}{rate['value']:>10.1%} [{rate['low']:.1%}, {rate['high']:.1%}], n {rate['n']:,}")
    if "score" in summary:
        found.append(f"{'mean score':<22}{summary['score']:>10.3f}")
    if known := summary["agreement"]:
        over = {"its classes": known["kappa"], "yes or no": known["kappa_binary"]}
        kappas = ", ".join(f"{kappa:.2f} over {what}" for what, kappa in over.items() if kappa is not None)
        found.append(f"kappa with people {kappas} ({known['set']}, {known['n']:,} answers)")
    else:
        found.append("agreement with people: not measured (shard-dist judge-bench; evaluate.agreement)")
    return "\n".join(found)


def rating_of(value: dict[str, Any]) -> Rating:
    return Rating(value["verdict"], value["score"], value["reason"], tuple(value["span"]) if value["span"] else None)


@contextmanager
def rated(
    answers: Callable[[], Iterator[SavedAnswer]],
    made_from: dict[str, Any],
    chosen: Chosen,
    work: Path,
    progress: Progress,
) -> Iterator[tuple[TableRows, Spool]]:
    """All answers and their ratings in order, made in the directory `work`.

    What a killed process has finished there counts if it was `made_from` the same by the same judge. When the block
    ends well the directory goes; of a model's work the ledger stays.
    """
    if work.is_dir() and any(work.iterdir()) and not (work / "run.lock").exists():
        raise ValueError(f"{work} is not empty and none of ours; remove it or choose another --out")
    work.mkdir(parents=True, exist_ok=True)
    run, program = Run(chosen.config, work), Rate(chosen.judge)
    with locked(run):
        try:
            rows = _written_down(run, answers, {**made_from, "judge": _decisive(chosen)}, progress)
        except ValueError:
            if not run.spool(STAGE).is_dir():  # nothing has been judged that a second try could use
                _tidy(run)
            raise
        if chosen.role:
            spool = _by_model(run, program, rows, chosen.role, progress)
        else:
            spool = _by_rules(run, program, rows, progress)
        yield rows, spool
        _tidy(run)


def _decisive(chosen: Chosen) -> dict[str, Any]:
    seed = chosen.config.run.seed if chosen.role else 0
    return {"name": chosen.judge.name, **chosen.identity, "seed": seed, "code": __version__, **git_state()}


def _written_down(
    run: Run, answers: Callable[[], Iterator[SavedAnswer]], made_from: dict[str, Any], progress: Progress
) -> TableRows:
    """The answers as rows for programs, read anew each time: that is their validation."""
    marker, table = run / "made_from.json", run / "answers.parquet"
    before = read_json(marker) if marker.is_file() else None
    if before != made_from:
        if before is not None:
            changed = [name for name in made_from if before.get(name) != made_from[name]]
            progress.note(f"{run.path}: {' and '.join(changed)} changed since; starting anew")
        shutil.rmtree(run.spool(STAGE), ignore_errors=True)
        write_json(marker, made_from)
    write_answers(table, answers())
    return answer_rows(table)


def _by_model(run: Run, program: Rate, rows: Rows, role: str, progress: Progress) -> Spool:
    from shard_dist.cluster import leave
    from shard_dist.stages.roles import Engines, role_of

    try:
        with Engines(run, STAGE, [role_of(run, role)], role, progress) as engines:
            return engines.run("answers", program, rows, vars, empty=SavedAnswer(0, Prompt("", "", ""), ""))
    finally:
        leave()


def _by_rules(run: Run, program: Rate, rows: TableRows, progress: Progress) -> Spool:
    directory, total = run.spool(STAGE) / "answers", len(rows)
    missing = Spool(directory, total).missing.tolist()
    chunks = [missing[start : start + CHUNK] for start in range(0, len(missing), CHUNK)]
    work = partial(rate_chunk, program, rows, directory)
    processes = min(os.cpu_count() or 1, len(chunks), PROCESSES)
    done = total - len(missing)
    with progress.bar("answers", total) as bar:
        if processes <= 1:
            for chunk in chunks:
                work(chunk)
        else:
            # Spawned: a forked child would inherit the threads' locks of pyarrow.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(processes, context, _end_with_the_driver) as pool:
                for number in pool.map(work, chunks):
                    done += number
                    bar.update(done, f"{processes} processes")
    return Spool(directory, total)


def rate_chunk(program: Rate, rows: TableRows, directory: Path, chunk: list[int]) -> int:
    """Judge the rows at `chunk`, each on disk before the next one."""
    with closing(SpoolWriter(directory, "chunk")) as writer:
        done, _ = run_local(program, rows, chunk, (), lambda index, rating: writer.append(index, vars(rating)))
    return done


def _end_with_the_driver() -> None:
    """A worker whose driver was killed would wait for its next chunk for ever."""
    driver = multiprocessing.parent_process()
    assert driver

    def watch() -> None:
        driver.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _tidy(run: Run) -> None:
    """Leave what later work can use: a model's calls and logs."""
    for path in (run / "answers.parquet", run / "made_from.json"):
        path.unlink(missing_ok=True)
    shutil.rmtree(run / "spool", ignore_errors=True)
    if [path.name for path in run.path.iterdir()] == ["run.lock"]:
        (run / "run.lock").unlink()
        run.path.rmdir()
