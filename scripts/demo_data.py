"""Turn the English question/answer files of the PyPI package chatterbot-corpus (BSD-3) into chat rows.

Usage: python scripts/demo_data.py CORPUS_DIRECTORY OUTPUT.jsonl
"""

import json
import sys
from pathlib import Path

import yaml

# Files with factual answers. The others are small talk, from which a model learns little that held-out rows can show.
TOPICS = (
    "coding",
    "computers",
    "history",
    "literature",
    "money",
    "movies",
    "science",
    "sports",
    "tech_support",
    "trivia",
)


def question_answer_pairs(corpus: Path) -> list[tuple[str, str]]:
    """The first two lines of every conversation, without duplicates, in the order of the files."""
    pairs: dict[tuple[str, str], None] = {}
    for topic in TOPICS:
        content = yaml.safe_load((corpus / f"{topic}.yml").read_text(encoding="utf-8"))
        for conversation in content["conversations"]:
            question, answer = (str(line).strip() for line in conversation[:2])
            if question and answer:
                pairs[question, answer] = None
    return list(pairs)


def main() -> None:
    """Write one JSON object with `messages` per line."""
    corpus, output = Path(sys.argv[1]), Path(sys.argv[2])
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in question_answer_pairs(corpus)
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    sys.stdout.write(f"{len(rows)} question/answer pairs in {output}\n")


if __name__ == "__main__":
    main()
