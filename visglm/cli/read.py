"""`visglm read`: scans as Markdown, one broken page losing nothing."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from ..errors import ConfigError, DocumentError, ImageError, counted, printable, writing
from ..sampling import Sampling
from ..settings import Rule, check_call
from .advice import in_flags
from .flags import add_model, add_settings, load_model, read_settings, settings_of, show_status
from .kept import Kept

if TYPE_CHECKING:
    from ..chat import VisGLM
    from ..library import Page

FAILED = 3  # exit status when something could not be read, as of `visglm describe`
KINDS = ("text", "table", "formula")
RULES = {"batch_size": Rule(int, 1, 65_536)}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "scans", nargs="+", metavar="SCAN",
        help="pictures, PDFs and TIFFs, or folders of them. Pages of a PDF are drawn and read, whatever text lies in "
        "them",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="FOLDER", help="write NAME.md there for each; what is there already stays as it is, and its "
        "scan is not read; where reading was interrupted, it goes on (default: print all)",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="read it again, and replace what is there")
    parser.add_argument(
        "--kind", choices=KINDS, default="text", help="text: all that is on a page; table, formula: it is nothing but "
        "one, told as HTML or LaTeX (default: text)",
    )  # fmt: skip
    parser.add_argument(
        "--batch-size",
        type=int,
        default=4,
        metavar="INT",
        help="pages that share a pass through the model (default: 4)",
    )
    parser.epilog = (
        f"Exit status: 0 when everything was read, {FAILED} when some pages or files could not be, 1 when nothing was "
        "done. A page after the first begins with the comment <!-- page N -->."
    )
    add_settings(parser, Sampling, "answers")
    add_model(parser)


class Job(NamedTuple):
    """A file to read, and where its Markdown goes; None to print it."""

    path: str
    target: Path | None


def run(arguments: argparse.Namespace) -> int:
    check_call(RULES, batch_size=arguments.batch_size)
    settings = settings_of(read_settings(arguments, Sampling))
    if arguments.overwrite and arguments.out is None:
        raise ConfigError("--overwrite is about files in a folder: name it with --out.")
    out = None if arguments.out is None else os.path.expanduser(arguments.out)
    if out is not None:
        check_out(out)
    jobs = jobs_of(arguments.scans, out)
    check_reads(arguments)
    if not arguments.overwrite:
        jobs = [job for job in jobs if not is_done(job)]
    if not jobs:
        return 0
    vlm, failed = load_model(arguments), 0
    for job in jobs:
        reading = Reading(job, arguments.flags, len(jobs) > 1, job is jobs[0])
        # Whoever ran out of memory goes on with fewer pages at a time, which say the same.
        kept = kept_of(job, vlm, {"kind": arguments.kind, **settings})
        before = kept.pages() if kept else []
        if before:
            were_read = counted(len(before), "page was read", "pages were read")
            show_status(f"{printable(job.path)}: {were_read} before; going on with the next.")
        for page in before:
            reading.take(page)
        try:
            pages = vlm.read(
                job.path, arguments.kind, batch_size=arguments.batch_size, first_page=len(before) + 1, **settings
            )
            for page in shown(pages, job.path, len(before)):
                if kept:
                    kept.add(page)
                reading.take(page)
        except (ImageError, DocumentError) as error:  # of the file as a whole
            reading.tell(str(error))
        reading.end()
        if kept:
            kept.remove()
        failed += reading.has_failed
    if failed:
        show_status(f"visglm: {failed} of {counted(len(jobs), 'file')} could not be read, or not as a whole.")
    return FAILED if failed else 0


def check_out(out: str) -> None:
    """Tell before pages are read, which takes its time, that what they say could not be written.

    Raises:
        ConfigError: it is no folder and cannot become one, or nobody may write there.
    """
    if not out.strip():
        raise ConfigError("--out must name a folder, and it is empty. For this one: --out .")
    there = next(place for place in (Path(out), *Path(out).absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        raise ConfigError(f"--out must name a folder, and {printable(str(there))} is none. Choose another place.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{printable(str(there))} may not be written to. Choose another place for --out.")


def check_reads(arguments: argparse.Namespace) -> None:
    """Tell before anything is loaded that a model does not read.

    Raises:
        ConfigError: it does not, or there is none.
    """
    if arguments.model is None:
        raise ConfigError(
            "pages are read by a model of GLM-OCR's family, and the embedded visglm-tiny is none. Name one: --model "
            "FOLDER, or --model zai-org/GLM-OCR from the hub."
        )
    from ..checkpoint import open_source
    from ..families import check_can

    check_can(open_source(arguments.model, arguments.tokenizer, arguments.base).config, "read")


def jobs_of(paths: Sequence[str], out: str | None) -> list[Job]:
    """The files that are meant.

    Raises:
        ConfigError: a folder holds none, or two of them would become one file.
    """
    jobs: dict[Path | str, Job] = {}
    for path in paths:
        for file, name in scans_in(path) if os.path.isdir(path) else [(path, Path(path).name)]:
            target = None if out is None else Path(out, name).with_suffix(".md")
            if target is not None and target.is_dir():
                raise ConfigError(f"{printable(str(target))} is a folder, and would have to be a file. Move it away.")
            job = Job(file, target)
            before = jobs.setdefault(target or f"{len(jobs)}", job)
            if before is not job and os.path.abspath(before.path) != os.path.abspath(file):
                raise ConfigError(
                    f"{printable(before.path)} and {printable(file)} would both become {printable(str(target))}. Read "
                    "them into two folders."
                )
    return list(jobs.values())


def scans_in(folder: str) -> Iterator[tuple[str, str]]:
    """Pictures, PDFs and TIFFs in a folder and below, and their names from there on; hidden ones are left out, and how
    many are of other kinds is told."""
    from ..library import READERS

    suffixes = tuple(suffix for kind in ("pdf", "tiff", "picture") for suffix in READERS[kind].suffixes)
    found, others = False, Counter[str]()
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith("."):
                continue
            if name.lower().endswith(suffixes):
                found = True
                yield os.path.join(where, name), os.path.relpath(os.path.join(where, name), folder)
            else:
                others[os.path.splitext(name)[1].lower() or "no ending"] += 1
    if found and others:
        kinds = ", ".join(f"{number} {kind}" for kind, number in others.most_common(5))
        files = counted(others.total(), "file is of a kind that is", "files are of kinds that are")
        show_status(printable(f"{folder}: {files} not read ({kinds})."))
    if not found:
        raise ConfigError(f"there is nothing to read in {printable(folder)}: no file ends in {', '.join(suffixes)}.")


def is_done(job: Job) -> bool:
    if job.target is None or not os.path.lexists(job.target):
        return False
    show_status(f"{printable(str(job.target))} is there already; --overwrite replaces it.")
    return True


def kept_of(job: Job, vlm: VisGLM, how: dict[str, Any]) -> Kept | None:
    """Where the pages of a file are kept until all are read; None for one that is printed, or is one picture."""
    from ..library import READERS
    from ..library.scans import PAGED, ModelOcr

    if job.target is None or not job.path.lower().endswith(tuple(s for kind in PAGED for s in READERS[kind].suffixes)):
        return None
    return Kept(job.target, job.path, {"model": ModelOcr(vlm).name, **how})


def shown(pages: Iterator[Page], path: str, num_before: int) -> Iterator[Page]:
    """The pages, with how many there are on stderr."""
    from tqdm import tqdm

    name = printable(os.path.basename(path))[-40:]
    yield from tqdm(pages, desc=name, unit="page", initial=num_before, file=sys.stderr)


class Reading:
    """What becomes of one file."""

    def __init__(self, job: Job, flags: dict[str, str], is_one_of_several: bool, is_first_of_all: bool):
        self.job, self.flags = job, flags
        self.is_one_of_several, self.is_first_of_all = is_one_of_several, is_first_of_all
        self.has_failed = self.has_text = False
        self._texts: list[str] = []

    def take(self, page: Page) -> None:
        if page.problem:
            self.tell(f"page {page.number}: {page.problem}")
        self.has_text |= bool(page.text) or not page.problem
        text = page.text or (f"<!-- page {page.number} could not be read -->" if page.problem else "")
        self._put(f"<!-- page {page.number} -->\n\n{text}" if page.number > 1 else text, is_first=page.number == 1)

    def tell(self, problem: str) -> None:
        self.has_failed = True
        write(f"visglm: {printable(self.job.path)}: {printable(in_flags(problem, self.flags))}", sys.stderr)

    def _put(self, text: str, is_first: bool) -> None:
        if self.job.target is not None:
            self._texts.append(text)
            return
        if is_first and self.is_one_of_several:
            text = f"<!-- {printable(self.job.path).replace('>', '&gt;')} -->\n\n{text}"
        lines = text.split("\n")
        apart = "" if self.is_first_of_all and is_first else "\n"
        write(apart + "\n".join(map(printable, lines) if sys.stdout.isatty() else lines), sys.stdout)

    def end(self) -> None:
        """Write the file, if there is anything to write."""
        if self.has_text and self.job.target is not None:
            write_whole(self.job.target, "\n\n".join(self._texts) + "\n")


def write(text: str, file: TextIO) -> None:
    """Print without tearing the progress bar."""
    from tqdm import tqdm

    tqdm.write(text, file=file)


def write_whole(target: Path, text: str) -> None:
    """A file that is there as a whole or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    part = target.with_name(f".{target.name[:64]}.{secrets.token_hex(8)}")
    try:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with part.open("x", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
    finally:
        with suppress(OSError):
            part.unlink()
