"""How well a library finds and answers, how fast, and how large it gets.

    python benchmarks/library.py cmrc cmrc2018_dev.json      # Chinese questions over passages
    python benchmarks/library.py faq FOLDER                  # Debian's FAQ, unpacked from its two packages
    python benchmarks/library.py rates                       # 100,000 parts on this machine

What was indexed stays in --work, so that a second run measures alone.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import resource
import shutil
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from visglm import Library
from visglm.library import LEAST_CONFIDENCE, Found, answer, confidences

TITLE = re.compile(r'<h[23] class="title"><a id="([^"]+)"></a>(.*?)</h[23]>', re.DOTALL)
CODES = {"en": "en", "zh": "zh-cn"}
LANGUAGES = {"en": "debian-faq", "zh": "debian-faq-zh-cn"}


def share(hits: list[bool]) -> str:
    return f"{100 * sum(hits) / max(len(hits), 1):.1f} % of {len(hits)}"


def cmrc(arguments: argparse.Namespace) -> None:
    """Is the passage that a question was written from found first, and a sentence with its answer cited?"""
    rows = json.loads(arguments.data.read_text("utf-8"))
    folder = arguments.work / "cmrc"
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        path = folder / f"{row['context_id']}.txt"
        if not path.exists():
            path.write_text(row["context_text"], "utf-8")
    library = index(arguments, folder)
    asked = [(row["context_id"], qa) for row in rows for qa in row["qas"]]
    random.Random(0).shuffle(asked)
    first, three, one, seconds = [], [], [], []
    for name, qa in asked[: arguments.questions]:
        started = time.perf_counter()
        hits = library.search(qa["query_text"], limit=5)
        seconds.append(time.perf_counter() - started)
        first.append(bool(hits) and Path(hits[0].source).stem == name)
        quotes = [citation.quote for citation in answer(qa["query_text"], library).citations]
        right = [any(str(text) in quote for text in qa["answers"]) for quote in quotes]
        one.append(bool(right) and right[0])
        three.append(any(right))
    print(f"passage found first: {share(first)}; a search: median {1000 * statistics.median(seconds):.0f} ms")
    print(f"sentence with the answer cited first: {share(one)}, among the first three: {share(three)}")


def sections(folder: Path, language: str) -> Iterator[tuple[str, str, str]]:
    """Anchor, title and HTML of each section without subsections."""
    for path in sorted((folder / LANGUAGES[language]).rglob(f"*.{CODES[language]}.html")):
        text = path.read_text("utf-8")
        found = list(TITLE.finditer(text))
        for match, following in itertools.zip_longest(found, found[1:]):
            body = text[match.end() : following.start() if following else len(text)].partition(
                '<div class="navfooter"'
            )[0]
            title = re.sub(r"<[^>]+>|^\s*[\d.]+\s*", "", match[2])
            title = re.sub(r"^\s*\d[\d.]*\s*", "", " ".join(title.split()))
            if len(re.sub(r"<[^>]+>|\s", "", body)) > 40:
                yield match[1], title, f"<body>{body}</body>"


def faq(arguments: argparse.Namespace) -> None:
    """Is a section found by its title, which was cut off? In one language, across both; and what if it is not there?"""
    folder = arguments.work / "faq"
    shutil.rmtree(folder, ignore_errors=True)
    titles: dict[str, dict[str, str]] = {}
    for language in LANGUAGES:
        titles[language] = {}
        for number, (anchor, title, body) in enumerate(sections(arguments.data, language)):
            titles[language][anchor] = title
            half = folder / f"half{number % 2}"
            half.mkdir(parents=True, exist_ok=True)
            (half / f"{anchor}.{language}.html").write_text(body, "utf-8")
    library = index(arguments, folder)
    print(", ".join(f"{len(found)} sections in {language}" for language, found in titles.items()))
    for asked in LANGUAGES:
        for wanted in LANGUAGES:
            pairs = [(title, anchor) for anchor, title in titles[asked].items() if anchor in titles[wanted]]
            hits = []
            for title, anchor in pairs:
                found = library.search(title, limit=1, languages=wanted)
                hits.append(bool(found) and Path(found[0].source).name == f"{anchor}.{wanted}.html")
            print(f"asked in {asked}, found in {wanted}: R@1 {share(hits)}")
    curve(library, titles)


def curve(library: Library, titles: dict[str, dict[str, str]]) -> None:
    """Half of the sections are there; questions of the other half have no answer."""
    scores: dict[bool, list[float]] = {True: [], False: []}
    for language, found in titles.items():
        for number, title in enumerate(found.values()):
            hits = library.search(title, limit=12, files="half0/*", languages=language)
            scores[number % 2 == 0].append(max(confidences(title, hits), default=0.0))
    print("confidence | nothing found, rightly | refused, wrongly")
    for least in sorted({*(number / 20 for number in range(4, 17)), LEAST_CONFIDENCE}):
        right, wrong = ([score < least for score in scores[kind]] for kind in (False, True))
        print(f"{least:.2f} | {share(right)} | {share(wrong)}")


def rates(arguments: argparse.Namespace) -> None:
    """Many parts: how fast they are added and searched, and what they take."""
    folder = arguments.work / "many"
    folder.mkdir(parents=True, exist_ok=True)
    words = Words()
    num_files = 1000
    per_file = arguments.parts // num_files
    for number in range(num_files):
        path = folder / f"{number}.txt"
        if not path.exists():
            path.write_text("\n\n".join(words.paragraph() for _ in range(per_file)), "utf-8")
    started = time.perf_counter()
    library = index(arguments, folder)
    seconds = time.perf_counter() - started
    stats = library.stats()
    print(f"{stats.parts:,} parts of {stats.documents:,} files in {seconds:.0f} s "
          f"({stats.parts / seconds:,.0f} a second), {(stats.num_bytes or 0) / 1e6:,.0f} MB on disk")  # fmt: skip
    timed(lambda: library.search(words.question(), limit=10))
    (folder / "500.txt").write_text(words.paragraph(), "utf-8")
    started = time.perf_counter()
    changes = library.sync(folder, progress=False)
    print(f"one of {num_files:,} files changed: {changes}, {time.perf_counter() - started:.2f} s")
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def timed(search: Callable[[], list[Found]]) -> None:
    search()
    seconds = []
    for _ in range(200):
        started = time.perf_counter()
        search()
        seconds.append(time.perf_counter() - started)
    seconds.sort()
    print(f"a search: median {1000 * seconds[100]:.1f} ms, 95 in 100 below {1000 * seconds[189]:.1f} ms")


class Words:
    """Text of made-up words, the commoner the shorter, in paragraphs of the length that becomes a part of its own."""

    def __init__(self) -> None:
        self.chance = random.Random(0)
        letters = "abcdefghijklmnopqrstuvwxyz"
        self.words = ["".join(self.chance.choices(letters, k=2 + number // 4000)) for number in range(40_000)]
        self.sums = list(itertools.accumulate(1 / (rank + 10) for rank in range(len(self.words))))

    def some(self, count: int) -> str:
        return " ".join(self.chance.choices(self.words, cum_weights=self.sums, k=count))

    def paragraph(self) -> str:
        return ". ".join(self.some(12).capitalize() for _ in range(12)) + "."

    def question(self) -> str:
        return self.some(6)


def index(arguments: argparse.Namespace, folder: Path) -> Library:
    ending = "" if arguments.vectors else "-words"
    library = Library.open(folder.with_name(folder.name + ending + ".library"), vectors=arguments.vectors)
    started = time.perf_counter()
    changes = library.sync(folder, progress=sys.stderr.isatty())
    stats = library.stats()
    print(f"{changes}, {stats.parts} parts, {time.perf_counter() - started:.0f} s")
    return library


ACTIONS = {"cmrc": cmrc, "faq": faq, "rates": rates}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("data", nargs="?", type=Path, help="file or folder to measure with")
    parser.add_argument("--work", type=Path, default=Path("build/library"), help="where indexed documents stay")
    parser.add_argument("--questions", type=int, default=800, help="of CMRC")
    parser.add_argument("--parts", type=int, default=100_000, help="of `rates`")
    parser.add_argument("--no-vectors", dest="vectors", action="store_false", help="words alone")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ResourceWarning)
    ACTIONS[arguments.action](arguments)


if __name__ == "__main__":
    main()
