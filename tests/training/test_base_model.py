"""Models that cannot be trained are found before anything starts."""

from pathlib import Path
from types import ModuleType

import pytest

from shard_dist.training.base_model import check_model


def test_a_trainable_model_passes(base_model: Path) -> None:
    check_model(str(base_model))


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such directory"):
        check_model(str(tmp_path / "absent"))


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot open the model"):
        check_model(str(tmp_path))


def test_a_tokenizer_without_chat_template(tmp_path: Path, tiny: ModuleType) -> None:
    model = tiny.save_model(tmp_path / "base")
    (model / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template"):
        check_model(str(model))
    tiny.tokenizer().save_pretrained(tmp_path / "other")
    check_model(str(model), tokenizer=str(tmp_path / "other"))
