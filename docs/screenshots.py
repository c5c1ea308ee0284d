"""Takes the screenshots of docs/img from running web pages and from the board's page: `make screenshots`.

Needs Chromium, and the URL with its token that `vocbeam web` printed (WEB=…), or the file that
`vocbeam report --executive` wrote (BOARD=…), or both.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, sync_playwright

FOLDER = Path(__file__).parent / "img"
DESKTOP, PHONE = {"width": 1200, "height": 860}, {"width": 390, "height": 844}
BOARD = {"width": 1100, "height": 1560}
SHOTS = (
    ("web-journey", "/", "", DESKTOP, "light"),
    ("web-stage", "/stages/deliver", "", DESKTOP, "light"),
    ("web-trends", "/stages/deliver", "trends", DESKTOP, "light"),
    ("web-department-dark", "/departments/logistics", "", DESKTOP, "dark"),
    ("web-flags-dark", "/departments/logistics", "flags", DESKTOP, "dark"),
    ("web-flag-form-phone", "/flags/new?stage=deliver", "", PHONE, "light"),
    ("web-stage-phone", "/stages/deliver", "", PHONE, "light"),
)
"""Name, path, id of the heading at the top, size of the window, colours."""


def take(browser: Browser, url: str) -> None:
    """Signs in at `url` and takes all screenshots."""
    parts = urlsplit(url)
    for name, path, heading, size, colours in SHOTS:
        context = browser.new_context(
            base_url=f"{parts.scheme}://{parts.netloc}",
            color_scheme="dark" if colours == "dark" else "light",
            viewport={"width": size["width"], "height": size["height"]},
            reduced_motion="reduce",
        )
        page = context.new_page()
        page.goto(url)
        answer = page.goto(path)
        if answer is None or not answer.ok:
            sys.exit(
                f"{path} answers {answer.status if answer else 'nothing'}; are the pages up, and loaded with events?"
            )
        if heading:
            page.evaluate("id => document.getElementById(id).scrollIntoView({behavior: 'instant'})", heading)
        page.screenshot(path=FOLDER / f"{name}.png")
        context.close()
        print(f"wrote {FOLDER / name}.png")


def take_board(browser: Browser, file: Path) -> None:
    """Takes the head of the board's page."""
    page = browser.new_page(viewport={"width": BOARD["width"], "height": BOARD["height"]})
    page.goto(file.resolve().as_uri())
    page.screenshot(path=FOLDER / "board.png")
    print(f"wrote {FOLDER / 'board.png'}")


def main() -> None:
    """Command line: the URL, the board's file."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    given = [argument for argument in sys.argv[1:] if argument]
    if not given or program is None:
        sys.exit(
            "usage: python docs/screenshots.py [URL-WITH-TOKEN] [BOARD.html]; Chromium must be on the PATH "
            "(apt-get install chromium)"
        )
    FOLDER.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for argument in given:
            if "://" in argument:
                take(browser, argument)
            else:
                take_board(browser, Path(argument))
        browser.close()


if __name__ == "__main__":
    main()
