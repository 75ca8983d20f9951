"""What a person and the trackers see of the lines that the training processes write."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from shard_dist.progress import Progress
from shard_dist.stages.train import Follower, tracked

STEP = {"total_steps": 3, "loss": 1.5, "tokens": 300, "seconds": 2.0, "mfu": 0.513}


class Log:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.lines: list[tuple[dict, int | None]] = []

    def log(self, values: dict, step: int | None = None) -> None:
        self.lines.append((values, step))

    def close(self) -> None: ...


def follow(path: Path, lines: list[dict]) -> tuple[Log, str]:
    """Trackers' values and the text shown for these lines, where no terminal is and every update is due."""
    log, screen = Log(), io.StringIO()
    with Progress(Console(file=screen, width=200), heartbeat=0).bar("steps", 0) as bar:
        follower = Follower(path, log, bar)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        follower.stop()
    return log, screen.getvalue()


def test_losses_by_source_and_term_have_names_of_their_own_and_text_stays_out() -> None:
    line = {"loss": 1.0, "skipped": True, "losses": {"org/set/sft": 2.0}, "warning": "w", "val_losses": {"a/dpo": 3.0}}
    assert tracked(line) == {
        "train/loss": 1.0,
        "train/skipped": True,
        "train/loss/org/set/sft": 2.0,
        "train/val_loss/a/dpo": 3.0,
    }


def test_the_live_line_has_loss_speed_validation_and_utilisation(tmp_path) -> None:
    lines = [{"step": 1, **STEP}, {"step": 1, "val_loss": 1.75}, {"step": 2, **STEP, "losses": {"a/sft": 1.5}}]
    log, shown = follow(tmp_path / "metrics.jsonl", lines)
    assert "1/3 steps: loss 1.5000, 150 tokens/s, MFU 51%" in shown
    assert "2/3 steps: loss 1.5000, 150 tokens/s, validation 1.7500, MFU 51%" in shown
    assert [step for _, step in log.lines] == [1, 1, 2]
    assert log.lines[1][0] == {"train/val_loss": 1.75}
    assert log.lines[2][0]["train/loss/a/sft"] == 1.5


@pytest.mark.parametrize("loss", [float("nan"), 9.0])
def test_a_warning_is_said_once_with_its_step(tmp_path, loss: float) -> None:
    _, shown = follow(
        tmp_path / "metrics.jsonl", [{"step": 7, **STEP, "loss": loss, "warning": "loss spike: [b]9[/b]"}]
    )
    assert shown.count("step 7: loss spike: [b]9[/b]") == 1


def test_a_cpu_has_no_utilisation_to_show(tmp_path) -> None:
    line = {name: value for name, value in STEP.items() if name != "mfu"}
    assert "MFU" not in follow(tmp_path / "metrics.jsonl", [{"step": 1, **line}])[1]


def test_a_cluster_that_has_become_too_small_is_told_once_per_loss(tmp_path) -> None:
    """Ray waits for nodes without a word, and a training may wait for hours."""
    answers, screen = iter(["", "32 GPUs; has 24", "32 GPUs; has 24", "", "32 GPUs; has 16"]), io.StringIO()

    def require() -> None:
        if lack := next(answers, ""):
            raise ValueError(lack)

    with Progress(Console(file=screen, width=200), heartbeat=0).bar("steps", 0) as bar:
        follower = Follower(tmp_path / "metrics.jsonl", Log(), bar, require)
        follower.stop()  # its own looks
        for _ in range(5):
            follower._look()
    assert screen.getvalue().count("has 24: a node is gone") == 1
    assert screen.getvalue().count("has 16: a node is gone") == 1
