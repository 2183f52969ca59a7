import json
import os
import subprocess
import sys

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.training.ranks import Group, process_group, rank_device
from tests import ROOT
from tests.support.ports import free_port

MEMBER = """
import json, os, sys, torch
from pipeline.training.ranks import process_group
with process_group(torch.device("cpu")) as ours:
    own = torch.arange(3) + ours.rank
    ours.broadcast_tensors([own])
    total = ours.sum(torch.ones(2) * (ours.rank + 1))
    print(json.dumps([ours.rank, ours.size, ours.leads, ours.broadcast(7 + ours.rank), total.tolist(), own.tolist()]))
assert not torch.distributed.is_initialized()
"""


def test_alone_nothing_is_exchanged():
    with process_group(torch.device("cpu")) as ours:
        assert (ours, ours.leads, ours.broadcast(7)) == (Group(), True, 7)
        assert ours.sum(torch.ones(2)).tolist() == [1, 1]


def test_processes_of_torchrun_add_up_and_follow_the_first():
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    members = [
        subprocess.Popen(
            [sys.executable, "-c", MEMBER],
            cwd=ROOT,
            env=common | {"RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    said = [json.loads(member.communicate(timeout=120)[0]) for member in members]
    assert said == [[rank, 2, rank == 0, 7, [3, 3], [0, 1, 2]] for rank in range(2)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused_and_not_asked_for_on_its_own():
    with pytest.raises(ConfigError, match="has no GPU"):
        rank_device("cuda")
    assert rank_device("auto") == rank_device("cpu") == torch.device("cpu")
