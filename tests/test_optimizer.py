"""Parameter groups, optimizer state as tensors, schedule, norms and clipping."""

from __future__ import annotations

import copy
import math
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from tbac_uniimage.training.step import optimizer as ours
from torch import nn

SETTINGS = SimpleNamespace(optimizer="adamw", learning_rate=1e-2, betas=(0.9, 0.999))


class Toy(nn.Module):
    """One large matrix (8-bit moments), one small one, a norm, queries."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.queries = nn.Parameter(torch.randn(3, 80))
        self.wide = nn.Linear(80, 64)
        self.norm = nn.LayerNorm(64)
        self.out = nn.Linear(64, 2, bias=False)
        self.unused = nn.Linear(2, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(self.wide(x + self.queries.mean(0))))


def built(name: str = "adamw") -> tuple[Toy, torch.optim.Optimizer]:
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    toy = Toy()
    settings = SimpleNamespace(**{**vars(SETTINGS), "optimizer": name})
    return toy, ours.make_optimizer(ours.parameter_groups(toy, 0.05), settings)


def train(toy: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(4, 80, generator=torch.Generator().manual_seed(step))
        toy(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_single_layers_may_learn_faster(tiny) -> None:
    """The innermost name counts."""
    module = nn.ModuleDict({"connector": tiny.connector, "transformer": copy.deepcopy(tiny.transformer)})
    rates = {"transformer": 2.0, "patch_embed": 10.0, "bias": 3.0}
    groups = ours.parameter_groups(module, 0.0, rates)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    grouped = [(names[id(p)], group) for group in groups for p in group["params"]]
    found = {name: (group["weight_decay"], group["factor"]) for name, group in grouped}
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert found.keys() == trained and len(grouped) == len(trained)
    assert found["transformer.patch_embed.proj.weight"] == (0.0, 10.0)
    assert found["transformer.patch_embed.proj.bias"] == (0.0, 3.0)
    assert found["transformer.transformer_blocks.0.attn1.to_q.weight"] == (0.0, 2.0)
    assert {found[name][1] for name in trained if name.startswith("connector")} == {1.0, 3.0}
    with pytest.raises(ValueError, match="train.rates names source_embed, and nothing that is trained is"):
        ours.parameter_groups(module, 0.0, {"source_embed": 10.0})


def test_what_decays(tiny) -> None:
    module = nn.ModuleDict({"connector": tiny.connector, "transformer": tiny.transformer})
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    decayed, undecayed = ours.parameter_groups(module, 0.05)
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.05, 0.0)
    decayed, undecayed = ({names[id(p)] for p in group["params"]} for group in (decayed, undecayed))
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert decayed | undecayed == trained and not decayed & undecayed
    assert "connector.reserved_rows" not in trained
    assert all(name.endswith(".weight") for name in decayed)
    assert {
        "connector.queries",
        "connector.layers.0.bias",
        "connector.layers.3.weight",
        "transformer.caption_norm.weight",
        "transformer.scale_shift_table",
        "transformer.transformer_blocks.3.scale_shift_table",
        "transformer.transformer_blocks.0.ff.conv_depth.bias",
    } <= undecayed
    assert {
        "connector.layers.0.weight",
        "connector.layers.2.weight",
        "transformer.patch_embed.proj.weight",
        "transformer.time_embed.linear.weight",  # its owner's owner is called a norm
        "transformer.transformer_blocks.0.ff.conv_depth.weight",
        "transformer.transformer_blocks.3.attn2.to_k.weight",
        "transformer.proj_out.weight",
    } <= decayed


def test_groups_leave_out_what_is_empty() -> None:
    assert ours.parameter_groups(nn.Linear(2, 2).requires_grad_(False), 0.1) == []
    assert len(ours.parameter_groups(nn.LayerNorm(4), 0.1)) == 1
    with pytest.raises(ValueError, match="nothing to train"):
        ours.make_optimizer([], SETTINGS)


def test_optimizers_by_name() -> None:
    _, optimizer = built()
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["betas"] == (0.9, 0.999) and optimizer.defaults["lr"] == 1e-2
    settings = SimpleNamespace(optimizer="sgd", learning_rate=1e-2, betas=(0.9, 0.999))
    with pytest.raises(ValueError, match="train.optimizer is 'sgd'"):
        ours.make_optimizer(ours.parameter_groups(Toy(), 0.1), settings)


def test_8_bits_without_bitsandbytes(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    settings = SimpleNamespace(**{**vars(SETTINGS), "optimizer": "adamw_8bit"})
    with pytest.raises(ImportError, match="pip install bitsandbytes"):
        ours.make_optimizer(ours.parameter_groups(Toy(), 0.1), settings)


def test_8_bits_stay_close_to_32() -> None:
    (toy, optimizer), (toy8, optimizer8) = built(), built("adamw_8bit")
    train(toy, optimizer, range(5))
    train(toy8, optimizer8, range(5))
    state = optimizer8.state[toy8.wide.weight]
    assert state["state1"].dtype == torch.uint8 and state["step"] == 5
    assert optimizer8.state[toy8.out.weight]["state1"].dtype == torch.float32
    torch.testing.assert_close(toy8.wide.weight, toy.wide.weight, atol=5e-3, rtol=0)


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_state_is_made_without_any_effect(name: str) -> None:
    (toy, optimizer), (reference, untouched) = built(name), built(name)
    toy(torch.ones(1, 80)).sum().backward()
    gradients = [None if p.grad is None else p.grad.clone() for p in toy.parameters()]
    tensors = ours.optimizer_tensors(dict(toy.named_parameters()), optimizer)
    assert_same(weights(toy), weights(reference))
    for parameter, gradient in zip(toy.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)
    assert all(not value.any() for value in tensors.values())
    assert all(isinstance(value, torch.Tensor) for value in tensors.values())
    assert len(tensors) == (21 if name == "adamw" else 23)  # 7 parameters, one of them with two maxima
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 1e-2]
    optimizer.zero_grad()
    train(toy, optimizer, range(3))
    train(reference, untouched, range(3))
    assert_same(weights(toy), weights(reference))


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
@pytest.mark.parametrize("begun", [False, True])
def test_loading_in_place_restores_exactly(name: str, begun: bool) -> None:
    toy, optimizer = built(name)
    train(toy, optimizer, range(4))
    saved = ours.optimizer_tensors(dict(toy.named_parameters()), optimizer)
    assert saved["optimizer/wide.weight/step"] == 4 and saved["optimizer/unused.weight/step"] == 0
    saved = {key: value.clone() for key, value in saved.items()}
    other, resumed = built(name)
    if begun:
        train(other, resumed, range(10, 12))
    other.load_state_dict(toy.state_dict())
    live = ours.optimizer_tensors(dict(other.named_parameters()), resumed)
    assert live.keys() == saved.keys()
    for key, value in live.items():
        value.copy_(saved[key])
    train(toy, optimizer, range(4, 8))
    train(other, resumed, range(4, 8))
    assert_same(weights(other), weights(toy))
    expected = ours.optimizer_tensors(dict(toy.named_parameters()), optimizer)
    assert_same(ours.optimizer_tensors(dict(other.named_parameters()), resumed), expected)


def test_schedule() -> None:
    rates = [ours.learning_rate(step, 1000, 1e-4, 1e-5, 100) for step in range(1001)]
    assert rates[0] == pytest.approx(1e-4 / 101)
    assert rates[49] == pytest.approx(1e-4 * 50 / 101)
    assert rates[100] == max(rates) == 1e-4
    assert rates[550] == pytest.approx(5.5e-5)
    assert rates[1000] == pytest.approx(1e-5)
    assert all(a > b for a, b in zip(rates[100:], rates[101:], strict=False))
    assert ours.learning_rate(0, 10, 1e-4, 1e-5, 0) == 1e-4
    assert ours.learning_rate(5, 5, 1e-4, 1e-5, 10) == pytest.approx(1e-4 * 6 / 11)  # all of it warm-up


def with_gradients() -> Toy:
    toy = Toy()
    toy(torch.ones(2, 80)).square().sum().backward()
    return toy


def test_norms() -> None:
    toy = with_gradients()
    gradients = torch.cat([p.grad.flatten() for p in toy.parameters() if p.grad is not None])
    norm = ours.global_norm(toy.parameters())
    assert norm.dtype == torch.float32 and norm.shape == ()
    assert norm.item() == pytest.approx(gradients.double().norm().item(), rel=1e-6)
    parts = ours.part_norms(dict(toy.named_parameters()))
    assert parts.keys() == {"queries", "wide", "norm", "out"}
    assert parts["queries"] == pytest.approx(toy.queries.grad.norm().item())
    assert math.hypot(*parts.values()) == pytest.approx(norm.item())
    toy.out.weight.grad[0, 0] = math.nan
    assert ours.global_norm(toy.parameters()).isnan()
    assert ours.global_norm([]) == 0 and ours.part_norms({}) == {}


def test_parts_by_name() -> None:
    assert ours.part_of("connector.queries") == "queries"
    assert ours.part_of("connector.layers.0.weight") == "connector"
    assert ours.part_of("transformer.transformer_blocks.0.attn1.to_q.weight") == "transformer"
    assert ours.part_of("transformer.transformer_blocks.0.attn1.to_q.lora_A.default.weight") == "lora"


def test_clip() -> None:
    toy = with_gradients()
    norm = ours.global_norm(toy.parameters())
    reference = copy.deepcopy([p.grad for p in toy.parameters()])
    ours.clip(toy.parameters(), norm, norm.item() * 2)
    for parameter, gradient in zip(toy.parameters(), reference, strict=True):
        assert gradient is None or torch.equal(parameter.grad, gradient)
    ours.clip(toy.parameters(), norm.item(), norm.item() / 4)
    assert ours.global_norm(toy.parameters()).item() == pytest.approx(norm.item() / 4, rel=1e-5)


def test_update_rms_is_that_of_the_change() -> None:
    parameters = [
        nn.Parameter(torch.zeros(300, 100)),
        nn.Parameter(torch.zeros(10)),
        nn.Parameter(torch.zeros(0)),
    ]
    update = ours.UpdateRMS(parameters)
    assert sum(values.numel() for values in update.before) <= 2 * ours.SAMPLED
    with torch.no_grad():
        parameters[0].normal_(std=2e-3, generator=torch.Generator().manual_seed(0))
        parameters[1].fill_(1.0)
    exact = math.sqrt((30_000 * 4e-6 + 10) / 30_010)
    assert update.value() == pytest.approx(exact, rel=0.05)
    assert ours.UpdateRMS(parameters).value() == 0


@pytest.mark.slow
def test_sharded_equals_whole() -> None:
    """Two processes with FSDP2: the assertions are in :func:`worker`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    workers = [
        subprocess.Popen(
            [sys.executable, __file__], env={**environment, "RANK": str(rank)}, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    try:
        for process in workers:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors.decode()
    finally:
        for process in workers:
            process.kill()


def worker() -> None:
    """One of two processes: norms, clipping, update, state and averages of a sharded module."""
    import torch.distributed as dist
    from tbac_uniimage.training.step.ema import AveragedWeights
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    whole, toy = Toy(), Toy()
    fully_shard(toy, mesh=init_device_mesh("cpu", (2,)))
    named, reference = dict(toy.named_parameters()), dict(whole.named_parameters())
    pairs = [
        (module, ours.make_optimizer(ours.parameter_groups(module, 0.05), SETTINGS))
        for module in (toy, whole)
    ]
    ema, expected = AveragedWeights(named, 0.99), AveragedWeights(reference, 0.99)
    state = ours.optimizer_tensors(named, pairs[0][1])
    assert type(state["optimizer/wide.weight/exp_avg"]) is type(toy.wide.weight.data)
    for step in range(3):
        found = []
        for module, optimizer in pairs:
            module(
                torch.randn(4, 80, generator=torch.Generator().manual_seed(step))
            ).square().mean().backward()
            norm = ours.global_norm(module.parameters())
            parts = ours.part_norms(dict(module.named_parameters()))
            update = ours.UpdateRMS(module.parameters())
            ours.clip(module.parameters(), norm, 0.01)
            optimizer.step()
            optimizer.zero_grad()
            found.append([norm.item(), *parts.values(), update.value()])
        assert found[0][:-1] == pytest.approx(found[1][:-1], rel=1e-4), found
        assert found[0][-1] == pytest.approx(found[1][-1], rel=0.1), found  # looks at other values
        ema.update()
        expected.update()
    state = ours.optimizer_tensors(named, pairs[0][1])
    for key, value in ours.optimizer_tensors(reference, pairs[1][1]).items():
        sharded = state[key]
        sharded = sharded.full_tensor() if hasattr(sharded, "full_tensor") else sharded
        torch.testing.assert_close(sharded, value, rtol=1e-4, atol=1e-7)
    x = torch.ones(1, 80)
    with ema.applied(), expected.applied():
        torch.testing.assert_close(toy(x), whole(x))
        toy.reshard()
    torch.testing.assert_close(toy(x), whole(x))
    dist.destroy_process_group()


if __name__ == "__main__":
    worker()
    os._exit(0)  # FSDP2 on a CPU aborts about one interpreter in twenty while it shuts down (torch 2.13)
