"""Every error a user can meet: what was got, what was expected, what to do, and the exit code of the command line.

Data errors (`SubjectError`) are recorded in receipts and never retried; the rest of the cohort goes on.
"""

from __future__ import annotations


class DTGError(Exception):
    """Base of all errors raised on purpose.

    Parameters
    ----------
    message : str
        What was got and what was expected.
    hint : str, optional
        What the user can do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the hint when the error travels between processes."""
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(kind: type[DTGError], args: tuple[str, ...], state: dict[str, str]) -> DTGError:
    error = kind.__new__(kind)
    Exception.__init__(error, *args)
    error.__dict__.update(state)
    return error


class UsageError(DTGError):
    """The command line asks for something that cannot be."""

    exit_code = 2


class ConfigError(UsageError):
    """study.yaml, or a table given to `dtg init`, does not say what it has to say."""


class StudyError(DTGError):
    """The study on disk is missing, incomplete, or disagrees with itself."""


class StorageError(DTGError):
    """The network or the object store does not answer, or not to these credentials: no fault of any subject's data."""


class DamagedError(StudyError):
    """An array of the study, or what it says of itself, cannot be read."""


class ModelError(DTGError):
    """A model file cannot be read, or does not fit the study."""


class SubjectError(DTGError):
    """Data of one subject cannot be used.

    Parameters
    ----------
    message : str
        What was got and what was expected, without the names below.
    subject : str, optional
        Who.
    path : str, optional
        The file.
    """

    def __init__(self, message: str, *, subject: str = "", path: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.subject = subject
        self.path = path

    def __str__(self) -> str:
        """`subject: file: message`, leaving out what is not known."""
        return ": ".join(part for part in (self.subject, self.path, str(self.args[0])) if part)


class MissingFileError(SubjectError):
    """A file named in the manifest is not there or may not be read."""


class CorruptFileError(SubjectError):
    """A file ends too early or is not what its name says."""


class TooLargeError(CorruptFileError):
    """A file promises more bytes than it can hold or than are allowed."""


class UnsafePathError(SubjectError):
    """A path leads out of the folder or archive it belongs to."""


class ShapeError(SubjectError):
    """An image has the wrong number of dimensions or does not lie on the grid."""


class GeometryError(ShapeError):
    """A header does not say where its voxels lie: no voxel size, no affine, or a singular one."""


class SpaceError(ShapeError):
    """An image lies in another space than the study: no overlap, too little of it, or a warp for something else."""


class ValueRangeError(SubjectError):
    """An image holds NaN or infinite values, or nothing but a constant."""


class TooShortError(SubjectError):
    """A run has too few volumes for a correlation that means anything."""


class ExcludedError(SubjectError):
    """Data that can be read break a rule of `quality` in study.yaml: the subject is excluded, not failed."""


class PredictionError(SubjectError):
    """A model makes something else than numbers of a subject's connectome."""


class TableError(SubjectError):
    """A table or text file beside an image (confounds, motion, matrix) does not say what it has to say."""
