"""Builds the native CPU backend, where there is a C++ compiler; pyproject.toml has the rest."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FOLDER = Path("plugserve/backends/cpu/native")
IS_COVERED = sys.platform in ("linux", "darwin") and platform.machine() in ("x86_64", "AMD64", "aarch64", "arm64")


class BuildLibrary(build_ext):
    """A plain shared library, which is no Python module: it works with every version of Python."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_suffix(".so"))


class PlatformWheel(bdist_wheel):
    """Any Python 3 of this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


LIBRARY = Extension(
    "plugserve.backends.cpu._native",
    sources=sorted(str(path) for path in FOLDER.glob("*.cpp")),
    depends=sorted(str(path) for path in (*FOLDER.glob("*.h"), *FOLDER.glob("*.inc"))),
    language="c++",
    extra_compile_args=[
        "-std=c++20",
        "-O3",
        "-ffp-contract=off",
        "-fvisibility=hidden",
        "-pthread",
        "-w",
        "-Wno-psabi",
    ],
    extra_link_args=["-pthread", "-s"] if sys.platform == "linux" else ["-pthread"],
    optional=True,
)

setup(
    ext_modules=[LIBRARY] if IS_COVERED else [],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel} if IS_COVERED else {},
)
