"""The shipped node types are complete and plausible, and every mistake in a replaced file is named."""

import pickle

import pytest
import yaml

from thriftune.errors import ConfigError
from thriftune.hardware import DEVICES
from thriftune.planning import catalogue
from thriftune.planning.node_types import NodeType

FAMILIES = {
    "g4dn": ["xlarge", "2xlarge", "4xlarge", "8xlarge", "12xlarge", "16xlarge", "metal"],
    "g5": ["xlarge", "2xlarge", "4xlarge", "8xlarge", "12xlarge", "16xlarge", "24xlarge", "48xlarge"],
    "g6": ["xlarge", "2xlarge", "4xlarge", "8xlarge", "12xlarge", "16xlarge", "24xlarge", "48xlarge"],
    "p4d": ["24xlarge"],
    "p4de": ["24xlarge"],
    "p5": ["48xlarge"],
}
_CPU_SIZES = {"large": 2, "xlarge": 4, "2xlarge": 8, "4xlarge": 16, "8xlarge": 32, "16xlarge": 64}
CPU_FAMILIES = {"c7i": 2, "m7i": 4, "r7i": 8}  # GiB a CPU
NODE = {
    "device": "T4", "gpus": 4, "gpu_gib": 14.56, "host_gib": 192, "vcpus": 48, "disk_gb": 900, "network_gbps": 50,
    "price_per_hour": 3.912, "bf16": False, "interconnect": "pcie",
}  # fmt: skip
FILE = {"currency": "EUR", "region": "here", "as_of": "2026-01-31", "nodes": {"g4dn.12xlarge": NODE}}


def node_with(**changes):
    return FILE | {"nodes": {"g4dn.12xlarge": NODE | changes}}


def write(folder, content):
    file = folder / "catalogue.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return str(file)


def problems_of(folder, content):
    with pytest.raises(ConfigError) as caught:
        catalogue.load(write(folder, content))
    return {problem.field: str(problem) for problem in caught.value.problems}


@pytest.fixture(scope="module")
def shipped():
    return catalogue.load()


def test_the_shipped_file_has_every_size_of_every_family_with_gpus(shipped):
    assert shipped.currency == "USD"
    assert shipped.region == "us-east-1"
    assert shipped.as_of.year >= 2026
    expected = {f"{family}.{size}" for family, sizes in FAMILIES.items() for size in sizes}
    assert {node.name for node in shipped.nodes if node.has_gpu} == expected


def test_the_cpu_nodes_double_from_size_to_size(shipped):
    """A run on CPUs could be planned on no cluster: "no node of the catalogue has it"."""
    rented = {node.name: node for node in shipped.nodes if not node.has_gpu and not node.own}
    assert set(rented) == {f"{family}.{size}" for family in CPU_FAMILIES for size in _CPU_SIZES}
    for family, gib in CPU_FAMILIES.items():
        sizes = {size: rented[f"{family}.{size}"] for size in _CPU_SIZES}
        assert {size: node.vcpus for size, node in sizes.items()} == _CPU_SIZES
        assert all(node.host_gib == gib * node.vcpus for node in sizes.values())
        prices = {size: node.price_per_hour / node.vcpus for size, node in sizes.items()}
        assert list(prices.values()) == pytest.approx([prices["large"]] * len(_CPU_SIZES))


def test_the_one_machine_of_ones_own_is_the_sandbox_s(shipped):
    (own,) = [node for node in shipped.nodes if node.own]
    assert (own.name, own.device, own.price_per_hour) == ("k3s", "CPU", 0)
    assert (own.vcpus, own.host_gib) == (4, 8)


def test_nodes_have_gpus_that_the_image_has_code_for(shipped):
    """torch 2.13 for CUDA 13 begins with compute capability 7.5: a V100 would fail at its first kernel."""
    assert {name for name in DEVICES if not shipped.for_device(name)} == {
        "V100", "V100-32GB", "L40S", "RTX-4090", "H200",
    }  # fmt: skip
    for name, device in DEVICES.items():
        nodes = shipped.for_device(name)
        assert not nodes or device.compute_capability >= (7, 5) or not device.is_gpu, name
        prices = [node.price_per_hour for node in nodes]
        assert prices == sorted(prices), "cheapest first"


def test_the_shipped_nodes_are_plausible(shipped):
    for node in (node for node in shipped.nodes if node.has_gpu):
        assert 0.85 * DEVICES[node.device].memory_gib < node.gpu_gib < DEVICES[node.device].memory_gib
        assert 0.7 * node.host_gib < node.allocatable_host_gib < node.host_gib
        assert node.allocatable_vcpus == node.vcpus - 1
        assert 0.3 < node.price_per_hour / node.gpus < 10, "no GPU of these costs less or more in an hour"


@pytest.mark.parametrize(
    ("name", "allocatable_mib"),
    [
        ("c7i.2xlarge", 14162),
        ("c7i.16xlarge", 112779),
        ("m7i.large", 6903),
        ("m7i.4xlarge", 57691),
        ("g4dn.xlarge", 14481),
        ("g4dn.12xlarge", 178933),
        ("g4dn.metal", 355262),
        ("g5.48xlarge", 723299),
        ("p4d.24xlarge", 1082712),
        ("p5.48xlarge", 1938410),
    ],
)
def test_allocatable_memory_is_what_karpenter_publishes_less_the_daemons(shipped, name, allocatable_mib):
    """Karpenter's reference of instance types; it takes half a percent more for the kernel, and knows no daemons."""
    node = shipped.get(name)
    expected = allocatable_mib / 1024 + 0.005 * node.host_gib - 1.5
    assert node.allocatable_host_gib == pytest.approx(expected, abs=0.01)


def test_a_node_too_small_for_its_own_daemons_offers_nothing():
    node = NodeType.model_validate(NODE | {"name": "tiny", "host_gib": 1, "vcpus": 1})
    assert node.allocatable_host_gib == 0
    assert node.allocatable_vcpus == 0


def test_a_node_without_gpus_is_possible():
    changes = {"device": "CPU", "gpus": 0, "gpu_gib": 0, "bf16": True, "interconnect": "none"}
    node = NodeType.model_validate(NODE | changes | {"name": "m7i.xlarge"})
    assert not node.has_gpu


def test_only_a_machine_of_ones_own_may_be_free(tmp_path):
    loaded = catalogue.load(write(tmp_path, node_with(price_per_hour=0, own=True)))
    assert (loaded.nodes[0].price_per_hour, loaded.nodes[0].own) == (0, True)
    assert not catalogue.load(write(tmp_path, FILE)).nodes[0].own


def test_an_unknown_name_brings_up_those_spelt_alike(shipped):
    assert shipped.get("g4dn.12xlarge").gpus == 4
    with pytest.raises(ConfigError, match=r"g4dn\.12xlrge: is not a node type .*Did you mean g4dn\.12xlarge or "):
        shipped.get("g4dn.12xlrge")
    with pytest.raises(ConfigError, match=r"The node types are g4dn\.xlarge, .*k3s\."):
        shipped.get("quantum")


def test_a_file_and_a_url_replace_the_shipped_one(tmp_path):
    import fsspec

    for place in (write(tmp_path, FILE), "memory://catalogue/replaced.yaml"):
        if "://" in place:
            with fsspec.open(place, "w") as stream:
                stream.write(yaml.safe_dump(FILE))
        loaded = catalogue.load(place)
        assert loaded.currency == "EUR"
        assert [node.name for node in loaded.nodes] == ["g4dn.12xlarge"]
        assert loaded.nodes[0].max_pods == 110


@pytest.mark.parametrize(
    ("changes", "key", "texts"),
    [
        (
            {"price_per_hour": -1},
            "price_per_hour",
            ["-1", "greater than or equal to 0", "Price of one node"],
        ),
        (
            {"price_per_hour": 0},
            "price_per_hour",
            ["0", "free that is not your own", "0 only for a machine"],
        ),
        ({"price_per_hour": "cheap"}, "price_per_hour", ["'cheap'", "valid number"]),
        ({"price_per_hour": float("nan")}, "price_per_hour", ["nan", "finite"]),
        ({"gpus": 0, "interconnect": "none"}, "gpus", ["= 0", "a node for T4 without a GPU", "at least 1"]),
        ({"gpus": -1}, "gpus", ["-1", "greater than or equal to 0"]),
        ({"device": "T5"}, "device", ["'T5'", "is no known device. Did you mean T4", "docs/planning.md"]),
        ({"bf16": True}, "bf16", ["True", "T4 has no bfloat16", "compute capability 8.0"]),
        ({"gpu_gib": 16.5}, "gpu_gib", ["16.5", "more than the 16 GiB of T4"]),
        ({"gpu_gib": 0}, "gpu_gib", ["0", "T4 without memory"]),
        ({"interconnect": "none"}, "interconnect", ["'none'", "does not go with 4 GPUs"]),
        ({"gpus": 1}, "interconnect", ["'pcie'", "does not go with 1 GPU.", "where there is one at most"]),
        ({"interconnect": "infiniband"}, "interconnect", ["'infiniband'", "'none', 'pcie', 'nvlink' or 'nvswitch'"]),
        ({"price_per_hours": 3}, "price_per_hours", ["3", "is not a key", "'price_per_hour'"]),
        ({"name": "g4dn.12xlarge"}, "name", ["'g4dn.12xlarge'", "is not a key", "The keys here are device, gpus"]),
        ({"host_gib": 0}, "host_gib", ["0", "greater than 0", "GiB"]),
        ({"disk_gb": -5}, "disk_gb", ["-5", "greater than or equal to 0"]),
        ({"max_pods": 0}, "max_pods", ["0", "greater than 0"]),
        # Figures in another unit, of which absurd times and costs would come without a word: MiB, Mbit/s.
        ({"host_gib": 196_608}, "host_gib", ["196608", "less than or equal to 100000", "in GiB"]),
        ({"network_gbps": 50_000}, "network_gbps", ["50000", "less than or equal to 20000", "in Gbit/s"]),
        ({"price_per_hour": 1e9}, "price_per_hour", ["1000000000", "less than or equal to 100000", "for one hour"]),
        ({"vcpus": 10**6}, "vcpus", ["1000000", "less than or equal to 10000"]),
    ],
)
def test_a_wrong_property_is_named_with_its_value_and_a_remedy(tmp_path, changes, key, texts):
    problems = problems_of(tmp_path, node_with(**changes))
    problem = problems.pop(f"catalogue.nodes.g4dn.12xlarge.{key}")
    assert not problems
    for text in texts:
        assert text in problem


@pytest.mark.parametrize("key", NODE)
def test_a_missing_property_is_named(tmp_path, key):
    content = FILE | {"nodes": {"g4dn.metal": {k: v for k, v in NODE.items() if k != key}}}
    ((field, problem),) = problems_of(tmp_path, content).items()
    assert field == f"catalogue.nodes.g4dn.metal.{key}"
    assert "is missing. Add it: " in problem


def test_cpu_nodes_carry_no_gpus(tmp_path):
    problems = problems_of(tmp_path, node_with(device="CPU", bf16=True))
    assert "gives GPUs to a node whose device is CPU" in problems["catalogue.nodes.g4dn.12xlarge.gpus"]
    assert "more than the 0 GiB of CPU" in problems["catalogue.nodes.g4dn.12xlarge.gpu_gib"]


@pytest.mark.parametrize(
    ("content", "field", "texts"),
    [
        ("", "catalogue", ["is empty", "catalogue.yaml is an example"]),
        ("[1, 2]", "catalogue", ["is not a mapping"]),
        ("nodes: {a: 1", "catalogue", ["is not YAML", "line 1"]),
        ("as_of: 2026-02-30", "catalogue", ["is not YAML", "day"]),
        ("a: \x00", "catalogue", ["is not YAML"]),
        (FILE | {"nodes": {}}, "catalogue.nodes", ["lists no node type"]),
        (FILE | {"nodes": None}, "catalogue.nodes", ["lists no node type"]),
        (FILE | {"nodes": ["g4dn.xlarge"]}, "catalogue.nodes", ["g4dn.xlarge", "not a mapping of names"]),
        (FILE | {"nodes": {"8 x T4": NODE}}, "catalogue.nodes.8 x T4", ["cannot be the name of a node type", "63"]),
        (FILE | {"nodes": {"g4dn.xlarge": 3}}, "catalogue.nodes.g4dn.xlarge", ["3", "Its keys are device, gpus,"]),
        (FILE | {"nodes": {"a": NODE | {8: "x"}}}, "catalogue.nodes.a.8", ["'x'", "is not a key"]),
        (FILE | {8: "x"}, "catalogue.8", ["'x'", "is not a key"]),
        ({k: v for k, v in FILE.items() if k != "nodes"}, "catalogue.nodes", ["is missing", "The node types"]),
        ({k: v for k, v in FILE.items() if k != "as_of"}, "catalogue.as_of", ["is missing", "2026-01-31"]),
        (FILE | {"as_of": "soon"}, "catalogue.as_of", ["'soon'", "valid date"]),
        (FILE | {"currency": "dollars"}, "catalogue.currency", ["'dollars'", "as USD"]),
        (FILE | {"regoin": "x"}, "catalogue.regoin", ["is not a key", "'region'"]),
    ],
)
def test_a_wrong_file_is_named_with_a_remedy(tmp_path, content, field, texts):
    problems = problems_of(tmp_path, content)
    assert list(problems) == [field]
    for text in texts:
        assert text in problems[field]


def test_bytes_that_are_no_text_are_not_yaml(tmp_path):
    file = tmp_path / "catalogue.yaml"
    file.write_bytes(b"region: \xff\xfe")
    with pytest.raises(ConfigError, match="is not YAML"):
        catalogue.load(str(file))


@pytest.mark.parametrize("place", ["missing.yaml", "memory://catalogue/missing.yaml"])
def test_a_missing_file_is_named(tmp_path, place):
    place = place if "://" in place else str(tmp_path / place)
    with pytest.raises(ConfigError, match=f"catalogue = {place}: no such file"):
        catalogue.load(place)


@pytest.mark.parametrize(("place", "text"), [("", "cannot be read"), ("ftpx://a/b", "cannot be read: .*ftpx")])
def test_what_is_no_file_is_refused(place, text):
    with pytest.raises(ConfigError, match=text):
        catalogue.load(place)


def test_a_key_that_is_written_twice_is_refused(tmp_path):
    """PyYAML keeps the last of the two, so that a price corrected at the top of a copied file changed nothing."""
    text = yaml.safe_dump(FILE, sort_keys=False)
    price = "    price_per_hour: 3.912\n"
    assert price in text
    problems = problems_of(tmp_path, text.replace(price, price * 2) + "region: there\n")
    assert "is written twice, in lines 2 and 17. Keep one" in problems["catalogue.region"]
    assert "in lines 13 and 14" in problems["catalogue.nodes.g4dn.12xlarge.price_per_hour"]
    assert len(problems) == 2

    repeated = text + text[text.index("  g4dn.12xlarge:") :]
    assert list(problems_of(tmp_path, repeated)) == ["catalogue.nodes.g4dn.12xlarge"]


def test_anchors_are_allowed_even_one_that_contains_itself(tmp_path):
    text = yaml.safe_dump(FILE | {"nodes": {"a": NODE, "b": NODE}})
    assert "&id001" in text
    assert len(catalogue.load(write(tmp_path, text)).nodes) == 2
    assert problems_of(tmp_path, "nodes: &a\n  b: *a\n")


def test_every_problem_of_a_file_is_reported_at_once(tmp_path):
    content = FILE | {
        "currency": "dollars",
        "nodes": {
            "g4dn.metal": NODE | {"price_per_hour": -1, "bf16": True, "colour": "red"},
            "g5.xlarge": NODE | {"device": "A10G", "gpu_gib": 40},
            "g4dn.12xlarge": NODE,
        },
    }
    with pytest.raises(ConfigError) as caught:
        catalogue.load(write(tmp_path, content))
    assert {problem.field for problem in caught.value.problems} == {
        "catalogue.currency",
        "catalogue.nodes.g4dn.metal.price_per_hour",
        "catalogue.nodes.g4dn.metal.bf16",
        "catalogue.nodes.g4dn.metal.colour",
        "catalogue.nodes.g5.xlarge.gpu_gib",
        "catalogue.nodes.g5.xlarge.bf16",
    }
    assert all(problem.remedy for problem in caught.value.problems)
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems
