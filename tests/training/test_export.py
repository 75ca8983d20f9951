"""Export in one process: files of bounded size, tied weights once, all or nothing."""

import errno
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM

from shard_dist.training import export as export_module
from shard_dist.training.export import export

pytestmark = pytest.mark.zero


@pytest.fixture(scope="module", autouse=True)
def _one_rank(tmp_path_factory):
    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "file"), 1)
    dist.init_process_group("gloo", rank=0, world_size=1, store=store)
    yield
    dist.destroy_process_group()


def saved_names(directory: Path) -> list[str]:
    names = []
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as stream:
            names += stream.keys()
    return sorted(names)


@pytest.mark.parametrize("tied", [False, True])
def test_shards_hold_every_weight_once_and_load(tmp_path: Path, tiny, tied: bool) -> None:
    base = tiny.save_model(tmp_path / "base", tied=tied)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    export(model, tokenizer, str(base), "", torch.float32, tmp_path / "out", shard_size="40KB")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert all(path.stat().st_size < 48_000 for path in files)
    assert saved_names(tmp_path / "out") == saved_names(base)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert sorted(index["weight_map"]) == saved_names(base)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


def test_dtype_and_generation_settings_of_the_base_are_kept(tmp_path: Path, tiny) -> None:
    base = tiny.save_model(tmp_path / "base")
    (base / "generation_config.json").write_text('{"eos_token_id": [256, 258], "temperature": 0.6}')
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    export(model, tokenizer, str(base), "", torch.bfloat16, tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16
    kept = (tmp_path / "out" / "generation_config.json").read_text()
    assert kept == (base / "generation_config.json").read_text()


def test_weights_get_their_names_on_disk_back(tmp_path: Path, tiny) -> None:
    """transformers holds Mixtral's experts in one tensor, its files do not."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MixtralConfig(vocab_size=260, num_key_value_heads=1, num_local_experts=3, dtype="float32", **sizes)
    MixtralForCausalLM(config).save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    export(model, tiny.tokenizer(), str(tmp_path / "base"), "", torch.float32, tmp_path / "out")
    assert saved_names(tmp_path / "out") == saved_names(tmp_path / "base")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


def test_a_full_disk_leaves_the_model_of_before(tmp_path: Path, tiny, monkeypatch) -> None:
    base = tiny.save_model(tmp_path / "base")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    export(model, tokenizer, str(base), "", torch.float32, tmp_path / "out")
    before = saved_names(tmp_path / "out")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export_module, "save_file", full)
    with pytest.raises(ValueError, match="no space left to write the model"):
        export(model, tokenizer, str(base), "", torch.float32, tmp_path / "out")
    assert saved_names(tmp_path / "out") == before
