"""Bad input: each gets freewheel's error, naming the argument, the value and the remedy, before any step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, Dataset, IterableDataset

import freewheel
from freewheel.errors import ConfigurationError, DataError
from freewheel.sources import Sequences


def rows(count: int = 12, width: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(count, width), torch.arange(count) % 3


def with_nan() -> Tensor:
    inputs = rows()[0]
    inputs[7, 2] = torch.nan
    return inputs


class Empty(Dataset[Tensor]):
    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Tensor:
        raise IndexError(index)


class Nothing(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter([])


class NanRows(Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((4,), torch.nan), 0


class Replaces(nn.Module):
    """Keeps a running mean, but in a new tensor each time."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        result: Tensor = self.linear(x - self.mean)
        return result


class Tokens(nn.Module):
    """Predicts the next of five tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.core = nn.Embedding(5, 5), nn.GRU(5, 5, batch_first=True)

    def forward(self, tokens: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = self.core(self.embedding(tokens), hidden)
        return result


class Locked(nn.Linear):
    """Cannot be copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Locked:
        raise TypeError("cannot pickle this")


outer = nn.Linear(4, 3)
ce = nn.CrossEntropyLoss()

# name -> (changed arguments, error, message)
Case = tuple[dict[str, Any], type[Exception], str]
CASES: dict[str, Case] = {
    # the model
    "no module": ({"model": ce.forward}, ConfigurationError, "`model` must be a torch.nn.Module, got method"),
    "no parameters": (
        {"model": nn.ReLU()},
        ConfigurationError,
        r"`model` \(ReLU\) has no parameters; there is nothing",
    ),
    "all frozen": (
        {"model": nn.Linear(4, 3).requires_grad_(False)},
        ConfigurationError,
        "only frozen parameters; there is nothing",
    ),
    "double": ({"model": nn.Linear(4, 3).double()}, ConfigurationError, "float64.*call"),
    "cannot be copied": (
        {"model": Locked(4, 3)},
        ConfigurationError,
        r"`model` \(Locked\) cannot be copied.*this",
    ),
    "buffer replaced": (
        {"model": Replaces()},
        ConfigurationError,
        r"new tensor in the place of 'mean'; change it in place: self.mean.copy_",
    ),
    # the data
    "wrong width": (
        {"data": rows(width=5)},
        ConfigurationError,
        r"first step failed, on a batch of \(float32\[4, 5\]",
    ),
    "wrong type of targets": (
        {"data": (rows()[0], rows()[1].int())},
        ConfigurationError,
        "first step failed.*int32.*must accept what `data` gives",
    ),
    "labels out of range": (
        {"data": (rows()[0], rows()[1] + 7)},
        ConfigurationError,
        r"first step failed.*out of bounds\. The model",
    ),
    "lengths differ": (
        {"data": (rows()[0], rows()[1][:9])},
        DataError,
        r"`data`.*\(12, 4\) and \(9,\); their first dimensions must be equal",
    ),
    "no examples": ({"data": rows(0)}, DataError, "`data` has no examples; give at least one"),
    "empty data set": ({"data": Empty()}, DataError, "`data` has no examples"),
    "empty list": ({"data": []}, DataError, "`data` has no examples"),
    "empty iterable": (
        {"data": Nothing()},
        DataError,
        "`data` gave no batch; an iterable must give at least one",
    ),
    "empty loader": ({"data": DataLoader(Nothing(), 4)}, DataError, "`data` gave no batch"),
    "nan": (
        {"data": (with_nan(), rows()[1])},
        DataError,
        r"`data` inputs .*NaN.* 1 of 12.*row 7; clean them",
    ),
    "nan rows": (
        {"data": NanRows()},
        DataError,
        "loss of the first batch is nan; look for NaN or Inf in the inputs",
    ),
    "text": ({"data": "data/train"}, ConfigurationError, "`data` must be a pair of tensors.*; got str"),
    "one tensor": (
        {"data": rows()[0]},
        ConfigurationError,
        r"`data` must be .*; got a tensor of shape \(12, 4\)",
    ),
    "none": ({"data": None}, ConfigurationError, "`data` must be .*; got NoneType"),
    "iterator, several epochs": (
        {"data": iter([rows(), rows()]), "epochs": 2},
        ConfigurationError,
        "`data` is an iterator, which can be read only once, and `epochs` is 2; give",
    ),
    "batch_size 0": (
        {"batch_size": 0},
        ConfigurationError,
        "`batch_size` must be a whole number >= 1, got 0",
    ),
    "batch_size 1.5": (
        {"batch_size": 1.5},
        ConfigurationError,
        "`batch_size` must be a whole number >= 1, got 1.5",
    ),
    "bptt with pairs": (
        {"bptt": 5},
        ConfigurationError,
        "with `bptt`, `data` must be a 1-D int64 tensor of tokens",
    ),
    "bptt 0": ({"bptt": 0, "data": torch.arange(99)}, ConfigurationError, "`bptt` must be >= 1, got 0"),
    "bptt with too few tokens": (
        {"bptt": 5, "data": torch.arange(4)},
        DataError,
        "`data` has 4 tokens, too few",
    ),
    "bptt with a plain module": (
        {"bptt": 5, "data": torch.arange(99)},
        ConfigurationError,
        r"first step failed.*int64\[4, 5\]",
    ),
    "fewer streams than workers": (
        {"data": Sequences(torch.arange(99), 4, 2, 1), "workers": 2},
        ConfigurationError,
        "`data` has 1 streams, fewer than the 2 `workers`",
    ),
    # the loss
    "loss and step": (
        {"step": lambda module, batch: batch},
        ConfigurationError,
        "exactly one of `loss`.*got both",
    ),
    "neither loss nor step": (
        {"loss": None},
        ConfigurationError,
        "`loss`, such as torch.nn.CrossEntropyLoss.*neither",
    ),
    "loss no function": ({"loss": "mse"}, ConfigurationError, "`loss` must be a function, got 'mse'"),
    "loss no scalar": (
        {"loss": nn.CrossEntropyLoss(reduction="none")},
        ConfigurationError,
        r"loss must be a scalar tensor, got shape \(4,\); take its mean",
    ),
    "loss no tensor": (
        {"loss": lambda p, t: 0.5},
        ConfigurationError,
        "loss must be a scalar tensor, got float",
    ),
    "loss without gradient": (
        {"loss": lambda p, t: ce(p.detach(), t)},
        ConfigurationError,
        "does not depend on a trainable parameter; compute it from the module's output",
    ),
    "step on another module": (
        {"loss": None, "step": lambda module, batch: ce(outer(batch[0]), batch[1])},
        ConfigurationError,
        r"no parameter of the module that it was given; `step\(module, batch\)` must use its argument",
    ),
    "metric no function": (
        {"metrics": {"f1": 0.5}},
        ConfigurationError,
        r"`metrics`\['f1'\] must be a function, got 0.5",
    ),
    "metrics with step": (
        {
            "loss": None,
            "step": lambda module, batch: ce(module(batch[0]), batch[1]),
            "metrics": {"a": mse_loss},
        },
        ConfigurationError,
        "`metrics` need `loss`.*give a function as `evaluate`",
    ),
    # how and where
    "unknown method": (
        {"method": "hogwyld"},
        ConfigurationError,
        "`method` must be one of hogwild, synchronous.*'hogwyld'",
    ),
    "method not called": (
        {"method": freewheel.hogwild},
        ConfigurationError,
        r"call it first: method=freewheel.hogwild\(\)",
    ),
    "unknown engine": (
        {"engine": "gpu"},
        ConfigurationError,
        "`engine` must be one of serial, threads, processes, simulated, auto, got 'gpu'",
    ),
    "engine no engine": (
        {"engine": 3},
        ConfigurationError,
        r"`engine` must be one of .* or have run\(job\), got 3",
    ),
    "no workers": (
        {"workers": 0},
        ConfigurationError,
        "`workers` must be a whole number >= 1, or 'auto'.*got 0",
    ),
    "half a worker": ({"workers": 1.5}, ConfigurationError, "`workers` must be a whole number >= 1.*got 1.5"),
    "many workers": (
        {"workers": "many"},
        ConfigurationError,
        "`workers` must be a whole number >= 1.*got 'many'",
    ),
    "no threads": (
        {"intra_op_threads": 0},
        ConfigurationError,
        "`intra_op_threads` must be a whole number >= 1, got 0",
    ),
    "negative seed": ({"seed": -1}, ConfigurationError, "`seed` must be a whole number from 0.*got -1"),
    "huge seed": ({"seed": 2**64}, ConfigurationError, "`seed` must be a whole number from 0 to"),
    "unknown precision": (
        {"precision": "fp8"},
        ConfigurationError,
        "`precision` must be 'float32' or 'bf16', got 'fp8'",
    ),
    "channels_last": (
        {"channels_last": "no"},
        ConfigurationError,
        "`channels_last` must be True, False or 'auto', got 'no'",
    ),
    "descent missing": (
        {"method": freewheel.hogwild(rule=freewheel.rules.clip(1.0))},
        ConfigurationError,
        "`rule` clip.* never writes the weights; end it with a descent",
    ),
    "layers with a norm": (
        {
            "method": freewheel.hogwild(
                rule=freewheel.rules.chain(freewheel.rules.clip(1.0), freewheel.rules.sgd(0.1)),
                granularity="layer",
            )
        },
        ConfigurationError,
        "needs the whole gradient.*granularity='layer'.*clip_value",
    ),
    # when it ends
    "negative epochs": (
        {"epochs": -1},
        ConfigurationError,
        "`epochs` must be a whole number > 0, got -1; leave it out",
    ),
    "half an epoch": ({"epochs": 0.5}, ConfigurationError, "`epochs` must be a whole number > 0, got 0.5"),
    "no samples": ({"max_samples": 0}, ConfigurationError, "`max_samples` must be a whole number > 0, got 0"),
    "no seconds": ({"max_seconds": 0.0}, ConfigurationError, "`max_seconds` must be a number > 0, got 0.0"),
    "seconds as text": (
        {"max_seconds": "9"},
        ConfigurationError,
        "`max_seconds` must be a number > 0, got '9'",
    ),
    "target without evaluate": (
        {"target": ("accuracy", 0.9)},
        ConfigurationError,
        "`target` needs `evaluate`",
    ),
    "evaluate_every without evaluate": (
        {"evaluate_every": 5},
        ConfigurationError,
        "`evaluate_every` needs `evaluate`",
    ),
    "evaluate_every 0": (
        {"evaluate_every": 0, "evaluate": rows()},
        ConfigurationError,
        "`evaluate_every` must be a whole number >= 1 of examples, got 0",
    ),
    "target is no pair": (
        {"target": "accuracy", "evaluate": rows()},
        ConfigurationError,
        r"`target` must be a metric and a number, \('accuracy', 0.9\).* got 'accuracy'",
    ),
    "target is no number": (
        {"target": ("accuracy", "90%"), "evaluate": rows()},
        ConfigurationError,
        "`target` must be a metric and a number",
    ),
    "target of an unknown metric": (
        {"target": ("precision", 0.9), "evaluate": rows()},
        ConfigurationError,
        "`target` names 'precision', but the evaluation gives accuracy, loss; name one of these",
    ),
    "target of an unknown metric of a function": (
        {"target": ("precision", 0.9), "evaluate": lambda module: {"recall": 1.0}},
        ConfigurationError,
        "`target` names 'precision', but the evaluation gives recall",
    ),
    # how it is measured
    "evaluate has no examples": ({"evaluate": rows(0)}, DataError, "`evaluate` has no examples"),
    "evaluate is an empty stream": ({"evaluate": Nothing()}, DataError, "`evaluate` gave no batch"),
    "evaluate has NaN": ({"evaluate": (with_nan(), rows()[1])}, DataError, "`evaluate` inputs .*NaN"),
    "evaluate is text": (
        {"evaluate": "test"},
        ConfigurationError,
        "`evaluate` must be a pair of tensors.*; got str",
    ),
    "evaluate does not fit": (
        {"evaluate": rows(width=7)},
        ConfigurationError,
        "`evaluate` failed on its first batch",
    ),
    "evaluate is an iterator": (
        {"evaluate": iter([rows()])},
        ConfigurationError,
        "`evaluate` is an iterator, which can be read only once; give a Dataset or a DataLoader",
    ),
    "metric fails": (
        {"evaluate": rows(), "metrics": {"f1": lambda p, t: p.no_such()}},
        ConfigurationError,
        "`evaluate` failed on its first batch: AttributeError.*metrics must accept",
    ),
    "evaluate is no text": (
        {"bptt": 5, "data": torch.arange(99) % 5, "model": Tokens(), "evaluate": rows()},
        ConfigurationError,
        "with `bptt`, `evaluate` must be a 1-D int64 tensor of tokens; got a tuple of 2",
    ),
    "evaluate is a short text": (
        {"bptt": 5, "data": torch.arange(99) % 5, "model": Tokens(), "evaluate": torch.arange(1)},
        DataError,
        "`evaluate` has 1 tokens, too few",
    ),
    # who listens
    "monitor no function": (
        {"monitors": ["print"]},
        ConfigurationError,
        r"`monitors` must be a list of functions.*'print'",
    ),
    "monitors no list": (
        {"monitors": print},
        ConfigurationError,
        "`monitors` must be a list of functions.*built-in",
    ),
}


class Watch:
    """Counts the steps of a run by its losses; the probe's single one is on a copy."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def __call__(self, event: Any) -> None:
        self.events.append(event)


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_before_any_step(name: str) -> None:
    changes, error, message = CASES[name]
    watch = Watch()
    model = nn.Linear(4, 3)
    arguments = {
        "model": model,
        "data": rows(),
        "loss": ce,
        "batch_size": 4,
        "workers": 1,
        "monitors": [watch],
        **changes,
    }
    trained = arguments["model"]
    before = [p.detach().clone() for p in trained.parameters()] if isinstance(trained, nn.Module) else []
    with pytest.raises(error, match=f"(?s){message}") as caught:
        freewheel.fit(**arguments)
    assert isinstance(caught.value, freewheel.FreewheelError)
    assert isinstance(caught.value, ValueError)
    assert watch.events == []
    if isinstance(trained, nn.Module):
        assert all(torch.equal(a, b) for a, b in zip(before, trained.parameters(), strict=True))
        assert all(p.grad is None for p in trained.parameters())


@pytest.mark.parametrize("momentum", [1.0, -0.5, 3])
@pytest.mark.parametrize("method", [freewheel.hogwild, freewheel.synchronous])
def test_momentum_out_of_range_is_refused_where_it_is_given(
    method: Callable[..., Any], momentum: float
) -> None:
    with pytest.raises(ConfigurationError, match=f"`momentum`.*{momentum}"):
        method(momentum=momentum)


def folder_below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("not a folder")
    return folder / "file" / "run"


def folder_that_is_a_file(folder: Path) -> Path:
    (folder / "file").write_text("not a folder")
    return folder / "file"


def folder_that_takes_no_files(folder: Path) -> Path:
    (folder / "run" / "events.jsonl").mkdir(
        parents=True
    )  # nobody, not even a superuser, can write a file there
    return folder / "run"


def folder_of_the_kernel(folder: Path) -> Path:
    return Path("/proc/freewheel")  # a file system in which nobody can make anything


def folder_with_a_run(folder: Path) -> Path:
    (folder / "events.jsonl").write_text('{"event": "RunFinished"}\n')
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (folder_below_a_file, "`run_dir` .*run cannot be made: Not a directory; choose another folder"),
        (folder_that_is_a_file, "`run_dir` .*file cannot be made: File exists; choose another folder"),
        (
            folder_that_takes_no_files,
            "`run_dir` .* cannot be written to: .*; choose another folder or change its mode",
        ),
        (folder_of_the_kernel, "`run_dir` /proc/freewheel cannot be made: .*; choose another folder"),
        (folder_with_a_run, "`run_dir` .* holds a run already; choose another folder, or remove it"),
    ],
)
def test_an_output_folder_that_cannot_be_used_is_refused_before_any_step(
    make: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    watch = Watch()
    with pytest.raises(ConfigurationError, match=message):
        freewheel.fit(nn.Linear(4, 3), rows(), loss=ce, run_dir=make(tmp_path), monitors=[watch], workers=1)
    assert watch.events == []


def test_a_folder_whose_first_run_was_refused_can_be_used_again(tmp_path: Path) -> None:
    for data, held_out in ((rows(width=9), None), (rows(), rows(0))):
        with pytest.raises(freewheel.FreewheelError):
            freewheel.fit(nn.Linear(4, 3), data, loss=ce, evaluate=held_out, run_dir=tmp_path)
    freewheel.fit(nn.Linear(4, 3), rows(), loss=ce, run_dir=tmp_path, workers=1)
    assert (tmp_path / "weights.safetensors").exists()


def test_the_probe_leaves_the_generator_alone() -> None:
    class Noisy(Dataset[tuple[Tensor, int]]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.randn(4), index % 3

    model, held_out = nn.Sequential(nn.Dropout(), nn.Linear(4, 3)), rows()
    state = torch.get_rng_state()
    freewheel.fit(model, Noisy(), loss=ce, evaluate=held_out, engine="serial", workers=1, batch_size=4)
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_larger_than_the_data_are_allowed() -> None:
    result = freewheel.fit(nn.Linear(4, 3), rows(), loss=ce, batch_size=1000, epochs=3, workers=2)
    assert (result.samples, result.steps) == (36, 3)


class Viewing(nn.Module):
    """The tutorial's idiom: ``view`` after a convolution, which a channels_last activation refuses."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3)
        self.head = nn.Linear(4 * 6 * 6, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images)
        return self.head(features.view(len(features), -1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_model_that_does_not_bear_channels_last_trains_without(channels: int) -> None:
    data = (torch.randn(8, channels, 8, 8), torch.zeros(8, dtype=torch.int64))
    result = freewheel.fit(Viewing(channels), data, loss=ce, batch_size=4, workers=1)
    assert result.config["channels_last"] is False
    with pytest.raises(ConfigurationError, match=r"`channels_last`=True .* channels_last=False"):
        freewheel.fit(Viewing(channels), data, loss=ce, batch_size=4, workers=1, channels_last=True)


def test_a_short_last_batch_that_the_model_refuses_fails_before_the_run() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    data = (torch.randn(9, 4), torch.zeros(9, dtype=torch.int64))
    with pytest.raises(
        ConfigurationError, match=r"short batch at the end of an epoch failed.*drop_last=True"
    ):
        freewheel.fit(model, data, loss=ce, batch_size=4, workers=1)


def test_what_an_evaluation_function_gives_becomes_plain_numbers() -> None:
    measured = {"accuracy": torch.tensor(0.5), "seen": 3}
    result = freewheel.fit(nn.Linear(4, 3), rows(), loss=ce, workers=1, evaluate=lambda module: measured)
    assert result.metrics == {"accuracy": 0.5, "seen": 3.0}
    assert {type(value) for value in result.metrics.values()} == {float}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": nn.CrossEntropyLoss}, r"`loss` is a class; make one of it: CrossEntropyLoss\(\)"),
        ({"loss": lambda prediction, target: 0.5}, r"got float; return the loss itself, without \.item\(\)"),
        ({"target": ("accuracy", 95), "evaluate": rows()}, r"accuracy is a share from 0 to 1, got 95"),
    ],
)
def test_common_slips_are_told_what_they_are(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"loss": ce, "workers": 1, **changes}
    with pytest.raises(ConfigurationError, match=message):
        freewheel.fit(nn.Linear(4, 3), rows(), **arguments)
