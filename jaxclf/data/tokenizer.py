"""Tokenizers, and records as token ids: prefix, text and label kept apart.

    ids = bos + encode(prompt before the text)     prefix, one array shared by all examples
        + encode(text) + encode(prompt after it)   text
        + encode(answer) + eos                     label

An encoder that reads the prompt apart from the answer (T5) has an eos at the end of the text too.

Every piece is encoded by itself, so the ids of the prompt do not depend on the text, and special
tokens in data are plain text: nothing a document contains can close the prompt or end a turn.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsInt

from jaxclf.core.errors import ArtifactError, InputError

_BOS, _EOS, _PAD = "<s>", "</s>", "<pad>"  # of a tokenizer trained here
# What its merges never cross: a word with underscores and digits (`audio_volume_mute`), a number,
# a contraction, a run of marks (`": ["`). GPT-2's pattern cuts label names and JSON into more
# tokens, and each of them is a step of decoding.
_WORD = (
    r"'\p{L}{1,2}(?![\p{L}\p{N}_])| ?[\p{L}_][\p{L}\p{N}_]*| ?\p{N}+"
    r"|[^\p{L}\p{N}_]+?(?= ?[\p{L}\p{N}_])|[^\p{L}\p{N}_]+"
)
# Of a tokenizer trained here: four times the largest vocabularies of released models.
_MOST = 1_000_000
_DATE = "26 Jul 2024"  # that templates of Llama 3 write: a prompt must not change with the day
_CHUNK = 512  # texts encoded at a time: bounds the memory of the encodings


class Tokenizer:
    """A Hugging Face fast tokenizer that encodes pieces of text one by one.

    Three things differ from calling that tokenizer itself. No id is added on its own. Special
    tokens in data are plain text. And no space is put before a piece: sentencepiece vocabularies
    start every text with "▁", which between two pieces would stand for a space that is not there;
    a caller who wants it writes it (`encode_answer` does).

    `bos_id` is None where the tokenizer has no such token. `pad_id` falls back to `eos_id`.
    `special_ids` are those that encoding data never yields.
    `fingerprint` is a sha256 over the serialized tokenizer.
    """

    def __init__(self, hf_tokenizer: Any):
        self.hf = hf_tokenizer
        eos_id = hf_tokenizer.eos_token_id
        if eos_id is None:
            eos_id = hf_tokenizer.sep_token_id  # what ends a text of BERT
        if eos_id is None:
            raise InputError(
                f"tokenizer {hf_tokenizer.name_or_path or ''} has no end-of-sequence token. "
                "Name it as eos_token in its tokenizer_config.json."
            )
        self.bos_id: int | None = hf_tokenizer.bos_token_id
        self.eos_id: int = eos_id
        pad_id = hf_tokenizer.pad_token_id
        self.pad_id: int = self.eos_id if pad_id is None else pad_id

        serialized = hf_tokenizer.backend_tokenizer.to_str()
        self._serialized = serialized
        self._backend = _piecewise(serialized)
        self.vocab_size: int = max(self._backend.get_vocab().values()) + 1
        self.fingerprint: str = hashlib.sha256(
            f"{self.bos_id} {self.eos_id} {self.pad_id} {serialized}".encode()
        ).hexdigest()
        self._unknown_id: int | None = hf_tokenizer.unk_token_id
        if self._unknown_id in (self.bos_id, self.eos_id):  # GPT-2's one token for everything
            self._unknown_id = None
        added = hf_tokenizer.added_tokens_decoder
        special_ids = {i for i, token in added.items() if token.special}
        special_ids |= set(hf_tokenizer.all_special_ids)
        # Text that a vocabulary cannot spell becomes the unknown token: that one may appear.
        self.special_ids: frozenset[int] = frozenset(special_ids - {self._unknown_id})

    def encode(self, text: str, is_data: bool) -> list[int]:
        """The ids of `text` alone. `is_data`: special tokens in it are plain text."""
        return next(self.encode_batch([text], is_data))

    def encode_batch(self, texts: Sequence[str], is_data: bool) -> Iterator[list[int]]:
        """`encode` for many texts on all cores, in order."""
        for start in range(0, len(texts), _CHUNK):
            chunk = list(texts[start : start + _CHUNK])
            self._backend.encode_special_tokens = is_data
            for encoding in self._backend.encode_batch_fast(chunk, add_special_tokens=False):
                yield self._without_special(encoding.ids) if is_data else encoding.ids

    def encode_inputs(
        self, texts: Sequence[str], pairs: Sequence[str], max_length: int
    ) -> Iterator[tuple[Any, int]]:
        """Whole inputs of an encoder: (a `tokenizers.Encoding` with the family's marks, ids cut).

        A text without a pair has an empty one. What does not fit is cut from the longer text's
        end; special tokens in texts are plain text. Raises InputError where not even the marks fit.
        """
        backend = self._whole
        backend.encode_special_tokens = True
        for start in range(0, len(texts), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            firsts = backend.encode_batch(list(texts[chunk]), add_special_tokens=False)
            seconds = backend.encode_batch(list(pairs[chunk]), add_special_tokens=False)
            for first, second, pair in zip(firsts, seconds, pairs[chunk], strict=True):
                room = max_length - backend.num_special_tokens_to_add(bool(pair))
                if room < (2 if pair else 1):
                    raise InputError(
                        f"max_length is {max_length}, which leaves no room beside the special "
                        "tokens; raise train.max_length"
                    )
                whole = len(first) + len(second)
                first_room, second_room = _longest_first(len(first), len(second), room)
                first.truncate(first_room)
                second.truncate(second_room)
                yield backend.post_process(first, second if pair else None), max(0, whole - room)

    def check_end(self, end_id: int) -> None:
        """Raise InputError where whole inputs do not end with this id, at which T5's heads read."""
        ((encoding, _),) = self.encode_inputs(["a"], [""], _CHUNK)
        if encoding.ids[-1:] != [end_id]:
            raise InputError(
                f"tokenizer {self.hf.name_or_path or ''} does not end a text with id {end_id}, "
                "where a T5 with heads reads it. Give the tokenizer of the checkpoint, whose "
                "post-processor adds that id (eos_token_id in config.json)"
            )

    @functools.cached_property
    def _whole(self) -> Any:
        """The tokenizer as its files have it, but for padding and truncation."""
        import tokenizers

        backend = tokenizers.Tokenizer.from_str(self._serialized)
        backend.no_padding()
        backend.no_truncation()
        return backend

    def encode_answer(self, text: str, lead: str = " ") -> list[int]:
        """The ids of an answer after the prompt's `lead` (the space after a cue), without eos."""
        return self.encode(lead + text, is_data=True)

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """The text of `ids`, special tokens left out. A leading space stays where ids hold one."""
        return self._backend.decode(list(map(int, ids)), skip_special_tokens=True)

    @property
    def render(self) -> Callable[[Sequence[Mapping[str, str]], bool], str] | None:
        """Writes a conversation by the chat template, None where there is none.

        Without the beginning-of-sequence token, which is an id of its own here. Raises InputError
        where the template refuses the conversation.
        """
        if not self.hf.chat_template:
            return None

        def render(messages: Sequence[Mapping[str, str]], answers: bool) -> str:
            try:
                text = self.hf.apply_chat_template(
                    list(messages),
                    tokenize=False,
                    add_generation_prompt=answers,
                    date_string=_DATE,
                )
            except Exception as error:  # whatever a template raises
                raise InputError(
                    f"the tokenizer's chat template: {_first_line(error)}. Choose another "
                    "prompt.wrapper"
                ) from error
            return text.removeprefix(self.hf.bos_token or "")

        return render

    def save(self, directory: str | Path) -> None:
        """Write Hugging Face tokenizer files that `load` and transformers read."""
        self.hf.save_pretrained(str(directory))

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a directory of tokenizer files, or a hub id.

        Files without a config are taken by their names: `tokenizer.model` as Llama 2,
        `vocab.txt` as BERT, `vocab.json` with `merges.txt` as RoBERTa or GPT-2. Raises InputError
        where nothing is found and ArtifactError where files are there but cannot be read.
        """
        transformers = _transformers()

        directory = Path(path)
        if not directory.is_dir():
            try:
                return cls(transformers.AutoTokenizer.from_pretrained(str(path)))
            except (OSError, ValueError) as error:
                raise InputError(
                    f"no tokenizer at {path}: no such directory, and from the hub: "
                    f"{_first_line(error)}"
                ) from error
        names = {file.name for file in directory.iterdir()}
        if not names & {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"}:
            raise InputError(
                f"{path} holds no tokenizer; expected tokenizer.json, tokenizer.model, "
                "vocab.txt, or vocab.json with merges.txt"
            )
        try:
            hf_class: Any = transformers.AutoTokenizer
            if not names & {"tokenizer.json", "tokenizer_config.json", "config.json"}:
                if "tokenizer.model" in names:
                    hf_class = transformers.LlamaTokenizer
                elif "vocab.txt" in names:
                    hf_class = transformers.BertTokenizerFast
                elif "<s>" in json.loads((directory / "vocab.json").read_text(encoding="utf-8")):
                    hf_class = transformers.RobertaTokenizer
                else:
                    hf_class = transformers.GPT2Tokenizer
            return cls(hf_class.from_pretrained(directory, trust_remote_code=False))
        except InputError:
            raise
        except BaseException as error:  # broken files raise bare Exceptions of several kinds
            is_panic = type(error).__name__ == "PanicException"  # of Rust: no Exception
            if not isinstance(error, Exception) and not is_panic:
                raise
            raise ArtifactError(
                f"{path}: the tokenizer cannot be read: {_first_line(error)}"
            ) from error

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Train byte-level BPE with `<s>`, `</s>` and `<pad>`; the same texts give the same ids."""
        import tokenizers

        transformers = _transformers()
        backend = tokenizers.Tokenizer(tokenizers.models.BPE())
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
            [
                tokenizers.pre_tokenizers.Split(tokenizers.Regex(_WORD), "isolated"),
                tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.decoder = tokenizers.decoders.ByteLevel()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        smallest = len(alphabet) + 3
        if not smallest <= vocab_size <= _MOST:
            raise InputError(
                f"tokenizer.vocab_size is {vocab_size:,}; expected {smallest} (what the bytes and "
                f"special tokens alone take) to {_MOST:,}"
            )
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[_BOS, _EOS, _PAD],
            initial_alphabet=alphabet,
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        ids = [(token, backend.token_to_id(token)) for token in (_BOS, _EOS)]
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{_BOS} $A {_EOS}",
            pair=f"{_BOS} $A {_EOS} {_EOS} $B {_EOS}",
            special_tokens=ids,
        )
        return cls(
            transformers.PreTrainedTokenizerFast(
                tokenizer_object=backend, bos_token=_BOS, eos_token=_EOS, pad_token=_PAD
            )
        )

    def _without_special(self, ids: list[int]) -> list[int]:
        """Some vocabularies (Unigram) spell "</s>" with the special id itself: make it unknown."""
        if self.special_ids.isdisjoint(ids):
            return ids
        replacement = [] if self._unknown_id is None else [self._unknown_id]
        return [i for token in ids for i in (replacement if token in self.special_ids else [token])]


def _transformers() -> Any:
    """The library, without its advice that PyTorch is missing: only its tokenizers are used."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    return transformers


def _piecewise(serialized: str) -> Any:
    """A `tokenizers.Tokenizer` that neither pads, truncates, nor puts a space before a text."""
    import tokenizers

    fields = json.loads(serialized)
    fields["truncation"] = fields["padding"] = None
    pre_tokenizer = fields["pre_tokenizer"] or {}
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    for step in steps:
        if step.get("type") == "ByteLevel":
            step["add_prefix_space"] = False
        elif step.get("type") == "Metaspace" and len(steps) == 1:
            # After a split at white space (T5) "▁" marks every word and has to stay.
            step["prepend_scheme"] = "never"
    normalizer = fields["normalizer"] or {}
    if normalizer.get("type") == "Prepend":
        fields["normalizer"] = None
    elif normalizer.get("type") == "Sequence":
        kept = [step for step in normalizer["normalizers"] if step["type"] != "Prepend"]
        normalizer["normalizers"] = kept
    return tokenizers.Tokenizer.from_str(json.dumps(fields))


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Lengths of two texts that fit into `room` together, the longer one cut first.

    >>> _longest_first(9, 3, 8)            # (5, 3)
    """
    excess = max(0, first + second - room)
    one = min(excess, max(0, first - second))
    two = min(excess, max(0, second - first))
    rest = excess - one - two
    return first - one - rest // 2, second - two - (rest - rest // 2)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
