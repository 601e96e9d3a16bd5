"""The server under load: requests and tokens a second, and beside it a server for each adapter alone.

Usage: python benchmarks/serving_load.py [--base DIR --adapters NAME=DIR ...] [--seconds 60] [--threads 16]

Threads ask through OpenAI's client, every second request streamed, each adapter in turn, greedy; every answer is
compared with what `generate` gives for that adapter. After these seconds of the mixed server come rounds of it and of
the separate servers in turn, under the same load. All servers are held to one core, which stands for the one device;
what they are compared by is tokens per second of that core's time, because a scheduler gives three busy processes more
of a shared core than one. Without --base, a random Llama of 14 million weights and three adapters are made.
"""

import argparse
import logging
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from serving_clients import Clients, Expected, Servers, report, right_answers, server

from thriftune.inference.serving.checking import adapters_of

PROMPTS = ("What is the capital of France?", "Name a colour.", "The quick brown fox", "Where do cats sleep at night?")
TOKENS = 32
CORE = 0  # all servers share it
ALONE = ("--threads", "1")
ROUNDS, ROUND_SECONDS = 3, 6.0


def make_model(folder: Path) -> tuple[Path, dict[str, Path]]:
    """A random base with a tokenizer of bytes, and three adapters on it that answer differently.

    Args:
        folder: Where they go.

    Returns:
        The base, and the adapters by name.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = ["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="<pad>").save_pretrained(
        folder / "base"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(alphabet), hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6,
        max_position_embeddings=512, eos_token_id=1, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    adapters = {}
    for number in (1, 2, 3):
        base = LlamaForCausalLM.from_pretrained(folder / "base")
        model = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
        torch.manual_seed(number)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.05)
        adapters[f"adapter-{number}"] = folder / f"adapter-{number}"
        model.save_pretrained(adapters[f"adapter-{number}"])
    return folder / "base", adapters


def main() -> None:
    """Measure, and print what the docs show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--adapters", nargs="*", default=[], metavar="NAME=DIR")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=16)
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        base, adapters = (given.base, adapters_of(given.adapters)) if given.base else make_model(folder)
        expected = right_answers(base, adapters, PROMPTS, TOKENS)
        assert len(set(expected.values())) > len(adapters), "the adapters answer alike"
        url, process = stack.enter_context(server(base, adapters, folder / "mixed.log", *ALONE, core=CORE))
        one = Servers(dict.fromkeys(adapters, url), [process])
        load = Clients(one, expected, TOKENS).ask(given.threads, given.seconds)
        report(f"one server, {given.threads} threads", load)
        started = {
            name: stack.enter_context(server(base, {name: path}, folder / f"{name}.log", *ALONE, core=CORE))
            for name, path in adapters.items()
        }
        several = Servers({name: url for name, (url, _) in started.items()}, [each for _, each in started.values()])
        for threads in (given.threads, len(adapters)):
            compare(one, several, expected, threads)
        sys.stdout.write(f"resident MiB: {one.memory} beside {several.memory}\n")


def compare(one: Servers, several: Servers, expected: Expected, threads: int) -> None:
    """Measure one server and one for each adapter in turn, and print the ratio.

    Args:
        one: The server of all adapters.
        several: Those of one each.
        expected: Right answers by adapter and prompt.
        threads: Clients.
    """
    rates: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for kind, servers in {"one server": one, f"{len(several.processes)} servers": several}.items():
            load = Clients(servers, expected, TOKENS).ask(threads, ROUND_SECONDS)
            report(f"{kind}, {threads} threads", load)
            rates.setdefault(kind, []).append(load.tokens_a_cpu_second)
    mixed, apart = (statistics.median(each) for each in rates.values())
    sys.stdout.write(f"tokens a CPU second, medians: {mixed:.0f} / {apart:.0f} = {mixed / apart:.2f}\n")


if __name__ == "__main__":
    main()
