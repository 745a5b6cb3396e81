"""The models that are measured, each with the loss of one example and a random batch.

Files: `networks` (MLP, small CNN), `convolutional`, `recurrent`, `transformers` (of Flax's layers),
`llama` (transformers in plain JAX: LoRA and experts, too) and `diffusion` (Equinox). An entry of
`PROBLEMS` builds its problem; with `small=True` one of a few numbers, for tests.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from .convolutional import depthwise_cnn, resnet18_gn, unet, wrn_weight_standardised
from .diffusion import diffusion_mixer
from .llama import dispatched, experts, llama_scan_remat, lora_merged, sorted_by_expert
from .networks import mlp, small_cnn
from .problem import Problem as Problem
from .recurrent import bilstm_optimized, lstm
from .transformers import (
    bert_vmapped_lookups,
    gpt2_tied_embedding,
    gpt_tied,
    transformer,
    transformer_long,
    vit,
)

PROBLEMS: dict[str, Callable[..., Problem]] = {
    "small_cnn": small_cnn,
    "mlp_small": partial(mlp, 512),
    "transformer_d256_t64": partial(transformer, 256, 64, 64),
    "transformer_d256_t64_micro16": partial(transformer, 256, 64, 64, microbatch_size=16),
    "transformer_d256_t256": partial(transformer, 256, 256, 16),
    "transformer_d512_t64": partial(transformer, 512, 64, 32, heads=8),
    "vit_d256": vit,
    "resnet18_gn": resnet18_gn,
    "mlp_wide": lambda small=False: replace(mlp(2048, small), dense_fits=False),
    "llama_scan_remat": llama_scan_remat,
    "gpt_tied": gpt_tied,
    "lstm": lstm,
    "bilstm_optimized": bilstm_optimized,
    "vit_dead_use": partial(vit, dead_use=True),
    "depthwise_cnn": depthwise_cnn,
    "wrn_weight_standardised": wrn_weight_standardised,
    "unet": unet,
    "diffusion_mixer": diffusion_mixer,
    "bert_vmapped_lookups": bert_vmapped_lookups,
    "experts": partial(experts, dispatched, "dense dispatch", 32),
    "experts_ragged": partial(experts, sorted_by_expert, "sorted", 16),
    "lora_merged": lora_merged,
    "transformer_long": transformer_long,
    "gpt2_tied_embedding": gpt2_tied_embedding,
}
LONG = ["transformer_long", "gpt2_tied_embedding"]  # seconds or minutes a gradient
SUITES = {
    "quick": ["small_cnn", "mlp_small", "transformer_d256_t64"],
    "full": [name for name in PROBLEMS if name not in LONG],
    "long": LONG,
}
