"""What a search may try: every bad field is named at once, and every good range is read as its setting declares it."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftkit.config import ALL_LINEAR, TrainConfig
from ftkit.errors import ConfigError
from ftkit.tuning.space import axes, combinations

CONFIG = TrainConfig(max_steps=10)
NUMBERS = {
    s.name: s
    for s in fields(TrainConfig)
    if s.metadata["low"] is not None
    and s.metadata["group"] != "records"
    and s.name not in {"seed", "max_length", "num_train_epochs"}
}


@st.composite
def ranges(draw):
    """A field of `TrainConfig` with two different values that it allows, the lower one first."""
    name = draw(st.sampled_from(sorted(NUMBERS)))
    facts, whole = NUMBERS[name].metadata, isinstance(NUMBERS[name].default, int)
    low = max(1, facts["low"]) if name == "max_steps" else facts["low"]
    numbers = st.integers(low, facts["high"]) if whole else st.floats(low, facts["high"])
    return name, tuple(sorted(draw(st.lists(numbers, min_size=2, max_size=2, unique=True))))


@given(st.lists(ranges(), min_size=1, max_size=4, unique_by=lambda pair: pair[0]))
def test_any_range_within_a_settings_own_is_read_as_declared(pairs):
    """Log scale and whole numbers come from the setting's own line; both ends make a valid config."""
    for axis, (name, (low, high)) in zip(axes(dict(pairs), CONFIG), pairs, strict=True):
        assert (axis.field, axis.low, axis.high) == (name, low, high)
        assert axis.log == NUMBERS[name].metadata["log"]
        assert axis.whole == isinstance(NUMBERS[name].default, int)
        CONFIG.replace(**{name: axis.rounded(low)}), CONFIG.replace(**{name: axis.rounded(high)})


@given(ranges(), st.floats(0, 1))
def test_a_rounded_draw_stays_in_its_range_and_is_valid(pair, share):
    name, (low, high) = pair
    axis = axes({name: (low, high)}, CONFIG)[0]
    value = axis.rounded(low + share * (high - low))
    assert axis.holds(value)
    CONFIG.replace(**{name: value})


@given(
    st.dictionaries(
        st.sampled_from(sorted({s.name for s in fields(TrainConfig)} | {"lr", "rank", "nothing"})),
        st.one_of(
            st.none(),
            st.floats(),
            st.text(max_size=3),
            st.tuples(st.floats(), st.floats()),
            st.lists(st.one_of(st.integers(-5, 300), st.booleans(), st.text(max_size=5)), max_size=3),
        ),
        max_size=4,
    )
)
def test_whatever_is_given_the_space_is_valid_or_refused_by_name(space):
    """Never another error, and never a space from which an invalid config could be drawn."""
    try:
        found = axes(space, CONFIG)
    except ConfigError as error:
        assert not space or any(name in str(error) for name in space)
    else:
        for axis in found:
            for value in axis.choices or (axis.rounded(axis.low), axis.rounded(axis.high)):
                CONFIG.replace(**{axis.field: value})


@pytest.mark.parametrize(
    ("field", "wanted", "said"),
    [
        ("learning_rat", (1e-4, 1e-3), "learning_rat is no setting. Did you mean learning_rate?"),
        ("learning_rate", (1e-3, 1e-4), "low end at or above its high end"),
        ("learning_rate", (1e-4, 1.0), "learning_rate=1.0 is outside 1e-06 to 0.01"),
        ("learning_rate", (float("nan"), 1e-3), "learning_rate=nan is outside"),
        ("learning_rate", 1e-4, "neither a range (low, high) nor a list [a, b, c]"),
        ("lora_r", (4, 8.5), "lora_r=8.5 wants a whole number"),
        ("lora_r", [8, 8], "leaves nothing to choose"),
        ("lora_r", [], "leaves nothing to choose"),
        ("dtype", ("bf16", "fp32"), "no list of choices"),
        ("dtype", ["bf16", "fp64"], "dtype='fp64' is not one of"),
        ("eval_steps", (1, 5), "what is recorded, not what is learnt"),
        ("seed", [1, 2], "a lucky seed is no better setting"),
        ("max_length", (128, 512), "measured on different tokens"),
        ("num_train_epochs", (1, 3), "has no effect while max_steps=10"),
        ("max_steps", (-1, 20), "begins below 1"),
    ],
)
def test_a_bad_field_is_refused_with_its_reason(field, wanted, said):
    with pytest.raises(ConfigError) as error:
        axes({field: wanted}, CONFIG)
    assert said in str(error.value)


def test_all_problems_of_a_space_come_at_once():
    with pytest.raises(ConfigError) as error:
        axes({"lora_rank": (4, 8), "learning_rate": (1e-3, 5e-2), "lora_alpha": (16, 32), "seed": [1, 2]}, CONFIG)
    assert len(str(error.value).splitlines()) == 3
    assert all(name in str(error.value) for name in ("lora_rank", "learning_rate", "seed"))


@pytest.mark.parametrize("space", [{}, None, [("lora_r", (4, 8))]])
def test_an_empty_space_is_refused(space):
    with pytest.raises(ConfigError, match="name at least one setting"):
        axes(space, CONFIG)


def test_target_modules_are_a_list_of_lists():
    axis = axes({"target_modules": [["q_proj", "v_proj"], list(ALL_LINEAR)]}, CONFIG)[0]
    assert axis.choices == (("q_proj", "v_proj"), ALL_LINEAR)


@pytest.mark.parametrize("wanted", [(1e-4, 1e-3), [1e-4, 1e-3, 1e-2]])
def test_an_axis_gives_back_what_it_was_made_of(wanted):
    axis = axes({"learning_rate": wanted}, CONFIG)[0]
    assert axes({"learning_rate": axis.given}, CONFIG)[0] == axis


def test_combinations_are_counted():
    assert combinations(axes({"lora_r": (4, 8), "use_dora": [True, False]}, CONFIG)) == 10
    assert combinations(axes({"learning_rate": (1e-4, 1e-3)}, CONFIG)) == float("inf")
