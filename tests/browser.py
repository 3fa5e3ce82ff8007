"""A headless browser for pages; it keeps what it complains of and asks for, for tests to say that it is nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SCREENSHOTS = "DTG_SCREENSHOTS"
"""Environment variable: a folder that keeps the screenshots; without it they are among pytest's temporary files."""
DESKTOP = (1280, 900)
PHONE = (390, 844)


def until(condition: Callable[[], object], seconds: float = 5) -> None:
    """Wait for something on a page; Playwright's own way evaluates a string in it, which its policy forbids."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


@dataclass
class Opened:
    """A page with all that was wrong with it, and every address it asked for."""

    page: Page
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    @property
    def foreign(self) -> list[str]:
        """Requests for anything but the document itself and what is inside of it."""
        inside = ("data:", "blob:")
        return [url for url in self.requests[1:] if not url.startswith(inside)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; closed with the module, since its event loop is in the way of whatever else uses asyncio."""
    executable = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if executable is None:
        pytest.skip(f"no browser: none of {', '.join(CHROMIUM)} is installed (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=OPTIONS)
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Opened]]:
    """Call it with a file or a URL, a size, and options of the context, to open a page in a context of its own."""
    with contextlib.ExitStack() as contexts:

        def opened(where: Path | str, size: tuple[int, int] = DESKTOP, **options: Any) -> Opened:
            context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
            contexts.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(10_000)
            result = Opened(page)
            page.on("console", lambda message: result.problems.append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: result.problems.append(f"error: {error}"))
            page.on("request", lambda request: result.requests.append(request.url))
            page.goto(where.resolve().as_uri() if isinstance(where, Path) else where)
            return result

        yield opened


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures of pages are kept."""
    if SCREENSHOTS not in os.environ:
        return tmp_path_factory.mktemp("screenshots")
    folder = Path(os.environ[SCREENSHOTS])
    folder.mkdir(parents=True, exist_ok=True)
    return folder
