"""What pyproject.toml cannot say: the cffi extension, and which libraries go into a wheel."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

LIB = Path(__file__).resolve().parent / "llamackpt" / "lib"
COMPILES = {"bdist_wheel", "build", "build_ext", "develop", "editable_wheel", "install"}


class BuildPy(build_py):
    def run(self) -> None:
        if not self.editable_mode:  # setuptools packs whatever an earlier build left there
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()

    def find_data_files(self, package: str, src_dir: str) -> list[str]:
        # a wheel has no links, and lib*.so beside lib*.so.0 would double it; only the linker needs the plain names
        return [file for file in super().find_data_files(package, src_dir) if not Path(file).is_symlink()]


compiles = bool(COMPILES.intersection(sys.argv))
if compiles and not (LIB / "BUILD.json").is_file():
    raise SystemExit("llamackpt: the native libraries are not built (no llamackpt/lib/BUILD.json): run ./build.sh first")

if "CC" not in os.environ and "LDSHARED" not in os.environ:  # a Python of pyenv or conda adds its own folder to the rpath
    linker = (sysconfig.get_config_var("LDSHARED") or "").split()
    os.environ["LDSHARED"] = " ".join(word for word in linker if "-rpath" not in word)

setup(
    cffi_modules=["llamackpt/_build.py:ffibuilder"] if compiles else [],
    cmdclass={"build_py": BuildPy},
)
