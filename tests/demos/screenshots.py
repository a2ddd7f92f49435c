"""Takes the pictures of the page that README shows: `make screenshots`."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from .browser import Browser, serve, until

EXAMPLES = Path(__file__).parents[2] / "examples"


def talk(browser: Browser, picture: Path, *questions: str) -> None:
    browser.upload(picture)
    browser.find("[class*=st-key-tray_] img")
    browser.settle()
    for question in questions:
        browser.ask(question)


def empty(browser: Browser, address: str) -> None:
    browser.open(address)
    browser.find("[class*=st-key-sample_] img")


def heat(browser: Browser, address: str) -> None:
    browser.open(address)
    browser.press(".st-key-heat input")
    talk(browser, EXAMPLES / "fruit.png", "图中有几个物体？")
    browser.find("[data-testid=stImageCaption]")


def dark(browser: Browser, address: str) -> None:
    browser.open(address)
    talk(browser, EXAMPLES / "fruit.png", "How many objects are there?", "What is in the bottom left?")


def phone(browser: Browser, address: str) -> None:
    browser.open(address)
    talk(browser, EXAMPLES / "cat.png", "这是什么？", "图中有几个物体？")


def compare(browser: Browser, address: str) -> None:
    browser.open(address)
    browser.choose("view", "Compare")
    browser.press("[class*=st-key-sample_] button", 0)
    browser.click("[data-testid=stForm] button")
    until(lambda: len(browser.all(".remark")) >= 2, "both answers")
    browser.settle()


def teach(browser: Browser, address: str) -> None:
    browser.open(address)
    browser.choose("view", "Teach")
    for number, name in enumerate(("It is my little car.", "It is Oscar.")):
        browser.press("[class*=st-key-sample_] button", number)
        until(lambda number=number: len(browser.all("[class*=st-key-name_] input")) > number, "the picture's row")
        browser.find("[class*=st-key-name_] input").send_keys(name + "\n")
        browser.settle()
    browser.click(".st-key-teach button")
    button = until(lambda: browser.all("[data-testid=stMain] [data-testid=stDownloadButton]"), "it to learn", 600)[0]
    browser.settle()
    browser.driver.execute_script("arguments[0].scrollIntoView({block: 'end'})", button)


SHOTS = {
    "empty": (empty, {"language": "zh-CN"}),
    "heat": (heat, {"language": "zh-CN"}),
    "dark": (dark, {"language": "en-US", "dark": True}),
    "phone": (phone, {"language": "zh-CN", "width": 390, "height": 844, "mobile": True}),
    "teach": (teach, {"language": "en-US", "height": 980}),
    "compare": (compare, {"language": "en-US", "height": 980}),
}


def main(folder: Path, names: list[str]) -> None:
    with (
        tempfile.TemporaryDirectory() as scratch,
        serve("--model", "visglm-tiny", log=Path(scratch) / "server.log") as address,
    ):
        for name in names or SHOTS:
            take, settings = SHOTS[name]
            with Browser(**settings) as browser:
                take(browser, address)
                time.sleep(1)  # pictures and the last animation
                browser.shoot(folder / f"{name}.png")
                print(folder / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
