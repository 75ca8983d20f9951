"""Export: files of bounded size, every weight once and as it is on disk, all or nothing; on one rank and on two."""

import errno
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    HrmTextConfig,
    HrmTextForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    dynamic_module_utils,
)

from shard_dist.training import export as export_module
from shard_dist.training.export import export

pytestmark = pytest.mark.zero

HERE = Path(__file__).parent
MODEL_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

from .extra import FACTOR


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = FACTOR * output.logits
        return output
"""


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


def assert_equal_weights(model: PreTrainedModel, directory: Path) -> None:
    again = AutoModelForCausalLM.from_pretrained(directory)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


@pytest.mark.parametrize("tied", [False, True])
def test_files_hold_every_weight_once_and_load(tmp_path: Path, tiny, tied: bool) -> None:
    """No file is larger than was asked for, since that is two of the largest weights; only the last is half empty."""
    base = tiny.save_model(tmp_path / "base", tied=tied, num_hidden_layers=8)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    limit = 2 * 4 * 260 * 32
    export(model, tokenizer, str(base), "", torch.float32, tmp_path / "out", shard_bytes=limit)
    sizes = [path.stat().st_size for path in sorted((tmp_path / "out").glob("*.safetensors"))]
    assert len(sizes) > 4
    assert all(limit / 2 < size < limit + 4096 for size in sizes[:-1])  # the weights and a header
    assert saved_names(tmp_path / "out") == saved_names(base)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert sorted(index["weight_map"]) == saved_names(base)
    assert index["metadata"]["total_size"] == sum(4 * weight.numel() for weight in model.parameters())
    assert_equal_weights(model, tmp_path / "out")


def test_no_file_is_smaller_than_two_of_the_largest_weights(tmp_path: Path, tiny) -> None:
    """What a rank holds is a file, a weight and its copy: never more than two files, whatever was asked for."""
    base = tiny.save_model(tmp_path / "base", num_hidden_layers=8)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    export(model, tokenizer, str(base), "", torch.float32, tmp_path / "out", shard_bytes=1)
    largest = max(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert largest >= 2 * max(4 * weight.numel() for weight in model.parameters())


def test_what_lies_beside_the_weights(tmp_path: Path, tiny) -> None:
    """The base's dtype, its generation settings unchanged, the chat template, the card, and no leftover."""
    base = tiny.save_model(tmp_path / "base")
    (base / "generation_config.json").write_text('{"eos_token_id": [256, 258], "temperature": 0.6}')
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    out = tmp_path / "out"
    export(model, tokenizer, str(base), "", torch.bfloat16, out, readme="# Card\n")
    assert AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype == torch.bfloat16
    assert (out / "generation_config.json").read_text() == (base / "generation_config.json").read_text()
    assert AutoTokenizer.from_pretrained(out).chat_template == tokenizer.chat_template
    assert (out / "README.md").read_text() == "# Card\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]


def test_buffers_keep_their_dtype(tmp_path: Path, tiny) -> None:
    base = tiny.save_model(tmp_path / "base")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    model.register_buffer("count", torch.tensor([3, 2**40 + 1]))
    model.register_buffer("correction", torch.tensor(1 / 3))
    export(model, tokenizer, str(base), "", torch.bfloat16, tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as stream:
        assert torch.equal(stream.get_tensor("count"), model.count)
        assert torch.equal(stream.get_tensor("correction"), model.correction)
        assert stream.get_tensor("model.norm.weight").dtype == torch.bfloat16


def mixtral(sizes: dict) -> PreTrainedModel:
    config = MixtralConfig(num_local_experts=3, num_hidden_layers=2, **sizes)
    return MixtralForCausalLM(config)


def hrm(sizes: dict) -> PreTrainedModel:
    return HrmTextForCausalLM(HrmTextConfig(num_layers_per_stack=1, **sizes))


@pytest.mark.parametrize("build", [mixtral, hrm])
def test_weights_get_their_form_on_disk_back(tmp_path: Path, tiny, build) -> None:
    """transformers holds Mixtral's experts in one tensor, its files do not; with HrmText's fused weights it is the
    other way round. Files as small as can be, so that a stack of experts spans several.
    """
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2}
    torch.manual_seed(0)
    build({"vocab_size": 260, "dtype": "float32", **sizes}).save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    export(model, tiny.tokenizer(), str(tmp_path / "base"), "", torch.float32, tmp_path / "out", shard_bytes=1)
    assert saved_names(tmp_path / "out") == saved_names(tmp_path / "base")
    assert saved_names(tmp_path / "out") != sorted(model.state_dict())
    assert_equal_weights(model, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(4 * weight.numel() for weight in model.parameters())


def test_a_model_with_its_own_code_keeps_it(tmp_path: Path, tiny, monkeypatch) -> None:
    """The export loads without the base, and computes what the code says."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    base = tiny.save_model(tmp_path / "base")
    (base / "modeling_own.py").write_text(MODEL_CODE)
    (base / "extra.py").write_text("FACTOR = 3.0\n")
    config = json.loads((base / "config.json").read_text()) | {"model_type": "own", "architectures": ["OwnModel"]}
    config["auto_map"] = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    (base / "config.json").write_text(json.dumps(config))
    model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True)
    export(model, AutoTokenizer.from_pretrained(base), str(base), "", torch.float32, tmp_path / "out")
    base.rename(tmp_path / "elsewhere")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(again(ids).logits, model(ids).logits)


def test_a_full_disk_leaves_the_model_of_before(tmp_path: Path, tiny, monkeypatch) -> None:
    """Also where later files would find room again: nothing more is written."""
    base = tiny.save_model(tmp_path / "base", num_hidden_layers=8)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    export(model, tokenizer, str(base), "", torch.float32, tmp_path / "out")
    before = saved_names(tmp_path / "out")
    files = []

    def full_once(weights: dict, path: Path, metadata: dict) -> None:
        files.append(path)
        if len(files) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(weights, path, metadata)

    monkeypatch.setattr(export_module, "save_file", full_once)
    with pytest.raises(ValueError, match=r"cannot write the model .*/out: .*No space left on device"):
        export(model, tokenizer, str(base), "", torch.float32, tmp_path / "out", shard_bytes=1)
    assert len(files) == 1
    assert saved_names(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]


def test_two_ranks_of_zero3(tmp_path: Path, tiny, launch) -> None:
    """The export's logits are the trained engine's; a disk that is full for one rank is both ranks' ValueError."""
    base = tiny.save_model(tmp_path / "base", tied=True, num_hidden_layers=4)
    done = launch(HERE / "export_rank.py", base, tmp_path).wait()
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        assert (tmp_path / f"error-{rank}").read_text().startswith("rank 1 cannot write the model")
    assert not (tmp_path / "full").exists()
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 3, "both ranks write, one of them twice"
    seen = torch.load(tmp_path / "logits.pt")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert exported.lm_head.weight.data_ptr() == exported.model.embed_tokens.weight.data_ptr()
    with torch.no_grad():
        torch.testing.assert_close(exported(seen["ids"]).logits, seen["logits"], rtol=0, atol=1e-5)
        untrained = AutoModelForCausalLM.from_pretrained(base)(seen["ids"]).logits
    assert (untrained - seen["logits"]).abs().max() > 0.01
