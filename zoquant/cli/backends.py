"""The command that lists what can be trained."""

from zoquant.cli.show import JSON, show_json, show_rows


def backends_command(json: JSON = False) -> None:
    """List what zoquant can train: layer classes of live models, and formats of checkpoint files.

    Nothing is imported for it. A package adds its own with an entry point.
    """
    from zoquant.registry import list_backends, list_formats

    classes = [
        {"class": c.name, "plugin": c.target, "package": c.package, "installed": c.installed}
        for c in list_backends().values()
    ]
    files = [{"format": c.name, "plugin": c.target, "package": c.package} for c in list_formats().values()]
    if json:
        show_json({"backends": classes, "formats": files})
        return
    rows = [[c["class"], c["package"], "yes" if c["installed"] else "no"] for c in classes]
    show_rows("Layers of live models", ["class", "served by", "library installed"], rows)
    show_rows("Checkpoint files", ["format", "served by"], [[f["format"], f["package"]] for f in files])
