"""Ray Train around the loop: what is refused before it starts, a dead worker, a drained node, an error brought home."""

import json
import pickle
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from shard_dist.artefacts import write_json
from shard_dist.training.checkpoint import MARKER, Marker, complete, tag
from shard_dist.training.loop import read_metrics
from shard_dist.training.prepare import prepare
from shard_dist.training.supervise import run_training


@pytest.fixture
def job(tmp_path, tiny, base_model):
    return tiny.job(tmp_path, base_model, tiny.examples(21), tiny.examples(5, seed=1), epochs=10.0, checkpoint_every=5)


def test_bad_input_is_refused_before_any_process_starts(job, tmp_path) -> None:
    """Ray is not even running here."""
    with pytest.raises(ValueError, match="no such directory"):
        run_training(replace(job, model=str(tmp_path / "absent")), str(tmp_path / "ray"))
    with pytest.raises(ValueError, match=r"train\.long\.sequence_parallel is 3: llama's 4 attention heads"):
        long = replace(job.config.long, sequence_parallel=3)
        run_training(replace(job, config=replace(job.config, long=long)), str(tmp_path / "ray"))
    with pytest.raises(ValueError, match=r"train\.deepspeed\.optimizer is set by"):
        run_training(replace(job, config=replace(job.config, deepspeed={"optimizer": {}})), str(tmp_path / "ray"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": "others"}, "^the settings changed since"),
        ({"examples": "others", "tokenizer": "another"}, "^the examples and the tokenizer changed since"),
        ({}, r"optim\.pt is missing"),
    ],
)
def test_foreign_and_damaged_checkpoints_are_refused_before_any_process_starts(job, tmp_path, changes, message) -> None:
    (tmp_path / "checkpoints" / tag(2)).mkdir(parents=True)
    marker = Marker(2, prepare(job).identity | changes, 2, {"optim.pt": 10})
    write_json(tmp_path / "checkpoints" / tag(2) / MARKER, asdict(marker))
    with pytest.raises(ValueError, match=message):
        run_training(job, str(tmp_path / "ray"))


def kill_one_worker(checkpoints: Path, killed: list[int]) -> None:
    """SIGKILL one training process of the cluster below this process, once a checkpoint is complete."""
    while not complete(checkpoints):
        time.sleep(0.01)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile
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
    """Not as a trace of Ray's, and not after max_failures restarts: a rate that no weight survives."""
    bad = tiny.job(tmp_path, Path(job.model), tiny.examples(21), [], learning_rate=1e30, epochs=10.0)
    with pytest.raises(ValueError, match=r"^step 4: the loss or its gradient was not finite in 3 steps") as caught:
        run_training(bad, str(tmp_path / "ray"))
    assert caught.value.__cause__ is None
    bad_steps = [json.loads(line) for line in (tmp_path / "bad_steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in bad_steps] == [2, 3, 4], "no step was done again"


@pytest.mark.ray
@pytest.mark.zero
def test_a_drained_node_is_left_at_once_and_costs_no_failure(tmp_path, tiny, base_model) -> None:
    """Two nodes of a cluster of its own, so in a process of its own. The drain gives five minutes; nobody waits."""
    job = tiny.job(tmp_path, base_model, tiny.examples(16), [], workers=1, epochs=40.0, max_failures=0)
    (tmp_path / "job.pickle").write_bytes(pickle.dumps(job))
    command = [sys.executable, str(Path(__file__).with_name("drained_node.py")), str(tmp_path / "job.pickle")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=290, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["resumed_from"] > 0
    lines = [line for line in read_metrics(Path(job.metrics_file)) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 81))
