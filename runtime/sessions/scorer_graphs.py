"""The scorer as two graphs for a CPU: one prepares texts, the other scores a block of pairs.

``scorer.onnx`` and ``training/scorer.py`` state the formulas (Ma et al., "X-CLIP", ACM MM 2022).
These graphs compute the same, in another order of work:

- All that depends on the texts alone is computed once, not with every block of videos.
- The frame-word grain attends over words and over frames. Both softmaxes divide the same powers
  by another sum. With one exponent for each video, exp(x - max + 75), one exponential serves both.

The second has a price. A row whose largest similarity lies 144 or more below the video's largest
has powers that leave FP32's range. In similarities of unit vectors, 144 is a difference of 1.44.
The block reports each video's least sum, so that the caller can score such videos by
``scorer.onnx``.
"""

from __future__ import annotations

import numpy as np

from xclip_deploy.runtime.arrays import Float32Array
from xclip_deploy.runtime.grains import GRAINS, TEMPERATURE, Grain
from xclip_deploy.runtime.manifest import DType
from xclip_deploy.runtime.model_config import ModelConfig
from xclip_deploy.runtime.scorer_weights import ScorerWeights
from xclip_deploy.runtime.sessions.onnx_writer import FLOAT, GraphWriter

LEAST_SUM = "least_sum"
"""Output [V] of the block: the least sum of powers in any row of a video."""
SAFE_SUM = 1e-30
"""Least sum of powers that is right. Powers that FP32 rounds to 0 are below 1.2e-38 each."""
_LARGEST_EXPONENT = 75.0
"""Exponent of each video's largest power. The sum of 32 x 1,000 such powers stays in FP32."""

_SENTENCES = "sentences"  # [T, D], sentence @ global_mat_weight
_SCALED_SENTENCES = "scaled_sentences"  # [T, D], sentence / temperature
_SCALED_WORDS = "scaled_words"  # [D, T W], words / temperature
_PROJECTED_WORDS = "projected_words"  # [D, T W], words @ local_mat_weight / temperature
_TEXT_SIDE = {
    Grain.VIDEO_SENTENCE: _SENTENCES,
    Grain.VIDEO_WORD: _SCALED_WORDS,
    Grain.FRAME_SENTENCE: _SCALED_SENTENCES,
    Grain.FRAME_WORD: _PROJECTED_WORDS,
}
WORDS_SIDE = frozenset({_SCALED_WORDS, _PROJECTED_WORDS})
"""Outputs of the graph of texts that are [D, T W]. The others are [T, D]."""
IS_WORD, IS_FRAME = "is_word", "is_frame"
"""Inputs of the block where padding is masked: bool [T, W] and [V, F]."""


def text_graph(config: ModelConfig, weights: ScorerWeights) -> bytes:
    """Return the graph that prepares texts: text features in, inputs of the block out."""
    writer = GraphWriter("scorer_texts")
    dim, words = config.embed_dim, config.max_words
    shapes = {"sentence_features": ("texts", dim), "word_features": ("texts", words, dim)}
    needed = {GRAINS[grain].text for grain in config.grains}
    given = {
        name: writer.add_input(name, DType.FLOAT32, *shape)
        for name, shape in shapes.items()
        if name in needed
    }
    heat = writer.scalar(TEMPERATURE)
    matrices = weights.matrices

    def flat_words(matrix: Float32Array | None) -> str:
        rows = writer.node("Reshape", given["word_features"], writer.integers(-1, dim))
        if matrix is not None:
            rows = writer.node("MatMul", rows, writer.constant(matrix))
        return writer.node("Transpose", writer.node("Div", rows, heat), perm=(1, 0))

    for grain in config.grains:
        name = _TEXT_SIDE[grain]
        if grain is Grain.VIDEO_SENTENCE:
            value = given["sentence_features"]
            if "global_mat_weight" in matrices:
                matrix = writer.constant(matrices["global_mat_weight"])
                value = writer.node("MatMul", value, matrix)
        elif grain is Grain.FRAME_SENTENCE:
            value = writer.node("Div", given["sentence_features"], heat)
        else:
            is_projected = grain is Grain.FRAME_WORD
            value = flat_words(matrices["local_mat_weight"] if is_projected else None)
        shape = ("texts", dim) if GRAINS[grain].text == "sentence_features" else (dim, "rows")
        writer.add_output(writer.node("Identity", value, named=name), DType.FLOAT32, *shape)
    return writer.to_bytes()


def block_graph(config: ModelConfig, weights: ScorerWeights, gallery: DType) -> bytes:
    """Return the graph that scores a block: prepared texts and video features in, scores out.

    ``gallery``: dtype of the video features, FP16 or FP32. The outputs are those of
    ``scorer.onnx``, and :data:`LEAST_SUM` where the model has the frame-word grain.

    Calling a node costs about a microsecond, and a block of one text takes a millisecond. The
    graph therefore has as few nodes as possible: constants hold the temperature, and no node
    renames an output.
    """
    return _Block(config, weights, gallery).to_bytes()


class _Block:
    """The block's graph. Each grain's method returns its similarities [T, V]."""

    def __init__(self, config: ModelConfig, weights: ScorerWeights, gallery: DType) -> None:
        self._writer = writer = GraphWriter("scorer_block")
        self._config, self._weights = config, weights
        dim, words, frames = config.embed_dim, config.max_words, config.max_frames
        self._texts = {}
        for grain in config.grains:
            name = _TEXT_SIDE[grain]
            is_sentence = GRAINS[grain].text == "sentence_features"
            shape = ("texts", dim) if is_sentence else (dim, "rows")
            self._texts[grain] = writer.add_input(name, DType.FLOAT32, *shape)
        shapes = {"video_features": ("videos", dim), "frame_features": ("videos", frames, dim)}
        needed = {GRAINS[grain].video for grain in config.grains}
        self._videos = {
            name: self._as_number(writer.add_input(name, gallery, *shape))
            for name, shape in shapes.items()
            if name in needed
        }
        self._is_word = self._is_frame = None
        if config.mask_padding:
            if any(GRAINS[grain].reads_words for grain in config.grains):
                self._is_word = writer.add_input(IS_WORD, "bool", "texts", words)
            if any(GRAINS[grain].reads_frames for grain in config.grains):
                self._is_frame = writer.add_input(IS_FRAME, "bool", "videos", frames)
        compare = {
            Grain.VIDEO_SENTENCE: self._video_sentence,
            Grain.VIDEO_WORD: self._video_word,
            Grain.FRAME_SENTENCE: self._frame_sentence,
            Grain.FRAME_WORD: self._frame_word,
        }
        found = [compare[grain](grain.value) for grain in config.grains]
        factor = writer.scalar(weights.score_scale / len(found))
        writer.node("Mul", writer.node("Sum", *found), factor, named="logits")
        for name in ("logits", *found):
            writer.add_output(name, DType.FLOAT32, "texts", "videos")

    def to_bytes(self) -> bytes:
        return self._writer.to_bytes()

    def _matrix(self, name: str, *, scale: float = 1.0, is_transposed: bool = False) -> str:
        matrix = self._weights.matrices[name] * np.float32(scale)
        return self._writer.constant(matrix.T if is_transposed else matrix)

    def _attend(
        self,
        x: str,
        matrix: str,
        is_valid: str | None,
        *,
        scale: float = TEMPERATURE,
        named: str | None = None,
    ) -> str:
        """Aggregate over the last axis; see ``attend`` of the scorer. Returns ``scale`` times A."""
        writer = self._writer
        logits = x
        if is_valid is not None:
            logits = writer.node("Where", is_valid, x, writer.scalar(-np.inf))
        powers = writer.node("Softmax", logits, axis=-1)
        product = writer.node(
            "Mul", writer.node("MatMul", powers, self._matrix(matrix, scale=scale)), x
        )
        if is_valid is not None:
            product = writer.node("Mul", product, self._as_number(is_valid))
        return writer.node("ReduceSum", product, writer.integers(-1), named=named, keepdims=0)

    def _as_number(self, value: str) -> str:
        return self._writer.node("Cast", value, to=FLOAT)  # FP32

    def _video_sentence(self, name: str) -> str:
        texts, videos = self._texts[Grain.VIDEO_SENTENCE], self._videos["video_features"]
        return self._writer.node("Gemm", texts, videos, named=name, transB=1)

    def _video_word(self, name: str) -> str:
        writer = self._writer
        products = writer.node(
            "MatMul", self._videos["video_features"], self._texts[Grain.VIDEO_WORD]
        )
        shape = writer.integers(0, -1, self._config.max_words)
        x = writer.node("Reshape", products, shape)  # [V, T, W]
        found = self._attend(x, "word_logit_weight", self._is_word)
        return writer.node("Transpose", found, named=name, perm=(1, 0))

    def _frame_sentence(self, name: str) -> str:
        writer = self._writer
        rows = writer.node(
            "Reshape",
            self._videos["frame_features"],
            writer.integers(-1, self._config.embed_dim),
        )
        products = writer.node("Gemm", self._texts[Grain.FRAME_SENTENCE], rows, transB=1)
        shape = writer.integers(0, -1, self._config.max_frames)
        x = writer.node("Reshape", products, shape)  # [T, V, F]
        return self._attend(x, "frame_logit_weight", self._is_frame, named=name)

    def _frame_word(self, name: str) -> str:
        writer, config = self._writer, self._config
        words, frames = config.max_words, config.max_frames
        x = writer.node(
            "MatMul", self._videos["frame_features"], self._texts[Grain.FRAME_WORD]
        )  # [V, F, T W]
        largest = writer.node("ReduceMax", x, writer.integers(1, 2), keepdims=1)
        origin = writer.node("Sub", largest, writer.scalar(_LARGEST_EXPONENT))
        powers = writer.node("Exp", writer.node("Sub", x, origin))
        # [V, F, T W] and [V, F, T, W] are the same memory; nothing is moved.
        split = writer.integers(0, frames, -1, words)
        wide_x, wide_powers = (writer.node("Reshape", value, split) for value in (x, powers))
        if self._is_frame is not None:
            mask = writer.node(
                "Unsqueeze", self._as_number(self._is_frame), writer.integers(2)
            )  # [V, F, 1]
            x, powers = (writer.node("Mul", value, mask) for value in (x, powers))
        if self._is_word is not None:
            mask = self._as_number(self._is_word)  # [T, W]
            wide_x, wide_powers = (writer.node("Mul", v, mask) for v in (wide_x, wide_powers))
        # Over frames. A product with ones sums a middle axis faster than ReduceSum does.
        ones = writer.constant(np.ones((1, frames), dtype=np.float32))
        mixed = writer.node("MatMul", self._matrix("frame_mat_weight"), x)
        weighted = writer.node("MatMul", ones, writer.node("Mul", powers, mixed))
        sums = writer.node("MatMul", ones, powers)  # [V, 1, T W]
        least = self._least(sums)
        found = writer.node("Div", weighted, sums)
        found = writer.node("Reshape", found, writer.integers(0, -1, words))  # [V, T, W]
        half = TEMPERATURE / 2  # the grain is the mean of both orders
        frames_first = self._attend(found, "word_mat_weight2", self._is_word, scale=half)  # [V, T]
        # Over words.
        mixed = writer.node("MatMul", wide_x, self._matrix("word_mat_weight", is_transposed=True))
        last = writer.integers(-1)
        product = writer.node("Mul", wide_powers, mixed)
        weighted = writer.node("ReduceSum", product, last, keepdims=0)
        sums = writer.node("ReduceSum", wide_powers, last, keepdims=0)  # [V, F, T]
        writer.node("Min", least, self._least(sums), named=LEAST_SUM)
        writer.add_output(LEAST_SUM, DType.FLOAT32, "videos")
        found = writer.node("Transpose", writer.node("Div", weighted, sums), perm=(0, 2, 1))
        is_frame = self._is_frame
        if is_frame is not None:
            is_frame = writer.node("Unsqueeze", is_frame, writer.integers(1))  # [V, 1, F]
        words_first = self._attend(found, "frame_mat_weight2", is_frame, scale=half)  # [V, T]
        both = writer.node("Add", words_first, frames_first)
        return writer.node("Transpose", both, named=name, perm=(1, 0))

    def _least(self, sums: str) -> str:
        writer = self._writer
        return writer.node("ReduceMin", sums, writer.integers(1, 2), keepdims=0)
