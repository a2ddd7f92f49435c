"""Takes the pictures of the page that README shows: `make screenshots`."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tests.families.made import POINTED, SPOKEN, make, make_pointer
from tests.library import samples

from .browser import Browser, serve, until

sys.path.insert(0, str(Path(__file__).parents[2] / "demos"))
from texts import speak  # noqa: E402

MANUAL = [
    (50, 70, "Your kettle 您的水壶"), (50, 120, "Fill it with water up to the line, never above."),
    (50, 144, "It switches itself off when the water boils."),
    (50, 190, "Its warranty lasts thirty months from the day"),
    (50, 208, "that is printed on the bill."), (50, 260, "加水不要超过刻度线。水开后会自动断电。"),
    (50, 300, "它的保修期是三十个月，自购买之日算起。"), (50, 318, "请保留发票。"),
    (50, 370, "Descale it every three months with vinegar."), (50, 394, "每三个月用白醋除一次水垢。"),
]  # fmt: skip
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


def library(browser: Browser, address: str) -> None:
    browser.open(address)
    browser.choose("view", speak("zh" if browser.script("return document.documentElement.lang") == "zh-CN" else "en")(
        "library"))  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        manual = Path(folder, "kettle.pdf")
        manual.write_bytes(samples.pdf(MANUAL))
        paths = [manual, EXAMPLES / "fruit.png", EXAMPLES / "pair.png"]
        with browser.redrawn():
            browser.send(
                "[class*=st-key-library_upload_] [data-testid=stFileUploaderDropzoneInput]", "\n".join(map(str, paths))
            )
        until(lambda: browser.all(".st-key-library_question input"), "the documents to be read", 240)
    browser.settle()
    for question in ("哪张图片里有雨伞？", "保修期多久？"):
        before = len(browser.all(".said"))
        browser.send(".st-key-library_question input", question + "\n")
        until(lambda before=before: len(browser.all(".said")) > before, "the answer", 120)
        browser.settle()
    browser.press("[class*=st-key-source_1_1] button")
    browser.find(".sheet img")


def picture_source(browser: Browser, address: str) -> None:
    library(browser, address)
    browser.press("[class*=st-key-source_0_1] button")
    browser.find(".sheet img")


def thinking(browser: Browser, address: str) -> None:
    """By a tiny model that has learnt these answers by heart: it shows the page, not what GLM-4.1V can do."""
    browser.open(address)
    language = "zh" if browser.script("return document.documentElement.lang") == "zh-CN" else "en"
    browser.choose("model_main", BY_HEART)
    talk(browser, POINTED, SPOKEN[language][0])
    browser.find("[data-testid=stChatMessage] [data-testid=stExpander]")


BY_HEART = "glm4v-by-heart"
LOADS = "[data-testid=stSkeleton]"  # stands where a button's or a component's code is still on its way
SHOTS = {
    "thinking": (thinking, {"language": "en-US"}),
    "thinking-zh": (thinking, {"language": "zh-CN"}),
    "empty": (empty, {"language": "zh-CN"}),
    "heat": (heat, {"language": "zh-CN"}),
    "dark": (dark, {"language": "en-US", "dark": True}),
    "phone": (phone, {"language": "zh-CN", "width": 390, "height": 844, "mobile": True}),
    "teach": (teach, {"language": "en-US", "height": 980}),
    "library": (library, {"language": "zh-CN", "height": 980}),
    "library-phone": (picture_source, {"language": "en-US", "width": 390, "height": 844, "mobile": True, "dark": True}),
    "compare": (compare, {"language": "en-US", "height": 980}),
}


def main(folder: Path, names: list[str]) -> None:
    names = names or list(SHOTS)
    with tempfile.TemporaryDirectory() as scratch:
        take_all(folder, names, Path(scratch), models_for(names, Path(scratch)))


def models_for(names: list[str], scratch: Path) -> list[str]:
    """What the page is started with."""
    if not any(SHOTS[name][0] is thinking for name in names):
        return ["--model", "visglm-tiny"]
    (scratch / "learning").mkdir()
    learnt = make_pointer(make("glm4v", scratch / "base"), scratch / "learning")
    return ["--model", "visglm-tiny", "--model", str(learnt)]


def take_all(folder: Path, names: list[str], scratch: Path, models: list[str]) -> None:
    with serve(*models, log=scratch / "server.log") as address:
        for name in names:
            take, settings = SHOTS[name]
            with Browser(**settings) as browser:
                take(browser, address)
                until(lambda browser=browser: not browser.all(LOADS), "what the page loads late", 120)
                time.sleep(1)  # pictures and the last animation
                browser.shoot(folder / f"{name}.png")
                print(folder / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
