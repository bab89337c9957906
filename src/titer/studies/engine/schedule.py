"""Decides when and where a run's models are made: as soon as what a model needs exists and a place is free, longest chain first. L7.

A piece is a model with all that is measured on it (`Lab.piece`). A place, such as a worker process, makes one piece at a time. All pieces
of a run share the same places, whatever base or batch they belong to. The last bits of a model depend on the thread count that it is
trained with, so this count must not depend on which piece was ready first. With several places, every piece is made in another process.
One exception, on this machine and in a run of one base: a piece that is alone at its depth is made by this process with all its threads.

If the place of a piece goes away (its process or node ended), the piece is begun again and continues from what it had stored. If a piece
raises an error, the other pieces are still made, except those that are made from it; then its error is raised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from titer.core.errors import TiterError
from titer.core.parallel import Ended, Here, LostError, Places, Progress, Silent, Work
from titer.core.ray_cluster import places
from titer.core.run import Store
from titer.pipeline import Pipeline
from titer.recipes.node import Node
from titer.studies.engine.declare import Given
from titer.studies.engine.found import Found
from titer.studies.engine.lab import Lab, faults, form

Piece = tuple[Lab, str]
TRIES = 5  # times that one piece's place may go away


class Schedule:
    """Schedules the work of a run's labs. `place` is the study's name or file, from which another process opens the study again.

    Use it as a context manager: leaving it stops the workers (after an error, at once). `lost` counts how often a piece was begun again.
    """

    def __init__(self, labs: Sequence[Lab], place: str, workers: Places | None = None) -> None:
        self.labs, self.place, self.workers, self._here = labs, place, workers or places("processes"), Here()
        self._open: dict[Piece, int] = {}  # not made yet -> examples trained from it to the end of its longest chain
        self._running: dict[Hashable, tuple[Piece, int]] = {}
        self._own: set[Piece] = set()  # those that this process makes
        self._looks: dict[Piece, list[str]] = {}
        self._made = 0
        self._tries: Counter[Piece] = Counter()
        self._failed: dict[Piece, BaseException] = {}
        self._progress: Progress | None = None

    def __enter__(self) -> Schedule:
        for lab in self.labs:
            lab.make = self._make
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.workers.stop(at_once=kind is not None and bool(self._running))

    @property
    def lost(self) -> int:
        return self._tries.total()

    def want(self, lab: Lab, names: Iterable[str]) -> None:
        """Adds these models of a lab to those that are to be made."""
        names = [name for name in names if name in lab.names]
        depths = Counter(map(lab.depth, names))
        length = dict.fromkeys(names, 0)
        for name in sorted(names, key=lab.depth, reverse=True):
            if name in lab.nodes:
                length[name] += lab.nodes[name].stage.steps * lab.nodes[name].stage.batch
            for before in set(lab.before(name)) & set(length):
                length[before] = max(length[before], length[name])
        for name in names:
            self._open[lab, name] = length[name]
            alone = self.workers.count < 2 or (len(self.labs) == 1 and depths[lab.depth(name)] == 1)
            if self.workers.alone and alone:
                self._own.add((lab, name))

    def until(self, labs: Collection[Lab]) -> None:
        """Works until everything that is wanted of these labs is made; pieces of other labs are made meanwhile.

        Errors: that of a piece that failed."""
        self._progress = None  # whatever was shown since
        while any(map(self._busy, labs)):
            self._step()
        if any(lab in labs for lab, _ in self._failed):
            while self._open or self._running:
                self._step()
            raise next(iter(self._failed.values()))

    def further(self, labs: Sequence[Lab]) -> None:
        """Makes all that is wanted, then the further batches of these labs. A batch is requested when its lab's earlier ones are made."""
        more = {lab: lab.study.further(lab) for lab in labs}
        while more:
            for lab in [lab for lab in more if not self._busy(lab)]:
                failed = any(one is lab for one, _ in self._failed)
                batch = None if lab.ended or failed else next(more[lab], None)
                if batch is None:
                    del more[lab]
                else:
                    self.want(lab, lab.add(batch))
            self._step()
        self.until(labs)

    def _make(self, lab: Lab, names: Sequence[str]) -> None:
        self.want(lab, names)
        self.until([lab])

    def _busy(self, lab: Lab) -> bool:
        return any(one is lab for one, _ in (*self._open, *(piece for piece, _ in self._running.values())))

    def _step(self) -> None:
        """Starts the pieces that can be started; then waits until one is made, or makes one in this process."""
        own = self._started()
        if self._running:
            self.labs[0].pipeline.reporter.running([_words(piece) for piece, _ in self._running.values()])
            ended = self.workers.ended()
        elif own:
            lab, name = own
            length = self._open.pop(own)
            self._running[self._here.submit(Work(lambda _: lab.piece(name), lab.pipeline.store.root))] = own, length
            ended = self._here.ended()
        else:
            if self._open and not self._failed:
                raise RuntimeError(f"pieces that wait for each other: {', '.join(name for _, name in self._open)}")
            self._open.clear()  # the rest needs a piece that failed
            return
        for one in ended:
            self._end(one)
        if self._progress:
            self._progress(self._made, self._made + len(self._running) + len(self._open))
        if not self._running:
            self.labs[0].pipeline.reporter.running(())

    def _started(self) -> Piece | None:
        """Starts pieces on the free places, longest chain first. Returns a piece that this process can make itself now, or None."""
        own: list[Piece] = []
        count = self.workers.count
        while len(self._running) < count:
            ready = [piece for piece in self._open if piece not in own and self._can_begin(*piece)]
            if not ready:
                break
            lab, name = longest = max(ready, key=self._open.__getitem__)
            if lab.given is None and lab.stands(name) and lab.is_measured(name):
                del self._open[longest]
                self._done(longest)
            elif longest in self._own:
                own.append(longest)
                if count < 2:
                    break
            else:
                if self._progress is None:
                    self._progress = lab.pipeline.reporter.task(f"models of {len(self.labs)} base{'s' * (len(self.labs) > 1)}")
                ticket = self.workers.submit(_sent(lab, self.place, name))
                self._running[ticket] = longest, self._open.pop(longest)
        return own[0] if own else None

    def _end(self, one: Ended) -> None:
        """Handles a piece that ended: it is made, must be begun again, or has failed."""
        piece, length = self._running.pop(one.ticket)
        tell = piece[0].pipeline.reporter.tell
        if one.error is None:
            self._done(piece)
        elif isinstance(one.error, LostError) and self._tries[piece] < TRIES:
            self._tries[piece] += 1
            self._open[piece] = length
            tell(f"{_words(piece)} is begun again: {one.error}")
        else:
            error = one.error
            if isinstance(error, LostError):
                error = TiterError(f"{_words(piece)}: its place went away {TRIES + 1} times", expected=str(error), status=1)
            self._failed[piece] = error
            tell(f"{_words(piece)} failed, the others go on: {error}")

    def _can_begin(self, lab: Lab, name: str) -> bool:
        """Whether all models exist that a piece is made from and that its measures read.

        The measures are checked second, because declaring them draws data."""
        if self._lacks(lab, lab.before(name)):
            return False
        if (lab, name) not in self._looks:
            self._looks[lab, name] = [other for _, over in lab.spoken(name) for other in over[:-1]]
        return not self._lacks(lab, self._looks[lab, name])

    def _lacks(self, lab: Lab, names: Iterable[str]) -> bool:
        running = {piece for piece, _ in self._running.values()}
        return any((lab, name) in self._open or (lab, name) in running or (lab, name) in self._failed for name in names)

    def _done(self, piece: Piece) -> None:
        """Records that a piece is made. If it fails a first need, its seed ends, because no later model is worth making."""
        lab, name = piece
        self._made += 1
        for need in lab.study.needs(lab.scale):
            if not need.first or need.model != name or lab.ended or name not in lab.names:
                continue
            rates = lab.rates(lab.verdicts(name))
            if told := faults(Found(lab.seed, lab.scale, {"rates": rates}), [need]):
                lab.pipeline.reporter.tell(f"seed {lab.seed}, base {lab.base}: {told[name]}, so nothing more is trained on it")
                kept = {one: node for one, node in lab.nodes.items() if lab.depth(one) <= lab.depth(name)}
                lab.nodes, lab.ended = kept, told[name]
                self._open = {one: length for one, length in self._open.items() if one[0] is not lab or one[1] in lab.names}


def _words(piece: Piece) -> str:
    lab, name = piece
    return f"{name} of seed {lab.seed}, base {lab.base}"


def _sent(lab: Lab, place: str, name: str) -> Work:
    """Returns a piece as work for another process, which makes the lab again."""
    nodes = {one: lab.added[one] for one in lab.line(name) if one in lab.added}
    make = partial(
        _piece, place=place, scale=lab.scale, unit=lab.unit, given=lab.given, keep_weights=lab.keep_weights, parts=lab.parts,
        chosen=lab.chosen, nodes=nodes, name=name,
    )  # fmt: skip
    if lab.given is not None:
        return Work(make, lab.pipeline.store.root, None)
    looked = [name, *(other for _, over in lab.spoken(name) for other in over)]
    models = dict.fromkeys(one for other in looked for one in lab.line(other))
    return Work(make, lab.pipeline.store.root, [("stages", lab.key(one)) for one in models if lab.stands(one)])


def _piece(
    root: Path,
    *,
    place: str,
    scale: Any,
    unit: tuple[int, int],
    given: Given | None,
    keep_weights: bool,
    parts: tuple[str, ...],
    chosen: Any,
    nodes: Mapping[str, Node],
    name: str,
) -> None:
    silent = Silent()
    pipeline = Pipeline(Store(root, silent.tell), silent, scale.save_every)
    lab = Lab(pipeline, form(place, given), Path(place).stem, scale, unit[0], given, keep_weights, unit[1], 1, parts, chosen)
    _ = lab.add(list(nodes.values()))
    lab.piece(name)
