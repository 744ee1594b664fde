from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from client.gate import withheld_groups, withheld_patterns

SIZES = st.dictionaries(st.text("abcdef", min_size=1, max_size=2), st.integers(0, 30), max_size=8)


def possible_sizes(total, parts):
    """Ways to share ``total`` rows among ``parts`` groups that all have some."""
    return [cut for cut in product(range(1, total + 1), repeat=parts) if sum(cut) == total]


@given(st.lists(st.integers(0, 9), max_size=4), st.integers(0, 7))
def test_no_withheld_size_follows_from_the_total_and_the_told_ones(counts, min_count):
    sizes = dict(enumerate(counts))
    withheld = withheld_groups(sizes, min_count)
    if not withheld or len(withheld) == sum(size > 0 for size in counts):
        return  # all are withheld: no size is told but the total's own
    rest = sum(counts) - sum(size for group, size in sizes.items() if group not in withheld)
    ways = possible_sizes(rest, len(withheld))
    assert all(len(set(values)) > 1 for values in zip(*ways, strict=True))
    assert rest >= min_count


@given(SIZES, st.integers(0, 12))
def test_every_small_group_is_withheld_and_no_empty_one(sizes, min_count):
    withheld = withheld_groups(sizes, min_count)
    assert {group for group, size in sizes.items() if 0 < size < min_count} <= withheld
    assert all(sizes[group] > 0 for group in withheld)


@given(SIZES, st.integers(0, 12))
def test_no_more_is_withheld_than_needed(sizes, min_count):
    withheld = withheld_groups(sizes, min_count)
    small = [size for size in sizes.values() if 0 < size < min_count]
    more = sorted(sizes[group] for group in withheld if sizes[group] >= min_count)
    told = [size for group, size in sizes.items() if size > 0 and group not in withheld]
    assert len(more) <= 1
    if more:
        assert sum(small) < max(min_count, len(small) + 1)  # too few together, or one row each
        assert more[0] <= min(told, default=more[0])


@given(SIZES)
def test_zero_tells_all(sizes):
    assert withheld_groups(sizes, 0) == set()


@given(SIZES, st.integers(1, 12), st.randoms(use_true_random=False))
def test_the_sum_of_what_is_withheld_does_not_depend_on_the_order(sizes, min_count, random):
    groups = list(sizes)
    random.shuffle(groups)
    first = withheld_groups(sizes, min_count)
    second = withheld_groups({group: sizes[group] for group in groups}, min_count)
    assert sorted(sizes[group] for group in first) == sorted(sizes[group] for group in second)


@given(
    st.dictionaries(
        st.sampled_from(["11", "10", "01", "00"]),
        st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(any),
        min_size=1,
    ),
    st.integers(0, 8),
)
def test_no_class_of_a_pattern_can_be_read_off_what_is_told(sizes, min_count):
    withheld = withheld_patterns(sizes, min_count)
    told = sizes.keys() - withheld
    assert all(count == 0 or count >= min_count for name in told for count in sizes[name])
    together = [sum(sizes[name][label] for name in withheld) for label in (0, 1)]
    if told:
        assert len(withheld) != 1
        assert all(count == 0 or count >= min_count for count in together)
    if min_count <= 1:
        assert not withheld
