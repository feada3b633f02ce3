"""From settings to an engine that is ready to run: for the server's launch file and the LLM.

Owns what follows from settings together with a model: dtype, tokenizer, longest sequence, number of pages.

Invariant: a LoadedEngine that exists fits: weights and pages were within free memory, the tokenizer's ids
within the model's vocabulary, the length within its positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from prefixlab.core.clock import Clock
from prefixlab.core.config import did_you_mean
from prefixlab.core.errors import ConfigError, EngineError
from prefixlab.core.seams import Tokenizer
from prefixlab.core.text.byte_tokenizer import ByteTokenizer
from prefixlab.engine.config import EngineConfig
from prefixlab.engine.hub import locate
from prefixlab.engine.kv_pool import KVPool, choose_num_pages, free_memory_bytes, page_bytes
from prefixlab.engine.model_config import ModelConfig, check_max_model_len, read_model_config
from prefixlab.engine.models.decoder import Decoder
from prefixlab.engine.runner import TorchRunner
from prefixlab.engine.shapes import SHAPES
from prefixlab.engine.tokenizer import HFTokenizer
from prefixlab.engine.weights import dummy_weights, load_weights

BYTE = "byte"
"""What `--tokenizer` calls the built-in tokenizer."""


@dataclass(frozen=True)
class LoadedEngine:
    """A model ready to run, and what its drivers need to know of it.

    Attributes:
        model_name: as clients name it: a folder's last part, a hub id or built-in name in full.
        max_model_len: longest prompt plus output, in tokens.
        eos_token_ids: the model's and the tokenizer's.
        weights: where they came from: "safetensors" or "dummy".
        dtype: of weights and KV.
    """

    config: EngineConfig
    model: ModelConfig
    runner: TorchRunner
    tokenizer: Tokenizer
    model_name: str
    max_model_len: int
    page_size: int
    num_pages: int
    eos_token_ids: frozenset[int]
    weights: str
    dtype: str

    def describe(self) -> str:
        """One line for a log: what runs, how large, with which seed."""
        kv_bytes = self.num_pages * self.runner.pool.page_bytes
        deterministic = ", deterministic" if self.config.deterministic else ""
        return (
            f"{self.model_name} ({self.model.architecture}, {self.model.num_parameters / 1e6:.1f}M "
            f"parameters, {self.weights} weights, {self.dtype}{deterministic}) on {self.config.device}, "
            f"{torch.get_num_threads()} threads; {self.num_pages:,} KV pages of {self.page_size} tokens "
            f"({kv_bytes / 2**20:,.0f} MiB), up to {self.max_model_len:,} tokens a request; "
            f"seed {self.config.seed}"
        )


def load_engine(
    config: EngineConfig, *, page_size: int, num_pages: int | None, max_running_requests: int, clock: Clock
) -> LoadedEngine:
    """Load the model and make its KV pool.

    Args:
        page_size: tokens per page.
        num_pages: pages to make; None: as `config.kv_memory_bytes` or free memory says.
        max_running_requests: beyond what these could fill, no pages are made by default.
        clock: what the runner times its steps on.

    Raises:
        ConfigError: settings that contradict the model or each other.
        EngineError: the model cannot be read, is not supported, or does not fit into memory.
    """
    folder, model = _find_model(config)
    is_dummy = config.load_format == "dummy" or folder is None
    dtype_name = model.dtype if config.dtype == "auto" else config.dtype
    dtype = torch.float32 if dtype_name == "float32" else torch.bfloat16
    max_model_len = check_max_model_len(model, config.max_model_len)
    tokenizer = _make_tokenizer(config, folder, model)
    _check_weights_fit(config, model, dtype_name)

    if is_dummy or folder is None:
        weights = dummy_weights(model, dtype, config.seed)
    else:
        weights = load_weights(folder, model, dtype)
    num_pages = choose_num_pages(
        page_bytes(model, page_size, dtype),
        num_pages=num_pages,
        kv_memory_bytes=config.kv_memory_bytes,
        useful_pages=max_running_requests * -(-max_model_len // page_size),
        free_bytes=free_memory_bytes(),
    )
    pool = KVPool(model, num_pages, page_size, dtype)
    decoder = Decoder(model, weights, max_model_len)
    return LoadedEngine(
        config=config,
        model=model,
        runner=TorchRunner(decoder, pool, clock, seed=config.seed, deterministic=config.deterministic),
        tokenizer=tokenizer,
        model_name=_model_name(config.model),
        max_model_len=max_model_len,
        page_size=page_size,
        num_pages=num_pages,
        eos_token_ids=frozenset(model.eos_token_ids) | tokenizer.eos_token_ids,
        weights="dummy" if is_dummy else "safetensors",
        dtype=dtype_name,
    )


def _find_model(config: EngineConfig) -> tuple[Path | None, ModelConfig]:
    """The model's folder, None for a built-in shape, and its shape."""
    shape = SHAPES.get(config.model)
    if shape is None:
        try:
            folder = locate(config.model, config.revision, with_weights=config.load_format != "dummy")
        except EngineError as error:
            raise EngineError(
                f"--model {config.model}: {error}{did_you_mean(config.model, SHAPES)} "
                f"(built-in shapes: {', '.join(SHAPES)})"
            ) from error
        return folder, read_model_config(folder)
    if config.revision is not None:
        raise ConfigError(f"--revision {config.revision}: {config.model} is built in, and has no revisions")
    if config.load_format == "safetensors" or (config.load_format == "auto" and config.model != "tiny"):
        raise ConfigError(
            f"--model {config.model} is a built-in shape without weights: --load-format dummy makes random "
            "ones; for real ones name a folder or a hub id"
        )
    return None, shape


def _model_name(model: str) -> str:
    path = Path(model).expanduser()
    return path.resolve().name if model not in SHAPES and path.is_dir() else model


def _make_tokenizer(config: EngineConfig, folder: Path | None, model: ModelConfig) -> Tokenizer:
    """The named one, else the folder's, else the byte tokenizer over the model's whole vocabulary."""
    if config.tokenizer == BYTE or (config.tokenizer is None and folder is None):
        return ByteTokenizer(model.vocab_size)
    if config.tokenizer is not None:
        folder = locate(config.tokenizer, with_weights=False)
    assert folder is not None
    tokenizer = HFTokenizer(folder)
    if tokenizer.vocab_size > model.vocab_size:
        raise ConfigError(
            f"the tokenizer of {folder} has {tokenizer.vocab_size} ids, the model {model.vocab_size}"
        )
    return tokenizer


def _check_weights_fit(config: EngineConfig, model: ModelConfig, dtype_name: str) -> None:
    asked, free = model.weight_bytes(dtype_name), free_memory_bytes()
    if asked > free:
        raise EngineError(
            f"the weights of {config.model} need {asked:,} bytes in {dtype_name}, and {free:,} bytes of "
            "memory are free"
        )
