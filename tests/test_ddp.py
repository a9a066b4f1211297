"""Two processes under DistributedDataParallel do what one process does with all data."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ddp_programs
import pyro
import pytest
import torch
from support import assert_close, assert_mean, assert_same_mean

from pyro_elbo.elbo.shards import OwnSubsamples

TESTS = Path(__file__).parent
TORCHRUN = [
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
    "--local-addr=127.0.0.1",
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two gloo processes has, by program."""
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    script = TESTS / "ddp_programs.py"
    ended = subprocess.run(
        [*TORCHRUN, script, folder],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


WITHOUT_NOISE = [program for program in ddp_programs.BOTH if program is not ddp_programs.noisy]


@pytest.mark.parametrize("program", WITHOUT_NOISE, ids=lambda program: program.__name__)
def test_without_guide_noise_two_ranks_are_one_process_with_all_data(ranks, program):
    first, second = (rank[program.__name__] for rank in ranks)
    one = ddp_programs.run(program, 0, 1)
    assert_close((first["losses"] + second["losses"]) / 2, one["losses"])
    assert first["step_count"] == second["step_count"] == one["step_count"] == ddp_programs.STEPS
    for a, b, both in zip(
        first["parameters"], second["parameters"], one["parameters"], strict=True
    ):
        assert torch.equal(a, b)
        assert_close(a, both, scale=1.0)


def test_with_noise_the_gradient_has_the_same_mean(ranks):
    first, second = (rank["noisy"]["gradients"] for rank in ranks)
    assert torch.equal(first, second)
    assert_same_mean(first, ddp_programs.run(ddp_programs.noisy, 0, 1)["gradients"])


def test_ranks_that_were_seeded_alike_draw_disjoint_subsamples(ranks):
    drawn = torch.cat([rank["subsampled"]["drawn"] for rank in ranks], dim=1)
    assert (drawn.sort(1).values == torch.arange(ddp_programs.SIZE)).all()
    assert drawn.unique(dim=0).shape[0] > 1


def test_a_plate_that_takes_the_shard_for_all_data_is_named(ranks):
    for rank in ranks:
        assert "site 'mu': it is outside of plate 'data'" in rank["told"]["said"][0]


def test_a_guide_without_parameters_is_refused_inside(ranks):
    for rank in ranks:
        assert "inside of DistributedDataParallel" in rank["told"]["said"][1]


def test_no_rank_skips_a_step_alone(ranks):
    for rank in ranks:
        assert "cannot skip a step on one rank" in rank["told"]["said"][2]


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("count", [1, 3, 5, 7])
def test_subsamples_differ_between_ranks_and_repeat_no_datum(size, count):
    drawn = [subsamples(rank, size, count) for rank in range(size)]
    assert all(len(indices) == count for plates in drawn for indices in plates)
    assert len(set(drawn)) == size
    if size * count <= 8:
        for plates in zip(*drawn, strict=True):
            assert len(frozenset().union(*plates)) == size * count


def subsamples(rank, size, count):
    """Of twenty plates, after one seed."""
    pyro.set_rng_seed(1)
    with OwnSubsamples(rank, size):
        plates = [pyro.plate("data", 8, subsample_size=count) for _ in range(20)]
    return tuple(frozenset(plate._indices.tolist()) for plate in plates)


def test_each_rank_draws_every_datum_equally_often():
    with OwnSubsamples(3, 4):
        plates = [pyro.plate("data", 8, subsample_size=3) for _ in range(4000)]
    drawn = torch.stack([torch.zeros(8).index_fill(0, plate._indices, 1.0) for plate in plates])
    assert_mean(drawn, torch.full((8,), 3 / 8))


def test_given_indices_and_whole_plates_stay():
    given = torch.tensor([4, 2])
    with OwnSubsamples(1, 2):
        with pyro.plate("given", 8, subsample=given) as indices:
            assert indices is given
        with pyro.plate("whole", 4) as indices:
            assert indices.tolist() == [0, 1, 2, 3]


def test_the_model_has_the_guides_subsample():
    def program():
        with pyro.plate("data", 8, subsample_size=3) as indices:
            return indices

    with OwnSubsamples(1, 2):
        trace = pyro.poutine.trace(program).get_trace()
        replayed = pyro.poutine.replay(program, trace=trace)()
    assert torch.equal(replayed, trace.nodes["data"]["value"])
