"""Known vulnerabilities of everything that is installed, by pip-audit and PyPI's advisories: `make audit`.

Ends with 1 where a vulnerability is known that `ACCEPTED` does not give a reason for. Where PyPI's advisories cannot be
read (a mirror that serves packages only), it says that nothing was audited, and ends with 0.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Final

ACCEPTED: Final[Mapping[str, str]] = {}
"""Advisory -> why it does not concern this project."""


def judge(report: Mapping[str, Any]) -> tuple[list[str], int]:
    """What pip-audit's JSON report says, in lines, and the exit status.

    Args:
        report: `dependencies`, each with name and either version and vulns, or skip_reason.
    """
    audited = [each for each in report["dependencies"] if "skip_reason" not in each]
    skipped = len(report["dependencies"]) - len(audited)
    if not audited:
        why = report["dependencies"][0]["skip_reason"] if skipped else "nothing is installed"
        return [f"dependency audit: NOT DONE, no advisory could be read for any of {skipped} packages ({why})."], 0
    lines, status = [f"dependency audit: {len(audited)} packages audited, {skipped} not known to PyPI."], 0
    for package in audited:
        for found in package["vulns"]:
            names = {found["id"], *found.get("aliases", ())}
            reason = next((ACCEPTED[name] for name in sorted(names) if name in ACCEPTED), None)
            status = status if reason else 1
            remedy = f"accepted: {reason}" if reason else f"fixed in {', '.join(found['fix_versions']) or 'no release'}"
            lines.append(f"  {package['name']} {package['version']}: {', '.join(sorted(names))}; {remedy}")
    return lines, status


def main() -> int:
    """Audits the environment of this Python."""
    command = [sys.executable, "-m", "pip_audit", "--local", "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError:
        last = (done.stderr.strip() or "no output").rpartition("\n")[2]
        if "ConnectionError" in done.stderr or "ServiceError" in done.stderr:
            print(f"dependency audit: NOT DONE, PyPI cannot be reached: {last}")
            return 0
        print(f"dependency audit: pip-audit failed: {last}", file=sys.stderr)
        return 1
    lines, status = judge(report)
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main())
