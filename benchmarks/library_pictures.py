"""Which pictures of a folder show a …? Pictures in styles that visglm-tiny never saw, asked for in both languages.

    OMP_NUM_THREADS=1 python benchmarks/library_pictures.py FOLDER     # of Debian's tuxpaint-stamps-default, unpacked

Each stamp has a text beside it that says what it is; asked for is every thing of the model's own vocabulary that two to
twenty of the pictures are, by that text. The same pictures are asked three times: called by numbers, so that what the
model sees is all there is; by their own names with nobody looking; and by their own names, looked at.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from visglm import Library
from visglm.library import answer

ROOT = Path(__file__).parents[1]
NAMES = ("names.tsv", "photo_names.tsv")
ASKED = {"en": "Which pictures show a {}?", "zh": "哪些图片里有{}？"}
FEWEST, MOST = 2, 20  # pictures of a thing that is asked for


def vocabulary() -> dict[str, str]:
    """English and Chinese of what visglm-tiny may call a thing."""
    found: dict[str, str] = {}
    for name in NAMES:
        with (ROOT / "finetune/visglm-tiny" / name).open(encoding="utf-8") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                found.setdefault(row["english"].split("|")[0], row["chinese"].split("|")[0])
    return found


def stamps(folder: Path, number: int) -> dict[Path, str]:
    """Pictures and what their texts say, mirror images left out."""
    found = {}
    for path in sorted(folder.rglob("*.png")):
        text = path.with_suffix(".txt")
        if text.is_file() and not re.search(r"_(mirror|flip)", path.stem):
            said = text.read_text("utf-8", "replace").splitlines()
            if said:
                found[path] = said[0].lower()
    return dict(random.Random(0).sample(sorted(found.items()), min(number, len(found))))


def shows(text: str, thing: str) -> bool:
    """Whether a text says that this is the thing: it ends its first part (“a red apple, cut in half”)."""
    first = re.split(r"[,.;(]| with | on | in | of | from ", text)[0]
    return re.search(rf"\b{re.escape(thing)}s?\s*$", first) is not None


def measure(name: str, right: dict[str, set[str]], ask: Callable[[str, str], set[str]], words: dict[str, str]) -> None:
    """Precision over all that was cited, recall over all that should have been."""
    for language in ASKED:
        cited = hits = wanted = found = 0
        for thing, pictures in right.items():
            got = ask(language, thing if language == "en" else words[thing])
            cited, hits, wanted = cited + len(got), hits + len(got & pictures), wanted + len(pictures)
            found += bool(got & pictures)
        precision = f"{100 * hits / cited:.1f} %" if cited else "–"
        print(f"{name} | {language} | {precision} of {cited} | {100 * hits / wanted:.1f} % of {wanted} | "
              f"{found} of {len(right)}", flush=True)  # fmt: skip


def by_library(library: Library) -> Callable[[str, str], set[str]]:
    def ask(language: str, thing: str) -> set[str]:
        reply = answer(ASKED[language].format(thing), library, kinds="picture", limit=50)
        return {Path(citation.source).name for citation in reply.citations}

    return ask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with pictures and a text beside each")
    parser.add_argument("--number", type=int, default=500, help="of pictures, drawn by chance")
    parser.add_argument("--work", type=Path, default=Path("build/library/pictures"), help="where they are copied to")
    parser.add_argument("--no-vectors", dest="vectors", action="store_false", help="words alone")
    arguments = parser.parse_args()
    words = vocabulary()
    chosen = stamps(arguments.folder, arguments.number)
    folders = {"looked at, called by numbers": "numbers", "looked at, by their own names": "named"}
    places = {path: {"numbers": f"{number:04}.png", "named": f"{path.stem} {number:04}.png"}
              for number, path in enumerate(chosen)}  # fmt: skip
    truth = {thing: {path for path, text in chosen.items() if shows(text, thing)} for thing in words}
    truth = {thing: paths for thing, paths in truth.items() if FEWEST <= len(paths) <= MOST}
    print(f"{len(chosen)} pictures, {len(truth)} things asked for in each language")
    print("pictures | asked in | precision | recall | things of which one was found")
    named = {path: re.sub(r"[-_\d]+", " ", path.stem.lower()).split() for path in chosen}

    def by_name(language: str, thing: str) -> set[str]:
        return {str(path) for path, found in named.items() if set(thing.lower().split()) <= set(found)}

    measure("names alone", {thing: set(map(str, paths)) for thing, paths in truth.items()}, by_name, words)
    for title, kind in folders.items():
        folder = arguments.work / kind
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path, names in places.items():
            shutil.copy(path, folder / names[kind])
        started = time.perf_counter()
        library = Library.open(arguments.work / f"{kind}-{time.time_ns()}.library", vectors=arguments.vectors)
        library.add(folder, progress=sys.stderr.isatty())
        print(f"{time.perf_counter() - started:.0f} s to look at them", file=sys.stderr, flush=True)
        right = {thing: {places[path][kind] for path in paths} for thing, paths in truth.items()}
        measure(title, right, by_library(library), words)


if __name__ == "__main__":
    main()
