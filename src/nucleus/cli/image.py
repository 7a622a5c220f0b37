"""`nucleus image`: kernels and initial file systems of virtual machines, made here from Debian's packages.

Promises: nothing is downloaded but by apt, with its signatures; an image is named by its SHA-256 and checked by it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys

from nucleus.cli.options import FLAG, invalid, parse
from nucleus.errors import NucleusError

USAGE = """\
usage: nucleus image build|list|verify|rm [IMAGE] [--json]

What pods of `--isolation qemu` boot: Debian's cloud kernel and a small initial file system. The newest one is used.

  build    from the packages that apt has (needs apt-get, busybox-static, lz4); the same packages give the same image
  list     those that are there
  verify   compare every file with the image's name
  rm       remove IMAGE (its name, or the beginning of it)
"""


def main(argv: list[str]) -> int:
    """Run the verb. Raises NucleusError."""
    from nucleus.pod import guest_image, runtime

    verbs = argv[:1] if argv and not argv[0].startswith("-") else []
    options, words = parse(argv[len(verbs) :], {"json": FLAG, "help": FLAG})
    words = [*verbs, *words]
    if options["help"]:
        sys.stdout.write(USAGE)
        return 0
    if not words or words[0] not in ("build", "list", "verify", "rm") or len(words) != 1 + (words[0] == "rm"):
        raise invalid("image takes build, list, verify, or rm IMAGE")
    store = runtime.images_dir()
    if words[0] == "build":
        os.makedirs(os.path.dirname(store), 0o755, exist_ok=True)
        runtime.private_directory(store)
        found = [guest_image.build(store)]
    else:
        found = guest_image.images(store)
    code = 0
    rows = []
    if words[0] == "rm":
        found = [image for image in found if image.sha256.startswith(words[1])]
        if len(found) != 1:
            raise invalid(f"{len(found)} images have a name that begins so")
        shutil.rmtree(found[0].directory)
    for image in found:
        row = {"image": image.sha256, "source": image.source, "verdict": ""}
        if words[0] == "verify":
            try:
                for fd in guest_image.load(image).values():
                    os.close(fd)
                row["verdict"] = "ok"
            except NucleusError as error:
                row["verdict"], code = error.message, error.exit_code
        rows.append(row)
    if options["json"]:
        sys.stdout.write(json.dumps(rows) + "\n")
    else:
        for row in rows:
            sys.stdout.write("  ".join(value for value in row.values() if value) + "\n")
    return code
