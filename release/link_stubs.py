"""Makes libraries to link against as of an older system, from those of the system at hand.

A GNU library keeps every symbol version that it ever had: `log@GLIBC_2.2.5` is there beside `log@@GLIBC_2.29`, only the
linker takes the newest. The stubs made here have the same names, each in its newest version up to a limit, and no code:
what is linked with them asks for no later version, and what is only in later ones is an undefined symbol.

    python release/link_stubs.py FOLDER
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

# manylinux_2_28's: glibc 2.28, and GCC 8's libstdc++.
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 25), "CXXABI": (1, 3, 11)}
# What the linker calls them, and what the loader does. Newer glibcs have some in libc, which older ones have apart.
LIBRARIES = {
    "libc": "libc.so.6",
    "libm": "libm.so.6",
    "libpthread": "libpthread.so.0",
    "libdl": "libdl.so.2",
    "librt": "librt.so.1",
    "libstdc++": "libstdc++.so.6",
}
LOADERS = {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1"}
SYMBOL = re.compile(r"(FUNC|IFUNC|OBJECT|TLS) +(?:GLOBAL|WEAK|UNIQUE) +DEFAULT +(?!UND)\S+ (\S+?)@@?(\S+)$")


def numbers(version: str) -> tuple[str, tuple[int, ...]]:
    """`GLIBC_2.2.5` as a name and numbers; versions such as GLIBC_PRIVATE have none."""
    name, _, rest = version.partition("_")
    return name, tuple(int(part) for part in rest.split(".")) if re.fullmatch(r"[\d.]+", rest) else ()


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def symbols(library: str) -> dict[str, tuple[str, str]]:
    """Of each name: the newest version up to the limit, and the type."""
    found: dict[str, tuple[str, str]] = {}
    for line in output_of("readelf", "--dyn-syms", "-W", library).splitlines():
        match = SYMBOL.search(line)
        if match is None:
            continue
        kind, name, version = match.groups()
        family, parts = numbers(version)
        if not parts or parts > NEWEST.get(family, ()):
            continue
        if name not in found or numbers(found[name][0]) < (family, parts):
            found[name] = (version, kind)
    return found


def write_stub(library: str, soname: str, folder: Path, compiler: str) -> None:
    code, versions = [], defaultdict(list)
    for name, (version, kind) in sorted(symbols(library).items()):
        section, type_ = {"OBJECT": ("data", "object"), "TLS": ("tdata", "tls_object")}.get(kind, ("text", "function"))
        flags = ',"awT",%progbits' if section == "tdata" else ""
        code.append(f".section .{section}{flags}\n.globl {name}\n.type {name}, %{type_}\n{name}: .zero 8")
        versions[version].append(name)
    source, script = folder / f"{soname}.s", folder / f"{soname}.map"
    source.write_text("\n".join(code) + "\n")
    script.write_text("".join(f"{version} {{ global: {'; '.join(names)}; }};\n" for version, names in versions.items()))
    options = ["-shared", "-nostdlib", "-x", "assembler", str(source), f"-Wl,-soname,{soname}"]
    if versions:
        options.append(f"-Wl,--version-script,{script}")
    subprocess.run([compiler, *options, "-o", str(folder / soname)], check=True)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    compiler = os.environ.get("CXX", "c++")

    def located(name: str) -> str:
        return output_of(compiler, f"-print-file-name={name}").strip()

    loader = LOADERS[os.uname().machine]
    for soname in [*LIBRARIES.values(), loader]:
        write_stub(located(soname), soname, folder, compiler)
    for name, soname in LIBRARIES.items():
        link = folder / f"{name}.so"
        link.unlink(missing_ok=True)
        if name == "libc":  # some functions are only in an archive, and one that compilers call is in the loader
            archive = located("libc_nonshared.a")
            link.write_text(
                f"GROUP ( {folder.resolve() / soname} {archive} AS_NEEDED ( {folder.resolve() / loader} ) )\n"
            )
        else:
            link.symlink_to(soname)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
