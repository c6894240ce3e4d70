"""Reads a folder of `transformers`.

What our graph cannot express is refused, never ignored. Of the tensors, only those are left out that neither logits nor
hidden states depend on: BERT's pooler and next-sentence head, stored masks and rotary frequencies. No pickle is read.
"""

from pathlib import Path

from shearling.formats.checkpoint import Checkpoint
from shearling.formats.huggingface.config import family_of, spec_of
from shearling.formats.huggingface.options import read_json
from shearling.formats.huggingface.texts import CONFIG, adds_bos, chat_template, stop_ids, tokenizer_loader
from shearling.formats.huggingface.weights import FolderTensors, weights_of


def read_huggingface(folder: Path) -> Checkpoint:
    """The model in a folder of model_type llama, mistral, gpt2 or bert: views of its files, without torch.

    BERT's segment embeddings: row 0 is added to every position, so that a sequence is one segment, the first. A BERT
    without its masked-token head (a sentence encoder) gets `head: false`: it gives hidden states and refuses logits.

    Raises:
        UserError: a file is missing or damaged, the weights are pickled, an option or a tensor is missing or does not
            fit, or our graph cannot express what the folder holds.
    """
    file = folder / CONFIG
    given = read_json(file)
    family = family_of(given, str(file))
    tensors = FolderTensors(folder, family)
    config = family.defaults | family.flatten(given)
    spec = spec_of(family, config, any(name.startswith(family.head) for name in tensors.names), str(file))
    return Checkpoint(
        spec=spec,
        tensors=weights_of(family, config, spec, tensors),
        rotary="halves",
        origin=str(folder),
        load_tokenizer=tokenizer_loader(folder),
        chat_template=chat_template(folder),
        stop_ids=stop_ids(folder, given, spec.vocab_size),
        adds_bos=adds_bos(folder),
    )
