"""TRL's DPOTrainer on one batch, in a process of its own: trl_dpo.py RUN.pickle RESULT.pt.

RUN has the directories of `policy` and `reference`, the `examples` and `beta`; RESULT the loss and the gradients.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

run = pickle.loads(Path(sys.argv[1]).read_bytes())
policy, reference = (
    AutoModelForCausalLM.from_pretrained(run[name], dtype=torch.float32) for name in ("policy", "reference")
)
rows = [
    {
        "prompt": list(example.messages),
        "chosen": [{"role": "assistant", "content": example.target}],
        "rejected": [{"role": "assistant", "content": example.rejected}],
    }
    for example in run["examples"]
]
settings = DPOConfig(
    output_dir=str(Path(sys.argv[2]).with_suffix("")), beta=run["beta"], per_device_train_batch_size=len(rows),
    max_length=None, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", disable_tqdm=True,
)  # fmt: skip
trainer = DPOTrainer(
    policy, reference, args=settings, train_dataset=Dataset.from_list(rows),
    processing_class=AutoTokenizer.from_pretrained(run["policy"]),
)  # fmt: skip
(batch,) = trainer.get_train_dataloader()
loss = trainer.compute_loss(trainer.model, batch)
loss.backward()
grads = {name: weight.grad for name, weight in policy.named_parameters()}
torch.save({"loss": loss.item(), "tokens": int(batch["completion_mask"].sum()), "gradients": grads}, sys.argv[2])
