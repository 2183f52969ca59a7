import threading

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import JobError, StorageError
from pipeline.store import objects
from pipeline.store.url import Url
from pipeline.training import state
from pipeline.training.state import BackgroundWriter, Point, RunState

STORY = RunState(
    step=7, phase=1, best_miou=0.5, best_step=4, history=[Point(4, {"validation/miou": 0.5})], began={"a": "b"}
)


@pytest.fixture
def output() -> Url:
    return Url(f"memory://states-{np.random.default_rng().integers(1 << 62)}")


def steps_of(optimiser, parameters, count):
    generator = torch.Generator().manual_seed(count)
    for _ in range(count):
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))
        optimiser.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.1),
    ],
)
def test_an_optimiser_goes_on_bit_for_bit_and_in_the_same_layout(make):
    network = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    optimiser = make(network.parameters())
    steps_of(optimiser, list(network.parameters()), 3)
    weights, buffers = state.snapshot(network.state_dict()), state.snapshot(state.optimiser_buffers(optimiser))

    again = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    again.load_state_dict(weights)
    restored = make(again.parameters())
    state.load_optimiser_buffers(restored, buffers)
    for one, parameters in ((optimiser, network.parameters()), (restored, again.parameters())):
        steps_of(one, list(parameters), 5)
    assert torch.equal(network.weight, again.weight)
    for one, other in zip(optimiser.state.values(), restored.state.values(), strict=True):
        assert all(one[name].stride() == other[name].stride() for name in one if isinstance(one[name], torch.Tensor))


def test_a_prefix_that_is_added_and_taken_off_leaves_the_tensors_and_no_others():
    tensors = {"a": torch.zeros(1), "a/b": torch.ones(1), "net/a": torch.ones(2)}
    added = state.add_prefix("net", tensors)
    assert added.keys() == {"net/a", "net/a/b", "net/net/a"}
    others = {"net": torch.ones(4), "network/a": torch.ones(4), "average/a": torch.ones(4), "x/net/a": torch.ones(4)}
    taken = state.take_prefix("net", others | added)
    assert taken.keys() == tensors.keys()
    assert all(taken[name] is tensors[name] for name in tensors)


def test_what_is_saved_is_loaded(output):
    tensors = {"network/a": torch.randn(2, 3), "optimiser/0/step": torch.tensor(3.0), "b/n": torch.tensor(5)}
    state.save_state(output, STORY.to_json(), tensors, step=7)
    run_state, found = state.load_state(output, 7)
    assert run_state == STORY
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in found)


def test_a_state_is_whole_only_with_its_json(output):
    assert state.saved_steps(output) == []
    for step in (5, 10):
        state.save_state(output, STORY.to_json(), {"a": torch.zeros(1)}, step=step)
    objects.put(state.state_url(output, 15) / state.STATE_TENSORS, b"half")
    assert state.saved_steps(output) == [5, 10]


def test_folders_of_other_names_are_no_states(output):
    state.save_state(output, STORY.to_json(), {"a": torch.zeros(1)}, step=5)
    for name in ("step-00000005.bak", "step-9", "old"):
        objects.put(output / state.STATES_FOLDER / name / state.STATE_JSON, STORY.to_json())
    assert state.saved_steps(output) == [5]


def test_only_the_newest_states_are_kept(output):
    for step in (5, 10, 15, 20):
        state.save_state(output, STORY.to_json(), {"a": torch.zeros(1)}, step=step)
        state.delete_old_states(output)
    assert state.saved_steps(output) == [15, 20]
    assert len(list(objects.list_files(output / state.STATES_FOLDER))) == 4


@pytest.mark.parametrize("broken", [state.STATE_TENSORS, state.STATE_JSON])
def test_a_damaged_state_is_named(output, broken):
    state.save_state(output, STORY.to_json(), {"a": torch.zeros(1)}, step=5)
    objects.put(state.state_url(output, 5) / broken, b"{}")
    with pytest.raises(JobError, match=r"after step 5 is damaged[\s\S]*delete memory.*step-00000005"):
        state.load_state(output, 5)


@pytest.mark.parametrize("broken", [state.STATE_TENSORS, state.STATE_JSON])
def test_a_flipped_bit_anywhere_in_a_state_is_noticed(output, broken):
    state.save_state(output, STORY.to_json(), {"a": torch.arange(6.0)}, step=5)
    url = state.state_url(output, 5) / broken
    whole = objects.read_bytes(url)
    for at in range(0, len(whole), 3):
        objects.put(url, whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(JobError, match="after step 5 is damaged"):
            state.load_state(output, 5)
    objects.put(url, whole)
    assert state.load_state(output, 5)[0] == STORY


def test_a_state_without_a_digest_of_an_earlier_version_is_loaded(output):
    state.save_state(output, STORY.to_json(), {"a": torch.zeros(1)}, step=5)
    objects.put(state.state_url(output, 5) / state.STATE_JSON, STORY.to_json())
    assert state.load_state(output, 5)[0] == STORY


def test_a_snapshot_does_not_follow_the_weights():
    weight = torch.zeros(4, 4, 3, 3).to(memory_format=torch.channels_last)
    copied = state.snapshot({"weight": weight})["weight"]
    weight += 1
    assert copied.eq(0).all()
    assert copied.is_contiguous()


def test_only_what_fits_by_name_and_shape_is_carried_over():
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    kept = network[1].weight.clone()
    tensors = {"0.weight": torch.ones(3, 2), "0.bias": torch.ones(3), "1.weight": torch.ones(5, 3), "x": torch.ones(1)}
    assert state.copy_fitting(network, tensors) == ["1.bias", "1.weight"]
    assert network[0].weight.eq(1).all()
    assert torch.equal(network[1].weight, kept)


def test_writing_goes_on_beside_the_caller_and_in_order():
    go, done = threading.Event(), []
    with BackgroundWriter() as writer:
        writer.put(lambda: (go.wait(5), done.append("first")), lambda: done.append("second"))
        assert done == []
        go.set()
        writer.put(lambda: done.append("third"))
        assert done[:2] == ["first", "second"]
    assert done == ["first", "second", "third"]


def test_the_tensors_of_a_state_are_written_before_the_json_that_makes_it_whole(output, monkeypatch):
    written = []
    put = objects.put
    monkeypatch.setattr(objects, "put", lambda url, data: (written.append(str(url)), put(url, data)))
    state.save_state(output, STORY.to_json(), {"a": torch.zeros(1)}, step=12)
    assert [name.rpartition("/")[2] for name in written] == ["state.safetensors", "state.json"]
    assert all("checkpoints/step-00000012/" in name for name in written)


def test_the_json_of_a_state_is_deleted_before_its_tensors(output, monkeypatch):
    """A deletion that is cut off leaves tensors that nothing calls a state."""
    for step in (1, 2, 3):
        state.save_state(output, STORY.to_json(), {"a": torch.zeros(1)}, step=step)

    def cut_off(url):
        deleted.append(str(url))
        raise StorageError("the connection was lost")

    deleted = []
    monkeypatch.setattr(objects, "delete", cut_off)
    with pytest.raises(StorageError, match="lost"):
        state.delete_old_states(output)
    assert [name.rpartition("/")[2] for name in deleted] == ["state.json"]


def test_a_writer_that_nothing_is_given_to_ends_at_once_and_does_not_keep_a_process_alive():
    with BackgroundWriter() as writer:
        writer.put()
        writer.wait()
    go, seen = threading.Event(), []
    with BackgroundWriter() as writer:
        writer.put(lambda: (seen.append(threading.current_thread()), go.wait(5)))
        go.set()
    assert [(thread.daemon, thread.name) for thread in seen] == [(True, "checkpoint")]


def test_an_error_of_the_caller_is_raised_and_not_one_of_a_write_and_the_write_is_done_first():
    go, done = threading.Event(), []

    def slow_and_failing():
        go.wait(5)
        done.append(1)
        raise StorageError("the disk is full")

    writer = BackgroundWriter()
    writer.put(slow_and_failing)
    go.set()
    with pytest.raises(KeyError, match="of the caller"), writer:
        raise KeyError("of the caller")
    assert done == [1]


def test_a_failed_write_is_raised_once_and_says_how_to_go_on():
    def fail():
        raise StorageError("the disk is full")

    writer = BackgroundWriter()
    writer.put(fail, lambda: done.append(1))
    done = []
    with pytest.raises(StorageError) as failed:
        writer.wait()
    assert "run the same command" in failed.value.hint
    assert str(failed.value.__cause__) == "the disk is full"
    assert done == []
    writer.wait()


def test_a_failed_write_is_raised_at_the_next_one_and_at_the_end():
    def fail():
        raise StorageError("the disk is full")

    writer = BackgroundWriter()
    writer.put(fail)
    with pytest.raises(StorageError, match="could not be written: the disk is full"):
        writer.put(lambda: None)
    with pytest.raises(StorageError, match="the disk is full"), BackgroundWriter() as other:
        other.put(fail)
