"""Doing the runs one after the other, until all are done or the time is up."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks.study import first
from benchmarks.study.examples import Examples, examples
from benchmarks.study.models import Models
from benchmarks.study.record import Draft, Records, Result, SkippedError, point
from benchmarks.study.rows import Row, grid, jobs
from benchmarks.study.zeroth import NUMBERS, ZerothOrder, center, course

CENTER = "qzo-center.json"


class Study:
    """The runs of a table.

    Args:
        lines: the rows.
        models: what they train.
        data: folder of the examples.
        records: where results go.
        check: called before every step; raises TimeUpError to end the slice.
    """

    def __init__(
        self, lines: Sequence[Row], models: Models, data: Path, records: Records, check: Callable[[], None]
    ) -> None:
        self.lines, self.models, self.data, self.records, self.check = lines, models, data, records, check

    def work(self, only: str = "*") -> None:
        """Do every run that is neither finished nor held by another process.

        Args:
            only: shell pattern on the names of the rows.

        Raises:
            TimeUpError: the slice is over.
        """
        for row, seed in jobs(self.lines):
            if not fnmatchcase(row.name, only):
                continue
            with self.records.draft(row, seed) as draft:
                if draft is None or self.records.read(row, seed) is not None:
                    continue
                dtype = str(self.models.dtype(row))
                try:
                    result = self._run(row, seed, draft)
                except SkippedError as why:
                    print(f"{row.name}, seed {seed}: skipped, {why}.", flush=True)
                    continue
                self.records.write(row, seed, {"row": row.name, "seed": seed, "compute_dtype": dtype, **result})
                draft.remove()

    def _run(self, row: Row, seed: int, draft: Draft) -> Result:
        best = self._best() if row.best else None
        if best is not None and best["seed"] == seed:
            return best | {"same_as": best["row"], "row": row.name}
        model, tokenizer = self.models.open(row)
        draft.begin(str(self.models.dtype(row)))
        data = examples(self.data, tokenizer, seed)
        if row.method == "zero-shot":
            parts = {part: point(0, getattr(data, part).evaluate(model)) for part in ("choice", "dev", "test")}
            return {"forwards": 0.0, "seconds": 0.0, "numbers": {}, "curve": [parts.pop("choice")], **parts}
        if row.method == "first-order":
            try:
                return first.train(model, data, seed, row.forwards, draft, self.check, **row.settings)
            finally:
                self.models.drop()
        numbers = {name: best["numbers"][name] for name in ("lr", "eps")} if best else self._numbers(row, data)
        plan = course(row, seed, numbers)
        try:
            return ZerothOrder(row, model, data, plan, draft, self.check).run()
        finally:
            if row.model == "dense":  # streamed weights leave hooks and a delta behind
                self.models.drop()

    def _numbers(self, row: Row, data: Examples) -> Result:
        """Return lr and eps of a point of the grid; nothing for a row that has its own."""
        if row.factors is None:
            return {}
        model, _ = self.models.open(row)
        settings = course(row, 0, dict.fromkeys(NUMBERS[:2], 1.0)).settings
        found = self.records.keep(CENTER, lambda: center(model, data, row, settings.steps))
        return {name: found[name] * factor for name, factor in zip(NUMBERS, row.factors, strict=False)}

    def _best(self) -> Result:
        """Return the best run of the grid, by its last accuracy on the part of dev that choices are made on.

        Raises:
            SkippedError: the grid is not finished.
        """
        found = [result for row in grid(self.lines) for result in self.records.of(row)]
        if len(found) < len(grid(self.lines)):
            raise SkippedError("the grid of QZO is not finished")
        return max(found, key=lambda result: (result["curve"][-1]["accuracy"], -(result["curve"][-1]["loss"] or 1e9)))
