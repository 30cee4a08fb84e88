"""The fact tables: shape, counts, uniqueness and consistency."""

import re
from collections import Counter
from importlib.resources import files

import pytest

from nanochat.data.almanac.tables import core, table

ASKED = ("space", "body", "units", "shapes", "colours", "calendar", "geography", "food", "general")
COLUMNS = {
    "countries": "name the capital continent language currency core",
    "elements": "name symbol number state core",
    "planets": "name order kind moons fact also noun core",
    "animals": "name plural sound young kind legs home food core",
    "opposites": "word opposite pos core",
    "books": "title author kind core",
    "inventions": "thing person verb core",
    "people": "name pronoun profession country known_for core",
    "jobs": "name does place core",
    "unknown": "question core",
    **dict.fromkeys(ASKED, "id statement question answer core"),
}
LEAST = {  # rows, core rows
    "countries": (193, 35),
    "elements": (118, 18),
    "planets": (8, 8),
    "animals": (120, 28),
    "opposites": (160, 38),
    "books": (210, 28),
    "inventions": (110, 22),
    "people": (110, 22),
    "jobs": (60, 14),
    "unknown": (120, 18),
    **dict.fromkeys(ASKED, (25, 9)),
    "shapes": (15, 9),
    "colours": (15, 9),
}
# Disputed, double, moving, or without an official one.
NO_CAPITAL = {
    "Bolivia", "Burundi", "Equatorial Guinea", "Eswatini", "Indonesia", "Israel", "Nauru", "South Africa",
    "Sri Lanka", "Yemen",
}  # fmt: skip
# On two continents, or counted differently.
NO_CONTINENT = {"Armenia", "Azerbaijan", "Cyprus", "Georgia", "Kazakhstan", "Russia", "Turkey"}
# Cells that must be there; every other one may be empty.
REQUIRED = {
    "elements": ("name", "symbol", "number"),
    "planets": ("name", "order", "kind", "fact"),
    "animals": ("name", "plural", "kind"),
    "countries": ("name",),
    "people": ("name", "pronoun", "profession", "known_for"),
    "jobs": ("name", "does"),
}
# Columns in which no two rows may agree, because questions are asked backwards from them.
UNIQUE = {
    "countries": ("name",),
    "elements": ("name", "symbol", "number"),
    "planets": ("name", "order", "fact"),
    "animals": ("name",),
    "opposites": ("word",),
    "books": ("title",),
    "inventions": ("thing",),
    "people": ("name", "known_for"),
    "jobs": ("name", "does"),
    "unknown": ("question",),
    **dict.fromkeys(ASKED, ("id", "statement", "question")),
}


def filled(name: str, column: str) -> list[str]:
    return [row[column] for row in table(name) if row[column]]


def repeated(values: list[str]) -> list[str]:
    return [value for value, count in Counter(value.casefold() for value in values).items() if count > 1]


def test_the_files_are_exactly_the_known_tables():
    folder = files("nanochat.data.almanac").joinpath("tables")
    assert sorted(file.name for file in folder.iterdir()) == sorted(f"{name}.tsv" for name in COLUMNS)


@pytest.mark.parametrize("name", COLUMNS)
def test_a_table_has_its_columns_and_enough_rows(name):
    rows, core_rows = LEAST[name]
    assert list(table(name)[0]) == COLUMNS[name].split()
    assert len(table(name)) >= rows
    assert len(core(name)) >= core_rows
    assert {row["core"] for row in table(name)} <= {"0", "1"}
    assert all(row in table(name) and row["core"] == "1" for row in core(name))


@pytest.mark.parametrize("name", COLUMNS)
def test_cells_are_clean(name):
    for row in table(name):
        for cell in row.values():
            assert cell == " ".join(cell.split()), "blanks at an end or doubled"
            assert cell.isascii()
            assert '"' not in cell


@pytest.mark.parametrize("name", COLUMNS)
def test_what_is_needed_is_there_and_what_is_asked_is_unique(name):
    everything = [column for column in COLUMNS[name].split() if column not in ("the", "core")]
    required = REQUIRED.get(name, everything)
    assert all(row[column] for row in table(name) for column in required)
    for column in UNIQUE[name]:
        assert repeated(filled(name, column)) == []


@pytest.mark.parametrize("name", ASKED)
def test_a_statement_contains_its_answer_word_for_word(name):
    for row in table(name):
        assert row["statement"].endswith(".")
        assert row["question"].endswith("?")
        assert not row["answer"].endswith(".") or row["answer"] == "Washington, D.C."
        assert re.search(rf"(?<!\w){re.escape(row['answer'])}(?!\w)", row["statement"]), row
        assert re.fullmatch(r"[a-z0-9_]+", row["id"])


def test_no_question_is_asked_by_two_tables():
    questions = [row["question"] for name in (*ASKED, "unknown") for row in table(name)]
    assert repeated(questions) == []


def test_numbers_up_to_twelve_are_words_and_large_ones_have_commas():
    for row in (row for name in ASKED for row in table(name)):
        if row["answer"].isdigit() and "year" not in row["question"]:
            assert 12 < int(row["answer"]) < 1000, row


def test_the_countries_are_the_members_of_the_united_nations():
    names = {row["name"] for row in table("countries")}
    assert len(table("countries")) == len(names) == 193
    assert not names & {"Vatican City", "Kosovo", "Taiwan", "Palestine", "Scotland", "England", "Greenland"}
    assert {row["name"] for row in table("countries") if not row["capital"]} == NO_CAPITAL
    assert {row["name"] for row in table("countries") if not row["continent"]} == NO_CONTINENT


def test_countries_of_a_continent_are_as_many_as_there_are():
    count = Counter(row["continent"] for row in table("countries"))
    assert count["Africa"] == 54
    assert count["South America"] == 12
    assert count["North America"] == 23
    assert count["Oceania"] == 14
    assert set(count) == {"Africa", "Asia", "Europe", "North America", "South America", "Oceania", ""}


def test_capitals_belong_to_one_country_each():
    assert repeated(filled("countries", "capital")) == []
    assert {row["the"] for row in table("countries")} == {"", "1"}


@pytest.mark.parametrize(
    ("country", "capital"),
    [
        ("France", "Paris"),
        ("Australia", "Canberra"),
        ("Brazil", "Brasilia"),
        ("Turkey", "Ankara"),
        ("United States", "Washington, D.C."),
    ],
)
def test_well_known_capitals(country, capital):
    assert {row["name"]: row["capital"] for row in table("countries")}[country] == capital


def test_elements_are_numbered_without_a_gap_and_have_real_symbols():
    rows = table("elements")
    assert [int(row["number"]) for row in rows] == list(range(1, 119))
    assert all(re.fullmatch(r"[A-Z][a-z]?", row["symbol"]) for row in rows)
    assert {row["name"] for row in rows if row["state"] == "liquid"} == {"bromine", "mercury"}
    assert sum(row["state"] == "gas" for row in rows) == 11
    number = {row["symbol"]: int(row["number"]) for row in rows}
    assert (number["H"], number["Fe"], number["Au"], number["U"], number["Og"]) == (1, 26, 79, 92, 118)


def test_planets_are_in_order_from_the_sun():
    names = [row["name"] for row in table("planets")]
    assert names == ["Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune"]
    assert [row["order"] for row in table("planets")] == list("12345678")
    assert [row["moons"] for row in table("planets")] == ["0", "0", "1", "2", "", "", "", ""]


def test_a_word_with_an_opposite_is_nobody_elses_opposite():
    words, opposites = filled("opposites", "word"), filled("opposites", "opposite")
    assert not set(words) & set(opposites), "so no pair is there twice in either order"
    assert set(filled("opposites", "pos")) == {"adjective", "verb", "noun", "adverb", "preposition"}


def test_animals_have_the_legs_of_their_kind():
    legs = {"bird": "two", "fish": "zero", "insect": "six", "arachnid": "eight", "crustacean": "ten"}
    for row in table("animals"):
        assert row["legs"] == legs.get(row["kind"], row["legs"]), row["name"]
        assert row["legs"] in ("", "zero", "two", "four", "six", "eight", "ten")


def test_pronouns_professions_and_verbs_are_in_the_agreed_form():
    assert set(filled("people", "pronoun")) == {"he", "she"}
    for name, column in (("people", "profession"), ("jobs", "name")):
        for phrase in filled(name, column):
            assert re.match(r"an [aeiou]|a [^aeiou]", phrase), phrase
    assert set(filled("inventions", "verb")) <= {"invented", "discovered", "developed", "built"}


def test_places_begin_with_a_preposition():
    for name, column in (("animals", "home"), ("jobs", "place")):
        assert {phrase.split()[0] for phrase in filled(name, column)} <= {"in", "on", "at", "by", "under"}


def test_unanswerable_questions_cover_the_president_and_are_answered_by_no_table():
    questions = filled("unknown", "question")
    assert "Who is the president of the United States?" in questions
    assert all(question.endswith("?") for question in questions)


def test_the_five_questions_of_the_original_have_their_facts():
    answers = {row["question"]: row["answer"] for row in table("space")}
    assert answers["How many planets are in our solar system?"] == "eight"
    assert answers["What is the speed of light?"] == "299,792 kilometres per second"
    assert {row["title"]: row["author"] for row in core("books")}["1984"] == "George Orwell"


def test_there_are_well_over_two_and_a_half_thousand_facts():
    not_asked = {"id", "statement", "question", "name", "the", "word", "title", "thing", "plural", "pos"}
    rows = [row for name in COLUMNS for row in table(name)]
    cells = sum(
        bool(cell)
        for row in rows
        for column, cell in row.items()
        if column not in not_asked | {"pronoun", "verb", "core"}
    )
    assert cells > 2500


def test_tables_are_read_once_and_unknown_ones_are_refused():
    assert table("planets") is table("planets")
    with pytest.raises(FileNotFoundError):
        table("no_such_table")
