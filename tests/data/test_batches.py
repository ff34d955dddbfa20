"""Which tokens are batch n. The corpus of these tests counts upwards, so that every token tells its place in it."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_ablate.data.batches import IGNORED, EvaluationBatches, TrainingBatches, number_documents

from .texts import END

few = settings(max_examples=60, deadline=None, derandomize=True)
sizes = dict(T=st.integers(1, 12), seed=st.integers(0, 99))


def counting(N):
    return np.arange(N, dtype=np.uint16)


def training(N=400, T=8, B=4, seed=0, start=0):
    return TrainingBatches(counting(N), T, B, seed, start)


def take(batches, n):
    return list(itertools.islice(iter(batches), n))


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b) for p, q in zip(one, other, strict=True) for a, b in zip(p, q, strict=True)
    )


def epoch(number, N=400, T=8, seed=0):
    """The inputs of all windows of one epoch: as many as surely fit, wherever the first of them starts."""
    windows = N // T - 1
    return [inputs[0].tolist() for inputs, _ in take(training(N, T, 1, seed, start=number * windows), windows)]


@few
@given(spare=st.integers(0, 100), B=st.integers(1, 5), **sizes)
def test_inputs_are_text_and_targets_are_the_text_one_token_later(spare, T, B, seed):
    """Also in the last window, whose target needs one token more."""
    N = 2 * T + spare
    for inputs, targets in take(training(N, T, B, seed), 20):
        assert inputs.shape == targets.shape == (B, T)
        assert inputs.dtype == targets.dtype == torch.long
        assert torch.equal(inputs, inputs[:, :1] + torch.arange(T))
        assert torch.equal(targets, inputs + 1)
        assert inputs.min() >= 0 and targets.max() < N


def test_a_batch_is_a_function_of_its_number():
    """In whatever order it is asked for, and by whichever of two objects."""
    first = take(training(), 60)
    other = training()
    for n in np.random.default_rng(0).permutation(60):
        assert same([other.batch(int(n))], [first[n]])


def test_batches_depend_on_no_other_random_numbers():
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        found.append(take(training(), 5))
    assert same(*found)


@few
@given(spare=st.integers(0, 100), number=st.integers(0, 3), **sizes)
def test_in_an_epoch_nearly_every_token_is_seen_and_none_twice(spare, number, T, seed):
    """All but what the random start leaves at the two ends: less than two windows."""
    N = 2 * T + spare
    seen = [token for window in epoch(number, N, T, seed) for token in window]
    assert len(set(seen)) == len(seen) > N - 2 * T


def test_windows_are_shuffled_and_have_other_neighbours_in_the_next_epoch():
    first, second = ([row[0] for row in epoch(number)] for number in (0, 1))
    assert first != sorted(first)
    assert first[0] % 8 != second[0] % 8
    assert [start // 8 for start in first] != [start // 8 for start in second]


def test_an_epoch_starts_anywhere_in_a_window():
    """So that no token is always the last of a window, predicted with all of the context, or never predicted at all."""
    assert {epoch(0, seed=seed)[0][0] % 8 for seed in range(60)} == set(range(8))
    assert {token for number in range(60) for token in sum(epoch(number, N=40), [])} == set(range(39))


def test_another_seed_is_another_order():
    assert not any(same(take(training(seed=s), 3), take(training(seed=0), 3)) for s in range(1, 10))


@few
@given(start=st.integers(0, 80), seed=st.integers(0, 9))
def test_a_start_in_the_middle_goes_on_exactly(start, seed):
    assert same(take(training(seed=seed, start=start), 5), take(training(seed=seed), start + 5)[start:])


def test_each_iteration_begins_anew():
    batches = training(start=3)
    assert same(take(batches, 4), take(batches, 4))


@pytest.mark.parametrize("B", [2, 3, 7])
def test_a_batch_is_its_windows_one_after_another(B):
    """So that accumulating small batches is the same as one large one."""
    single = take(training(B=1), 10 * B)
    for n, (inputs, targets) in enumerate(take(training(B=B), 10)):
        rows = single[n * B : (n + 1) * B]
        assert same([(inputs, targets)], [(torch.cat([i for i, _ in rows]), torch.cat([t for _, t in rows]))])


@pytest.mark.parametrize("T", [1, 5, 8])
def test_a_context_of_half_the_text_is_the_longest(refused, T):
    assert len(take(training(2 * T, T), 3)) == 3
    with refused("block_size", T, 2 * T - 1):
        training(2 * T - 1, T)


@few
@given(T=st.integers(1, 12), B=st.integers(1, 5), spare=st.integers(1, 150))
def test_evaluation_counts_every_token_but_the_first_once(T, B, spare):
    """And in order, each predicted from the one before it."""
    N = T + spare
    batches = EvaluationBatches(counting(N), T, B)
    counted = []
    for n in range(len(batches)):
        inputs, targets = batches[n]
        assert inputs.shape == targets.shape and inputs.dtype == targets.dtype == torch.long
        assert inputs.shape[1] == T and 1 <= inputs.shape[0] <= B
        counts = targets != IGNORED
        assert torch.equal(inputs[counts] + 1, targets[counts])
        assert (counts.long().diff(dim=1) <= 0).all()  # what is filled up comes last
        counted += targets[counts].tolist()
    assert counted == list(range(1, N))


@few
@given(T=st.integers(1, 12), B=st.integers(1, 5), spare=st.integers(1, 150))
def test_evaluation_windows_are_as_long_and_batches_as_full_as_they_can_be(T, B, spare):
    batches = EvaluationBatches(counting(T + spare), T, B)
    *full, last = [batches[n] for n in range(len(batches))]
    assert all(inputs.shape[0] == B and (targets != IGNORED).all() for inputs, targets in full)
    assert (last[1] != IGNORED)[:-1].all() and (last[1][:, 0] != IGNORED).all()


def test_evaluation_ends():
    batches = EvaluationBatches(counting(100), 8, 4)
    for n in (len(batches), -1):
        with pytest.raises(IndexError):
            batches[n]
    assert same(list(batches), [batches[n] for n in range(len(batches))])


@pytest.mark.parametrize("T", [1, 5, 8])
def test_evaluation_needs_one_token_more_than_the_context(refused, T):
    assert len(EvaluationBatches(counting(T + 1), T, 2)) == 1
    with refused("block_size", T):
        EvaluationBatches(counting(T), T, 2)


def test_documents_are_numbered_and_each_ends_with_its_mark():
    ids = torch.tensor([[5, END, 6, 7, END, 8], [END, END, 1, 2, 3, 4]])
    assert number_documents(ids).tolist() == [[0, 0, 1, 1, 1, 2], [0, 1, 2, 2, 2, 2]]
