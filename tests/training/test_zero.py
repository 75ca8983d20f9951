"""ZeRO-3 on two gloo ranks against plain torch on one process; kill and resume; export."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from shard_dist.training.checkpoint import complete
from shard_dist.training.loop import read_metrics

pytestmark = pytest.mark.zero

TRAIN, VAL = (
    21,
    5,
)  # 21 examples in batches of 8: the last batch of an epoch is short and leaves a rank with less


def losses_of(job, key: str = "loss") -> list[float]:
    return [line[key] for line in read_metrics(Path(job.metrics_file)) if key in line]


@pytest.fixture(scope="module")
def clean(tmp_path_factory, tiny, base_model, run_ranks):
    """A run that nothing disturbs: 6 steps of 2 ranks x 2 accumulation steps x 2 rows."""
    root = tmp_path_factory.mktemp("clean")
    job = tiny.job(root, base_model, tiny.examples(TRAIN), tiny.examples(VAL, seed=1), weight_decay=0.1)
    done = run_ranks(job)
    assert done.returncode == 0, done.stderr[-3000:]
    return job


def test_losses_equal_plain_torch(clean, tiny, plain_training) -> None:
    """One normaliser: uneven answers, accumulation and ranks do not show in the loss."""
    expected, _ = plain_training(clean, tiny.examples(TRAIN))
    assert losses_of(clean) == pytest.approx(expected, abs=1e-5)
    assert expected[0] - expected[-1] > 0.1, "the model learns, so equal losses mean equal updates"


def test_export_is_the_trained_model(clean, tiny, plain_training) -> None:
    """It loads in transformers, equals the plainly trained weights, and has the reported validation loss."""
    _, trained = plain_training(clean, tiny.examples(TRAIN))
    exported = AutoModelForCausalLM.from_pretrained(clean.model_dir)
    tokenizer = AutoTokenizer.from_pretrained(clean.model_dir)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(clean.model).chat_template
    assert exported.dtype == torch.float32
    rows = tiny.encoded(tiny.examples(VAL, seed=1), clean.config)
    with torch.no_grad():
        ids = torch.tensor(rows[0].ids)[None]
        torch.testing.assert_close(exported(ids).logits, trained(ids).logits, rtol=1e-3, atol=1e-3)
        val_loss = tiny.summed_loss(exported, rows) / sum(tiny.supervised(row) for row in rows)
    assert losses_of(clean, "val_loss")[-1] == pytest.approx(val_loss.item(), abs=1e-5)


def test_result_and_metrics_tell_the_same(clean) -> None:
    result = pickle.loads(Path(clean.metrics_file).with_name("result.pickle").read_bytes())
    lines = [line for line in read_metrics(Path(clean.metrics_file)) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {line["total_steps"] for line in lines} == {6}
    assert result["steps"] == 6
    assert (result["examples"], result["val_examples"], result["too_long"], result["resumed_from"]) == (
        21,
        5,
        0,
        0,
    )
    assert result["final_loss"] == lines[-1]["loss"]
    assert result["supervised_tokens"] == sum(line["supervised_tokens"] for line in lines)
    assert [line["step"] for line in read_metrics(Path(clean.metrics_file)) if "val_loss" in line] == [3, 6]


@pytest.mark.parametrize("ranks", [2, 1])
def test_a_kill_and_another_call_give_the_same_losses(clean, tmp_path, tiny, base_model, run_ranks, ranks) -> None:
    """SIGKILL after step 5 with the last checkpoint at 4: step 5 is done again, by as many ranks or fewer, and counted
    once."""
    job = tiny.job(tmp_path, base_model, tiny.examples(TRAIN), tiny.examples(VAL, seed=1), weight_decay=0.1)
    assert run_ranks(job, die_after=5).returncode != 0
    assert [marker.step for marker in complete(Path(job.checkpoint_dir))] == [2, 4]
    assert not Path(job.model_dir).exists()
    with Path(job.metrics_file).open("a") as stream:
        stream.write('{"step": 6, "lo')  # as a kill in the middle of a write leaves it
    job.config.workers = ranks
    again = run_ranks(job, ranks=ranks)
    assert again.returncode == 0, again.stderr[-3000:]
    within = 1e-6 if ranks == 2 else 1e-5  # another number of ranks adds up in another order
    assert losses_of(job) == pytest.approx(losses_of(clean), abs=within)
    assert losses_of(job, "val_loss") == pytest.approx(losses_of(clean, "val_loss"), abs=within)
    result = pickle.loads(Path(job.metrics_file).with_name("result.pickle").read_bytes())
    assert result["resumed_from"] == 4
    assert [marker.step for marker in complete(Path(job.checkpoint_dir))] == [4, 6]


def test_bf16_with_recomputation_and_fewer_examples_than_ranks(tmp_path, tiny, run_ranks, plain_training) -> None:
    """One example on two ranks leaves a rank without tokens; bf16 stays near fp32; the export has the base's dtype."""
    base = tiny.save_model(tmp_path / "base", tied=True)
    settings = {"bf16": True, "gradient_checkpointing": True, "epochs": 3.0}
    job = tiny.job(tmp_path, base, tiny.examples(1), [], **settings)
    done = run_ranks(job)
    assert done.returncode == 0, done.stderr[-3000:]
    expected, _ = plain_training(job, tiny.examples(1))
    assert losses_of(job) == pytest.approx(expected, rel=0.02)
    exported = AutoModelForCausalLM.from_pretrained(job.model_dir)
    assert exported.dtype == torch.float32
    assert exported.lm_head.weight.data_ptr() == exported.model.embed_tokens.weight.data_ptr()
    assert json.loads(Path(job.model_dir, "config.json").read_text())["tie_word_embeddings"] is True
    result = pickle.loads(Path(job.metrics_file).with_name("result.pickle").read_bytes())
    assert result["val_loss"] is None
