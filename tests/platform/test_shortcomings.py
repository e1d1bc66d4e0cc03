"""What is said of a cluster before a run starts, from what its nodes offer and report."""

from dataclasses import replace
from pathlib import Path

from mien.platform.cluster import Node
from mien.platform.shortcomings import (
    Needs,
    Report,
    after_a_loss,
    disagreements,
    disk_too_small,
    nodes_without_data_cpus,
    shared_memory_too_small,
    skewed,
    store_too_small,
    unshared,
)

FOLDER = Path("run")
STREAMING = Needs(FOLDER, workers=2, cpus_per_worker=1, data_cpus=1)
FIRST = Report("a", "10.0.0.1", "c0de", {"ray": "2.60.0"}, 100.0, 2**30, sees_folder=True, began=99.0, ended=101.0)
SECOND = replace(FIRST, identity="b", node="10.0.0.2")


def test_workers_that_would_starve_the_data_on_the_node_that_is_left_stop_the_run() -> None:
    # As it was seen to hang: two nodes of two CPUs, a worker on each; after a loss both stand on the other.
    (found,) = after_a_loss([Node(2, 0), Node(2, 0)], STREAMING)
    assert found.stops and "hold every CPU" in found.what and "trainer.cpus_per_worker" in found.advice
    assert after_a_loss([Node(4, 0), Node(4, 0)], STREAMING) == []


def test_the_loss_that_hurts_is_looked_for_among_all_nodes() -> None:
    (found,) = after_a_loss([Node(2, 0), Node(2, 0), Node(8, 0)], replace(STREAMING, workers=4))
    assert found.stops and "8 CPUs" in found.what


def test_workers_that_fit_nowhere_after_a_loss_wait_for_a_node_which_is_a_note() -> None:
    (found,) = after_a_loss([Node(8, 1), Node(8, 1)], replace(STREAMING, gpus_per_worker=1))
    assert not found.stops and "do not fit" in found.what


def test_one_node_or_no_workers_have_nothing_to_lose() -> None:
    assert after_a_loss([Node(2, 0)], STREAMING) == []
    assert after_a_loss([Node(2, 0), Node(2, 0)], Needs(FOLDER)) == []


def test_nodes_whose_cpus_the_workers_can_all_take_are_noted() -> None:
    (found,) = nodes_without_data_cpus([Node(2, 0), Node(8, 0), Node(0, 0)], STREAMING)
    assert not found.stops and "1 of 3 nodes" in found.what
    # A node of one GPU holds one worker at most, so its other CPU is free.
    assert nodes_without_data_cpus([Node(2, 1), Node(2, 1)], replace(STREAMING, gpus_per_worker=1)) == []


def test_blocks_that_do_not_fit_in_the_object_stores_and_checkpoints_on_the_disk_stop_the_run() -> None:
    needs = Needs(FOLDER, stream_bytes=2**31, checkpoint_bytes=2**32)
    (store,) = store_too_small(2**30, needs)
    assert store.stops and "2.0 GiB" in store.what and "1.0 GiB" in store.what
    (disk,) = disk_too_small(2**30, needs)
    assert disk.stops and "4.0 GiB" in disk.what and "1.0 GiB are free" in disk.what
    assert store_too_small(2**31, needs) == disk_too_small(2**32, needs) == []


def test_other_code_and_other_versions_are_named_with_their_nodes() -> None:
    assert disagreements([FIRST, SECOND]) == []
    code, ray = disagreements([FIRST, replace(SECOND, code="0ther", versions={"ray": "2.59.0"})])
    assert code.stops and "c0de on 10.0.0.1" in code.what and "0ther on 10.0.0.2" in code.what
    assert "2.60.0 on 10.0.0.1" in ray.what and "2.59.0 on 10.0.0.2" in ray.what
    (absent,) = disagreements([FIRST, replace(SECOND, versions={})])
    assert "none on 10.0.0.2" in absent.what


def test_a_folder_that_one_side_does_not_see_stops_the_run() -> None:
    assert unshared([FIRST, SECOND], FOLDER) == []
    for blind in (replace(SECOND, sees_folder=False), replace(SECOND, seen_by_driver=False)):
        (found,) = unshared([FIRST, blind], FOLDER)
        assert found.stops and "10.0.0.2" in found.what and "10.0.0.1" not in found.what


def test_a_clock_is_off_only_if_asking_cannot_explain_it() -> None:
    assert skewed([FIRST, replace(SECOND, clock=101.9), replace(SECOND, clock=98.1)]) == []
    (found,) = skewed([FIRST, replace(SECOND, clock=95.0)])
    assert "10.0.0.2 by 4.0 s" in found.what
    (found,) = skewed([FIRST, replace(SECOND, clock=109.0)])
    assert "10.0.0.2 by 8.0 s" in found.what


def test_a_store_beyond_a_nodes_shared_memory_is_named() -> None:
    assert shared_memory_too_small([FIRST, SECOND], {"a": 2**30, "b": 2**29}) == []
    (found,) = shared_memory_too_small([FIRST, SECOND], {"a": 2**30, "b": 2**31})
    assert "10.0.0.2 has 1.0 GiB" in found.what and "10.0.0.1" not in found.what
