"""How training depends on which examples share a packed row: best-fit decreasing, or packing that mixes lengths.

    python benchmarks/packing_mix.py MODEL ROWS.jsonl [--max_length 256] [--rows_a_step 4] [--orders 20]
        [--gradients FILE.npz] [--seeds 3] [--steps 16] [--learning_rate 2e-5]

MODEL is a directory or a .gguf file; everything is in fp32 on the CPU. Three tables:

    fill       rows, share of padding, and how many examples a row has; also of 16,384 examples of drawn lengths, which
               are what is packed at a time
    variance   over the steps of an epoch at the weights of MODEL: the loss, and the gradient of every weight. "noise"
               is the mean squared distance of a step's gradient from the mean of all steps, "mean squared" the square
               of that mean, "cosine" between a step's gradient and that of the held-out rows, the mean over steps;
               "examples" are steps of as many tokens whose examples are drawn at random, without rows
    training   held-out loss after as many steps of as many rows, AdamW with a warmup over a fifth of the steps

A packed example has the same loss and gradient as alone (tests/test_packing_equivalence.py). So each example is run
once, and the gradient of a step is computed from those. Of each gradient a random projection to 65,521 numbers is
kept, in which squared distances are right to about 1 %; with --gradients it is written to a file, and read from there
the next time. --seeds 0 leaves out training.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECTED = 65_521  # a prime: rows and columns of matrices, multiples of 64, do not fall onto each other
IGNORED = -100
Bins = list[list[int]]


def fetched(options: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """The model as fetching makes it, and the dataset prepared for it, one example a row."""
    from thriftune.config import DataConfig
    from thriftune.data.prepare import prepare
    from thriftune.models import fetching as models

    models.fetch(options.model, models.version(options.model), folder / "model")
    data = DataConfig(
        source=str(options.rows), format=options.format, max_length=options.max_length, validation_share=0.1
    )
    prepare(data, seed=0, tokenizer_dir=folder / "model", destination=folder / "dataset")
    return folder / "model", folder / "dataset"


def load(model_dir: Path) -> Any:
    """The model in fp32, without dropout."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    model.config.use_cache = False
    return model.eval()


class Projection:
    """Sums of weights with random signs, which approximately keep distances."""

    def __init__(self, model: Any) -> None:
        import torch

        generator = torch.Generator().manual_seed(0)
        self._parameters = list(model.parameters())
        self._signs = [
            torch.randint(0, 2, p.shape, generator=generator, dtype=torch.int8).mul_(2).sub_(1)
            for p in self._parameters
        ]
        self._shifts = torch.randint(0, PROJECTED, (len(self._parameters),), generator=generator).tolist()

    def gradient(self) -> Any:
        """The projected gradient of all weights, of shape [PROJECTED]. The gradient itself is cleared."""
        import torch

        total = torch.zeros(PROJECTED)
        for parameter, signs, shift in zip(self._parameters, self._signs, self._shifts, strict=True):
            signed = parameter.grad.mul_(signs).flatten()
            whole = signed.numel() // PROJECTED * PROJECTED
            part = signed[:whole].view(-1, PROJECTED).sum(0)
            part[: signed.numel() - whole] += signed[whole:]
            total += part.roll(shift)
            parameter.grad = None
        return total.numpy()


def example_gradients(model_dir: Path, rows: Any) -> tuple[Any, Any]:
    """The projected gradient of each example's summed loss [rows, PROJECTED], and the losses [rows]."""
    import numpy as np
    import torch

    model = load(model_dir)
    projection = Projection(model)
    gradients, losses = np.zeros((len(rows), PROJECTED), np.float32), np.zeros(len(rows))
    started = time.monotonic()
    for i, row in enumerate(rows):
        labels = torch.tensor([row["labels"]])
        loss = model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss * (labels != IGNORED).sum()
        loss.backward()
        gradients[i], losses[i] = projection.gradient(), loss.item()
        if i % 50 == 0:
            print(f"gradient of example {i} of {len(rows)}, {time.monotonic() - started:.0f} s", flush=True)
    return gradients, losses


@dataclass(frozen=True)
class Gradients:
    """Gradients of summed losses at the weights of a model, projected.

    Attributes:
        examples: Of each example to train on, shape [examples, PROJECTED].
        losses: Their losses, shape [examples].
        held_out: Of all held-out rows together, shape [PROJECTED].
    """

    examples: Any
    losses: Any
    held_out: Any


def gradients_of(options: argparse.Namespace, model_dir: Path, dataset: Path) -> Gradients:
    """The gradients of a dataset, from the file if it exists."""
    import numpy as np

    from thriftune.data.prepared import TRAIN, VALIDATION, load_split

    if options.gradients and options.gradients.exists():
        return Gradients(**np.load(options.gradients))
    examples, losses = example_gradients(model_dir, load_split(dataset, TRAIN))
    held_out, _ = example_gradients(model_dir, load_split(dataset, VALIDATION))
    found = Gradients(examples, losses, held_out.sum(0, dtype=np.float64))
    if options.gradients:
        np.savez(options.gradients, **vars(found))
    return found


def packings(lengths: Any, capacity: int) -> dict[str, Callable[[int], Bins]]:
    """The ways to pack; each takes a seed."""
    from thriftune.data.packing import best_fit_decreasing, pack

    return {
        "best-fit decreasing": lambda _: best_fit_decreasing(lengths, capacity),
        "mixed": lambda seed: pack(lengths, capacity, (seed, 0)),
    }


def steps_of(bins: Bins, rows_a_step: int, seed: int) -> Iterator[list[int]]:
    """The examples of each whole step of an epoch of rows in random order."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(bins))
    for start in range(0, len(order) - rows_a_step + 1, rows_a_step):
        yield [item for i in order[start : start + rows_a_step] for item in bins[i]]


def random_steps(lengths: Any, count: int, seed: int) -> Iterator[list[int]]:
    """All examples in random order, divided into steps of about the same number of tokens."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(lengths))
    step = (np.cumsum(lengths[order]) - 1) * count // lengths.sum()
    for number in range(count):
        yield order[step == number].tolist()


def variance(steps: list[list[int]], of: Gradients, trained: Any) -> tuple[float, float, float, float]:
    """Over steps: deviation of the loss, noise of the gradient, its mean squared, and its cosine with held-out."""
    import numpy as np

    counts = np.array([trained[step].sum() for step in steps])
    loss = np.array([of.losses[step].sum() for step in steps]) / counts
    gradient = np.stack([of.examples[step].sum(0, dtype=np.float64) for step in steps]) / counts[:, None]
    mean = gradient.mean(0)
    noise = ((gradient - mean) ** 2).sum() / (len(steps) - 1)
    cosine = gradient @ of.held_out / np.linalg.norm(gradient, axis=1) / np.linalg.norm(of.held_out)
    return float(loss.std(ddof=1)), float(noise), float((mean**2).sum()), float(cosine.mean())


def packed_row(rows: Any, items: list[int]) -> dict[str, list[int]]:
    """Several examples as one row."""
    columns = {name: [value for i in items for value in rows[i][name]] for name in ("input_ids", "labels")}
    return {**columns, "position_ids": [place for i in items for place in range(rows[i]["length"])]}


def held_out_after(model_dir: Path, dataset: Path, steps: list[list[list[int]]], learning_rate: float) -> float:
    """Held-out loss after training on the rows (each its examples) of these steps."""
    import torch

    from thriftune.data.prepared import TRAIN, load_split
    from thriftune.models.tokenizer import load_tokenizer
    from thriftune.training.collation import PackedCollator
    from thriftune.training.held_out import held_out_loss, held_out_rows

    model, tokenizer, rows = load(model_dir), load_tokenizer(model_dir), load_split(dataset, TRAIN)
    collate = PackedCollator(tokenizer, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    warmup = max(1, len(steps) // 5)
    for number, bins in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (number + 1) / warmup)
        model(**collate([packed_row(rows, items) for items in bins])).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return held_out_loss(model, tokenizer, held_out_rows(dataset, 500), 8)[0]


def drawn_lengths() -> dict[str, tuple[Any, int]]:
    """Lengths of examples and of rows, in tokens, of kinds of data that pack in different ways."""
    import numpy as np

    generator = np.random.default_rng(0)
    count = 16_384
    skewed = np.exp(generator.normal(4.6, 0.7, count)).astype(int).clip(10, 1024)
    long = generator.integers(300, 1000, count)
    two = np.where(generator.random(count) < 0.15, long, generator.integers(20, 60, count))
    return {
        "about 100, some 1,000": (skewed, 2048),
        "15 % of 300 to 1,000, else 20 to 60": (two, 1024),
        "1 to 256": (generator.integers(1, 257, count), 256),
        "70 to 110": (generator.integers(70, 111, count), 256),
    }


def print_fill(lengths: Any, capacity: int) -> None:
    """The first table."""
    print("\n| tokens of examples | of a row | packing | rows | padding | examples a row | milliseconds |")
    print("|---|---|---|---|---|---|---|")
    for kind, (drawn, room) in {"the rows given": (lengths, capacity), **drawn_lengths()}.items():
        for name, way in packings(drawn, room).items():
            took = []
            for _ in range(5):
                started = time.process_time()
                bins = way(0)
                took.append(1000 * (time.process_time() - started))
            sizes = [len(items) for items in bins]
            spread = f"{statistics.mean(sizes):.1f} ± {statistics.stdev(sizes):.1f}"
            padding = 1 - drawn.sum() / len(bins) / room
            print(f"| {kind} | {room} | {name} | {len(bins)} | {padding:.2%} | {spread} | {min(took):.1f} |")


def print_variance(options: argparse.Namespace, model_dir: Path, dataset: Path) -> None:
    """The second table: means over orders of rows, each with a packing of its own, and deviations over the orders."""
    import numpy as np

    from thriftune.data.prepared import TRAIN, load_split

    rows = load_split(dataset, TRAIN)
    gradients, lengths = gradients_of(options, model_dir, dataset), np.array(rows["length"])
    trained = np.array([sum(label != IGNORED for label in labels) for labels in rows["labels"]])
    kinds: dict[str, Callable[[int], list[list[int]]]] = {
        name: lambda seed, way=way: list(steps_of(way(seed), options.rows_a_step, seed))
        for name, way in packings(lengths, options.max_length).items()
    }
    count = len(kinds["mixed"](0))
    kinds["examples"] = lambda seed: list(random_steps(lengths, count, seed))
    print(f"\n{count} steps of {options.rows_a_step} rows, {options.orders} orders")
    columns = (
        "packing",
        "loss, ± over steps",
        "noise of the gradient",
        "mean squared",
        "noise / mean squared",
        "cosine",
    )
    print(f"\n| {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|")
    for name, kind in kinds.items():
        found = np.array([variance(kind(seed), gradients, trained) for seed in range(options.orders)])
        (loss, noise, mean, cosine), spread = found.mean(0), found.std(0, ddof=1)
        cells = f"{loss:.2f} ± {spread[0]:.2f} | {noise:.0f} ± {spread[1]:.0f} | {mean:.0f} | {noise / mean:.2f}"
        print(f"| {name} | {cells} | {cosine:.3f} ± {spread[3]:.3f} |")


def print_training(options: argparse.Namespace, model_dir: Path, dataset: Path) -> None:
    """The third table: a line for each seed, which decides packing and order."""
    import numpy as np

    from thriftune.data.prepared import TRAIN, load_split

    lengths = np.array(load_split(dataset, TRAIN)["length"])
    ways = packings(lengths, options.max_length)
    print(f"\n| seed | {' | '.join(ways)} | tokens |\n|---|---{'|---' * len(ways)}|", flush=True)
    after: dict[str, list[float]] = {name: [] for name in ways}
    for seed in range(options.seeds):
        tokens = []
        for name, way in ways.items():
            bins = way(seed)
            order = np.random.default_rng(seed).permutation(len(bins))
            used = [bins[i] for i in np.resize(order, options.steps * options.rows_a_step)]
            steps = [used[start : start + options.rows_a_step] for start in range(0, len(used), options.rows_a_step)]
            tokens.append(int(lengths[[item for items in used for item in items]].sum()))
            after[name].append(held_out_after(model_dir, dataset, steps, options.learning_rate))
        cells = [f"{values[-1]:.4f}" for values in after.values()]
        print(f"| {seed} | {' | '.join(cells)} | {', '.join(f'{count:,}' for count in tokens)} |", flush=True)
    print(f"| mean | {' | '.join(f'{statistics.mean(values):.4f}' for values in after.values())} | |")


def main() -> None:
    """Measure and print the tables, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("rows", type=Path)
    parser.add_argument("--format", default="chat")
    parser.add_argument("--max_length", type=int, default=256)
    parser.add_argument("--rows_a_step", type=int, default=4)
    parser.add_argument("--orders", type=int, default=20)
    parser.add_argument("--gradients", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=2e-5)
    options = parser.parse_args()

    import numpy as np

    from thriftune.data.prepared import TRAIN, load_split
    from thriftune.models.tokenizer import load_tokenizer
    from thriftune.training.held_out import held_out_loss, held_out_rows

    with tempfile.TemporaryDirectory() as folder:
        model_dir, dataset = fetched(options, Path(folder))
        print_fill(np.array(load_split(dataset, TRAIN)["length"]), options.max_length)
        print_variance(options, model_dir, dataset)
        if options.seeds:
            held_out = held_out_rows(dataset, 500)
            loss, tokens = held_out_loss(load(model_dir), load_tokenizer(model_dir), held_out, 8)
            print(f"\n{len(held_out)} held-out rows, {tokens:,} tokens: loss {loss:.4f} before training", flush=True)
            print_training(options, model_dir, dataset)


if __name__ == "__main__":
    main()
