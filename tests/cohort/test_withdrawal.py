"""Names of participants who withdrew: recognised, found in text, and read from lists."""

import pytest

from dtg_ray.cohort.withdrawal import bare, digest, pattern, read_names
from dtg_ray.errors import ConfigError


@pytest.mark.parametrize(
    "text",
    [
        "1000001\n1000002\n",
        "eid\r\n1000001\r\n1000002",
        "1000001,withdrew 2026-01-01\n1000002,\n",
        'participant_id\tage\n"1000001"\t61\n1000002\t70\n1000001\t61\n',
    ],
)
def test_lists_as_they_come(text):
    assert read_names(text.encode(), "ids.csv") == ["1000001", "1000002"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_as_spreadsheets_save_them(encoding):
    assert read_names("eid\r\n1000001\r\n".encode(encoding), "ids.csv") == ["1000001"]


def test_what_is_no_text_is_an_error():
    with pytest.raises(ConfigError, match=r"ids.csv: got something that is no text"):
        read_names(b"\xd0\xcf\x11\xe0\xa1", "ids.csv")


def test_an_empty_list_is_an_error():
    with pytest.raises(ConfigError, match=r"ids.csv: got nobody"):
        read_names(b"eid\n\n", "ids.csv")


def test_a_digest_is_of_one_person_in_one_study():
    assert digest("sub-1000001", "a") == digest("1000001", "a")
    assert len({digest("1000001", "a"), digest("1000001", "b"), digest("1000002", "a")}) == 3
    assert "1000001" not in digest("1000001", "a")
    assert bare("sub-01") == "01"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1000001_20227_2_0.zip", True),
        ("s3://b/sub-1000001/func", True),
        ("sub-0003_map", True),
        ("family F-0003", False),
        ("11000001", False),
        ("10000010", False),
        ("sub-00031", False),
        ("x1000001", False),
    ],
)
def test_names_are_found_as_words(text, found):
    assert bool(pattern(["1000001", "sub-0003"]).search(text)) is found
