"""Chromium for tests of the web pages: found, or installed from Debian's package."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vocbeam.deploy.jars import locked

NAMES = ("chromium", "chromium-browser", "google-chrome")

if TYPE_CHECKING:
    from playwright.sync_api import Browser


class Unavailable(Exception):
    """Chromium is not installed and can't be installed here."""


def find_or_install() -> Path:
    """The browser's program. Raises Unavailable where there is none to be had."""
    # Test processes side by side: one installs, the others find what it brought.
    with locked(Path(tempfile.gettempdir()) / "vocbeam-chromium-install.lock"):
        found = _find() or _install()
    if found is None:
        raise Unavailable("the package chromium brought no program of that name")
    return found


def _find() -> Path | None:
    return next((Path(path) for name in NAMES if (path := shutil.which(name))), None)


def _install() -> Path | None:
    """Installs Debian's package. Needs root and apt-get."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Unavailable("Chromium is not installed (apt-get install chromium)")
    print("\nChromium is missing: installing Debian's package", flush=True)
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # Another test process may be installing PostgreSQL.
    options = ["-qq", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"]
    for command in (["update", "-qq"], ["install", *options, "chromium", "fonts-dejavu-core"]):
        ended = subprocess.run(["apt-get", *command], check=False, env=quiet, stdout=subprocess.DEVNULL)
        if ended.returncode != 0:
            raise Unavailable("Chromium can't be installed here (apt-get install chromium)")
    return _find()


@contextmanager
def browser(program: Path) -> Iterator[Browser]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    # Root has no sandbox for its children.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=arguments)
        yield started
        started.close()
