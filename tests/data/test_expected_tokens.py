"""Each format on two real tokenizers, from a row to the table, against token ids and labels written out by hand."""

import gzip
import io
import json
import shutil
from pathlib import Path

import pytest
from conftest import LLAMA_TEMPLATE

from thriftune.config import DataConfig
from thriftune.data.conversion import Batch, Converter
from thriftune.data.formats import FORMATS, format_of
from thriftune.data.sources import NumberedRow
from thriftune.data.tokenization import IGNORED
from thriftune.models.tokenizer import load_tokenizer

SMOLLM2_FILES = Path(__file__).parent / "fixtures" / "smollm2"
_ = IGNORED

# SentencePiece makes whole words of these; all else becomes letters and, as line breaks and emoji, bytes.
CORPUS = (
    "Below is an instruction that describes a task.",
    "paired with an input that provides further context.",
    "Write a response that appropriately completes the request.",
    "### Instruction: ### Input: ### Response:",
    "Correct this to standard English: Corrected: Quote by Wilde:",
    "Question: Answer: Add. 1 2 3",
    "[INST] hi [/INST] yes [INST] why [/INST] no",
    "I has it. I have it. I had it.",
    "Be so.",
    "one two three four five six",
    "123,",
)


@pytest.fixture(scope="module")
def sentencepiece_model() -> bytes:
    """A SentencePiece model as Llama's: BPE with bytes for the rest, a space before the text, digits apart."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type="bpe",
        vocab_size=500,
        byte_fallback=True,
        add_dummy_prefix=True,
        split_digits=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def llama(sentencepiece_model, tmp_path_factory):
    """A model directory as Llama 2's: tokenizer.model and tokenizer_config.json."""
    directory = tmp_path_factory.mktemp("llama")
    (directory / "tokenizer.model").write_bytes(sentencepiece_model)
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": False,
        "chat_template": LLAMA_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """The tokenizer of the demo's model."""
    directory = tmp_path_factory.mktemp("smollm2")
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(SMOLLM2_FILES / name, directory)
    (directory / "tokenizer.json").write_bytes(gzip.decompress((SMOLLM2_FILES / "tokenizer.json.gz").read_bytes()))
    return load_tokenizer(directory)


def converted(tokenizer, row, **data):
    """The (input_ids, labels) of each piece that a row becomes, and the reasons why parts of it are refused."""
    labels = ("no", "yes") if data["format"] == "labelled" else ()
    converter = Converter(DataConfig(source="rows.jsonl", **data), tokenizer, labels)
    result = converter.convert(Batch(0, [NumberedRow("rows.jsonl", 1, row)], [False]))
    pieces = [(piece["input_ids"], piece["labels"]) for piece in result.table.to_pylist()]
    return pieces, [rejected.reason for rejected in result.rejected]


def turns(*contents):
    roles = [("user", "assistant")[i % 2] for i in range(len(contents))]
    return {"messages": [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]}


SIX = {"prompt": "why", "completion": " one two three four five six"}
ROWS = {
    "alpaca with input": ({"format": "alpaca"}, {"instruction": "Add.", "input": "1 2", "output": "3"}),
    "alpaca without input": ({"format": "alpaca"}, {"instruction": "Add.", "output": "3"}),
    "prompt_completion": ({"format": "prompt_completion"}, {"prompt": "Question: why", "completion": " yes"}),
    "text": ({"format": "text"}, {"text": "I have it.\nBe so."}),
    "labelled": ({"format": "labelled"}, {"text": "I have it.\nBe so.", "label": "yes"}),
    "text in blocks": ({"format": "text", "packing": True, "max_length": 5}, {"text": "I have it.\nBe so."}),
    "quotes": ({"format": "quotes"}, {"quote": "Be so.", "author": "Wilde,"}),
    "grammar": ({"format": "grammar"}, {"sentence": "I has it.", "corrections": ["I have it.", "I had it."]}),
    "template": ({"format": "template", "template": "Question: {q} Answer: {a}"}, {"q": "why", "a": "yes"}),
    "template with two answers": (
        {"format": "template", "template": "{a} [{b}] {c}", "trained_fields": ["a", "c"]},
        {"a": "yes", "b": "no", "c": "hi"},
    ),
    "chat": ({"format": "chat"}, turns("hi", "yes")),
    "chat of two turns": ({"format": "chat"}, turns("hi", "yes", "why", "no 😀")),
    "sharegpt": (
        {"format": "sharegpt"},
        {"conversations": [{"from": "human", "value": "why"}, {"from": "gpt", "value": "no"}]},
    ),
    "cut in its answer": ({"format": "prompt_completion", "max_length": 5}, SIX),
    "cut into pieces": ({"format": "prompt_completion", "max_length": 5, "long_rows": "split"}, SIX),
    "trained on inputs": ({"format": "prompt_completion", "train_on_inputs": True}, SIX),
}

# fmt: off
LLAMA = {
    # <s> ▁Below ▁is ▁an ▁instruction ▁that ▁describes ▁a ▁task , ▁paired ▁with ▁an ▁input ▁that ▁provides ▁further
    # ▁context . ▁Write ▁a ▁response ▁that ▁appropriately ▁completes ▁the ▁request . \n \n ### ▁Instruction : \n A dd .
    # \n \n ### ▁Input : \n 1 ▁ 2 \n \n ### ▁Response : \n | 3 </s>
    "alpaca with input": [(
        [1, 413, 370, 312, 437, 285, 435, 268, 405, 493, 421, 407, 312, 418, 285, 430, 426, 425, 469,
         417, 268, 431, 285, 438, 434, 391, 427, 469, 13, 13, 278, 436, 470, 13, 486, 327, 469,
         13, 13, 278, 414, 470, 13, 483, 454, 484, 13, 13, 278, 429, 470, 13, 485, 2],
        [*[_] * 52, 485, 2],
    )],
    "alpaca without input": [(
        [1, 413, 370, 312, 437, 285, 435, 268, 405, 469, 417, 268, 431, 285, 438, 434, 391, 427, 469,
         13, 13, 278, 436, 470, 13, 486, 327, 469, 13, 13, 278, 429, 470, 13, 485, 2],
        [*[_] * 34, 485, 2],
    )],
    # <s> ▁Question : ▁why | ▁yes </s>
    "prompt_completion": [([1, 428, 470, 393, 394, 2], [_, _, _, _, 394, 2])],
    # <s> | ▁I ▁have ▁it . \n Be ▁so . </s>
    "text": [([1, 267, 404, 282, 469, 13, 286, 373, 469, 2], [_, 267, 404, 282, 469, 13, 286, 373, 469, 2])],
    # What the tokenizer makes of the text, without an end that it does not put there; class 1 at the last token.
    "labelled": [([1, 267, 404, 282, 469, 13, 286, 373, 469], [*[_] * 8, 1])],
    "text in blocks": [
        ([1, 267, 404, 282, 469], [_, 267, 404, 282, 469]),
        ([469, 13, 286, 373, 469], [_, 13, 286, 373, 469]),
        ([469, 2], [_, 2]),
    ],
    # <s> ▁Quote ▁by ▁Wilde : \n | Be ▁so . </s>
    "quotes": [([1, 415, 368, 416, 470, 13, 286, 373, 469, 2], [_, _, _, _, _, _, 286, 373, 469, 2])],
    # <s> ▁Correct ▁this ▁to ▁standard ▁English : \n I ▁has ▁it . \n \n Cor re cted : \n | I ▁have ▁it . </s>
    "grammar": [
        ([1, 422, 406, 375, 432, 423, 470, 13, 467, 386, 282, 469, 13, 13, 303, 265, 376, 470, 13,
          467, 404, 282, 469, 2], [*[_] * 19, 467, 404, 282, 469, 2]),
        ([1, 422, 406, 375, 432, 423, 470, 13, 467, 386, 282, 469, 13, 13, 303, 265, 376, 470, 13,
          467, 385, 282, 469, 2], [*[_] * 19, 467, 385, 282, 469, 2]),
    ],
    # <s> ▁Question : ▁why ▁Answer : | ▁yes </s>
    "template": [([1, 428, 470, 393, 420, 470, 394, 2], [_, _, _, _, _, _, 394, 2])],
    # <s> | ▁yes | ▁[ no ] | ▁hi </s>
    "template with two answers": [([1, 394, 271, 339, 478, 369, 2], [_, 394, _, _, _, 369, 2])],
    # <s> [ INST ] ▁hi ▁[/ INST ] | ▁yes </s>
    "chat": [([1, 477, 272, 478, 369, 311, 272, 478, 394, 2], [_, _, _, _, _, _, _, _, 394, 2])],
    # ... [ INST ] ▁why ▁[/ INST ] | ▁no ▁ <0xF0> <0x9F> <0x98> <0x80> </s>
    "chat of two turns": [(
        [1, 477, 272, 478, 369, 311, 272, 478, 394, 2, 477, 272, 478, 393, 311, 272, 478,
         371, 454, 243, 162, 155, 131, 2],
        [_, _, _, _, _, _, _, _, 394, 2, _, _, _, _, _, _, _, 371, 454, 243, 162, 155, 131, 2],
    )],
    "sharegpt": [([1, 477, 272, 478, 393, 311, 272, 478, 371, 2], [_, _, _, _, _, _, _, _, 371, 2])],
    # <s> ▁why | ▁one ▁two ▁three ▁four ▁five ▁six </s>
    "cut in its answer": [([1, 393, 387, 392, 419], [_, _, 387, 392, 419])],
    "cut into pieces": [
        ([1, 393, 387, 392, 419], [_, _, 387, 392, 419]),
        ([419, 403, 402, 390, 2], [_, 403, 402, 390, 2]),
    ],
    "trained on inputs": [([1, 393, 387, 392, 419, 403, 402, 390, 2], [_, 393, 387, 392, 419, 403, 402, 390, 2])],
}

# <|im_start|> system \n You are a helpful AI assistant named Sm ol LM , trained by H ugging Face <|im_end|> \n
SYSTEM = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182, 2,
          198]
SMOLLM2 = {
    # Below Ġis Ġan Ġinstruction ... Ġrequest . \n \n ### ĠInstruction : \n Add . \n \n ### ĠInput : \n 1 Ġ 2 \n \n ###
    # ĠResponse : \n | 3 <|im_end|>
    "alpaca with input": [(
        [19798, 314, 354, 5785, 338, 6601, 253, 3856, 28, 20054, 351, 354, 3007, 338, 2433, 2030, 2468, 30,
         9517, 253, 2426, 338, 13674, 32873, 260, 3116, 30, 198, 198, 3757, 20880, 42, 198, 7684, 30,
         198, 198, 3757, 18100, 42, 198, 33, 216, 34, 198, 198, 3757, 14212, 42, 198, 35, 2],
        [*[_] * 50, 35, 2],
    )],
    "alpaca without input": [(
        [19798, 314, 354, 5785, 338, 6601, 253, 3856, 30, 9517, 253, 2426, 338, 13674, 32873, 260, 3116, 30,
         198, 198, 3757, 20880, 42, 198, 7684, 30, 198, 198, 3757, 14212, 42, 198, 35, 2],
        [*[_] * 32, 35, 2],
    )],
    # Question : Ġwhy | Ġyes <|im_end|>
    "prompt_completion": [([17872, 42, 1701, 9805, 2], [_, _, _, 9805, 2])],
    # I Ġhave Ġit . \n Be Ġso . <|im_end|>: all is trained but the first token, which nothing comes before
    "text": [([57, 457, 357, 30, 198, 6077, 588, 30, 2], [_, 457, 357, 30, 198, 6077, 588, 30, 2])],
    "labelled": [([57, 457, 357, 30, 198, 6077, 588, 30], [*[_] * 7, 1])],
    "text in blocks": [
        ([57, 457, 357, 30, 198], [_, 457, 357, 30, 198]),
        ([198, 6077, 588, 30, 2], [_, 6077, 588, 30, 2]),
    ],
    # Qu ote Ġby ĠWilde : \n | Be Ġso . <|im_end|>
    "quotes": [([6317, 1520, 411, 38545, 42, 198, 6077, 588, 30, 2], [_, _, _, _, _, _, 6077, 588, 30, 2])],
    # Correct Ġthis Ġto Ġstandard ĠEnglish : \n I Ġhas Ġit . \n \n Correct ed : \n | I Ġhave Ġit . <|im_end|>
    "grammar": [
        ([38323, 451, 288, 2920, 2321, 42, 198, 57, 553, 357, 30, 198, 198, 38323, 277, 42, 198,
          57, 457, 357, 30, 2], [*[_] * 17, 57, 457, 357, 30, 2]),
        ([38323, 451, 288, 2920, 2321, 42, 198, 57, 553, 357, 30, 198, 198, 38323, 277, 42, 198,
          57, 761, 357, 30, 2], [*[_] * 17, 57, 761, 357, 30, 2]),
    ],
    # Question : Ġwhy ĠAnswer : | Ġyes <|im_end|>: the space before the answer is part of its first token
    "template": [([17872, 42, 1701, 19842, 42, 9805, 2], [_, _, _, _, _, 9805, 2])],
    # yes Ġ[ no ] | Ġhi <|im_end|>
    "template with two answers": [([10407, 933, 4607, 77, 15876, 2], [_, _, _, _, 15876, 2])],
    # <|im_start|> user \n hi <|im_end|> \n <|im_start|> ass istant \n | yes <|im_end|> | \n
    "chat": [(
        [*SYSTEM, 1, 4093, 198, 6004, 2, 198, 1, 520, 9531, 198, 10407, 2, 198],
        [*[_] * 31, 10407, 2, _],
    )],
    # ... user \n why <|im_end|> \n <|im_start|> ass istant \n | no Ġ😀[0:3] 😀[3:4] <|im_end|> | \n
    "chat of two turns": [(
        [*SYSTEM, 1, 4093, 198, 6004, 2, 198, 1, 520, 9531, 198, 10407, 2, 198,
         1, 4093, 198, 23689, 2, 198, 1, 520, 9531, 198, 4607, 40303, 218, 2, 198],
        [*[_] * 31, 10407, 2, *[_] * 11, 4607, 40303, 218, 2, _],
    )],
    "sharegpt": [([*SYSTEM, 1, 4093, 198, 23689, 2, 198, 1, 520, 9531, 198, 4607, 2, 198], [*[_] * 31, 4607, 2, _])],
    # why | Ġone Ġtwo Ġthree Ġfour Ġfive Ġsix <|im_end|>
    "cut in its answer": [([23689, 582, 827, 1296, 1876], [_, 582, 827, 1296, 1876])],
    "cut into pieces": [
        ([23689, 582, 827, 1296, 1876], [_, 582, 827, 1296, 1876]),
        ([1876, 2531, 2976, 2], [_, 2531, 2976, 2]),
    ],
    "trained on inputs": [([23689, 582, 827, 1296, 1876, 2531, 2976, 2], [_, 582, 827, 1296, 1876, 2531, 2976, 2])],
}
# fmt: on


def test_every_format_is_here():
    assert {config["format"] for config, _row in ROWS.values()} == {*FORMATS, "template"}
    assert set(LLAMA) == set(SMOLLM2) == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_a_sentencepiece_llama_sees_these_tokens(llama, name):
    config, row = ROWS[name]
    assert converted(llama, row, **config) == (LLAMA[name], [])


@pytest.mark.parametrize("name", ROWS)
def test_smollm2_sees_these_tokens(smollm2, name):
    config, row = ROWS[name]
    assert converted(smollm2, row, **config) == (SMOLLM2[name], [])


@pytest.mark.parametrize("name", ["alpaca with input", "prompt_completion", "text", "quotes", "grammar", "template"])
def test_sentencepiece_itself_says_the_same(sentencepiece_model, name):
    """What transformers makes of the model file is what the library that wrote it does, with BOS and EOS around."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model)
    data, row = ROWS[name]
    texts = [example.text for example in format_of(data["format"], template=data.get("template")).read(row)]
    assert [[1, *processor.encode(text), 2] for text in texts] == [ids for ids, _labels in LLAMA[name]]


TWO_TURNS = turns("hi", "yes", "why", "no 😀")


def test_a_conversation_is_cut_in_its_last_answer(llama, smollm2):
    pieces, reasons = converted(llama, TWO_TURNS, format="chat", max_length=20)
    # ... ▁[/ INST ] | ▁no ▁ <0xF0>: in the middle of a character, and without EOS
    ids = [1, 477, 272, 478, 369, 311, 272, 478, 394, 2, 477, 272, 478, 393, 311, 272, 478, 371, 454, 243]
    assert pieces == [(ids, [_, _, _, _, _, _, _, _, 394, 2, _, _, _, _, _, _, _, 371, 454, 243])]
    assert reasons == []

    pieces, reasons = converted(smollm2, TWO_TURNS, format="chat", max_length=45)
    ids = [*SYSTEM, 1, 4093, 198, 6004, 2, 198, 1, 520, 9531, 198, 10407, 2, 198]
    ids += [1, 4093, 198, 23689, 2, 198, 1, 520, 9531, 198, 4607]
    assert pieces == [(ids, [*[_] * 31, 10407, 2, *[_] * 11, 4607])]
    assert reasons == []


def test_a_conversation_is_cut_in_a_later_question(llama):
    pieces, _reasons = converted(llama, TWO_TURNS, format="chat", max_length=12)
    # <s> [ INST ] ▁hi ▁[/ INST ] | ▁yes </s> | [ INST
    assert pieces == [([1, 477, 272, 478, 369, 311, 272, 478, 394, 2, 477, 272], [*[_] * 8, 394, 2, _, _])]


def test_a_row_whose_question_fills_it_is_left_out(llama, smollm2):
    assert converted(llama, TWO_TURNS, format="chat", max_length=8) == ([], [])
    assert converted(smollm2, TWO_TURNS, format="chat", max_length=31) == ([], [])
    assert converted(llama, TWO_TURNS, format="chat", max_length=9)[0][0][1] == [*[_] * 8, 394]
    assert converted(smollm2, TWO_TURNS, format="chat", max_length=32)[0][0][1] == [*[_] * 31, 10407]


def test_a_system_message_takes_the_place_of_smollm2s_own_and_is_refused_by_llama(llama, smollm2):
    row = {"messages": [{"role": "system", "content": "Be so."}, *turns("hi", "yes")["messages"]]}
    # <|im_start|> system \n Be Ġso . <|im_end|> \n <|im_start|> user \n hi <|im_end|> \n ... \n | yes <|im_end|> | \n
    ids = [1, 9690, 198, 6077, 588, 30, 2, 198, 1, 4093, 198, 6004, 2, 198, 1, 520, 9531, 198, 10407, 2, 198]
    assert converted(smollm2, row, format="chat") == ([(ids, [*[_] * 18, 10407, 2, _])], [])
    pieces, (reason,) = converted(llama, row, format="chat")
    assert pieces == []
    assert reason.startswith("the model's chat template refuses it: Conversation roles must alternate")


def test_a_grammar_row_keeps_its_good_corrections(llama):
    row = {"sentence": "I has it.", "corrections": ["I have it.", " ", "I had it.", None]}
    pieces, reasons = converted(llama, row, format="grammar")
    assert pieces == LLAMA["grammar"]
    assert reasons == ["correction 2 is empty or not text", "correction 4 is empty or not text"]
