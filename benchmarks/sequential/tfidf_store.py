"""An embedding store of TF-IDF vectors reduced by SVD: titles' words without any encoder, as content of a recommender.

``python benchmarks/sequential/tfidf_store.py data=amazon_games data.root=PATH -o STORE`` writes it; then
``encoder.behaviour.content=STORE encoder.behaviour.content_name=text`` in an experiment reads it.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    """Prepare the catalogue, reduce its titles and write the store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, such as data=amazon_games")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the store to write")
    parser.add_argument("--width", type=int, default=256, help="dimensions kept (256)")
    options = parser.parse_args()

    import numpy as np
    from sklearn.decomposition import TruncatedSVD

    from catalign.config import compose
    from catalign.data.catalogue import Catalogue
    from catalign.data.store import EmbeddingStore
    from catalign.evaluation.baselines import tfidf

    catalogue = Catalogue.load(compose(["experiment=next_item", *options.overrides]).data)
    titles = catalogue.text(next(iter(catalogue.fields)))
    (words,) = tfidf(titles)
    if min(words.shape) <= options.width:
        parser.error(f"{words.shape[0]} titles of {words.shape[1]} words have no {options.width} dimensions")
    reduction = TruncatedSVD(options.width, random_state=0)
    vectors = reduction.fit_transform(words).astype(np.float32)
    present = np.array([bool(title) for title in titles])
    store = EmbeddingStore.write(
        options.output, catalogue.ids, {"text": vectors}, {"text": present}, made_from="TF-IDF of titles, SVD"
    )
    print(f"{store}\n  explained variance {reduction.explained_variance_ratio_.sum():.1%}")


if __name__ == "__main__":
    main()
