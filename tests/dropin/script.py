"""A training script; its first argument is what worker.optimizer() gets, its second what it does beside."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import freewheel

worker = freewheel.join()
if "setup" in sys.argv:
    worker.barrier()
if "fail" in sys.argv:
    sys.exit(7)
torch.manual_seed(0)
inputs = torch.randn(61, 10)
targets = (inputs[:, 0] > 0).long()
model = nn.Sequential(nn.Linear(10, 16 + worker.rank * ("differ" in sys.argv)), nn.ReLU(), nn.Linear(16, 2))
optimizer = worker.optimizer(model, **json.loads(sys.argv[1]))
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
stall = next((argument[6:] for argument in sys.argv if argument.startswith("stall=")), None)
if stall is not None and worker.restarts:
    open(stall, "x").close()
dataset = TensorDataset(inputs, targets, torch.arange(61))
loader = worker.shard(
    DataLoader(dataset, batch_size=4, shuffle="shuffle" in sys.argv, num_workers=int("loader" in sys.argv))
)
told = False
for epoch in range(10**6 if "forever" in sys.argv else 4):
    for step, (x, y, indices) in enumerate(loader):
        if "together" in sys.argv:
            worker.barrier()  # or one of them might do it all
        if "kill" in sys.argv and worker.rank == 1 and epoch == 1 and step == 2 and not worker.restarts:
            os.kill(os.getpid(), signal.SIGKILL)
        if "kill at once" in sys.argv and worker.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if stall is not None:
            worker.barrier()
        if stall is not None and epoch == 1 and step == 2 and not worker.restarts:
            while worker.rank == 1:
                signal.pause()
            model.eval()
            while not os.path.exists(stall):
                model(inputs)
            model.train()
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(x), y))
        if step == 0:
            print(json.dumps({"begins": epoch, "at": next(model.parameters()).sum().item()}))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        optimizer.step()
        print(json.dumps({"epoch": epoch, "indices": indices.tolist()}))
        if "forever" in sys.argv and epoch and not told:
            told = True
            print("pid", os.getpid(), file=sys.stderr)
    scheduler.step()
if "deaf" in sys.argv:
    signal.signal(signal.SIGINT, lambda number, frame: print("heard", file=sys.stderr))
if "hang" in sys.argv:
    print("pid", os.getpid(), file=sys.stderr)
    time.sleep(600)
if "save" in sys.argv:
    try:
        print("pid", os.getpid(), file=sys.stderr)
        time.sleep(600)
    except KeyboardInterrupt:
        if worker.rank == 1:
            raise
        for _ in range(2):  # the launcher has seen the other's end, and done what it does then
            worker.barrier()
        print("saved", file=sys.stderr)
        raise
worker.barrier()
if worker.is_main:
    weights = torch.cat([value.flatten() for value in model.state_dict().values()])
    model.eval()
    accuracy = (model(inputs).argmax(1) == targets).float().mean().item()
    print(json.dumps({"weights": weights.tolist(), "accuracy": accuracy}))
