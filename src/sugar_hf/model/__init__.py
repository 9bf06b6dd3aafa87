"""The model that travels to the Hub: configuration, model, processor and pipelines.

Importing this package registers them with the Auto classes and `pipeline`, as transformers has no plug-in mechanism.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .adapters_sugar import AdapterSwitch, adapter_off, adapter_on, merge_adapter
from .configuration_sugar import SugarConfig
from .hub import export_for_hub, push_to_hub
from .modeling_sugar import RetrievalHead, SugarForConditionalGeneration, SugarOutput, pool_slices
from .pipeline_sugar import (
    PIPELINES,
    CandidateIndex,
    DefaultModel,
    RetrievalIndex,
    SugarGenerationPipeline,
    SugarRetrievalPipeline,
)
from .prefixes_sugar import PrefixCheck, check_prefix_embeddings
from .processing_sugar import SugarProcessor
from .sentence_transformers_sugar import hand_over


def register() -> None:
    """Make the Auto classes, `pipeline` and sentence-transformers know Sugar. Repeating it does no harm."""
    AutoConfig.register(SugarConfig.model_type, SugarConfig, exist_ok=True)
    for auto_class in (AutoModel, AutoModelForImageTextToText, AutoModelForCausalLM):
        auto_class.register(SugarConfig, SugarForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(SugarConfig, SugarProcessor, exist_ok=True)
    for task, pipeline_class in PIPELINES.items():
        if task not in PIPELINE_REGISTRY.get_supported_tasks():
            PIPELINE_REGISTRY.register_pipeline(
                task, pipeline_class, pt_model=AutoModel, default=DefaultModel(), type="multimodal"
            )
    hand_over()


register()

__all__ = [
    "AdapterSwitch",
    "CandidateIndex",
    "PrefixCheck",
    "RetrievalHead",
    "RetrievalIndex",
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
    "merge_adapter",
    "pool_slices",
    "push_to_hub",
    "register",
]
