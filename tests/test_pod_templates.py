"""Pod templates: a new object every call, and one owner of /dev/shm."""

from pod_templates import with_shared_memory


def test_every_call_returns_new_objects():
    first, second = with_shared_memory("1Gi"), with_shared_memory("1Gi")
    assert first is not second
    assert first.pod_spec is not second.pod_spec
    first.pod_spec.containers[0].volume_mounts.clear()
    first.pod_spec.volumes.clear()
    first.pod_spec.tolerations.clear()
    assert second.pod_spec.containers[0].volume_mounts
    assert second.pod_spec.volumes
    assert with_shared_memory("1Gi").pod_spec.tolerations


def test_shared_memory_is_memory_of_the_given_size():
    spec = with_shared_memory("16Gi").pod_spec
    (volume,) = spec.volumes
    (mount,) = spec.containers[0].volume_mounts
    assert volume.empty_dir.medium == "Memory"
    assert volume.empty_dir.size_limit == "16Gi"
    assert mount.mount_path == "/dev/shm"
    assert mount.name == volume.name


def test_the_primary_container_comes_first():
    template = with_shared_memory("1Gi")
    assert template.pod_spec.containers[0].name == template.primary_container_name == "primary"


def test_the_pod_may_run_on_tainted_gpu_nodes():
    (toleration,) = with_shared_memory("1Gi").pod_spec.tolerations
    assert (toleration.key, toleration.operator) == ("nvidia.com/gpu", "Exists")
