import pytest

from domainbed.lib.query import Q, make_selector_fn

PEOPLE = Q(
    [
        {"name": "Bo", "age": 40, "home": {"city": "Oslo", "tags": [1]}},
        {"name": "Al", "age": 30, "home": {"city": "Rome", "tags": [2]}},
        {"name": "Cy", "age": 30, "home": {"city": "Oslo", "tags": [1]}},
    ]
)


def test_selectors_descend_and_combine():
    assert make_selector_fn("home.city")(PEOPLE[0]) == "Oslo"
    assert make_selector_fn("name, home.city")(PEOPLE[1]) == ("Al", "Rome")
    assert make_selector_fn(len)("abc") == 3
    with pytest.raises(TypeError, match="a string or a function"):
        make_selector_fn(3)


def test_group_sorts_by_key_and_keeps_order_inside():
    groups = PEOPLE.group("age")
    assert [(age, list(group.select("name"))) for age, group in groups] == [
        (30, ["Al", "Cy"]),
        (40, ["Bo"]),
    ]


def test_group_takes_keys_without_a_hash():
    groups = PEOPLE.group("home.tags")
    assert [(tags, len(group)) for tags, group in groups] == [([1], 2), ([2], 1)]
    homes = PEOPLE.group("home")
    assert [home["city"] for home, _ in homes] == ["Oslo", "Rome"]


def test_group_takes_keys_of_several_types():
    assert {key for key, _ in Q([None, 1, "a"]).group(lambda x: x)} == {None, 1, "a"}


def test_functions_of_two_arguments_take_pairs_apart():
    pairs = PEOPLE.group("age")
    assert pairs.map(lambda age, group: age * len(group)) == [60, 40]
    several = pairs.filter(lambda age, group: len(group) > 1)
    assert several.select(lambda age, group: age) == [30]


def test_an_argument_with_a_default_is_not_asked_of_the_record():
    assert PEOPLE.filter(lambda p, age=30: p["age"] == age).select("name") == [
        "Al",
        "Cy",
    ]
    assert Q([(1, 2)]).map(lambda a, b, scale=10: scale * (a + b)) == [30]
    assert Q([1.5, 2.25]).map(round) == [2, 2]


def test_filters():
    assert PEOPLE.filter_equals("age,home.city", (30, "Oslo")).select("name") == ["Cy"]
    assert PEOPLE.filter(lambda p: p["age"] > 30).select("name") == ["Bo"]
    assert Q([1, None, 0]).filter_not_none() == [1, 0]


def test_unique_keeps_the_first_of_each():
    assert Q([2, 1, 2, [1], [1]]).unique() == [2, 1, [1]]


def test_order_and_extremes():
    assert PEOPLE.sorted("name").select("name") == ["Al", "Bo", "Cy"]
    assert PEOPLE.argmax(lambda p: -p["age"])["name"] == "Al"  # the first of a tie
    assert (Q([3, 1]).min(), Q([3, 1]).max(), Q([3, 1]).mean()) == (1, 3, 2)
    assert Q([1, 3]).std() == 1  # the population's


def test_a_q_is_a_list():
    assert Q([[1], [2, 3]]).flatten() == [1, 2, 3]
    assert isinstance(Q([1, 2, 3])[1:] + Q([4]), Q)
    assert Q([1, 2]) == [1, 2]
    assert str(Q([1, 2])) == "[1, 2]"
