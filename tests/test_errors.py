"""Errors: what they say, and that they say it in other processes too."""

import copy
import inspect
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from dtg_ray import errors
from dtg_ray.errors import ConfigError, DTGError, ShapeError, StudyError, SubjectError, UsageError

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, DTGError)]


def raise_shape_error():
    raise ShapeError("got 2 axes", subject="sub-01", path="s3://b/1.nii", hint="look at it")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("travel", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])  # noqa: S301 - what Ray does
def test_nothing_is_lost_between_processes(kind, travel):
    error = kind("got a, expected b", hint="do c")
    if isinstance(error, SubjectError):
        error.subject, error.path = "sub-01", "a.nii"
    again = travel(error)
    assert type(again) is kind
    assert vars(again) == vars(error)
    assert str(again) == str(error)
    assert again.hint == "do c"


def test_an_error_raised_in_another_process_arrives_whole():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        error = pool.submit(raise_shape_error).exception()
    assert type(error) is ShapeError
    assert (error.subject, error.path, error.hint) == ("sub-01", "s3://b/1.nii", "look at it")
    assert str(error) == "sub-01: s3://b/1.nii: got 2 axes"


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ({}, "got x"),
        ({"subject": "sub-01"}, "sub-01: got x"),
        ({"path": "a.nii"}, "a.nii: got x"),
        ({"subject": "sub-01", "path": "a.nii"}, "sub-01: a.nii: got x"),
    ],
)
def test_a_subjects_error_names_what_is_known(names, text):
    assert str(SubjectError("got x", **names)) == text


def test_exit_codes():
    assert {kind.__name__ for kind in KINDS if kind.exit_code == 2} == {UsageError.__name__, ConfigError.__name__}
    assert {kind.exit_code for kind in KINDS} == {1, 2}


def test_a_hint_is_no_part_of_the_message():
    assert str(StudyError("got nothing", hint="make one")) == "got nothing"
    assert StudyError("got nothing").hint == ""
