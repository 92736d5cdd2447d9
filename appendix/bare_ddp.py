"""Training with several processes, without ``fit``: the bare torchrun loop, for those who want to see inside.

    torchrun --nproc-per-node 2 appendix/bare_ddp.py

starts this program twice. Each process has its own copy of the model and sees its own half of every batch.
``DistributedDataParallel`` (DDP) averages the gradients before every step, which keeps the copies equal. The processes
communicate over NCCL with GPUs, over gloo without. On several machines, start the same command on each, with
``--nnodes 2``, ``--rdzv-backend c10d``, and ``--rdzv-endpoint HOST:29500`` with the same HOST on all of them.

Four things are missing here; they are in :mod:`course_utils.engine.processes`. The last batch may be uneven and must
not be filled up, learning BatchNorm layers have to see the whole batch, dropout has to draw for the whole batch, and
stages that start to learn later need a new wrapper. Without them two processes train a little differently from one.
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
    """Train a new head for the drawn pets as one of several processes, and print the accuracy after each epoch."""
    # torchrun sets three variables: RANK (number among all processes), LOCAL_RANK (on this machine), WORLD_SIZE.
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    dist.init_process_group("nccl" if gpu else "gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()

    # One process draws or downloads the pictures; the others wait at the barrier.
    if rank > 0:
        dist.barrier()
    splits = open_dataset("pets")
    if rank == 0:
        dist.barrier()
    prepare = eval_transform(weights_entry(MODEL))
    train, val = (in_memory(data.with_transform(prepare)) for data in (splits.train, splits.val))

    # DistributedSampler repeats pictures until the shards are equal. In validation a picture would then count twice.
    shard = DistributedSampler(train, shuffle=True, seed=0)
    train_batches = DataLoader(train, batch_size=BATCH // world_size, sampler=shard)
    val_batches = DataLoader(torch.utils.data.Subset(val, range(rank, len(val), world_size)), batch_size=BATCH)

    torch.manual_seed(0)  # DDP copies the weights of process 0; with equal seeds they are equal before that
    model = freeze(load_pretrained(MODEL, num_classes=len(splits.classes)), before="head").to(device)
    wrapped = DistributedDataParallel(model)  # notes which parameters learn: freeze first, wrap afterwards
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)

    for epoch in range(EPOCHS):
        shard.set_epoch(epoch)  # without it, the order is the same in every epoch
        train_mode(model)
        for images, labels in train_batches:
            F.cross_entropy(wrapped(images.to(device)), labels.to(device)).backward()  # exchanges gradients
            optimizer.step()  # the same step in every process
            optimizer.zero_grad(set_to_none=True)

        model.eval()
        with torch.no_grad():
            right = sum((model(x.to(device)).argmax(1) == y.to(device)).sum() for x, y in val_batches)
        dist.all_reduce(right)  # add counts; shares of unequal halves must not be averaged
        if rank == 0:
            print(f"epoch {epoch + 1}: {right.item()} of {len(val)} validation pictures right, {world_size} processes")

    dist.destroy_process_group()


if __name__ == "__main__":
    main()
