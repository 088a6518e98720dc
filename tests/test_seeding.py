"""Randomness is a function of its key."""

from __future__ import annotations

import pytest
import torch
from feature_fixtures import splitmix

from pipeline import seeding


def test_a_seed_is_the_same_in_every_run_and_version() -> None:
    assert seeding.derive(0, "order", 3) == 7265059424282326794


def test_every_part_of_a_key_counts() -> None:
    keys: list[tuple[int | str, ...]] = [(), (0,), ("0",), (0, 0), (0, "a"), ("a", 0), (0, "a", 1), ("0a",)]
    seeds = {seeding.derive(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 1 << 63 for seed in seeds)


def test_generators_of_one_key_draw_alike() -> None:
    one, same, other = (seeding.generator(*key) for key in ((1, "a"), (1, "a"), (2, "a")))
    drawn = torch.rand(8, generator=one)
    assert torch.equal(drawn, torch.rand(8, generator=same))
    assert not torch.equal(drawn, torch.rand(8, generator=other))


def test_scope_seeds_the_global_generator_and_restores_it() -> None:
    before = torch.get_rng_state()
    with seeding.scope(0, "network"):
        first = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    with seeding.scope(0, "network"):
        assert torch.equal(torch.rand(4), first)
    with seeding.scope(1, "network"):
        assert not torch.equal(torch.rand(4), first)


def test_scope_restores_the_generator_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeding.scope(0):
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), before)


def test_mix_is_the_finalizer_of_splitmix64() -> None:
    edges = [0, 1, -1, 2**62, -(2**62), 2**63 - 1, -(2**63)]
    drawn = torch.randint(-(2**63), 2**63 - 1, (200,), generator=seeding.generator("mix")).tolist()
    found = seeding.mix(torch.tensor(edges + drawn)).tolist()
    assert [x % 2**64 for x in found] == [splitmix(x) for x in edges + drawn]


def test_mix_keeps_the_shape() -> None:
    x = torch.arange(6)
    assert torch.equal(seeding.mix(x.view(2, 3)), seeding.mix(x).view(2, 3))
