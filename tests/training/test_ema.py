"""The moving average against its recursion, number by number."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

import tiny
from relgan.networks import build_networks
from relgan.training.state import EMA


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def wander(net: nn.Module) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
    net(torch.randn(8, 3).to(next(net.parameters()).dtype))


def test_parameters_follow_the_recursion_and_buffers_are_copied() -> None:
    net = network().double()
    ema = EMA(net, 0.5)
    average = {name: p.detach().clone() for name, p in net.named_parameters()}
    for t in range(30):
        wander(net)
        ema.update(net)
        decay = 0.5 if t >= 8 else (1 + t) / (10 + t)
        for name, p in net.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * p.detach()
    for name, p in ema.module.named_parameters():
        torch.testing.assert_close(p, average[name], rtol=1e-12, atol=1e-12)
    for got, want in zip(ema.module.buffers(), net.buffers(), strict=True):
        assert torch.equal(got, want)


def test_a_short_run_forgets_where_it_began() -> None:
    """With 0.999 alone, 37 % of the initial weights would be left after 1,000 updates."""
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 1.0)
    ema = EMA(net, 0.999)
    nn.init.constant_(net.weight, 0.0)
    for _ in range(1000):
        ema.update(net)
    assert next(ema.module.parameters()).item() < 1e-3


def test_a_long_run_decays_at_the_given_rate() -> None:
    net = nn.Linear(1, 1, bias=False)
    ema = EMA(net, 0.9)
    for _ in range(100):
        ema.update(net)
    (average,) = ema.module.parameters()
    start = average.item()
    nn.init.constant_(net.weight, start + 1.0)
    for _ in range(10):
        ema.update(net)
    assert average.item() - start == pytest.approx(1 - 0.9**10, rel=1e-4)


def test_decay_zero_is_the_network_itself() -> None:
    net = network()
    ema = EMA(net, 0.0)
    for _ in range(3):
        wander(net)
        ema.update(net)
    for got, want in zip(ema.module.state_dict().values(), net.state_dict().values(), strict=True):
        assert torch.equal(got, want)


def test_the_average_is_separate_quiet_and_leaves_the_network_alone() -> None:
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    ema = EMA(net, 0.9)
    ema.update(net)
    assert net.training
    assert not ema.module.training
    assert not any(p.requires_grad for p in ema.module.parameters())
    assert all(p.requires_grad for p in net.parameters())
    shared = {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in ema.module.parameters()}
    assert not shared
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_restored_average_continues_bitwise() -> None:
    net = network()
    ema = EMA(net, 0.99)
    for _ in range(5):
        wander(net)
        ema.update(net)
    file = io.BytesIO()
    torch.save(ema.state_dict(), file)
    file.seek(0)
    restored = EMA(network(), 0.99)
    restored.load_state_dict(torch.load(file, weights_only=True))
    wander(net)
    ema.update(net)
    restored.update(net)
    for got, want in zip(restored.module.state_dict().values(), ema.module.state_dict().values(), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("name", ["dcgan", "cnn32"])
def test_generators_with_spectral_norm_in_channels_last(name: str) -> None:
    generator, _ = build_networks(tiny.model(name, width=4, generator_spectral_norm=True), 32, 3)
    generator.to(memory_format=torch.channels_last)
    ema = EMA(generator, 0.5)
    generator(torch.randn(4, 128))
    ema.update(generator)
    z = torch.randn(2, 128)
    torch.testing.assert_close(ema.module(z), generator.eval()(z))


def test_an_impossible_decay() -> None:
    with pytest.raises(ValueError, match="decay must be in"):
        EMA(network(), 1.0)
