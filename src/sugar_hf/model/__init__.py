"""The model that travels to the Hub: configuration, model, processor and pipelines.

Importing this package registers them with the Auto classes and `pipeline`, as transformers has no plug-in mechanism.
"""

from .adapters import AdapterSwitch, adapter_off, adapter_on, merge_adapter
from .configuration_sugar import SugarConfig
from .embedding_sugar import PrefixCheck, check_prefix_embeddings
from .hub import export_for_hub, push_to_hub
from .modeling_sugar import RetrievalHead, SugarForConditionalGeneration, SugarOutput, pool_slices
from .native_export import ServingReport, export_for_serving
from .pipeline_sugar import (
    CandidateIndex,
    RetrievalIndex,
    SugarGenerationPipeline,
    SugarRetrievalPipeline,
)
from .processing_sugar import SugarProcessor
from .registration import DefaultModel, register, register_pipelines
from .whitening import whiten_head

register()

__all__ = [
    "AdapterSwitch",
    "CandidateIndex",
    "DefaultModel",
    "PrefixCheck",
    "RetrievalHead",
    "RetrievalIndex",
    "ServingReport",
    "SugarConfig",
    "SugarForConditionalGeneration",
    "SugarGenerationPipeline",
    "SugarOutput",
    "SugarProcessor",
    "SugarRetrievalPipeline",
    "adapter_off",
    "adapter_on",
    "check_prefix_embeddings",
    "export_for_hub",
    "export_for_serving",
    "merge_adapter",
    "pool_slices",
    "push_to_hub",
    "register",
    "register_pipelines",
    "whiten_head",
]
