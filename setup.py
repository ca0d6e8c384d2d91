"""What pyproject.toml can't say: proxy.yaml belongs into the package, too.

In a checkout, it is in the root directory, where users edit it. `clamproxy config example` prints it.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

EXAMPLE = "proxy.yaml"


class BuildWithExample(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_file(EXAMPLE, str(self._target()))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), str(self._target())]

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), EXAMPLE]

    def _target(self) -> Path:
        return Path(self.build_lib, "clamproxy", "config", EXAMPLE)


setup(cmdclass={"build_py": BuildWithExample})
