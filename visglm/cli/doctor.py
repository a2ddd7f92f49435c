"""`visglm doctor`: what is installed, what it runs on, and whether the embedded model answers as it should."""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from importlib import metadata

from ..errors import counted, printable
from ..selftest import Finding, self_test
from .flags import BASE_HELP, show_status

FAILED = 3  # exit status when a check failed, as of `visglm describe`


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="?", metavar="PATH", help="checkpoint to check instead: folder or hub id")
    parser.add_argument("--tokenizer", metavar="PATH", help="folder of its tokenizer, if it comes without")
    parser.add_argument("--base", metavar="PATH", help=BASE_HELP)
    parser.epilog = f"Exit status: 0 when all is well, {FAILED} when a check failed."


def run(arguments: argparse.Namespace) -> int:
    failed: list[str] = []
    named = (arguments.path, arguments.tokenizer, arguments.base)
    checks = CHECKS if arguments.path is None else (lambda: check_checkpoint(*named),)
    for check in checks:
        if failed and check in NEED_PACKAGES:
            show_status("visglm: devices and answers were not looked at: mend what failed, and call this again.")
            break
        for finding in check():
            # Names in a checkpoint's files are its author's.
            subject, found = ("\n".join(map(printable, text.split("\n"))) for text in (finding.subject, finding.found))
            print(f"{'ok  ' if finding.good else 'FAIL'} {subject:20} {found}", flush=True)
            failed += [] if finding.good else [finding.subject]
    if failed:
        show_status(f"visglm: {counted(len(failed), 'check')} failed: {', '.join(failed)}.")
    return FAILED if failed else 0


def check_python() -> Iterator[Finding]:
    yield Finding(
        "visglm", f"{version_of('visglm') or 'not installed,'} in {os.path.dirname(os.path.dirname(__file__))}"
    )
    yield Finding("Python", f"{platform.python_version()} at {sys.executable}")
    yield Finding("system", platform.platform())


def check_packages() -> Iterator[Finding]:
    """Versions of what visglm needs; of each extra that the extra "all" is made of, what it lacks."""
    try:
        requirements = metadata.requires("visglm") or []
    except metadata.PackageNotFoundError:
        yield Finding("packages", "visglm runs from a folder that is not installed; to check them: pip install -e .")
        return
    # Name, extras of it in brackets, and the extra it belongs to.
    parsed = [re.match(r"([\w.-]+)(?:\[([\w,]+)\])?(?:.*extra == .(\w+))?", line).groups() for line in requirements]  # type: ignore[union-attr]
    for name in (name for name, _, extra in parsed if extra is None):
        version = version_of(name)
        yield Finding(name, version or f"missing; install it with: pip install {name}", version is not None)
    for extra in (part for _, parts, extra in parsed if extra == "all" for part in parts.split(",")):
        missing = [name for name, _, other in parsed if other == extra and version_of(name) is None]
        found = f"lacks {', '.join(missing)}; to have it: pip install 'visglm[{extra}]'" if missing else "installed"
        yield Finding(f"extra {extra}", found)


def version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_devices() -> Iterator[Finding]:
    try:
        import torch

        from ..checkpoint import pick_device
    except (ImportError, OSError) as error:  # OSError: of a library that it was built with
        found = f"cannot be used ({str(error).splitlines()[0]}); install visglm again, in an environment of its own"
        yield Finding("torch", found, False)
        return
    capability = torch.backends.cpu.get_cpu_capability()
    yield Finding("cpu", f"{capability}, {torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding(f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        yield Finding("mps", "Apple GPU")
    yield Finding("device", f'{pick_device("auto")} is what device="auto" takes')


def check_answer() -> Iterator[Finding]:
    """The embedded model on a picture whose answer is known: wrong weights speak fluent nonsense, and look well."""
    from ..chat import VisGLM

    yield from self_test(VisGLM.from_pretrained(dtype="float32"))


def check_checkpoint(path: str, tokenizer: str | None, base: str | None) -> Iterator[Finding]:
    """Files, names, shapes, numbers and tokenizer, read piece by piece; then an answer, if the model is small."""
    from ..checkpoint import LARGE_MODEL, count_parameters, inspect, open_source

    source = open_source(path, tokenizer, base)
    good = True
    for found in inspect(source):
        good &= found.good
        yield Finding(*found)
    if good and count_parameters(source) < LARGE_MODEL:
        from ..chat import VisGLM

        vlm = VisGLM.from_pretrained(path, tokenizer=tokenizer, base=base)
        ids = vlm.tokenizer("你好", return_tensors="pt").to(vlm.device)
        greedy = [vlm.model.generate(**ids, max_new_tokens=8, do_sample=False, use_cache=use) for use in (True, False)]
        same = greedy[0].tolist() == greedy[1].tolist()
        yield Finding("greedy self-test", "the same with and without cache" if same else "cached and not differ", same)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (check_python, check_packages, check_devices, check_answer)
NEED_PACKAGES = (check_devices, check_answer)
