"""What travels with a job, and how its log is shown: without a cluster."""

from __future__ import annotations

import io
import random
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dtg_ray
from dtg_ray.arguments import parser
from dtg_ray.arguments_cluster import words
from dtg_ray.cli import main
from dtg_ray.errors import UsageError
from dtg_ray.stages.jobs import following, request
from dtg_ray.stages.jobs.cluster import dashboard, refuse_unprotected
from dtg_ray.stages.jobs.following import Screen, Unseen

COMMANDS = [
    "connectomes s3://b/s --training-only --retry-failed --allow-failures 3",
    "contrasts s3://b/s --quiet --allow-unauthenticated --wait-for-nodes=2.5",
    "train s3://b/s --model unet --overwrite",
    "synthesize s3://b/s --keep-connectomes --json",
    "evaluate s3://b/s --model linear",
    "predict s3://b/s --scheduler tcp://10.0.0.1:8786",
    "report s3://b/s --dry-run",
    "run s3://b/s --scheduler ray",
    "finetune s3://b/s --from unet --head new --train epochs=3 learning_rate=1e-4 --name again",
    "transfer-curve s3://b/s --finetuned a --scratch b --seeds 2 --sizes 3 50%",
    "interpret s3://b/s --contrast FACES SHAPES --noise=-0.1 --subjects 7",
    "export s3://b/s s3://b/out --contrasts FACES --group-only --space MNI",
]
BAR = "train:  {0}%|{1}| {0}/100 [00:01<00:09, 10.0subject/s]"


class TestTheCommandLineOfAJob:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_says_on_the_cluster_what_was_said_here(self, command: str) -> None:
        line = command.split()
        options = parser().parse_args(["submit", *line, "--address", "http://h:1", "--env", "DTG_X=1", "--beside"])
        own = options.verb.args[0]  # what the stage's own parser takes
        there, here = (vars(parser().parse_args(each)) for each in ([line[0], *words(own, options)], line))
        assert there == here

    def test_has_every_stage_that_has_a_script(self) -> None:
        scripts = {path.stem.replace("_", "-") for path in (Path(__file__).parents[2] / "jobs").glob("*.py")}
        assert scripts == {command.split()[0] for command in COMMANDS}

    def test_is_quoted_for_the_shell(self) -> None:
        assert request.entrypoint("run", ["/a b/$(id)"]) == "python -m dtg_ray.cli run '/a b/$(id)'"

    @pytest.mark.parametrize(
        "wrong",
        [["nix"], ["train"], ["train", "s", "--modell", "x"], ["train", "s", "--driver-memory", "much"], ["simulate"]],
    )
    def test_is_refused_here_when_it_is_wrong(self, wrong: list[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            main(["submit", *wrong])
        assert caught.value.code == 2

    @pytest.mark.parametrize(
        "wrong",
        [
            ["train", "s3://b/s"],  # no address
            ["train", "s3://b/s", "--address", "ray://h:1"],
            ["train", "s3://b/s", "--address", "http://me:hidden@h:1"],
            ["train", "s3://b/s", "--address", "http://127.0.0.1:1", "--inline"],
            ["train", "s3://b/s", "--address", "http://127.0.0.1:1", "--cpus", "2"],
            ["train", "s3://KEY:hidden@b/s", "--address", "http://127.0.0.1:1"],
            ["train", "s3://b/s", "--address", "http://127.0.0.1:1", "--env", "AWS_SECRET_ACCESS_KEY=hidden"],
            ["train", "s3://b/s", "--address", "http://127.0.0.1:1", "--patience", "0"],
        ],
    )
    def test_is_refused_before_anybody_is_asked(
        self, wrong: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
        assert main(["submit", *wrong]) == 2
        assert "hidden" not in capsys.readouterr().err


HERE = {
    "AWS_ENDPOINT_URL": "http://10.0.0.1:9000",
    "AWS_ENDPOINT_URL_S3": "http://10.0.0.1:9000",
    "AWS_REGION": "eu-central-1",
    "AWS_SECRET_ACCESS_KEY": "hidden",
    "AWS_SESSION_TOKEN": "hidden",
    "DTG_TRACEBACK": "1",
    "DTG_API_TOKEN": "hidden",
    "HOME": "/home/me",
    "EXTRA": "here",
}


class TestTheEnvironmentOfAJob:
    def test_is_what_stages_need_and_what_was_asked_for(self) -> None:
        names = {"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "DTG_TRACEBACK"}
        expected = {name: HERE[name] for name in names}
        assert request.environment([], HERE) == expected
        assert request.environment(["EXTRA", "MORE=a=b"], HERE) == expected | {"EXTRA": "here", "MORE": "a=b"}

    @pytest.mark.parametrize(
        "name",
        [
            *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "RAY_AUTH_TOKEN", "db_password"),
            *("MY_SECRET", "API_KEY", "APIKEY", "GOOGLE_APPLICATION_CREDENTIALS"),
        ],
    )
    def test_holds_no_secret(self, name: str) -> None:
        for asked in (name, f"{name}=hidden"):
            with pytest.raises(UsageError) as caught:
                request.environment([asked], {name: "hidden"})
            assert "hidden" not in str(caught.value)
            assert "role" in caught.value.hint

    def test_holds_no_password_in_a_url(self) -> None:
        with pytest.raises(UsageError) as caught:
            request.environment([], {"AWS_ENDPOINT_URL": "http://me:hidden@minio:9000"})
        assert "hidden" not in str(caught.value)

    def test_needs_a_value_of_what_was_asked_for(self) -> None:
        with pytest.raises(UsageError, match="not set here"):
            request.environment(["NOT_THERE"], {})


class TestTheCodeOfAJob:
    def test_is_the_package_and_nothing_else(self) -> None:
        package = Path(dtg_ray.__file__).parent
        expected = {path.relative_to(package.parent) for path in package.rglob("*") if path.is_file()}
        with request.code() as folder:
            found = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert set(found) == {path for path in expected if "__pycache__" not in path.parts}
        assert all((package.parent / path).read_bytes() == data for path, data in found.items())


class TestTheAddress:
    @pytest.mark.parametrize(
        ("address", "url"),
        [("http://h:8265/", "http://h:8265"), ("h:8265", "http://h:8265"), ("https://ray.org", "https://ray.org")],
    )
    def test_is_a_url(self, address: str, url: str) -> None:
        assert dashboard(address) == url

    def test_is_by_default_that_of_rays_own_command_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://there:1")
        assert dashboard(None) == "http://there:1"
        assert dashboard("http://here:1") == "http://here:1"

    def test_of_another_machine_needs_a_token(self, monkeypatch: pytest.MonkeyPatch) -> None:
        refuse_unprotected("http://10.0.0.1:8265")
        monkeypatch.delenv("RAY_AUTH_MODE")
        for url in ("http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1"):
            refuse_unprotected(url)
        for url in ("http://10.0.0.1:1", "http://127.0.0.1.evil.org:1", "https://localhost.org"):
            with pytest.raises(UsageError, match="token"):
                refuse_unprotected(url)


class TestUnseen:
    @given(
        st.text(alphabet="ab\n", max_size=60),
        st.lists(st.integers(0, 60), max_size=5),
        st.integers(0, 2**32),
    )
    def test_gives_every_part_of_a_log_once_however_often_it_is_cut(self, log: str, cuts: list[int], seed: int) -> None:
        chance, unseen, got = random.Random(seed), Unseen(), ""
        for end in [*cuts, len(log)]:
            unseen.restart()
            got += "".join(unseen(piece) for piece in pieces(log[:end], chance))
        assert got == log

    def test_a_line_break_that_was_read_in_two_halves_moves_nothing(self) -> None:
        unseen = Unseen()
        assert unseen("a\n\nb") == "a\n\nb"  # \r at the end of the file, then \n
        unseen.restart()
        assert unseen("a\nb\nc") == "\nc"


def pieces(text: str, chance: random.Random) -> Iterable[str]:
    while text:
        size = chance.randint(1, len(text))
        yield text[:size]
        text = text[size:]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestTheScreen:
    def show(self, out: io.StringIO, *parts: str) -> str:
        screen = Screen(out)
        for part in parts:
            screen.write(part)
        screen.close()
        return out.getvalue()

    @given(st.text(alphabet="ab%|\n", max_size=40), st.integers(0, 2**32))
    def test_of_a_file_has_every_line_as_it_is(self, log: str, seed: int) -> None:
        expected = log if log.endswith("\n") or not log else f"{log}\n"
        assert self.show(io.StringIO(), *pieces(log, random.Random(seed))) == expected

    def test_of_a_file_has_few_bars_and_the_last_of_each(self) -> None:
        bars = [BAR.format(share, "#") for share in range(101)]
        log = "plan\n\n" + "\n".join(bars) + "\n\n" + "\n".join(bars).replace("train", "predict") + "\nend\n"
        lines = self.show(io.StringIO(), log).splitlines()
        assert lines == ["plan", bars[0], bars[-1], bars[-1].replace("train", "predict"), "end"]

    def test_of_a_file_has_a_bar_from_time_to_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [1000.0]
        monkeypatch.setattr(following.time, "monotonic", lambda: now[0])
        out = io.StringIO()
        screen = Screen(out)
        for share in range(101):
            now[0] += 1
            screen.write(f"\n{BAR.format(share, '#')}")
        screen.write("\nend\n")
        screen.close()
        lines = out.getvalue().splitlines()
        assert lines == [*(BAR.format(share, "#") for share in range(0, 101, 10)), "end"]

    def test_of_a_terminal_draws_a_bar_over_itself(self) -> None:
        first, last = BAR.format(1, "#"), BAR.format(100, "#")
        shown = self.show(Terminal(), f"plan\n\n{first}", f"\n{last}   ", "\nend\n")
        assert shown == f"plan\n\r{first}\x1b[K\r{last}\x1b[K\nend\n"

    def test_of_a_terminal_leaves_a_bar_for_a_line_of_somebody_else(self) -> None:
        out, first, last = Terminal(), BAR.format(1, "#"), BAR.format(2, "#")
        screen = Screen(out)
        screen.write(f"half\n{first}")
        screen.pause()
        screen.write(f"\n{last}\nha")
        screen.pause()
        screen.write("lf\n")
        assert out.getvalue() == f"half\n\r{first}\x1b[K\n\r{last}\x1b[K\nhalf\n"

    def test_of_a_terminal_cuts_a_bar_that_is_too_long_for_a_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "20")
        bar = BAR.format(1, "#")
        assert self.show(Terminal(), bar) == f"\r{bar[:19]}\x1b[K\n"
