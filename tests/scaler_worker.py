"""Steps in fp16; the gradients of one overflow in the part of one rank. Usage: RANKS of tests/scaler_worker.py FILE."""

import json
import sys
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from thriftune import distributed


def main() -> None:
    rank = distributed.join("gloo")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    mesh, policy = init_device_mesh("cpu", (rank.world_size,)), MixedPrecisionPolicy(torch.float16, torch.float32)
    for module in (model[0], model):
        fully_shard(module, mesh=mesh, mp_policy=policy)
    optimizer, scaler = torch.optim.AdamW(model.parameters(), lr=1e-2), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    seen = []
    for step in range(3):
        scaler.scale(model(torch.ones(2, 8, dtype=torch.float16)).float().pow(2).mean()).backward()
        if step == 1 and rank.index == 1:
            model[1].weight.grad.to_local()[0, 0] = float("inf")
        before = model[0].weight.full_tensor().clone()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        seen.append([scaler.get_scale(), not torch.equal(before, model[0].weight.full_tensor())])
    Path(f"{sys.argv[1]}.{rank.index}").write_text(json.dumps(seen))
    distributed.leave()


if __name__ == "__main__":
    main()
