"""Sharded over two CPU processes, the loss and its gradients are those of one."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate.commands.config.config_args import load_config_from_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import tess2lite as t2
from tess2lite.span_masks import after


def backward(lm):
    ids = torch.arange(5, 69).view(2, 32)  # (B, L)
    mask = after(32, 8).expand(2, 32)
    loss = lm(ids, mask, torch.tensor([1000, 3000]), self_condition=True)
    loss.backward()
    return loss.item()


def compare(rank, store, results):
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    whole, sharded = t2.load("tinytown-ar").train(), t2.load("tinytown-ar").train()
    for module in (*sharded.model.layers, sharded):
        fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
    losses = backward(whole), backward(sharded)
    worst = 0.0
    for one, two in zip(whole.parameters(), sharded.parameters(), strict=True):
        worst = max(worst, ((one.grad - two.grad.full_tensor()).abs().max() / one.grad.abs().max()).item())
    if rank == 0:
        torch.save((losses, worst), results)
    dist.destroy_process_group()


def test_two_shares_are_one_model(tmp_path):
    mp.spawn(compare, (str(tmp_path / "store"), str(tmp_path / "results")), nprocs=2)
    (whole, sharded), worst = torch.load(tmp_path / "results")
    assert abs(whole - sharded) < 1e-5 * whole and worst < 1e-4


def test_accelerate_reads_the_file():
    config = load_config_from_file(str(Path(__file__).parent.parent / "assets" / "accelerate_fsdp.yaml"))
    assert config.distributed_type == "FSDP" and config.fsdp_config["fsdp_version"] == 2
