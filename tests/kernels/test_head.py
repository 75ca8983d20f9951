"""LossHead by itself: what it returns, and how it differs from the functions: not at all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shard_kernels import HeadOptions, LossHead, eager_linear_cross_entropy, linear_cross_entropy, replace_head


def inputs(tokens: int = 12, hidden: int = 16, vocab: int = 40) -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    labels_N = torch.randint(0, vocab, (tokens,))
    labels_N[::3] = -100
    return nn.Linear(hidden, vocab), torch.randn(tokens, hidden, requires_grad=True), labels_N


def test_with_labels_it_is_the_loss_and_without_the_logits() -> None:
    linear, hidden_NH, labels_N = inputs()
    logits_NV = linear(hidden_NH)
    head = replace_head(linear, HeadOptions(softcap=5.0, label_smoothing=0.1))
    assert head is linear
    assert torch.equal(head(hidden_NH), logits_NV)
    expected = linear_cross_entropy(
        hidden_NH, head.weight, labels_N, bias=head.bias, softcap=5.0, label_smoothing=0.1, denominator=7.0
    )
    assert torch.equal(head(hidden_NH, labels_N, denominator=7.0), expected)


def test_the_torch_twin_behind_the_same_interface_agrees() -> None:
    linear, hidden_NH, labels_N = inputs()
    grads = {}
    for eager in (False, True):
        head = replace_head(linear, HeadOptions(logit_scale=0.5, z_loss=1e-3, eager=eager))
        head.zero_grad()
        hidden_NH.grad = None
        loss = head(hidden_NH, labels_N)
        loss.backward()
        grads[eager] = (loss, hidden_NH.grad, head.weight.grad.clone(), head.bias.grad.clone())
    for fused, plain in zip(grads[False], grads[True], strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("eager", [False, True])
def test_statistics_come_in_a_plain_tuple(eager: bool) -> None:
    """ZeRO-3's backward hooks see through tuples, lists and dicts only."""
    linear, hidden_NH, labels_N = inputs()
    result = replace_head(linear, HeadOptions(eager=eager))(hidden_NH, labels_N, return_stats=True)
    assert type(result) is tuple
    _, lse, correct, entropy = result
    logits_SV = nn.functional.linear(hidden_NH, linear.weight, linear.bias)[labels_N != -100].detach()
    torch.testing.assert_close(lse, logits_SV.logsumexp(1))
    assert torch.equal(correct, logits_SV.argmax(1) == labels_N[labels_N != -100])
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=logits_SV).entropy())
    assert not lse.requires_grad
    assert not entropy.requires_grad


@pytest.mark.parametrize("eager", [False, True])
def test_no_supervised_token_gives_a_zero_that_reaches_weight_and_hidden(eager: bool) -> None:
    linear, hidden_NH, labels_N = inputs()
    loss = replace_head(linear, HeadOptions(eager=eager))(hidden_NH, torch.full_like(labels_N, -100), denominator=9.0)
    assert loss.item() == 0
    loss.backward()
    for tensor in (hidden_NH, linear.weight, linear.bias):
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_a_budget_recomputes_and_changes_nothing_else() -> None:
    linear, hidden_NH, labels_N = inputs(tokens=64, vocab=300)
    grads = []
    for budget in (None, 1):
        head = replace_head(linear, HeadOptions(budget_bytes=budget))
        head.zero_grad()
        head(hidden_NH, labels_N).backward()
        grads.append(head.weight.grad.clone())
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-6)


def test_replacing_twice_takes_the_newer_options() -> None:
    linear, *_ = inputs()
    replace_head(linear, HeadOptions(softcap=2.0))
    assert replace_head(linear).options == HeadOptions()
    assert type(linear) is LossHead


def test_the_twin_checks_its_input_like_the_fused_loss() -> None:
    linear, hidden_NH, labels_N = inputs()
    for function in (linear_cross_entropy, eager_linear_cross_entropy):
        with pytest.raises(ValueError, match="0 to 39"):
            function(hidden_NH, linear.weight, labels_N.clamp(min=40))
