"""Speeds of training that others measured and published: on what, of what, how, and where it is written down.

Rows of one source and one device lean on the same software. `SHARED` marks sources that do not say how many tokens
their runs had, but trained all of them on the same rows: their number is then taken from the source's other rows.
"""

from dataclasses import dataclass, field
from typing import Any

Model = str | dict[str, Any]

FITCHECK = "Anassbzdd/fitcheck, data/measurements"
FSDP_QLORA = "AnswerDotAI/fsdp_qlora, benchmarks_03_2024.md"
H2O = "h2oai/h2o-llmstudio, documentation, performance page"
QWEN = "QwenLM/Qwen, README, profiling of memory and speed"
NEMO = "NVIDIA-NeMo/Automodel, performance summary"
TITAN = "pytorch/torchtitan, benchmarks/llama3_h100_202412_torchtitan.md"
SHARED = frozenset({H2O})
# Sources that train in autocast, and those that hold adapters in 16 bits, as the base; the others hold them in fp32.
MIXED, IN_PRECISION = frozenset({H2O, QWEN}), frozenset({FSDP_QLORA, NEMO, TITAN})

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
QUERY_AND_VALUE = ("q_proj", "v_proj")
# train.py of fsdp_qlora leaves the output projection of the attention out.
ALL_BUT_OUTPUT = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")
EVERYWHERE = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Row:
    """One published run.

    Attributes:
        device: A name in devices.yaml, or in `DEVICES`.
        model: A model whose configuration is shipped, or its config.json.
        method: full, lora or qlora.
        tokens: Tokens of a row.
        seconds: Published seconds of an optimizer step; of the whole run where its number of tokens is not known.
        source: Where it is published.
        micro_batch: Rows per GPU and pass.
        accumulation: Passes of a step.
        gpus: GPUs of a node.
        nodes: Nodes.
        strategy: Of this package, which computes and exchanges the same.
        options: Settings of the strategy: fsdp's, or the name of a DeepSpeed configuration.
        checkpointing: Whether layers are computed again.
        targets: What adapters are put on.
        network_gbps: Network of a node.
        note: What is different there.
    """

    device: str
    model: Model
    method: str
    tokens: int
    seconds: float
    source: str
    micro_batch: int = 1
    accumulation: int = 1
    gpus: int = 1
    nodes: int = 1
    strategy: str = "single"
    options: dict[str, Any] = field(default_factory=dict)
    checkpointing: bool = True
    targets: tuple[str, ...] = ATTENTION
    network_gbps: float = 0.0
    note: str = ""

    @property
    def name(self) -> str:
        """What was trained, as text."""
        model = self.model if isinstance(self.model, str) else self.model["name"]
        machines = f"{self.gpus} x {self.device}" if self.nodes == 1 else f"{self.nodes} x {self.gpus} x {self.device}"
        how = (
            ""
            if self.strategy == "single"
            else f", {self.strategy}{' with offload' if self.options.get('cpu_offload') else ''}"
        )
        shape = f"{self.micro_batch} x {self.tokens}" + (f" x {self.accumulation}" if self.accumulation > 1 else "")
        return f"{machines}: {model.split('/')[-1]}, {self.method}{how}, {shape}"


def _llama(
    name: str, width: int, layers: int, heads: int, kv: int, inner: int, words: int, *, tied: bool = False, **more: Any
) -> dict[str, Any]:
    return {
        "name": name, "model_type": "llama", "vocab_size": words, "hidden_size": width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "intermediate_size": inner,
        "tie_word_embeddings": tied, "max_position_embeddings": 131072, **more,
    }  # fmt: skip


LLAMA_1B, LLAMA_3B, MISTRAL = "meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-3B", "mistralai/Mistral-7B-v0.1"
LLAMA2_7B, LLAMA2_13B, LLAMA2_70B = (f"meta-llama/Llama-2-{size}-hf" for size in ("7b", "13b", "70b"))
QWEN25_15B = _llama("Qwen2.5-1.5B", 1536, 28, 12, 2, 8960, 151936, tied=True, model_type="qwen2")
SMOLLM_17B = _llama("SmolLM2-1.7B", 2048, 24, 32, 32, 8192, 49152, tied=True)
CODER_13B = _llama("deepseek-coder-1.3b", 2048, 24, 16, 16, 5504, 32256)
LLAMA3_8B = _llama("Llama-3-8B", 4096, 32, 32, 8, 14336, 128256)
YI_34B = _llama("Yi-34B", 7168, 60, 56, 8, 20480, 64000)
# The first Qwen: a Llama in shape, with biases of queries, keys and values.
QWEN_18B = _llama("Qwen-1.8B", 2048, 24, 16, 16, 5504, 151936, model_type="qwen2")
QWEN_7B = _llama("Qwen-7B", 4096, 32, 32, 32, 11008, 151936, model_type="qwen2")
QWEN_14B = _llama("Qwen-14B", 5120, 40, 40, 40, 13696, 152064, model_type="qwen2")
QWEN_72B = _llama("Qwen-72B", 8192, 80, 64, 64, 24576, 152064, model_type="qwen2")

# Devices of the published runs that devices.yaml does not have, or that were not run as its data sheet says.
DEVICES: dict[str, dict[str, Any]] = {
    "RTX-3090": {
        "memory_gib": 24, "compute_capability": 8.6,
        # NVIDIA's GA102 paper: 71 with fp32 accumulate, 35.6 fp32, 936 GB/s. The page says "an older motherboard
        # and slow PCI lanes": PCIe 3.0 with 8 lanes each, an assumption.
        "speed": {"tflops": {"fp32": 35.6, "fp16": 71, "bf16": 71}, "bandwidth_gbs": 936, "pcie_gbs": 7.9},
    },
    "RTX-A5000": {
        "memory_gib": 24, "compute_capability": 8.6,
        # NVIDIA RTX A5000 data sheet: 222.2 sparse, 27.8 fp32, 768 GB/s, PCIe Gen4 x16.
        "speed": {"tflops": {"fp32": 27.8, "fp16": 111, "bf16": 111}, "bandwidth_gbs": 768, "pcie_gbs": 31.5},
    },
    "RTX-6000-Ada": {
        "memory_gib": 48, "compute_capability": 8.9,
        # NVIDIA RTX 6000 Ada data sheet: 1457 sparse in fp8, which is 364 dense in 16 bits; 91.1 fp32, 960 GB/s.
        "speed": {"tflops": {"fp32": 91.1, "fp16": 364, "bf16": 364}, "bandwidth_gbs": 960, "pcie_gbs": 31.5},
    },
    "H100-96GB-500W": {
        "memory_gib": 96, "compute_capability": 9.0,
        # The page: HBM2e with 2.4 TB/s, limited to 500 W; else as an H100 SXM.
        "speed": {
            "tflops": {"fp32": 67, "fp16": 989, "bf16": 989}, "bandwidth_gbs": 2400, "pcie_gbs": 63, "nvlink_gbs": 450,
        },
    },
}  # fmt: skip
# Devices that compute alike: what one reaches of its peaks, the other one is taken to reach.
ALIKE = {"H100-96GB-500W": "H100", "A100-40GB": "A100", "A100-80GB": "A100"}


def _t4(model: Model, method: str, tokens: int, per_second: float, micro_batch: int = 1) -> Row:
    return Row("T4", model, method, tokens, micro_batch * tokens / per_second, FITCHECK, micro_batch=micro_batch)


def _fsdp(device: str, model: Model, method: str, gpus: int, micro_batch: int, seconds: float, **more: Any) -> Row:
    """1,024 rows in `seconds`; a step is one pass."""
    options = {"strategy": "fsdp", "tokens": 2048, **more}
    step = seconds * micro_batch * gpus / 1024
    return Row(
        device, model, method, options.pop("tokens"), step, FSDP_QLORA, micro_batch, gpus=gpus,
        targets=ALL_BUT_OUTPUT, **options,
    )  # fmt: skip


def _h2o(device: str, gpus: int, model: Model, method: str, minutes: float) -> Row:
    """All of OpenAssistant's rows, how many tokens that is is not said: `seconds` of the run, for one row."""
    strategy = "ddp" if gpus > 1 else "single"
    return Row(device, model, method, 512, 60 * minutes, H2O, 2, gpus=gpus, strategy=strategy, targets=QUERY_AND_VALUE)


def _qwen(model: Model, tokens: int, seconds: float, method: str = "lora", **more: Any) -> Row:
    return Row("A100-80GB", model, method, tokens, seconds, QWEN, accumulation=8, targets=EVERYWHERE, **more)


_OFFLOADED = {"cpu_offload": True}
_GPTQ = "4 bits of GPTQ there, NF4 here"

# The rows of the list that this project began with.
LISTED: tuple[Row, ...] = (
    _t4(LLAMA_1B, "qlora", 1024, 1181),
    _t4(LLAMA_3B, "qlora", 1024, 450),
    _t4(MISTRAL, "qlora", 1024, 262),
    _t4(QWEN25_15B, "qlora", 1024, 893),
    _t4(SMOLLM_17B, "qlora", 2048, 814),
    _t4(SMOLLM_17B, "lora", 2048, 1383),
    _fsdp("RTX-3090", LLAMA2_70B, "qlora", 2, 2, 11_795, options=_OFFLOADED),
    _fsdp("RTX-4090", LLAMA2_70B, "qlora", 2, 2, 4_399, options=_OFFLOADED),
    _fsdp("RTX-A5000", LLAMA2_70B, "qlora", 8, 1, 2_613),
    _fsdp("RTX-4090", LLAMA2_7B, "qlora", 2, 8, 450, strategy="ddp"),
    _fsdp("RTX-4090", LLAMA2_7B, "qlora", 2, 10, 466),
    _h2o("A10G", 1, LLAMA2_7B, "lora", 85.48),
    _h2o("A10G", 2, LLAMA2_7B, "lora", 37.07),
    _h2o("A10G", 4, LLAMA2_7B, "lora", 21.22),
    _h2o("A10G", 8, LLAMA2_7B, "lora", 11.58),
    _qwen(QWEN_7B, 1024, 3.5, "qlora", note=_GPTQ),
    _qwen(QWEN_7B, 2048, 7.0, "qlora", note=_GPTQ),
    _qwen(QWEN_7B, 1024, 2.8),
    Row("H100", LLAMA3_8B, "lora", 4096, 32 * 4096 / 12_473, NEMO, 2, 16, checkpointing=False, targets=EVERYWHERE),
    Row("H100-96GB-500W", LLAMA3_8B, "full", 8192, 2 * 8192 / 5_762, TITAN, 2, gpus=8, strategy="fsdp",
        checkpointing=False, note="every second product is computed again there"),
    # 200 Gbit/s between these two machines is an assumption.
    _qwen(QWEN_7B, 1024, 5.17, gpus=2, nodes=2, strategy="ddp", network_gbps=200),
)  # fmt: skip

# More rows of the same pages.
OTHERS: tuple[Row, ...] = (
    _t4(QWEN25_15B, "qlora", 1024, 2048 / 2.588, 2),
    _t4(QWEN25_15B, "lora", 1024, 2048 / 1.511, 2),
    _t4(CODER_13B, "qlora", 1024, 1024 / 0.999),
    _fsdp("RTX-3090", LLAMA2_7B, "qlora", 2, 4, 998),
    _fsdp("RTX-3090", LLAMA2_7B, "qlora", 2, 10, 936),
    _fsdp("RTX-3090", LLAMA2_7B, "qlora", 2, 8, 875, strategy="ddp"),
    _fsdp("RTX-3090", LLAMA2_7B, "lora", 2, 6, 1_199),
    _fsdp("RTX-3090", LLAMA2_7B, "lora", 2, 4, 881, strategy="ddp"),
    _fsdp("RTX-3090", YI_34B, "qlora", 2, 2, 5_041),
    _fsdp("RTX-4090", LLAMA2_7B, "lora", 2, 6, 481),
    _fsdp("RTX-4090", LLAMA2_7B, "lora", 2, 4, 437, strategy="ddp"),
    _fsdp("RTX-4090", YI_34B, "qlora", 2, 2, 2_072),
    _fsdp("RTX-A5000", LLAMA2_70B, "qlora", 4, 1, 4_829),
    _fsdp("RTX-6000-Ada", LLAMA2_70B, "qlora", 2, 2, 5_867),
    _fsdp("RTX-6000-Ada", LLAMA2_70B, "qlora", 4, 3, 2_904),
    _fsdp("A100-40GB", LLAMA2_70B, "qlora", 4, 4, 1_266),
    _fsdp("A100-40GB", LLAMA2_70B, "qlora", 8, 4, 672),
    _fsdp("H100", LLAMA2_70B, "qlora", 4, 8, 667),
    _h2o("A10G", 1, LLAMA2_7B, "qlora", 86.98),
    _h2o("A10G", 8, LLAMA2_7B, "qlora", 14.43),
    _h2o("A10G", 1, LLAMA2_13B, "qlora", 164.6),
    _h2o("A100-80GB", 1, LLAMA2_7B, "lora", 23.6),
    _h2o("A100-80GB", 4, LLAMA2_7B, "lora", 7.07),
    _h2o("A100-80GB", 1, LLAMA2_7B, "qlora", 34.1),
    _h2o("A100-80GB", 1, LLAMA2_13B, "lora", 39.17),
    _h2o("A100-80GB", 1, LLAMA2_70B, "qlora", 263.95),
    _qwen(QWEN_18B, 2048, 1.7),
    _qwen(QWEN_18B, 4096, 3.3),
    _qwen(QWEN_7B, 256, 1.2),
    _qwen(QWEN_7B, 512, 1.5),
    _qwen(QWEN_7B, 2048, 5.2),
    _qwen(QWEN_7B, 4096, 10.1),
    _qwen(QWEN_14B, 512, 2.4),
    _qwen(QWEN_14B, 1024, 4.4),
    _qwen(QWEN_14B, 4096, 17.0),
    _qwen(QWEN_72B, 1024, 29.4, gpus=4, strategy="zero", options={"name": "zero3"}),
    _qwen(QWEN_72B, 4096, 83.4, gpus=4, strategy="zero", options={"name": "zero3"}),
    _qwen(QWEN_7B, 1024, 4.5, "full", gpus=2, strategy="zero", options={"name": "zero3"}),
)
