"""Where answers stop when the chat template ends a turn with another token than EOS, and when it does not."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import ranks
from conftest import save_tiny_llama

from thriftune.artifacts import MANIFEST
from thriftune.config import DataConfig
from thriftune.data.prepare import prepare
from thriftune.data.prepared import TRAIN, VALIDATION, load_samples, load_split
from thriftune.data.tokenization import ForbiddenText
from thriftune.errors import ModelSourceError
from thriftune.inference.generation import Sampling, complete, encode_prompt
from thriftune.models import fetching as models
from thriftune.models.merging import merge
from thriftune.models.stopping import before_stop, save_tokenizer, stop_tokens
from thriftune.models.tokenizer import load_tokenizer

WORKER = Path(__file__).parent / "training_worker.py"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def chatml_tokenizer(llama_tokenizer):
    """A base model's tokenizer, with EOS </s>, that was given ChatML; its end of a turn is not marked as special."""
    tokenizer = copy.deepcopy(llama_tokenizer)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture(scope="module")
def chatml_dir(chatml_tokenizer, tmp_path_factory):
    """A tiny random model with that tokenizer. Never write into it."""
    directory = tmp_path_factory.mktemp("chatml-model")
    save_tiny_llama(directory, chatml_tokenizer)
    return directory


@pytest.fixture(scope="module")
def dataset_dir(chatml_dir, chat_rows_file, tmp_path_factory):
    directory = tmp_path_factory.mktemp("chatml") / "dataset"
    config = DataConfig(source=str(chat_rows_file), format="chat", max_length=128, validation_share=0.1)
    prepare(config, seed=0, tokenizer_dir=chatml_dir, destination=directory)
    return directory


def test_a_sample_ends_where_its_answer_begins(dataset_dir, chatml_tokenizer):
    """Samples held question and answer, the reference was empty, and so was all that the trained model added."""
    samples = load_samples(dataset_dir)
    assert len(samples) == 4
    for sample in samples:
        expected = f"<|im_start|>user\n{sample['question']}<|im_end|>\n<|im_start|>assistant\n"
        assert chatml_tokenizer.decode(sample["input_ids"]) == expected
        assert sample["reference"].startswith("On day")
        assert sample["reference"].endswith(".")
    held_out = [chatml_tokenizer.decode(ids) for ids in load_split(dataset_dir, VALIDATION)["input_ids"]]
    texts = [chatml_tokenizer.decode(s["input_ids"]) + s["reference"] + "<|im_end|></s>" for s in samples]
    assert set(texts) <= set(held_out)


def test_a_model_that_learned_the_end_of_a_turn_stops_there_with_nothing_of_ours(
    chatml_dir, dataset_dir, chatml_tokenizer, tmp_path
):
    """Saved models stopped at EOS only: this one would have said <|im_end|> and gone on until it may not."""
    import torch
    from transformers import AutoModelForCausalLM

    row = load_split(dataset_dir, TRAIN)[0]
    model = AutoModelForCausalLM.from_pretrained(chatml_dir)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    end = chatml_tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids, labels = torch.tensor([row["input_ids"][:-1]]), torch.tensor([row["labels"][:-1]])  # all but EOS
    assert int(ids[0, -1]) == int(labels[0, -1]) == end
    for _step in range(30):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path / "saved")
    save_tokenizer(load_tokenizer(chatml_dir), tmp_path / "saved")

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert loaded.generation_config.eos_token_id == [2, end]
    start = next(i for i, label in enumerate(row["labels"]) if label != -100)
    prompt = row["input_ids"][:start]
    (said,) = loaded.generate(torch.tensor([prompt]), max_new_tokens=60, do_sample=False, pad_token_id=3).tolist()
    assert said == row["input_ids"][:-1], "it stops behind <|im_end|>"

    # Ours, with what generation_config lists left as it was: as before training, and with an adapter on the base model.
    (answer,) = complete(model.eval(), chatml_tokenizer, [prompt], Sampling(60), batch=1)
    assert model.generation_config.eos_token_id == 2
    assert answer == chatml_tokenizer.decode(row["input_ids"][start:-2])


def test_a_prompt_is_put_as_a_sample_is(dataset_dir, chatml_tokenizer):
    sample = load_samples(dataset_dir)[0]
    assert encode_prompt(sample["question"], chatml_tokenizer, "chat") == sample["input_ids"]


@pytest.mark.slow
def test_a_fully_finetuned_model_stops_at_the_end_of_a_turn(chatml_dir, dataset_dir, tmp_path):
    from transformers import GenerationConfig

    config = {
        "name": "stopping", "method": "full", "model": {"source": "tiny"}, "data": {"source": "r", "format": "chat"},
        "hardware": {"device": "CPU"}, "training": {"global_batch": 4, "micro_batch": 4, "max_steps": 1},
        "zero": {"config": "zero1"},
    }  # fmt: skip
    job, output = tmp_path / "job", tmp_path / "trained"
    places = {"model": str(chatml_dir), "dataset": str(dataset_dir), "output": str(output)}
    job.write_text(json.dumps([{"config": config, **places}]))
    ranks.run(1, WORKER, job)
    assert GenerationConfig.from_pretrained(output).eos_token_id == [2, 401]


def test_a_merged_model_stops_at_the_end_of_a_turn(chatml_dir, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, GenerationConfig

    base = AutoModelForCausalLM.from_pretrained(chatml_dir)
    get_peft_model(base, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(tmp_path / "a")
    merge(chatml_dir, tmp_path / "a", tmp_path / "merged")
    assert GenerationConfig.from_pretrained(tmp_path / "merged").eos_token_id == [2, 401]
    assert (tmp_path / "merged" / MANIFEST).is_file()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"eos_token_id": 2, "temperature": 0.6, "do_sample": False}, [2, 401]),
        ({"eos_token_id": [7, 2]}, [7, 2, 401]),
        ({"eos_token_id": [401, 2]}, [401, 2]),
        ({"eos_token_id": None}, [2, 401]),
        ({"eos_token_id": 9}, [9, 2, 401]),
        ({}, [2, 401]),
        (None, [2, 401]),
    ],
)
def test_what_a_model_stops_at_already_stays(chatml_tokenizer, tmp_path, before, after):
    """A temperature without sampling, as many models publish it, is what transformers refuses to save when changed."""
    file = tmp_path / "generation_config.json"
    if before is not None:
        file.write_text(json.dumps(before))
    save_tokenizer(chatml_tokenizer, tmp_path)
    content = json.loads(file.read_text())
    assert content == {**(before or {}), "eos_token_id": after}
    assert load_tokenizer(tmp_path).chat_template == CHATML


@pytest.mark.parametrize("before", ['{"eos_token_id":2}', '{"eos_token_id":[2]}', '{"eos_token_id":[2,5]}'])
def test_a_model_that_stops_right_is_left_as_it_is(llama_tokenizer, tmp_path, before):
    (tmp_path / "generation_config.json").write_text(before)
    save_tokenizer(llama_tokenizer, tmp_path)
    assert (tmp_path / "generation_config.json").read_text() == before


@pytest.mark.parametrize(
    "template", [None, "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"]
)
def test_without_a_token_at_the_end_of_a_turn_answers_stop_at_eos(chatml_tokenizer, template):
    tokenizer = copy.deepcopy(chatml_tokenizer)
    tokenizer.chat_template = template
    assert stop_tokens(tokenizer) == [2]
    assert stop_tokens(tokenizer, 2) == [2]
    assert stop_tokens(tokenizer, [5, 2]) == [5, 2]


def test_no_row_may_spell_out_the_end_of_a_turn(chatml_tokenizer):
    """Only tokens marked as special were looked for: a quoted <|im_end|> would have ended the turn."""
    assert ForbiddenText(chatml_tokenizer).spelled_out("as <|im_end|> does") == ["<|im_end|>"]


def test_an_answer_ends_before_the_first_token_that_stops():
    assert before_stop([5, 6, 401, 7, 2], [2, 401]) == [5, 6]
    assert before_stop([401], [401]) == []
    assert before_stop([5, 6], [401]) == [5, 6]


@pytest.mark.parametrize("text", ['{"a":' * 20_000, "[]", "{", '{"eos_token_id": "x"}', '{"eos_token_id": [1, {}]}'])
def test_a_generation_config_that_is_none_is_refused_before_anything_is_trained(tiny_model_dir, tmp_path, text):
    """It ended the run as the model was loaded on its GPUs; or after the training, as it was saved."""
    source = tmp_path / "model"
    shutil.copytree(tiny_model_dir, source)
    (source / "manifest.json").unlink(missing_ok=True)
    (source / "generation_config.json").write_text(text)
    with pytest.raises(ModelSourceError, match="its generation_config.json is not a JSON object"):
        models.fetch(str(source), "1", tmp_path / "fetched")
