"""Check the pinned packages for known vulnerabilities, with pip-audit and the OSV database.

    python .ci/audit.py [REQUIREMENTS] [--required] [--osv-url URL]

Exits with 1 for a vulnerability that was found. Where the database is out of reach it says NOT AUDITED and exits with 0, for a
machine without a network has to be able to lint; with --required, 2.
"""

import argparse
import json
import subprocess
import sys

_OPTIONS = ("--disable-pip", "--no-deps", "--format", "json", "--progress-spinner", "off", "--desc", "off", "--timeout", "10")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("requirements", nargs="?", default="constraints.txt")
    parser.add_argument("--required", action="store_true")
    parser.add_argument("--osv-url", default="https://api.osv.dev/v1/query")
    told = parser.parse_args()
    command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", "osv", "--osv-url", told.osv_url, *_OPTIONS]
    done = subprocess.run([*command, "--requirement", told.requirements], capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = (done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]
        print(f"NOT AUDITED: whether packages have known vulnerabilities could not be asked: {reason[:300]}")
        return 2 if told.required else 0
    for package in packages:
        for found in package.get("vulns", ()):
            repaired = f", repaired in {', '.join(found['fix_versions'])}" if found["fix_versions"] else ""
            print(f"VULNERABLE: {package['name']} {package['version']}: {found['id']}{repaired}")
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    print(f"audited {len(packages) - len(skipped)} packages" + (f"; NOT AUDITED: {', '.join(skipped)}" if skipped else ""))
    return int(any(package.get("vulns") for package in packages))


if __name__ == "__main__":
    sys.exit(main())
