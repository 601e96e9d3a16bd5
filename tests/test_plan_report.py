"""The plan as people and programs read it, made by hand and by the planner; pages are read as a browser would."""

import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser

import pytest

from thriftune.config import RunConfig
from thriftune.hardware import DEVICES
from thriftune.planned_node import NodeRequest
from thriftune.planning import catalogue, planner
from thriftune.planning import report as plan_report
from thriftune.planning.offers import THIS_MACHINE, Offer
from thriftune.strategies.zero.strategy import settings_of
from thriftune.training_plan import Alternative, Estimate, TrainingPlan

HOSTILE = '</div><script>alert("x")</script>[bold]\x1b[31m'
LONG = "very-long-name-" * 12

FULL = TrainingPlan(
    method="full", strategy="zero", settings=settings_of("zero3_offload", {"zero_optimization": {"stage": 3}}),
    hardware=DEVICES["T4"], instance="g4dn.metal", nodes=3, devices_per_node=8,
    precision="fp16", global_batch=48, micro_batch=1, accumulation=2, validation_batch=4,
    memory=Estimate(
        phase="forward and backward",
        devices=[{"CUDA context": 0.586, "gradients": 0.03, "ZeRO buffers": 1.02, "weights": 0.02,
                  "activations": 7.36, "fragmentation": 0.57}] * 8,
        host_phase="saving",
        host={"Python and libraries": 16.0, "offloaded optimizer states": 33.5, "gathered model": 12.55},
        training_host_gib=49.5, shared_memory_gib=1.0, disk={"models": 25.1, "checkpoints": 351.5},
    ),
    device_limit_gib=14.56, host_limit_gib=346.2,
    request=NodeRequest(cpus=94, memory_gib=346, shared_memory_gib=1, disk_gib=387, gpus=8),
    price_per_hour=23.472, currency="USD", prices_as_of="2026-09-24, us-east-1",
    parameters=6_738_415_616, trained_parameters=6_738_415_616,
    alternatives=[
        Alternative("g6.48xlarge", 2, 8, "zero", "zero3", 4, 18.2, 21.96, 26.7),
        Alternative("p3.16xlarge", 1, 8, "zero", "zero3_offload", 1, 13.1, 15.7, 23.472),
    ],
)  # fmt: skip
QLORA = replace(
    FULL, method="qlora", strategy="layers", settings="", nodes=1, global_batch=16, micro_batch=2, accumulation=8,
    memory=replace(
        FULL.memory,
        devices=[
            {"CUDA context": 0.586, "weights": weights, "gradients": 0.02 + weights / 100, "activations": 2.4}
            for weights in (6.1, 7.0, 7.2, 7.0, 7.0, 7.0, 7.0, 2.2)
        ],
        host_phase="training", host={"Python and libraries": 2.0, "loading": 0.97}, shared_memory_gib=0.0,
    ),
    price_per_hour=7.824, parameters=68_976_648_192, trained_parameters=828_375_040,
    alternatives=[Alternative("g6.12xlarge", 1, 4, "layers", "", 2, 20.8, 21.96, 9.0)],
)  # fmt: skip
CPU = replace(
    FULL, hardware=DEVICES["CPU"], instance=THIS_MACHINE, nodes=1, devices_per_node=2, precision="fp32",
    global_batch=4, settings=settings_of("", {"zero_optimization": {"stage": 2}}),
    memory=replace(
        FULL.memory,
        devices=[{"Python and libraries": 0.63, "weights": 0.5, "activations": 0.04}] * 2,
        host={"Python and libraries": 1.26, "weights": 1.0, "gathered model": 0.5}, shared_memory_gib=0.0,
    ),
    device_limit_gib=5.2, host_limit_gib=10.4, request=NodeRequest(2, 10, 1, 11, 0),
    price_per_hour=0.0, prices_as_of="", parameters=134_515_008, trained_parameters=134_515_008, alternatives=[],
)  # fmt: skip
PLANS = {"full": FULL, "qlora": QLORA, "cpu": CPU}


class Page(HTMLParser):
    """What a browser makes of a page: elements, visible text, and the bars with their segments and limit."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.style, self.bars, self._open = [], "", "", [], []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag != "meta":
            self._open.append(tag)
        if attributes.get("role") == "img":
            self.bars.append({"label": attributes["aria-label"], "segments": []})
        place = re.fullmatch(r"(width|left): ([\d.]+)%", attributes.get("style", ""))
        if place and tag == "i":
            self.bars[-1]["segments"].append((float(place[2]), attributes["title"], attributes["class"].split()[0]))
        elif place and tag == "b":
            self.bars[-1]["limit"] = float(place[2])

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "style":
            self.style += data
        else:
            self.text += data


def page_of(plan, name="run"):
    page = Page(plan_report.plan_html(plan, name))
    page.text = " ".join(page.text.split())
    return page


def config_of(method, model="meta-llama/Llama-2-7b-hf", **hardware):
    return RunConfig.model_validate({
        "name": "run", "method": method, "model": {"source": model},
        "data": {"source": "rows.jsonl", "format": "alpaca"}, "hardware": hardware,
    })  # fmt: skip


@pytest.fixture(scope="module")
def planned():
    """The planner's answers: Llama-2-7B whole, as QLoRA on eight T4s, and a small model on this machine."""
    nodes, here = catalogue.load(), Offer(THIS_MACHINE, DEVICES["CPU"], 0, 0.0, 12.0, 2, 100.0, 0.0)
    tiny = config_of("full", "HuggingFaceTB/SmolLM2-135M-Instruct", device="CPU", devices_per_node=2)
    return {
        "full": planner.plan(config_of("full", device="T4"), nodes),
        "qlora": planner.plan(config_of("qlora", instance="g4dn.metal"), nodes),
        "cpu": planner.plan(tiny, nodes, here=here),
    }


def test_table_of_full_fine_tuning_says_everything():
    table = plan_report.plan_table(FULL, "llama")
    assert table.startswith("llama: full fine-tuning on 3 x g4dn.metal (24 x T4)\n")
    words = " ".join(re.sub("[│┃]", " ", table).split())
    for wanted in (
        "machines 3 x g4dn.metal 24 x T4, 8 per node",
        "price 23.47 USD per hour 0.978 USD per GPU-hour, prices of 2026-09-24, us-east-1",
        "method full fine-tuning ZeRO stage 3, zero3_offload precision fp16",
        "global batch 48 rows micro batch 1 x accumulation 2 x 24 ranks parameters 6.74 B all trained",
        "each pod asks for 94 CPUs, 346 GiB 8 GPUs, disk 387 GiB, /dev/shm of 1 GiB",
        "disk 376.6 GiB of each node: models 25.1, checkpoints 351.5",
        "each GPU (forward and backward) GiB each host (saving) GiB",
        "CUDA context 0.6 Python and libraries 16.0 ZeRO buffers 1.0 offloaded optimizer states 33.5",
        "activations 7.4 gathered model 12.6 fragmentation 0.6 shared memory 1.0",
        "in all 9.6", "limit 14.6", "used 65.8 %", "in all 63.0", "limit 346.2", "used 18.2 %",
        "3 x g4dn.metal 8 zero3_offload 1 9.6 of 14.6 23.47 USD",
        "2 x g6.48xlarge 8 zero3 4 18.2 of 22.0 26.70 USD",
        "1 x p3.16xlarge 8 zero3_offload 1 13.1 of 15.7 23.47 USD",
    ):  # fmt: skip
        assert wanted in words


def test_items_that_are_small_on_every_gpu_are_put_together():
    load = plan_report.device_loads(FULL)[0]
    assert list(load.items) == ["CUDA context", "ZeRO buffers", "activations", "fragmentation", "other"]
    assert load.items["other"] == pytest.approx(0.05)
    loads = plan_report.device_loads(QLORA)
    assert {tuple(load.items) for load in loads} == {("CUDA context", "weights", "gradients", "activations")}
    assert plan_report.gib(loads[-1].items["gradients"]) == "<0.1"


def test_table_of_qlora_shows_the_fullest_gpu_and_lists_all():
    table = plan_report.plan_table(QLORA, "llama")
    for wanted in (
        "QLoRA on 1 x g4dn.metal (8 x T4)", "split by layers over 8 GPUs", "828.38 M trained (1.2 %)", "GPU 7 5.2",
        "GPU 2, the fullest (forward and backward)", "GiB of each: GPU 0 9.2, GPU 1 10.1, GPU 2 10.3, ",
    ):  # fmt: skip
        assert wanted in table
    assert "ZeRO" not in table


def test_on_a_cpu_there_are_workers_and_neither_gpus_nor_prices_nor_pods():
    for text in (plan_report.plan_table(CPU, "tiny"), page_of(CPU, "tiny").text):
        assert "full fine-tuning on this machine (2 workers on CPU)".lower() in text.lower()
        assert "each worker" in text
        assert "ZeRO stage 2, configuration of the run's file" in text
        assert "134.52 M" in text
        assert not re.search(r"GPU|USD|price|pod|alternatives", text, re.IGNORECASE)


def test_one_device_without_zero_says_so_and_has_no_settings():
    memory = replace(FULL.memory, devices=FULL.memory.devices[:1])
    one = {"strategy": "single", "settings": "", "nodes": 1, "devices_per_node": 1, "accumulation": 48}
    for plan in (replace(FULL, memory=memory, alternatives=[], **one), replace(CPU, memory=memory, **one)):
        table = plan_report.plan_table(plan, "llama")
        assert ("on 1 GPU\n" if plan.hardware.is_gpu else "on 1 worker\n") in table
        assert "ZeRO" not in table.replace("ZeRO buffers", "")
        assert "the file's" not in table


def test_an_alternative_without_settings_is_not_said_to_have_the_files():
    """On one GPU in fp32 the whole model may fit without ZeRO, beside alternatives with it."""
    alone = Alternative("g5.xlarge", 1, 1, "single", "", 1, 18.2, 21.96, 26.7)
    _, _, (_, _, settings, *_) = plan_report.alternatives(replace(FULL, alternatives=[alone]))
    assert settings == "one device"
    own = replace(FULL, settings=settings_of("", {"zero_optimization": {"stage": 2}}))
    own = replace(own, alternatives=[replace(FULL.alternatives[0], settings="")])
    assert [row[2] for row in plan_report.alternatives(own)] == ["settings", "ZeRO-2", "the file's"]


def test_one_gpu_is_the_gpu():
    memory = replace(QLORA.memory, devices=QLORA.memory.devices[:1])
    table = plan_report.plan_table(replace(QLORA, devices_per_node=1, memory=memory), "llama")
    assert "the GPU (forward and backward)" in table
    assert "on 1 GPU\n" in table
    assert "GiB of each" not in table


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_no_line_is_longer_than_110(plan):
    others = [Alternative(LONG, 8, 16, "zero", LONG, 16, 1000.0, 1000.0, 123456.789)]
    settings = settings_of(LONG, {"zero_optimization": {"stage": 3}}) if plan.settings else ""
    long = replace(plan, instance=LONG, settings=settings, currency=LONG, prices_as_of=LONG, alternatives=others)
    table = plan_report.plan_table(long, LONG)
    assert table.count("very") > 20
    for lines in (table.splitlines(), plan_report.plan_table(plan, "run").splitlines()):
        assert max(map(len, lines)) <= 110


def test_markup_and_control_characters_are_text_in_the_terminal():
    table = plan_report.plan_table(replace(FULL, instance=HOSTILE), HOSTILE)
    assert "\x1b" not in table
    assert table.count("[bold]?[31m") >= 3


def test_names_are_escaped_in_the_page():
    other = replace(FULL.alternatives[0], instance=HOSTILE, settings=HOSTILE)
    settings = settings_of(HOSTILE, {"zero_optimization": {"stage": 3}})
    page = page_of(replace(FULL, instance=HOSTILE, settings=settings, alternatives=[other]), HOSTILE)
    assert page.text.count('<script>alert("x")</script>') == 9
    assert "script" not in {tag for tag, _ in page.elements}


def test_page_loads_nothing():
    page = page_of(FULL)
    loading = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"}
    assert not [tag for tag, attributes in page.elements if loading & set(attributes)]
    assert not {tag for tag, _ in page.elements} & {"link", "script", "iframe", "object", "embed", "base", "form"}
    assert ".plan-report" in page.style
    assert not re.search(r"url\(|@import", page.style)


@pytest.mark.parametrize(("plan", "count"), [(FULL, 2), (QLORA, 9), (CPU, 2)], ids=PLANS)
def test_bars_are_as_long_as_the_memory_and_the_limit_is_where_it_should_be(plan, count):
    bars = page_of(plan).bars
    assert len(bars) == count
    loads = [*plan_report.device_loads(plan), plan_report.host_load(plan)]
    totals = [sum(items.values()) for items in plan.memory.devices][: len(loads) - 1]
    assert [load.gib for load in loads[:-1]] == pytest.approx(totals)
    assert loads[-1].gib == pytest.approx(plan.memory.host_gib + plan.memory.shared_memory_gib)
    for bar, load in zip(bars, loads, strict=True):
        assert bar["limit"] == pytest.approx(96)
        assert sum(width for width, _, _ in bar["segments"]) == pytest.approx(96 * load.share, abs=0.01)
        for (width, title, _), (item, size) in zip(bar["segments"], load.items.items(), strict=True):
            assert width == pytest.approx(96 * size / load.limit_gib, abs=0.001)
            assert title == f"{load.name}, {item}: {plan_report.gib(size)} GiB"
            assert f"; {item} {plan_report.gib(size)}" in bar["label"]
        assert bar["label"].startswith(f"{load.name}: {plan_report.gib(load.gib)} of ")


def test_what_exceeds_its_limit_goes_over_the_line():
    page = page_of(replace(FULL, device_limit_gib=4.8))
    bar = page.bars[0]
    assert sum(width for width, _, _ in bar["segments"]) == pytest.approx(96, abs=0.01)
    assert bar["limit"] == pytest.approx(96 * 4.8 / FULL.memory.device_gib, abs=0.01)
    assert ("output", {"class": "over"}) in page.elements


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_page_says_what_the_table_says(plan):
    text = page_of(plan, "llama").text
    assert "Plan of llama" in text
    for _, value, note in plan_report.facts(plan):
        assert value in text
        assert note in text
    for load in (*plan_report.device_loads(plan), plan_report.host_load(plan)):
        for item, size in load.items.items():
            assert item in text
            assert plan_report.gib(size) in text
        assert f"{plan_report.gib(load.gib)} GiB, {plan_report.percent(load.share)}" in text
    for row in plan_report.alternatives(plan) if plan.alternatives else ():
        assert all(cell in text.lower() for cell in map(str.lower, row))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_json_has_every_field_and_what_follows(plan):
    text = plan_report.plan_json(plan, "llama")
    content = json.loads(text)
    derived, host_gib = content.pop("derived"), plan.memory.host_gib + plan.memory.shared_memory_gib
    assert content == {"name": "llama", **json.loads(json.dumps(asdict(plan)))}  # tuples are lists in JSON
    assert content["hardware"]["name"] == derived["device"] == plan.device
    assert derived["ranks"] * plan.micro_batch * plan.accumulation == plan.global_batch
    assert derived["device_gib"] == pytest.approx(max(sum(items.values()) for items in plan.memory.devices))
    assert derived["device_gib"] + derived["device_free_gib"] == pytest.approx(plan.device_limit_gib)
    assert host_gib + derived["host_free_gib"] == pytest.approx(plan.host_limit_gib)
    assert derived["host_share"] == pytest.approx(host_gib / plan.host_limit_gib)
    assert derived["host_gib"] == plan.memory.host_gib
    assert derived["allocated_gib"] <= derived["device_gib"]
    assert derived["price_per_device_hour"] * derived["devices"] == pytest.approx(plan.price_per_hour)
    assert text == plan_report.plan_json(replace(plan), "llama")


@pytest.mark.parametrize(("method", "count"), [("full", "6.74 B"), ("qlora", "6.74 B"), ("cpu", "134.52 M")])
def test_plans_of_the_planner(planned, method, count):
    plan = planned[method]
    table, page = plan_report.plan_table(plan, "llama"), page_of(plan, "llama")
    assert max(map(len, table.splitlines())) <= 110
    for wanted in (plan.instance, count, *(other.instance for other in plan.alternatives)):
        assert wanted in table
        assert wanted in page.text
    assert max(sum(width for width, _, _ in bar["segments"]) for bar in page.bars) <= 96
    assert json.loads(plan_report.plan_json(plan, "llama"))["derived"]["device_free_gib"] >= 0


def test_every_item_of_an_estimate_has_its_own_look(planned):
    for plan in (*planned.values(), *PLANS.values()):
        page = page_of(plan)
        for _, title, style in (segment for bar in page.bars for segment in bar["segments"]):
            assert f".plan-report .{style} {{ background:" in page.style
            assert (style == "other") == (", other:" in title)


def test_numbers_read_well():
    assert [plan_report.gib(size) for size in (0.0, 0.049, 0.05, 14.56)] == ["0.0", "<0.1", "0.1", "14.6"]
    shown = [plan_report.percent(share) for share in (0.0, 0.0001, 0.008, 0.9999, 1.0)]
    assert shown == ["0.0 %", "<0.1 %", "0.8 %", ">99.9 %", "100.0 %"]
    shown = [plan_report.parameters(count) for count in (6_738_415_616, 999_996_000, 134_515_008)]
    assert shown == ["6.74 B", "1.00 B", "134.52 M"]


def test_adapters_on_a_base_of_sixteen_bits_are_not_called_qlora():
    plan = replace(QLORA, method="lora")
    shown = plan_report.plan_table(plan, "run") + plan_report.plan_html(plan, "run")
    assert "LoRA on 1 x" in shown
    assert "QLoRA" not in shown
