"""The child's side of a comparison: ``python -m freewheel.contestant JOB_FILE OUT_FOLDER`` trains once.

Nobody calls it by hand: fresh_process.py writes the job file, and reads what is left in the folder.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from freewheel.fresh_process import ERROR


def main(arguments: list[str]) -> int:
    """Trains what the job file says; the exit code is 1 on any error, which then is in the output folder."""
    job_file, out = (Path(argument) for argument in arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _train(json.loads(job_file.read_text(encoding="utf-8")), out)
    except BaseException as error:
        told = {"kind": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}
        (out / ERROR).write_text(json.dumps(told), encoding="utf-8")
        return 1
    return 0


def _end_with_parent() -> None:
    os.read(0, 1)  # returns when the parent's end of the pipe is closed, also if the parent was killed
    os._exit(1)


def _train(job: dict[str, Any], out: Path) -> None:
    sys.path[:] = job["paths"]
    import torch

    from freewheel.rundir import WEIGHTS, begin, held, save_weights
    from freewheel.train import fit

    with open(job["payload"], "rb") as stream:
        payload = pickle.load(stream)  # written by the parent, in a folder that only this user can read
    arguments = {**payload["arguments"], **payload["contestants"][job["label"]]}
    torch.manual_seed(job["seed"])
    model = payload["model"]
    if not isinstance(model, torch.nn.Module):
        model = model()
    with held(out):
        result = fit(model, payload["data"], seed=job["seed"], monitors=[begin(out)], **arguments)
        if job["keep"]:
            save_weights(result.module, out / WEIGHTS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
