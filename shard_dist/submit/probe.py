"""Runs on the cluster, alone and before anything is sent there: `python -c <this> REQUIREMENT...`, one line of JSON."""

import importlib.metadata
import importlib.util
import json
import platform
import sys


def missing(requirements: list[str]) -> list[str]:
    """Those that this interpreter lacks, with the version that it has instead."""
    from packaging.requirements import Requirement

    found = []
    for text in requirements:
        wanted = Requirement(text)
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            # vLLM for CPUs is a distribution of another name with the same module.
            if importlib.util.find_spec(wanted.name.replace("-", "_")) is None:
                found.append(text)
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            found.append(f"{text} (it has {version})")
    return found


if __name__ == "__main__":
    print(json.dumps({"python": platform.python_version(), "missing": missing(sys.argv[1:])}))
