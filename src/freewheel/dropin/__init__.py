"""Several processes of one training script, on shared weights: ``freewheel run script.py``.

membership.py  what the launcher tells a process of its script
messages.py    what the two say to each other
deal.py        the batches of one epoch, dealt to whoever asks
hub.py         the launcher's side: the shared weights, and answers
station.py     the script's side: the shared weights, alone or with others
pulse.py       a worker's signs of life
views.py       what the weights of the user's model are views of
optimizer.py   a ``torch.optim.Optimizer`` over a method
shard.py       a worker's part of a DataLoader
worker.py      join(), and what it gives a script
output.py      lines with the rank before them
launcher.py    starts, restarts and ends processes
"""
