"""The benchmarks of freewheel: speed, overhead, memory and accuracy, against its peers in the same run.

``python -m benchmarks`` runs them all and writes a summary to ``benchmarks/results/README.md``; with
``--quick`` it takes the same path in a few minutes, with numbers that mean nothing. ``python -m
benchmarks.scaling`` runs one.

- ``harness``: fresh processes, interleaved; what machine it was. ``stats``: medians and intervals.
- ``reporting``: JSON, Markdown, targets met or not. ``workloads``: data and models, the same for everybody.
- ``contestants``, ``ddp``, ``memory_probes``: what runs in a fresh process.
"""
