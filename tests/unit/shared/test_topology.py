from __future__ import annotations

from shared.topology import Topology, job_state_topic, run_state_topic


def test_the_names_are_those_of_the_contract() -> None:
    topology = Topology()
    assert (topology.datasets, topology.predictions, topology.jobs, topology.shards, topology.dead) == (
        "genderline.datasets",
        "genderline.predictions",
        "genderline.jobs",
        "genderline.shards",
        "genderline.dead",
    )
    assert topology.events == "genderline.events"


def test_a_prefix_keeps_installations_apart() -> None:
    assert not set(Topology("one").queues) & set(Topology("two").queues)
    assert all(queue.startswith("one.") for queue in Topology("one").queues)


def test_dead_letters_are_a_queue_but_no_work() -> None:
    topology = Topology()
    assert set(topology.queues) - set(topology.work_queues) == {topology.dead}


def test_short_names_leave_the_prefix_out() -> None:
    topology = Topology("my.own")
    assert [topology.short(queue) for queue in topology.queues] == [
        "datasets",
        "predictions",
        "jobs",
        "shards",
        "continuations",
        "dead",
    ]


def test_states_have_topics() -> None:
    assert (run_state_topic("accepted"), job_state_topic("finished")) == ("run.accepted", "job.finished")
