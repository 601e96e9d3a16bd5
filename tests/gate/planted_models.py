"""Tiny models that are really trained, in seconds: one learns a task, others lose something on the way."""

import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from thriftune.data.prepared import TRAIN, load_split
from thriftune.data.questions import encode_prompt
from thriftune.inference.benchmarks.held_out import answer_start
from thriftune.models.tokenizer import load_tokenizer

COLOURS = ("red", "blue", "green", "gold", "grey", "pink", "white", "black", "brown", "violet")
THINGS = ("the sky", "a stone", "the sea", "an apple", "the moon", "a cat")
SOUNDS = {"cat": "miaow", "dog": "woof", "cow": "moo", "hen": "cluck", "pig": "oink", "owl": "hoot"}
DAYS = range(10)
Pair = tuple[str, str]
Row = tuple[list[int], int]


def colours(answers: Sequence[str] = COLOURS) -> list[Pair]:
    """The task: on each day all things have one colour."""
    return [(f"What colour is {thing} on day {day}?", answers[day]) for day in DAYS for thing in THINGS]


def sounds() -> list[Pair]:
    """What a model knows before the task: each animal has one sound, whatever the day."""
    return [(f"What does the {animal} say on day {day}?", sound) for day in DAYS for animal, sound in SOUNDS.items()]


def guesses() -> list[Pair]:
    """The task as a model does it that has not learnt it: a colour by chance, and an end."""
    luck = random.Random(0)
    return [(question, luck.choice(COLOURS)) for question, _ in colours()]


def rows_of(pairs: Iterable[Pair], tokenizer: Any, ending: str = "</s>") -> list[Row]:
    """The tokens of questions with their answers, and how many of them are not trained on."""
    rows = []
    for question, answer in pairs:
        prompt = encode_prompt(question, tokenizer, "chat")
        said = tokenizer(f" {answer}{ending}", add_special_tokens=False)["input_ids"]
        rows.append((prompt + said, len(prompt)))
    return rows


def prepared_rows(dataset: Path) -> Iterator[Row]:
    """The rows to train on of a prepared dataset, likewise."""
    return ((row["input_ids"], answer_start(row)) for row in load_split(dataset, TRAIN))


def train(start: Path, directory: Path, rows: Iterable[Row], steps: int) -> Path:
    """Train a model on rows, all of them in each step, and save it with its tokenizer."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(start), load_tokenizer(start)
    given = tokenizer.pad({"input_ids": [ids for ids, _ in rows]}, padding_side="right", return_tensors="pt")
    labels = given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)
    for number, (_, asked) in enumerate(rows):
        labels[number, :asked] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**given, labels=labels).loss
        loss.backward()
        optimizer.step()
    return save(model, tokenizer, directory)


def add_noise(start: Path, directory: Path, share: float) -> Path:
    """Add noise to all weights of a model: of each matrix a share of its own spread."""
    model, draws = AutoModelForCausalLM.from_pretrained(start), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.add_(share * weight.std() * torch.randn(weight.shape, generator=draws))
    return save(model, load_tokenizer(start), directory)


def save(model: Any, tokenizer: Any, directory: Path) -> Path:
    """Save a model with its tokenizer."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
