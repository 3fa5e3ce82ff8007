"""What travels to a cluster with a job: code, command, environment. Whoever reaches the cluster can read all of it."""

from __future__ import annotations

import contextlib
import re
import secrets
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import dtg_ray
from dtg_ray.errors import UsageError
from dtg_ray.remote import refuse_credentials, without_credentials

FORWARDED = re.compile(r"AWS_ENDPOINT_URL\w*|AWS_REGION|AWS_DEFAULT_REGION|AWS_MAX_ATTEMPTS|DTG_\w+")
"""Variables that go along when they are set."""
SECRET = re.compile(r"TOKEN|PASSW|SECRET|CREDENTIAL|PRIVATE|(^|_)(API)?KEY(_|$)", re.IGNORECASE)
"""Names of variables that nobody else may read."""
CODE = ("*.py", "py.typed", "cohort/layouts/*.tsv", "report/assets/*")
"""What the package consists of."""


@contextlib.contextmanager
def code() -> Iterator[Path]:
    """A folder with this package and nothing else, for the time of the block."""
    package = Path(dtg_ray.__file__).parent
    with tempfile.TemporaryDirectory(prefix="dtg_ray_code_") as folder:
        for pattern in CODE:
            for source in sorted(package.rglob(pattern) if pattern == "*.py" else package.glob(pattern)):
                target = Path(folder) / "dtg_ray" / source.relative_to(package)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        yield Path(folder)


def new_id(stage: str) -> str:
    """A name that no other job has: stage, time (UTC), and chance."""
    return f"dtg-{stage}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def entrypoint(stage: str, arguments: Sequence[str]) -> str:
    """The command of a job, for a shell.

    Raises
    ------
    UsageError
        When a URI in it holds credentials.
    """
    for argument in arguments:
        refuse_credentials(argument)
    return shlex.join(["python", "-m", "dtg_ray.cli", stage, *arguments])


def environment(asked: Sequence[str], here: Mapping[str, str]) -> dict[str, str]:
    """The variables of a job: those of FORWARDED that are set here, and those that were asked for.

    Parameters
    ----------
    asked : sequence of str
        NAME=VALUE, or NAME for the value it has here.
    here : mapping of str
        The environment of this process.

    Raises
    ------
    UsageError
        For a secret, and for a variable that has no value.
    """
    chosen = {name: value for name, value in here.items() if FORWARDED.fullmatch(name) and not SECRET.search(name)}
    for item in asked:
        name, given, value = item.partition("=")
        if SECRET.search(name):
            raise _refused(name)
        if not name or not (given or name in here):
            raise UsageError(f"got --env {name}, which is not set here, expected NAME=VALUE or a variable that is")
        chosen[name] = value if given else here[name]
    for name, value in chosen.items():
        if without_credentials(value) != value:
            raise _refused(name)
    return chosen


def _refused(name: str) -> UsageError:
    return UsageError(
        f"got {name}, expected no secrets: what a job is given can be read by everybody who reaches the cluster",
        hint="give the cluster's nodes a role (an instance profile, a service account), or the secret when they start",
    )
