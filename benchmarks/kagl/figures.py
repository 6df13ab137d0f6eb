"""Figures of the KAGL benchmark: learning curves, hits and misses of text-to-image, answers to bare words.

``python benchmarks/kagl/figures.py RUN [RUN ...] -o benchmarks/kagl/figures`` writes ``learning.svg`` of all runs, and
``gallery.jpg`` and ``word_gallery.jpg`` of the first. Queries, documents and gallery are those that the protocol ranks;
which queries are shown is drawn by chance, always the same, and nobody picks them.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from catalign.artifacts import atomic
from catalign.data.catalogue import Catalogue
from catalign.errors import CatalignError
from catalign.evaluation.kagl import CUT, QRELS, TITLES, Search, published_searches
from catalign.pipeline import context_of, quiet_libraries
from catalign.reporting import learning, svg
from catalign.reporting.panels import sample
from catalign.retrieval.metrics import judge, ranked, relevant_ranks
from catalign.training.run import Run

EXAMPLES, SHOWN, SHOWN_FOR_WORD = 6, 5, 6
"""Hits and misses of each, photos per title, products per word."""
SCALE, FRAME, GAP, MARGIN = 1.5, 4, 6, 24
"""Of a photo, and in pixels of a sheet, which a page shows smaller: sharp on a fine screen, and large when opened."""
HEADING, TITLE, LABEL, NOTE = 24, 21, 17, 18
RIGHT, WRONG, PLAIN = ("✓", svg.PALETTE[2]), ("✗", svg.PALETTE[1]), ("", svg.GRID)
"""Mark and colour of a relevant photo, and of another one that is called wrong or left without comment."""


class Answer(NamedTuple):
    """What a query got.

    Attributes:
        query: Its words.
        shown: (k,) catalogue rows, best first.
        correct: (k,) bool, which of them are relevant.
        right: Catalogue row of the first relevant product, and ``rank`` its rank from 1.
        relevant: Number of relevant products.
    """

    query: str
    shown: np.ndarray
    correct: np.ndarray
    right: int
    rank: int
    relevant: int


class Shot(NamedTuple):
    """A photo on a sheet: its catalogue row, the words below, the colour of its frame."""

    row: int
    label: str
    colour: str


class Strip(NamedTuple):
    """A line of a sheet: a title with a note at its right end, and photos; ``first`` stands apart from the others."""

    title: str
    note: str
    first: Shot | None
    others: list[Shot]


def places(search: Search) -> list[np.ndarray]:
    """Each query's relevant products as rows of the documents; products that are not among them are left out."""
    place = np.full(1 + max(int(rows.max()) for rows in (search.rows, *search.task.relevant)), -1)
    place[search.rows] = np.arange(len(search.rows))
    return [found[found >= 0] for found in (place[rows] for rows in search.task.relevant)]


def hits_and_misses(search: Search, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries whose first document is relevant, and queries whose relevant ones are all beyond the protocol's cut.

    Returns:
        Query numbers, at most ``count`` of each, in random order, always the same ones.
    """
    ranking, _ = ranked(search.queries, search.documents, CUT)
    found = judge(search.rows[ranking], search.task.relevant) > 0
    there = np.array([len(rows) > 0 for rows in places(search)])
    return sample(np.flatnonzero(found[:, 0]), count), sample(np.flatnonzero(there & ~found.any(axis=1)), count)


def frequent(search: Search, count: int) -> np.ndarray:
    """Queries drawn from the half with more relevant products: numbers, at most ``count``, always the same ones."""
    sizes = np.array([len(rows) for rows in places(search)])
    common = np.argsort(-sizes, kind="stable")[: -(-len(sizes) // 2)]
    return sample(common[sizes[common] > 0], count)


def answer(search: Search, chosen: np.ndarray, k: int) -> list[Answer]:
    """The first documents of some queries, and where their first relevant one is.

    Args:
        search: A task of the protocol.
        chosen: (n,) query numbers; each has a relevant product among the documents.
        k: Documents per query.

    Raises:
        CatalignError: A query has no relevant product among the documents.
    """
    if not len(chosen):
        return []
    queries, known = search.queries[chosen], places(search)
    relevant = [known[number] for number in chosen]
    ranking, _ = ranked(queries, search.documents, k)
    correct = judge(ranking, relevant) > 0
    answers = []
    for line, ranks in enumerate(relevant_ranks(queries, search.documents, relevant)):
        right, rank = int(search.rows[relevant[line][ranks.argmin()]]), int(ranks.min())
        words = search.task.queries[chosen[line]]
        answers.append(Answer(words, search.rows[ranking[line]], correct[line], right, rank, len(ranks)))
    return answers


def titled(found: Answer) -> Strip:
    """A title query: the right photo in black, then the first answers, the relevant ones in green."""
    return Strip(found.query, "", Shot(found.right, f"rank {found.rank:,}", svg.INK), _shots(found, PLAIN))


def worded(task: str, found: Answer) -> Strip:
    """A word query: the first answers, the relevant ones in green and the others in red."""
    return Strip(f"{task}: {found.query}", f"{found.relevant:,} relevant", None, _shots(found, WRONG))


def _shots(found: Answer, other: tuple[str, str]) -> list[Shot]:
    marks = [RIGHT if correct else other for correct in found.correct]
    answers = enumerate(zip(found.shown.tolist(), marks, strict=True), start=1)
    return [Shot(row, f"{rank} {mark}".strip(), colour) for rank, (row, (mark, colour)) in answers]


class Sheet:
    """Draws strips of product photos in columns.

    Args:
        catalogue: Where the photos are; a product without one is grey.
        columns: Per column its heading and its strips, all of one kind.
        note: Words below them all.
    """

    def __init__(self, catalogue: Catalogue, columns: Sequence[tuple[str, Sequence[Strip]]], note: str) -> None:
        self.catalogue, self.columns, self.note = catalogue, columns, note
        height, width = catalogue.images.shape[1:3]
        self.photo = (round(width * SCALE), round(height * SCALE))
        self.pitch = self.photo[0] + 2 * FRAME + GAP
        drawn = [strip for _, strips in columns for strip in strips]
        self.width = max((self._offset(strip, len(strip.others)) - GAP for strip in drawn), default=self.pitch)
        self.height = TITLE + 12 + self.photo[1] + 2 * FRAME + LABEL + 28
        lines = max(len(strips) for _, strips in columns)
        size = (len(columns) * (self.width + 2 * MARGIN), 3 * MARGIN + HEADING + lines * self.height + NOTE)
        self.image = Image.new("RGB", size, svg.PAPER)
        self.pen = ImageDraw.Draw(self.image)

    def draw(self) -> Image.Image:
        """The sheet, RGB."""
        for column, (heading, strips) in enumerate(self.columns):
            left = MARGIN + column * (self.width + 2 * MARGIN)
            self._write((left, MARGIN), heading, HEADING, bold=True)
            for line, strip in enumerate(strips):
                self._strip(strip, left, 2 * MARGIN + HEADING + line * self.height)
        self._write((MARGIN, self.image.height - MARGIN - NOTE), self.note, NOTE, svg.MUTED)
        return self.image

    def _offset(self, strip: Strip, place: int) -> int:
        """Where the photo at a place among the others begins."""
        return place * self.pitch + (0 if strip.first is None else self.pitch + 3 * GAP)

    def _strip(self, strip: Strip, left: int, top: int) -> None:
        note = _font(LABEL).getlength(strip.note)
        self._write((left + self.width - note, top + 4), strip.note, LABEL, svg.MUTED)
        self._write((left, top), _cut(strip.title, _font(TITLE), self.width - note - GAP), TITLE)
        top += TITLE + 12
        if strip.first is not None:
            self._shot(strip.first, left, top)
        for place, shot in enumerate(strip.others):
            self._shot(shot, left + self._offset(strip, place), top)

    def _shot(self, shot: Shot, left: int, top: int) -> None:
        right, bottom = left + self.photo[0] + 2 * FRAME, top + self.photo[1] + 2 * FRAME
        thin = shot.colour == svg.GRID
        self.pen.rectangle((left, top, right - 1, bottom - 1), outline=shot.colour, width=1 if thin else FRAME)
        photo = Image.open(io.BytesIO(self.catalogue.thumbnail(shot.row))).convert("RGB")
        self.image.paste(photo.resize(self.photo, Image.Resampling.LANCZOS), (left + FRAME, top + FRAME))
        colour = svg.MUTED if thin else shot.colour
        middle = (left + right - _font(LABEL).getlength(shot.label)) / 2
        self._write((middle, bottom + 3), shot.label, LABEL, colour)

    def _write(self, at: tuple[float, float], text: str, size: int, colour: str = svg.INK, bold: bool = False) -> None:
        self.pen.text(at, text, fill=colour, font=_font(size, bold))


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font that matplotlib brings, so that a sheet looks the same everywhere."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _cut(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def galleries(run: Run, qrels: str | None = None) -> Iterator[tuple[str, Sheet]]:
    """The sheets of a run and their file names.

    Args:
        run: A run with embeddings.
        qrels: KAGL's relevance file, if not where the run's config says.

    Raises:
        CatalignError: The run has no embeddings, or none of texts and photos, or there is no relevance file.
    """
    context, component = context_of(run), run.config.evaluation.get("kagl")
    known = component.options.get("qrels") if component else None
    columns: list[tuple[str, list[Strip]]] = [("Answers to bare words", []), ("", [])]
    products = 0
    for search in published_searches(context, qrels or known):
        products = len(search.rows)
        if search.task.name == TITLES:
            yield "gallery.jpg", title_sheet(context.catalogue, search)
            continue
        answers = answer(search, frequent(search, len(columns)), SHOWN_FOR_WORD)
        for (_, strips), found in zip(columns, answers, strict=False):
            strips.append(worded(search.task.name.removesuffix("-to-product"), found))
    if columns[0][1]:
        note = f"The first {SHOWN_FOR_WORD} of {products:,} products. Green ✓: labelled with the word; red ✗: not."
        yield "word_gallery.jpg", Sheet(context.catalogue, columns, note)


def title_sheet(catalogue: Catalogue, search: Search) -> Sheet:
    """Hits beside misses of title queries."""
    headings = ("Hits: the right photo comes first", f"Misses: the right photo is beyond rank {CUT}")
    chosen = hits_and_misses(search, EXAMPLES)
    columns = [(h, [titled(a) for a in answer(search, c, SHOWN)]) for h, c in zip(headings, chosen, strict=True)]
    first = f"the first {SHOWN} of {len(search.rows):,} photos"
    return Sheet(catalogue, columns, f"Black: the title's own photo, and its rank. Then {first}; green ✓: relevant.")


def write_figures(runs: Sequence[Run], folder: Path, qrels: str | None = None) -> list[Path]:
    """Write all figures; the paths written.

    Raises:
        CatalignError: A run has no trained stage, or as :func:`galleries`.
    """
    names = legend([run.path for run in runs])
    curves = svg.alone(learning.timeline(dict(zip(names, runs, strict=True))))
    pictures = {folder / name: sheet.draw() for name, sheet in galleries(runs[0], qrels)}
    with atomic(folder / "learning.svg") as temporary:
        temporary.write_text(curves + "\n", encoding="utf-8")
    for path, picture in pictures.items():
        with atomic(path) as temporary:
            picture.save(temporary, "JPEG", quality=80, subsampling=0, optimize=True)  # 4:2:0 would blur red letters
    return [folder / "learning.svg", *pictures]


def legend(paths: Sequence[Path]) -> list[str]:
    """Runs' names: what of their paths tells them apart."""
    whole = [path.resolve() for path in paths]
    common = os.path.commonpath([path.parent for path in whole])
    return [str(path.relative_to(common)) for path in whole]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a finished run; galleries are of the first")
    parser.add_argument("--qrels", help=f"KAGL's relevance file (<data.root>/{QRELS})")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the figures")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the figures; 0 on success, 2 when the input was wrong."""
    options = build_parser().parse_args(arguments)
    quiet_libraries()
    try:
        for path in write_figures([Run.open(path) for path in options.runs], options.output, options.qrels):
            print(path)
    except CatalignError as error:
        print(f"figures: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
