"""The command that says what will work here."""

from typing import Any

from zoquant.cli.show import JSON, show_json, show_pairs, show_rows


def doctor_command(json: JSON = False) -> None:
    """Say for every format which library is found here, which runtimes will work, and what to install.

    No quantization library is imported for it.
    """
    from zoquant.checkpoint.diagnosis import doctor

    found = doctor()
    if json:
        show_json(found)
        return
    pairs: dict[str, Any] = {name: version or "not installed" for name, version in found["versions"].items()}
    pairs |= {"python": found["python"], "device": f"{found['device']} ({found['machine']})"}
    pairs["bfloat16"] = "multiplied by the hardware" if found["bfloat16_is_fast"] else "slow here: float32 is used"
    pairs["kernels of the CPU"] = found["cpu_kernels"]
    show_pairs("Here", pairs)
    rows = [[each["format"], each["native"].partition(":")[0], each["vendor"]] for each in found["formats"]]
    show_rows("Checkpoint files", ["format", "native", "vendor"], rows)
    rows = [
        [
            each["name"], each["version"] or "none", ", ".join(each["formats"]), len(each["classes"]),
            each["install"].removeprefix("pip install "),
        ]
        for each in found["libraries"]
    ]  # fmt: skip
    show_rows("Libraries", ["library", "found", "formats", "classes", "pip install"], rows)
