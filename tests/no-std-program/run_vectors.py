"""Runs the `wire` program on every golden vector that fits, and compares exit code and output."""

import json, pathlib, subprocess, sys

vectors = json.loads((pathlib.Path(__file__).parent.parent / "vectors.json").read_text())
count = 0
for vector in vectors:
    if "repeat" in vector:
        continue
    message = bytes.fromhex(vector["hex"])
    accepted = vector["accepted"]
    output = b"" if accepted == "neither" else bytes.fromhex(vector.get("canonical", vector["hex"]))
    ran = subprocess.run([sys.argv[1]], input=message, capture_output=True, timeout=60)
    expected = ["strict", "lenient", "neither"].index(accepted), output
    if (ran.returncode, ran.stdout) != expected:
        sys.exit(
            f"{vector['name']}: {ran.returncode} {ran.stdout.hex()}, "
            f"expected {expected[0]} {output.hex()}"
        )
    count += 1
print(f"{count} vectors run")
