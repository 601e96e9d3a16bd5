"""Which trials share a node: by price, and by what the node has."""

from dataclasses import replace

import pytest
import yaml
from conftest import run_dict
from test_configs import CONFIGS

from thriftune.config import RunConfig
from thriftune.hardware import DEVICES
from thriftune.models import architecture
from thriftune.planning import catalogue, matching, packing, planner
from thriftune.planning.offers import THIS_MACHINE, Offer
from thriftune.planning.planner import plan as plan_of
from thriftune.sweeps.packs import Pack, TrialJob, on_fewer_nodes

T4 = DEVICES["T4"]


def run_of(**hardware) -> RunConfig:
    content = yaml.safe_load((CONFIGS / "llama2-7b-qlora.yaml").read_text())
    return RunConfig.model_validate(content | {"hardware": hardware})


@pytest.fixture(scope="module")
def qlora():
    """The plan of a QLoRA of 7B on one T4."""
    config = run_of(device="T4", devices_per_node=1)
    return plan_of(config, catalogue.load(), architecture=architecture.of(config.model))


@pytest.fixture(scope="module")
def t4s():
    return {"T4": matching.matching(run_of(device="T4"), catalogue.load())}


@pytest.fixture(scope="module")
def metal():
    """Where a run names g4dn.metal, it alone."""
    return {"T4": matching.matching(run_of(instance="g4dn.metal"), catalogue.load())}


def test_eight_trials_share_a_metal_node(qlora, metal):
    (pack,) = packing.packed(dict.fromkeys(range(8), qlora), metal, None)
    assert (pack.node.instance, pack.slots, pack.numbers) == ("g4dn.metal", 8, list(range(8)))
    assert pack.node.request.gpus == 8
    assert pack.node.request.disk_gib < 8 * qlora.request.disk_gib, "the base is on its disk once"
    placed = packing.on_pack(qlora, pack)
    assert placed.fingerprint == qlora.fingerprint, "or it would be trained again"
    assert placed.price_per_hour == pytest.approx(7.824 / 8)


def test_the_node_is_the_cheapest_for_each_hour_of_a_trial(qlora, t4s):
    """A metal node has eight GPUs for 7.824, and eight small ones cost 4.208."""
    packs = packing.packed(dict.fromkeys(range(8), qlora), t4s, None)
    assert [pack.node.instance for pack in packs] == ["g4dn.xlarge"] * 8
    dear = [replace(offer, price_per_hour=2.0) if offer.name == "g4dn.xlarge" else offer for offer in t4s["T4"]]
    dear = [offer for offer in dear if offer.gpus > 1 or offer.name == "g4dn.xlarge"]
    packs = packing.packed(dict.fromkeys(range(8), qlora), {"T4": dear}, None)
    assert [(pack.node.instance, pack.slots) for pack in packs] == [("g4dn.metal", 8)]


def test_no_more_run_at_a_time_than_asked_for_and_the_others_wait(qlora, metal, t4s):
    (pack,) = packing.packed(dict.fromkeys(range(10), qlora), metal, 3)
    assert (pack.slots, len(pack.numbers), pack.waves) == (3, 10, 4)
    packs = packing.packed(dict.fromkeys(range(10), qlora), t4s, 4)
    assert [pack.slots for pack in packs] == [1, 1, 1, 1]
    assert sorted(number for pack in packs for number in pack.numbers) == list(range(10))


@pytest.mark.parametrize(("trials", "slots"), [(9, [5, 4]), (16, [8, 8]), (3, [3])])
def test_more_than_a_node_holds_are_spread_over_several(qlora, metal, trials, slots):
    packs = packing.packed(dict.fromkeys(range(trials), qlora), metal, None)
    assert [pack.slots for pack in packs] == slots
    assert [len(pack.numbers) for pack in packs] == sorted(slots, reverse=True)


def test_host_memory_and_disk_limit_how_many_share_a_node(qlora, metal):
    (offer,) = metal["T4"]
    host = replace(qlora.memory, host={"loading": 100.0})
    packs = packing.packs_on(offer, dict.fromkeys(range(8), replace(qlora, memory=host)), None)
    assert [pack.slots for pack in packs] == [3, 3, 2], "347 GiB hold three"
    assert all(pack.node.request.memory_gib >= 100 * pack.slots for pack in packs)
    disk = replace(qlora.memory, disk={"models": 12.6, "checkpoints": 700.0})
    packs = packing.packs_on(offer, dict.fromkeys(range(8), replace(qlora, memory=disk)), None)
    assert {pack.slots for pack in packs} == {2}


def test_each_base_model_that_trials_differ_in_is_on_the_disk_of_their_node(qlora, metal):
    """Room was asked for one of them, and the node's disk was full when the second was fetched."""
    plans = dict.fromkeys(range(8), qlora)
    (one,) = packing.packed(plans, metal, None, dict.fromkeys(range(8), "a"))
    (four,) = packing.packed(plans, metal, None, {number: "abcd"[number % 4] for number in range(8)})
    base = 2 * qlora.parameters / 2**30
    assert base > 10
    assert four.node.request.disk_gib - one.node.request.disk_gib == pytest.approx(3 * base, abs=1)


def test_a_trial_that_fits_nothing_beside_others_has_the_node_of_its_plan(qlora, t4s):
    full = replace(qlora, memory=replace(qlora.memory, host={"loading": 12.9}))
    packs = packing.packed({0: full}, {"T4": [offer for offer in t4s["T4"] if offer.name == "g4dn.xlarge"]}, None)
    assert [(pack.node.instance, pack.slots) for pack in packs] == [("g4dn.xlarge", 1)]


def test_no_more_run_at_a_time_than_asked_for_where_no_node_type_holds_all(qlora, t4s):
    full = replace(qlora, instance="g4dn.xlarge", memory=replace(qlora.memory, host={"loading": 12.9}))
    large = replace(qlora, instance="g4dn.2xlarge", memory=replace(qlora.memory, host={"loading": 28.0}))
    plans = {number: full if number % 2 else large for number in range(8)}
    offers = {"T4": [offer for offer in t4s["T4"] if offer.name in ("g4dn.xlarge", "g4dn.2xlarge")]}
    offers["T4"] = [replace(offer, gpu_gib=0.0) if offer.name == "g4dn.2xlarge" else offer for offer in offers["T4"]]
    packs = packing.packed(plans, offers, 4)
    assert sorted(number for pack in packs for number in pack.numbers) == list(range(8))
    assert sum(pack.slots for pack in packs) == 4


@pytest.mark.parametrize(
    ("parallel", "host_gib", "slots"), [(None, 64.0, 2), (3, 64.0, 3), (9, 64.0, 4), (3, 4.0, 2), (3, 0.5, 1)]
)
def test_on_this_machine_a_trial_at_a_time_is_a_device_while_memory_lasts(parallel, host_gib, slots, caplog):
    here = Offer(THIS_MACHINE, DEVICES["CPU"], 0, 0.0, 64.0, 2, 100.0, 0.0)
    config = RunConfig.model_validate(run_dict("lora"))
    shape = architecture.from_content(
        {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 4, "vocab_size": 288}, "tiny",
    )  # fmt: skip
    plan = planner.plan(config, catalogue.load(), architecture=shape, here=here)
    plan = replace(plan, memory=replace(plan.memory, host={"all": 1.9}))
    (pack,) = packing.packed_here(dict.fromkeys(range(4), plan), replace(here, host_gib=host_gib), parallel)
    assert (pack.slots, pack.numbers, pack.node.instance) == (slots, [0, 1, 2, 3], THIS_MACHINE)
    assert ("trials at a time instead of" in caplog.text) == (host_gib < 64)


def test_no_more_run_here_than_there_are_gpus_and_no_memory_is_blamed_for_it(qlora, caplog):
    here = Offer(THIS_MACHINE, T4, 2, 14.6, 900.0, 64, 0.0, 0.0)
    (pack,) = packing.packed_here(dict.fromkeys(range(8), qlora), here, 6)
    assert pack.slots == 2
    assert caplog.text == ""


def test_one_device_is_what_makes_a_trial_share_a_node(qlora):
    assert packing.is_packed(qlora)
    assert not packing.is_packed(replace(qlora, devices_per_node=4))


@pytest.mark.parametrize(
    ("left", "most", "sizes"),
    [([1, 1, 1], 8, [3]), ([8, 8, 1], 8, [6, 5, 6]), ([3, 5], 8, [8]), ([1, 2, 1, 2], 3, [3, 3]), ([4], 8, [4])],
)
def test_what_is_left_of_several_packs_is_on_as_few_nodes_as_hold_it(qlora, left, most, sizes):
    numbers = iter(range(100))
    packs = [
        Pack(index, 8, [TrialJob(next(numbers), "{}", qlora, "key", "", "m", "d") for _ in range(count)])
        for index, count in enumerate(left)
    ]
    made = on_fewer_nodes(packs, most)
    assert [len(pack.jobs) for pack in made] == sizes
    assert [job.number for pack in made for job in pack.jobs] == list(range(sum(left)))
