"""vspipe of this Python, run by tests on scripts that they write."""

import subprocess
import textwrap
from dataclasses import dataclass
from pathlib import Path

from tests import TIMEOUT_SECONDS


@dataclass(frozen=True, slots=True)
class Vspipe:
    """vspipe of this Python, configured in a folder of its own: the user's configuration is left alone."""

    executable: Path
    environment: dict[str, str]
    folder: Path

    def command(self, script: str, *arguments: str, output: str = "-") -> list[str]:
        """The command line that runs the text of a .vpy script; for a Popen with `environment`."""
        path = self.folder / "script.vpy"
        path.write_text(textwrap.dedent(script))
        return [str(self.executable), *arguments, str(path), output]

    def __call__(
        self, script: str, *arguments: str, output: str = "-", environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the text of a .vpy script to its end; standard output and error are bytes."""
        return subprocess.run(
            self.command(script, *arguments, output=output),
            env=self.environment | (environment or {}),
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
