"""What ``fit`` does with several processes, without ``fit``: the bare torchrun loop, for those who want to see inside.

    torchrun --nproc-per-node 2 appendix/bare_ddp.py

starts this program twice. Each process has its own copy of the model and sees its own half of every batch; what keeps
the copies equal is that ``DistributedDataParallel`` (DDP) averages the gradients before every step. Without GPUs they
talk over gloo, with GPUs over NCCL. Several machines: the same command on each, with ``--nnodes 2``, ``--rdzv-backend
c10d``, and ``--rdzv-endpoint HOST:29500`` naming the same machine on all of them.

What is missing here and is in :mod:`course_utils.engine.processes`: the last batch may be uneven and must not be filled
up, BatchNorm has to see the whole batch where it learns, dropout has to draw for the whole batch, and stages that wake
up later need a new wrapper. Without all that two processes train a little differently from one.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from course_utils.datasets import in_memory, open_dataset
from course_utils.feature_extraction import freeze, train_mode
from course_utils.pretrained_models import load_pretrained, weights_entry
from course_utils.transforms import eval_transform

MODEL, BATCH, EPOCHS, RATE = "resnet18_mini", 32, int(os.environ.get("EPOCHS", "3")), 3e-2


def main() -> None:
    """Train a new head for the drawn pets, as one of several processes."""
    # torchrun tells each process who it is: RANK among all, LOCAL_RANK on this machine, WORLD_SIZE together.
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    dist.init_process_group("nccl" if gpu else "gloo")
    rank, size = dist.get_rank(), dist.get_world_size()

    # One process draws or downloads the pictures, the others wait for it.
    if rank > 0:
        dist.barrier()
    splits = open_dataset("pets")
    if rank == 0:
        dist.barrier()
    prepare = eval_transform(weights_entry(MODEL))
    train, val = (in_memory(data.with_transform(prepare)) for data in (splits.train, splits.val))

    # DistributedSampler fills up: with an odd number of pictures one of them would count twice in the validation.
    mine = DistributedSampler(train, shuffle=True, seed=0)
    train_batches = DataLoader(train, batch_size=BATCH // size, sampler=mine)
    val_batches = DataLoader(torch.utils.data.Subset(val, range(rank, len(val), size)), batch_size=BATCH)

    torch.manual_seed(0)  # DDP copies the weights of process 0 to the others; equal seeds make that plain
    model = freeze(load_pretrained(MODEL, num_classes=len(splits.classes)), before="head").to(device)
    wrapped = DistributedDataParallel(model)  # takes note of what learns: freeze first, wrap afterwards
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)

    for epoch in range(EPOCHS):
        mine.set_epoch(epoch)  # without it, the order is the same in every epoch
        train_mode(model)
        for images, labels in train_batches:
            F.cross_entropy(wrapped(images.to(device)), labels.to(device)).backward()  # exchanges gradients
            optimizer.step()  # the same step in every process
            optimizer.zero_grad(set_to_none=True)

        model.eval()
        with torch.no_grad():
            right = sum((model(x.to(device)).argmax(1) == y.to(device)).sum() for x, y in val_batches)
        dist.all_reduce(right)  # counts of pictures may be added up; shares of unequal halves may not be averaged
        if rank == 0:
            print(f"epoch {epoch + 1}: {right.item()} of {len(val)} validation pictures right, {size} processes")

    dist.destroy_process_group()


if __name__ == "__main__":
    main()
