"""When and where a run's models are made: each as soon as what it needs stands and a place is free, longest chain first. L7.

A piece is a model with what speaks of it (`Lab.piece`). All pieces of a run share one pool of workers, whatever base or batch they are
of. Which thread count a model is trained with must not depend on who was ready first, for its last bits do: with several places every
piece is made by a worker, but the one piece of its depth in a run of one base, which this process makes with all its threads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from titer.core.parallel import Processes, Progress, Silent, Workers, ended
from titer.core.run import Store
from titer.pipeline import Pipeline
from titer.recipes.node import Node
from titer.studies.engine.declare import Given
from titer.studies.engine.found import Found
from titer.studies.engine.lab import Lab, faults, form

Piece = tuple[Lab, str]


class Schedule:
    """The work of a run's labs. `place` is the study's name or file, from which a worker opens it again.

    Use as a context: its end stops the workers, an error at once.
    """

    def __init__(self, labs: Sequence[Lab], place: str, workers: Workers | None = None) -> None:
        self.labs, self.place, self.workers = labs, place, workers or Processes()
        self._open: dict[Piece, int] = {}  # not made yet -> examples trained from it to the end of its longest chain
        self._running: dict[Future[None], Piece] = {}
        self._here: set[Piece] = set()  # those that this process makes
        self._looks: dict[Piece, list[str]] = {}
        self._made = 0
        self._progress: Progress | None = None

    def __enter__(self) -> Schedule:
        for lab in self.labs:
            lab.make = self._make
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.workers.stop(at_once=kind is not None)

    def want(self, lab: Lab, names: Iterable[str]) -> None:
        """These models of a lab are to be made."""
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
            if self.workers.places < 2 or (len(self.labs) == 1 and depths[lab.depth(name)] == 1):
                self._here.add((lab, name))

    def until(self, labs: Collection[Lab]) -> None:
        """Work until all that is wanted of these labs is made; what others want is made beside it."""
        self._progress = None  # whatever was shown since
        while any(map(self._busy, labs)):
            self._step()

    def further(self, labs: Sequence[Lab]) -> None:
        """All that is wanted, and batch after batch of these labs: each asked for when its lab's earlier ones are made."""
        more = {lab: lab.study.further(lab) for lab in labs}
        while more:
            for lab in [lab for lab in more if not self._busy(lab)]:
                batch = None if lab.ended else next(more[lab], None)
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
        return any(one is lab for one, _ in (*self._open, *self._running.values()))

    def _step(self) -> None:
        """Start what can be started; then wait until a piece is made, or make one here."""
        here = self._started()
        if self._running:
            for one in ended(self._running):
                self._done(self._running.pop(one))
            if self._progress:
                self._progress(self._made, self._made + len(self._running) + len(self._open))
        elif here:
            lab, name = here
            lab.piece(name)
            self._done(here)
        elif self._open:
            raise RuntimeError(f"pieces that wait for each other: {', '.join(name for _, name in self._open)}")

    def _started(self) -> Piece | None:
        """Fill the free places, longest chain first; the first piece that is this process's own and can be made now."""
        own: list[Piece] = []
        while len(self._running) < self.workers.places:
            ready = [piece for piece in self._open if piece not in own and self._can_begin(*piece)]
            if not ready:
                break
            lab, name = longest = max(ready, key=self._open.__getitem__)
            if lab.given is None and lab.stands(name) and lab.is_measured(name):
                self._done(longest)
            elif longest in self._here:
                own.append(longest)
                if self.workers.places < 2:
                    break
            else:
                if self._progress is None:
                    self._progress = lab.pipeline.reporter.task(f"models of {len(self.labs)} bases")
                self._running[self.workers.submit(_piece, *_sent(lab, self.place, name))] = longest
                del self._open[longest]
        return own[0] if own else None

    def _can_begin(self, lab: Lab, name: str) -> bool:
        """Whether what a piece is made from stands, and what its measures look at: asked second, for measures are declared of data."""
        if self._lacks(lab, lab.before(name)):
            return False
        if (lab, name) not in self._looks:
            self._looks[lab, name] = [other for _, over in lab.spoken(name) for other in over[:-1]]
        return not self._lacks(lab, self._looks[lab, name])

    def _lacks(self, lab: Lab, names: Iterable[str]) -> bool:
        return any((lab, name) in self._open or (lab, name) in self._running.values() for name in names)

    def _done(self, piece: Piece) -> None:
        """A piece stands. Where a first need fails of it the seed ends: no later model is worth making."""
        lab, name = piece
        _ = self._open.pop(piece, None)
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


def _sent(lab: Lab, place: str, name: str) -> tuple[Any, ...]:
    """What a worker needs to know of a lab to make one of its pieces: `_piece`'s arguments."""
    nodes = {one: lab.added[one] for one in lab.line(name) if one in lab.added}
    return lab.pipeline.store.root, place, lab.scale, lab.unit, lab.given, lab.keep_weights, lab.parts, lab.chosen, nodes, name


def _piece(
    root: Path,
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
