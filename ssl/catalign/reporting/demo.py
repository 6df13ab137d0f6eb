"""A search page for a run: Gradio in front of the Retriever, without a network, for whoever trained it."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Sequence
from functools import cached_property, wraps
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
from PIL import Image

from catalign.data import images
from catalign.data.history_batches import BEHAVIOUR
from catalign.embeddings.fusion.weighted import Weighted
from catalign.errors import CatalignError
from catalign.reporting import panels, svg
from catalign.retrieval.results import Results
from catalign.retrieval.retriever import Retriever
from catalign.training.run import Run

SHOWN = 24
MAX_UPLOAD = "10mb"
"""Larger files are refused while they arrive; of smaller ones, photos of more pixels than ``images.MAX_PIXELS``."""

Filters = dict[str, list[str]]


class Shop:
    """What the page asks of a run. The model is loaded at once, so that the first query does not wait for it.

    Args:
        run: A run with embeddings, fusion and index.

    Attributes:
        modalities: What the model can encode: text, image, behaviour.
        values: Attribute -> its values in alphabetical order.
        photo_share: Share of the photo in a query of words and photo; None where the fusion takes no weights.

    Raises:
        CatalignError: As :meth:`Retriever.from_run`.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.retriever = run, Retriever.from_run(run)
        self.modalities = set(self.retriever.embedder.model.encoders)
        attributes = self.retriever.catalogue.attributes.items()
        self.values = {name: sorted(set(map(str, column)) - {""}) for name, column in attributes}
        self.photo_share: float | None = None
        fusion = self.retriever.fusion
        if isinstance(fusion, Weighted) and {"text", "image"} <= {*fusion.names} & self.modalities:
            weights = fusion.options["weights"]
            self.photo_share = weights["image"] / (weights["image"] + weights["text"] or 1)

    def find(self, text: str, photo: str | Path | None, photo_share: float, filters: Filters) -> Results:
        """Products for words, a photo, or both; without either, some products to begin with.

        Args:
            text: Words; blank for none.
            photo: An uploaded file.
            photo_share: Weight of the photo when there are both, from 0 to 1; the words weigh the rest.
            filters: Attribute -> values that a product may have; an empty list allows all.

        Raises:
            CatalignError: The upload is no photo or too large a one, or no word of the text is known.
        """
        words, chosen = text.strip() or None, _chosen(filters)
        pixels = None if photo is None else self._decode(Path(photo).read_bytes())
        if words is None and pixels is None:
            return self.retriever.browse(filters=chosen, k=SHOWN)
        both = words is not None and pixels is not None and self.photo_share is not None
        weights = {"image": photo_share, "text": 1 - photo_share} if both else None
        return self.retriever.search(words, pixels, filters=chosen, k=SHOWN, weights=weights)

    def _decode(self, upload: bytes) -> Any:
        try:
            return images.load(upload, self.retriever.embedder.image_size)
        except images.BadImageError as error:
            raise CatalignError(f"this file cannot be used as a photo: {error}", "try another one") from None

    def like(self, id: str, filters: Filters) -> Results:
        """Products like one."""
        return self.retriever.search(item=id, filters=_chosen(filters), k=SHOWN)

    def recommend(self, history: Sequence[str]) -> Results:
        """What to offer after a history, oldest first; nothing after nothing."""
        return self.retriever.recommend(history, k=SHOWN) if history else Results([], "")

    def picture(self, id: str) -> Image.Image:
        """A product's photo; a grey one where it has none."""
        photo = self.retriever.hit(id).photo
        return Image.new("RGB", (64, 64), "lightgrey") if photo is None else Image.open(io.BytesIO(photo))

    def about(self, id: str) -> str:
        """A product's title, id and attributes in HTML."""
        hit = self.retriever.hit(id)
        told = " · ".join([id, *(f"{name}: {value}" for name, value in hit.attributes.items())])
        return f"<b>{escape(hit.title or '(no title)')}</b><br>{escape(told)}"

    @cached_property
    def map(self) -> str:
        """The report's map of the embeddings, with its legend, in HTML."""
        drawn = panels.embedding_map(self.run, self.retriever.catalogue)
        dots = "".join(
            f'<li style="color:{svg.PALETTE[number - 1]}">● {escape(str(value))} ({count:,})</li>'
            for value, number, count in drawn["legend"]
        )
        title = f"{drawn['products']:,} products by {drawn['method']}, coloured by {escape(str(drawn['attribute']))}"
        return f'<p>{title}</p><div style="max-width:700px">{svg.alone(drawn["svg"])}</div><ul>{dots}</ul>'


def _chosen(filters: Filters) -> Filters:
    return {name: values for name, values in filters.items() if values}


def serve(run: Run, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Serve the page until interrupted. Uploads lie in a temporary folder that goes with it.

    Args:
        run: A run with embeddings, fusion and index.
        host: The address to listen at; by default, this machine alone can reach it.
        port: The port to listen at.

    Raises:
        CatalignError: The run is incomplete, or there is no such port, or it is taken.
    """
    if not 0 < port < 2**16:
        raise CatalignError(f"--port {port} is no port", "choose one from 1024 to 65535")
    shop = Shop(run)
    with TemporaryDirectory() as uploads:
        try:
            open_page(shop, uploads, host, port).block_thread()
        except OSError as error:
            raise CatalignError(f"cannot listen at {host}:{port}: {error}", "choose another --host or --port") from None


def open_page(shop: Shop, uploads: str | Path, host: str = "127.0.0.1", port: int | None = None) -> gr.Blocks:
    """Start the server and come back; without a port, at one that is free. Its address is the page's ``local_url``."""
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(uploads))
    page = build_page(shop)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        prevent_thread_lock=True,
        max_file_size=MAX_UPLOAD,
        footer_links=[],
        ssr_mode=False,
        quiet=True,
    )
    print(f"{page.local_url}  (Ctrl-C stops it)")
    return page


def build_page(shop: Shop) -> gr.Blocks:
    """The page: a tab to search, one to recommend where the run has behaviour, one with the map."""
    name = escape(shop.retriever.catalogue.name)
    with gr.Blocks(title=f"catalign: {name}", analytics_enabled=False) as page:
        gr.HTML(f"<h1>{name}</h1>{len(shop.retriever.index):,} products")
        with gr.Tab("Search"):
            picked, add = _search_tab(shop, page)
        if BEHAVIOUR in shop.modalities:
            with gr.Tab("Recommend"):
                _recommend_tab(shop, picked, add)
        with gr.Tab("Map") as tab:
            tab.select(_told(lambda: shop.map), outputs=gr.HTML("Drawing the map …"))
    return page


def _search_tab(shop: Shop, page: gr.Blocks) -> tuple[gr.State, gr.Button]:
    """The query and what it finds; returns the product that was clicked and the button that adds it to a history."""
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            text = gr.Textbox(label="Words", visible="text" in shop.modalities)
            photo = gr.Image(
                label="Photo",
                type="filepath",
                sources=["upload", "clipboard"],
                height=220,
                visible="image" in shop.modalities,
            )
            # Gradio's own would decode the upload before our limits are checked.
            photo.preprocess = _path  # type: ignore[method-assign, assignment, unused-ignore]
            share = gr.Slider(
                label="Weight of the photo beside the words",
                maximum=1,
                step=0.05,
                value=shop.photo_share,
                visible=shop.photo_share is not None,
            )
            go = gr.Button("Search", variant="primary")
            filters = [gr.Dropdown(values, multiselect=True, label=name) for name, values in shop.values.items()]
        with gr.Column(scale=3):
            found = _gallery(columns=6)
            about = gr.HTML("Click a product to see more of it.")
            with gr.Row():
                like = gr.Button("More like this", interactive=False)
                add = gr.Button("Add to history", interactive=False, visible=BEHAVIOUR in shop.modalities)
    ids, picked = gr.State([]), gr.State()

    def search(text: str, photo: str | None, share: float, *chosen: list[str]) -> Any:
        return _shown(shop, shop.find(text, photo, share, dict(zip(shop.values, chosen, strict=True))))

    def similar(id: str, *chosen: list[str]) -> Any:
        return _shown(shop, shop.like(id, dict(zip(shop.values, chosen, strict=True))))

    def pick(ids: list[str], event: gr.SelectData) -> Any:
        id = ids[event.index]
        return id, shop.about(id), gr.Button(interactive=True), gr.Button(interactive=True)

    query = [text, photo, share, *filters]
    gr.on([page.load, go.click, text.submit], _told(search), query, [found, ids])
    like.click(_told(similar), [picked, *filters], [found, ids])
    found.select(pick, ids, [picked, about, like, add])
    return picked, add


def _recommend_tab(shop: Shop, picked: gr.State, add: gr.Button) -> None:
    """A history of clicked products, and what to offer after it."""
    gr.HTML("Search, click a product and add it to the history. A product clicked below is added too.")
    seen, offered = _gallery(columns=12, height=150), _gallery(columns=8)
    clear = gr.Button("Forget the history")
    history, ids = gr.State([]), gr.State([])

    def after(history: list[str]) -> Any:
        past = [(shop.picture(id), id) for id in history]
        return history, gr.Gallery(past, label="history"), *_shown(shop, shop.recommend(history))

    def extend(history: list[str], id: str) -> Any:
        gr.Info("Added to the history.")
        return after([*history, id])

    def choose(history: list[str], ids: list[str], event: gr.SelectData) -> Any:
        return after([*history, ids[event.index]])

    outputs = [history, seen, offered, ids]
    add.click(_told(extend), [history, picked], outputs)
    offered.select(_told(choose), [history, ids], outputs)
    clear.click(_told(lambda: after([])), None, outputs)


def _gallery(columns: int, height: int | str = "auto") -> gr.Gallery:
    plain: dict[str, Any] = {"allow_preview": False, "interactive": False, "buttons": []}
    return gr.Gallery(columns=columns, height=height, object_fit="contain", fit_columns=False, **plain)


def _shown(shop: Shop, results: Results) -> tuple[gr.Gallery, list[str]]:
    pictures = [
        (shop.picture(hit.id), hit.title if math.isnan(hit.score) else f"{hit.score:.3f}  {hit.title}")
        for hit in results
    ]
    return gr.Gallery(pictures, label=results.query or "nothing yet", selected_index=None), results.ids


def _path(upload: Any) -> str | None:
    return None if upload is None else upload.path


def _told(answer: Callable[..., Any]) -> Callable[..., Any]:
    """Let the page tell a mistake in the input as it tells its own."""

    @wraps(answer)
    def told(*given: Any) -> Any:
        try:
            return answer(*given)
        except CatalignError as error:
            message = ": ".join(filter(None, (error.problem, error.remedy)))
            raise gr.Error(message, print_exception=False) from None

    return told
