"""Ray Train around the loop: what is refused before it starts, a dead worker, an error brought home."""

import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from shard_dist.artefacts import write_json
from shard_dist.training.checkpoint import MARKER, Marker, complete, tag
from shard_dist.training.loop import read_metrics
from shard_dist.training.supervise import run_training


@pytest.fixture
def job(tmp_path, tiny, base_model):
    return tiny.job(tmp_path, base_model, tiny.examples(21), tiny.examples(5, seed=1), epochs=10.0, checkpoint_every=5)


def test_bad_input_is_refused_before_any_process_starts(job, tmp_path) -> None:
    """Ray is not even running here."""
    with pytest.raises(ValueError, match="no such directory"):
        run_training(replace(job, model=str(tmp_path / "absent")), str(tmp_path / "ray"))
    with pytest.raises(ValueError, match=r"train\.global_batch_size=8 is no multiple"):
        run_training(replace(job, config=replace(job.config, micro_batch_size=3)), str(tmp_path / "ray"))
    with pytest.raises(ValueError, match=r"train\.deepspeed\.optimizer is set by"):
        run_training(replace(job, config=replace(job.config, deepspeed={"optimizer": {}})), str(tmp_path / "ray"))


def test_checkpoints_of_another_training_are_refused_before_any_process_starts(job, tmp_path) -> None:
    (tmp_path / "checkpoints" / tag(2)).mkdir(parents=True)
    write_json(tmp_path / "checkpoints" / tag(2) / MARKER, asdict(Marker(2, "another", 2)))
    with pytest.raises(ValueError, match="of another training"):
        run_training(job, str(tmp_path / "ray"))


def kill_one_worker(checkpoints: Path, killed: list[int]) -> None:
    """SIGKILL one training process of the cluster below this process, once a checkpoint is complete."""
    while not complete(checkpoints):
        time.sleep(0.01)
    for process in psutil.Process().children(recursive=True):
        if "RayTrainWorker" in process.name() + " ".join(process.cmdline()):
            killed.append(process.pid)
            process.kill()
            return


@pytest.mark.ray
@pytest.mark.zero
@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_worker_is_restarted_and_nothing_shows_in_the_losses(job, tmp_path, tiny, plain_training) -> None:
    killed: list[int] = []
    killer = threading.Thread(target=kill_one_worker, args=(tmp_path / "checkpoints", killed), daemon=True)
    killer.start()
    result = run_training(job, str(tmp_path / "ray"))
    assert killed, "the test did not find its worker"
    assert result["resumed_from"] >= 2
    lines = [line for line in read_metrics(Path(job.metrics_file)) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 31))
    expected, _ = plain_training(job, tiny.examples(21))
    assert [line["loss"] for line in lines] == pytest.approx(expected, abs=1e-4)
    assert Path(job.model_dir, "model.safetensors").is_file()


@pytest.mark.ray
@pytest.mark.zero
@pytest.mark.usefixtures("ray_cluster")
def test_a_workers_value_error_comes_home_in_its_own_words(job, tmp_path, tiny) -> None:
    """Not as a trace of Ray's, and not after max_failures restarts."""
    examples = [replace(example, target=" ") if example.id == "3" else example for example in tiny.examples(21)]
    bad = tiny.job(tmp_path, Path(job.model), examples, [])
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the whole text is compared
        run_training(bad, str(tmp_path / "ray"))
    assert str(caught.value) == "example tiny/3: its target is empty"
    assert caught.value.__cause__ is None
