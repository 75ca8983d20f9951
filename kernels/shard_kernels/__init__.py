"""The loss of a language model's head: exact, without masked tokens, within the memory of the head's own gradient.

    linear_cross_entropy, per_token_logprobs   functions of hidden states, weight and labels
    LossHead, install_loss_head, fuse_loss     inside a model
    plan_loss                                  which plan, how many bytes

`layout.py` tells how the logits' buffer becomes the weight's gradient, `rows.py` has the formulas, `planner.py` the
plans.
"""

from shard_kernels.causal_lm import fuse_loss, install_loss_head, logit_terms
from shard_kernels.eager import eager_linear_cross_entropy
from shard_kernels.head import HeadOptions, LossHead, replace_head
from shard_kernels.loss import linear_cross_entropy, per_token_logprobs
from shard_kernels.planner import LossPlan, plan_loss
from shard_kernels.plans import RowStats

__all__ = [
    "HeadOptions",
    "LossHead",
    "LossPlan",
    "RowStats",
    "eager_linear_cross_entropy",
    "fuse_loss",
    "install_loss_head",
    "linear_cross_entropy",
    "logit_terms",
    "per_token_logprobs",
    "plan_loss",
    "replace_head",
]
