"""Speed of `prepare` against its tokenizer libraries' own batch encoding, on the same text, cores and tokenizers.

    python benchmarks/prepare_speed.py --tokenizer FILE_OR_FOLDER [--tokenizer ...] TEXT...

For each tokenizer, the rounds alternate between the library's batch encoding (`SentencePieceProcessor.encode` with
`num_threads`, `Tokenizer.encode_batch_fast`: documents as a list in memory, tokens as arrays) and all of `prepare`
(reading, splitting, hashing, encoding, writing, syncing). Prints a table and one line of JSON.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from shearling.data.prepare import prepare
from shearling.data.readers import Ledger, TextOptions
from shearling.data.sources import resolve_source
from shearling.data.tokenizers import load_tokenizer


def library_batch(tokenizer: Path, threads: int) -> Callable[[list[str]], object]:
    """The library's own way to encode a list of texts on `threads` threads, its tokens as arrays."""
    loaded = load_tokenizer(tokenizer)
    if loaded.kind == "sentencepiece":
        from sentencepiece import SentencePieceProcessor

        processor = SentencePieceProcessor(model_proto=loaded.serialized)
        return lambda texts: processor.encode(texts, num_threads=threads, return_type="numpy")
    from tokenizers import Tokenizer

    library = Tokenizer.from_buffer(loaded.serialized)
    return lambda texts: [np.array(encoding.ids, np.int32) for encoding in library.encode_batch_fast(texts)]


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock seconds of a call; what it returns is let go outside the clock."""
    start = time.perf_counter()
    result = call()
    elapsed = time.perf_counter() - start
    del result
    return elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("texts", nargs="+", help="files or folders that `prepare` takes")
    parser.add_argument("--tokenizer", type=Path, action="append", required=True)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(arguments.threads)

    documents = [
        text for name in arguments.texts for text in resolve_source(name).documents(TextOptions(), Ledger(strict=True))
    ]
    megabytes = sum(len(text.encode()) for text in documents) / 1e6
    results = []
    for tokenizer in arguments.tokenizer:
        encode = library_batch(tokenizer, arguments.threads)
        ours, theirs = [], []
        for _ in range(arguments.rounds + 1):
            theirs.append(seconds(lambda encode=encode: encode(documents)))
            with tempfile.TemporaryDirectory() as folder:
                ours.append(
                    seconds(
                        lambda folder=folder, tokenizer=tokenizer: prepare(
                            arguments.texts,
                            Path(folder) / "data",
                            tokenizer=tokenizer,
                            workers=arguments.threads,
                            strict=True,
                            progress=lambda progress: None,
                        )
                    )
                )
        library_speed = megabytes / statistics.median(theirs[1:])  # the first round warms up
        prepare_speed = megabytes / statistics.median(ours[1:])
        results.append(
            {
                "tokenizer": str(tokenizer),
                "library_mb_per_s": round(library_speed, 2),
                "prepare_mb_per_s": round(prepare_speed, 2),
                "ratio": round(prepare_speed / library_speed, 3),
            }
        )
    print(f"{megabytes:.1f} MB, {len(documents):,} documents, {arguments.threads} threads", file=sys.stderr)
    print(f"{'tokenizer':40} {'library MB/s':>13} {'prepare MB/s':>13} {'ratio':>7}", file=sys.stderr)
    for result in results:
        print(
            f"{str(result['tokenizer'])[-40:]:40} {result['library_mb_per_s']:13} {result['prepare_mb_per_s']:13} "
            f"{result['ratio']:7}",
            file=sys.stderr,
        )
    print(json.dumps({"megabytes": round(megabytes, 1), "threads": arguments.threads, "results": results}))


if __name__ == "__main__":
    main()
